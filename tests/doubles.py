"""Stand-ins for a model and its host that answer from a script. They know no torch and no interface.

`scored_tokens(text)` builds an answer's tokens; `ScriptedLanguageModel` streams them; `ScriptedHost` is what the page
and `Conversations` talk to.
"""

from __future__ import annotations

import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uqchat.config import GenerationConfig
from uqchat.errors import ModelError
from uqchat.host_estimators import Offer
from uqchat.render_names import named
from uqchat.types import Alternative, Answer, FinishReason, Message, Risk, ScoredToken, Summary, as_messages

END_ID = 2
ESTIMATOR_NAMES = ("entropy", "max_prob", "margin", "rauq", "lookback")


def token_id_of(text: str) -> int:
    """The id that the scripted vocabulary gives to a piece of text; the same in every run."""
    return 10 + zlib.crc32(text.encode("utf-8", "surrogatepass")) % 49_000


def scored_token(index: int, text: str, start: int = 0, top: float | None = None, **changes: Any) -> ScoredToken:
    """One token whose likeliest alternative is itself, with probability `top` (varied by index if not given)."""
    top = 0.95 - 0.11 * (index % 5) if top is None else top
    other = f"{text[:1]}other{index}"
    alternatives = (
        Alternative(token_id_of(text), text, math.log(top)),
        Alternative(token_id_of(other), other, math.log((1 - top) * 0.75)),
    )
    entropy = -top * math.log(top) - (1 - top) * math.log((1 - top) * 0.75)
    risks = {
        "entropy": Risk(1 - math.exp(-entropy), entropy),
        "max_prob": Risk(1 - top, -math.log(top)),
        "margin": Risk(1 - (top - (1 - top) * 0.75), 1 - (top - (1 - top) * 0.75)),
        "rauq": Risk(1 - top * 0.9, 1 - math.log(top * 0.9)),
        "lookback": Risk(1 - top, 1 - top),
    }
    token = ScoredToken(
        index, token_id_of(text), text, (start, start + len(text)), math.log(top), entropy, alternatives, risks
    )
    return replace(token, **changes)


def scored_tokens(text: str, *, has_end: bool = True, reasoning: int = 0) -> tuple[ScoredToken, ...]:
    """Tokens of `text`: words with their leading space, then the end token; the first `reasoning` are marked so."""
    tokens: list[ScoredToken] = []
    start = 0
    for index, piece in enumerate(re.findall(r"\s?\S+|\s", text)):
        tokens.append(scored_token(index, piece, start, is_reasoning=index < reasoning))
        start += len(piece)
    if has_end:
        tokens.append(scored_token(len(tokens), "", start, token_id=END_ID, is_end=True))
    return tuple(tokens)


@dataclass(frozen=True)
class Request:
    """What one call of `stream` was given."""

    messages: tuple[Message, ...]
    estimators: tuple[str, ...]
    generation: GenerationConfig
    answer_prefix: tuple[int, ...]

    @property
    def dicts(self) -> list[dict[str, str]]:
        """The messages as {"role", "content"}."""
        return [message.to_dict() for message in self.messages]


class ScriptedLanguageModel:
    """Streams the given answers in turn, the last one for ever.

    Args:
        *answers: a text, or tokens.
        delay: seconds before each token.
        hold_after: waits before this token index until `release()` or stop, so that a test sees a half answer.
        fail_after: raises `error` before this token index.
        queue: positions reported through on_queue before the first token.
    """

    def __init__(
        self,
        *answers: str | Sequence[ScoredToken],
        delay: float = 0.0,
        hold_after: int | None = None,
        fail_after: int | None = None,
        error: Exception | None = None,
        queue: Sequence[int] = (),
        name: str = "scripted",
    ) -> None:
        given = answers or ("Paris is the capital of France.",)
        self.answers_given = [scored_tokens(a) if isinstance(a, str) else tuple(a) for a in given]
        self.name, self.delay, self.hold_after, self.queue = name, delay, hold_after, tuple(queue)
        self.fail_after, self.error = fail_after, error or RuntimeError("scripted failure")
        self.requests: list[Request] = []
        self.scored: list[tuple[tuple[Message, ...], str]] = []
        self.running = 0
        self._released = threading.Event()
        self._lock = threading.Lock()

    def release(self) -> None:
        """Lets a held answer go on; later answers are not held."""
        self._released.set()

    def stream(
        self,
        messages: Any,
        estimators: Sequence[str] = ("entropy",),
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  (frozen)
        *,
        answer_prefix: Sequence[int] = (),
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Generator[ScoredToken, None, Answer]:
        """As `LanguageModel.stream`."""
        request = Request(tuple(as_messages(messages)), tuple(estimators), generation, tuple(answer_prefix))
        stop = stop or threading.Event()
        with self._lock:
            script = self.answers_given[min(len(self.requests), len(self.answers_given) - 1)]
            self.requests.append(request)
            self.running += 1
        try:
            for position in self.queue if on_queue else ():
                on_queue(position)
            return (yield from self._tokens(request, script, stop))
        finally:
            with self._lock:
                self.running -= 1

    def score(
        self,
        messages: Any,
        answer: str,
        estimators: Sequence[str] = ("entropy",),
        *,
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Answer:
        """As `LanguageModel.score`, over the scripted vocabulary; `hold_after` and `fail_after` count here too."""
        stop = stop or threading.Event()
        self.scored.append((tuple(as_messages(messages)), answer))
        with self._lock:
            self.running += 1
        try:
            for position in self.queue if on_queue else ():
                on_queue(position)
            tokens = [
                replace(token, risks={name: token.risks[name] for name in estimators})
                for token in scored_tokens(answer, has_end=False)
            ]
            is_cancelled = any(self._is_stopped(token.index, stop) for token in tokens)
            return scripted_answer(tokens, estimators, "cancelled" if is_cancelled else "given", self.name)
        finally:
            with self._lock:
                self.running -= 1

    def answer(self, messages: Any, *args: Any, **kwargs: Any) -> Answer:
        """The drained stream."""
        stream = self.stream(messages, *args, **kwargs)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    @property
    def available(self) -> list[Offer]:
        """As `LanguageModel.available`."""
        return [offer(name) for name in ESTIMATOR_NAMES]

    def describe(self, name: str) -> Offer:
        """As `LanguageModel.describe`; there are estimators `shelf/...` that fit, and `shelf/other...` that do not."""
        if not name.startswith("shelf/"):
            raise ModelError(f"Unknown estimator {name!r}.")
        refusal = "It was made for 960 features; this model gives 576." if name.startswith("shelf/other") else None
        return offer(name, label="UQ head", card="# A head", refusal=refusal)

    def estimator(self, name: str) -> Any:
        """As `LanguageModel.estimator`, as far as the list of estimators asks."""
        from uqchat.estimators.base import Estimator  # brings torch

        return type("Scripted", (Estimator,), {"name": name, "score_token": lambda *_: {}})()

    def close(self) -> None:
        """Nothing to free."""

    def _tokens(
        self, request: Request, script: Sequence[ScoredToken], stop: threading.Event
    ) -> Generator[ScoredToken, None, Answer]:
        done: list[ScoredToken] = []
        reason: FinishReason = "stop"
        for token in with_prefix(script, request.answer_prefix, self._vocabulary()):
            if self._is_stopped(token.index, stop):
                reason = "cancelled"
                break
            if len(done) >= request.generation.max_new_tokens:
                reason = "length"
                break
            token = replace(
                token, risks={name: token.risks[name] for name in request.estimators if name in token.risks}
            )
            done[token.index :] = [token, *done[token.index + 1 :]]  # an index again is a revision
            yield token
        return scripted_answer(done, request.estimators, reason, self.name)

    def _is_stopped(self, index: int, stop: threading.Event) -> bool:
        if self.fail_after == index:
            raise self.error
        while self.hold_after == index and not self._released.wait(0.005) and not stop.is_set():
            pass
        return stop.wait(self.delay) if self.delay else stop.is_set()

    def _vocabulary(self) -> dict[int, str]:
        texts = {END_ID: ""}
        for script in self.answers_given:
            for token in script:
                texts |= {a.token_id: a.text for a in token.alternatives if not token.is_end}
                texts[token.token_id] = token.text
        return texts


def with_prefix(script: Sequence[ScoredToken], prefix: Sequence[int], vocabulary: dict[int, str]) -> list[ScoredToken]:
    """The script with its first tokens replaced by the given ids; all spans are recomputed."""
    pieces = [(token_id, vocabulary.get(token_id, f"<{token_id}>")) for token_id in prefix]
    rest = script[len(prefix) :]
    if not prefix:
        return list(script)
    tokens, start = [], 0
    for index, (token_id, text) in enumerate(pieces):
        tokens.append(scored_token(index, text, start, token_id=token_id))
        start += len(text)
    for token in rest:
        tokens.append(replace(token, index=len(tokens), span=(start, start + len(token.text))))
        start += len(token.text)
    return tokens


def scripted_answer(
    tokens: Sequence[ScoredToken], estimators: Sequence[str], reason: FinishReason = "stop", model: str = "scripted"
) -> Answer:
    """An `Answer` of these tokens: risks are means, the end token and reasoning left out."""
    counted = [token for token in tokens if not token.is_end and not token.is_reasoning]
    risks, summaries = {}, {}
    for name in estimators if counted else ():
        raw = [token.risks[name].raw for token in counted]
        values = [token.risks[name].value for token in counted]
        risks[name] = Risk(sum(values) / len(values), sum(raw) / len(raw))
        summaries[name] = Summary(sum(raw) / len(raw), max(raw), sum(raw))
    return Answer("".join(t.text for t in tokens), tuple(tokens), risks, summaries, reason, model)


def offer(name: str, **changes: Any) -> Offer:
    """An estimator as a host lists it."""
    one = named(name)
    return replace(Offer(name, one.label, unit=one.unit, value_map=one.value_map), **changes)


class ScriptedHost:
    """A host that is ready with a `ScriptedLanguageModel`; `set_state` puts it into any other state."""

    def __init__(self, *answers: str | Sequence[ScoredToken], **script: Any) -> None:
        self.language_model = ScriptedLanguageModel(*answers, **script)
        self.switches: list[str] = []
        self.set_state("ready", "The model is ready.")

    def set_state(self, state: str, message: str = "", **details: Any) -> None:
        """What `status()` says from now on."""
        self._status = {"state": state, "message": message, "done": None, "total": None, "error": None}
        self._status["offers"] = tuple(offer(name) for name in ESTIMATOR_NAMES)
        self._status |= {"details": "float32 on cpu, 2,048 tokens", **details}

    def start(self) -> None:
        """Ready already."""

    def status(self) -> Any:
        """As `ModelHost.status`."""
        from uqchat.host import HostStatus

        return HostStatus(model=self.language_model.name, **self._status)

    def stream(self, *args: Any, **kwargs: Any) -> Generator[ScoredToken, None, Answer]:
        """As `LanguageModel.stream`."""
        return self.language_model.stream(*args, **kwargs)

    def score(self, *args: Any, **kwargs: Any) -> Answer:
        """As `LanguageModel.score`."""
        return self.language_model.score(*args, **kwargs)

    @property
    def name(self) -> str:
        """As `ModelHost.name`."""
        return self.language_model.name

    def answers(self, list_of_messages: Sequence[Any], *args: Any) -> list[Answer]:
        """As `LanguageModel.answers`, one after the other."""
        return [_drained(self.stream(messages, *args)) for messages in list_of_messages]

    def scores(self, list_of_messages: Sequence[Any], answers: Sequence[str], *args: Any) -> list[Answer]:
        """As `LanguageModel.scores`, one after the other."""
        return [self.score(*pair, *args) for pair in zip(list_of_messages, answers, strict=True)]

    def release(self) -> None:
        """Lets a held answer go on."""
        self.language_model.release()

    @property
    def requests(self) -> list[Request]:
        """What every call of `stream` was given."""
        return self.language_model.requests

    def switch(self, name: str, **_options: Any) -> None:
        """Takes the new name at once."""
        self.switches.append(name)
        self.language_model.name = name

    def cancel_switch(self) -> None:
        """Nothing is under way."""

    def unload(self) -> None:
        """Leaves no model."""
        self.set_state("empty", "No model is loaded.")

    def close(self) -> None:
        """Nothing to free."""


def _drained(stream: Generator[ScoredToken, None, Answer]) -> Answer:
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Returns as soon as `condition()` holds; fails loudly if it never does."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.002)
