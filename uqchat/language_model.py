"""A loaded language model that answers with risk on every token: what `uqchat.load` returns.

Ties engine, estimators and scoring together for scripts, shell and page. Knows no storage and no interface.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from uqchat.answering import Answering, drain
from uqchat.artifacts import EstimatorChoice, Shelf
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Backend, Request
from uqchat.engine.decode import Engine
from uqchat.engine.direct import DirectReader
from uqchat.engine.prompt import Prompt, build_prompt
from uqchat.engine.text import find_reasoning_tags
from uqchat.engine.worker import Worker
from uqchat.errors import InputError
from uqchat.estimators import ESTIMATORS, Estimator
from uqchat.models import LoadedModel, load_model
from uqchat.quick_imports import quick_imports
from uqchat.scoring import refusal, signals_for
from uqchat.teams import in_a_thread
from uqchat.types import Answer, Message, ScoredToken, as_messages

Messages = str | Iterable[Message | Mapping[str, Any]]
DEFAULT_ESTIMATORS = ("entropy",)


def load(
    name: str = "embedded", device: str | None = None, dtype: Any = None, quantization: str | None = None
) -> LanguageModel:
    """Load a language model.

    Args:
        name: "embedded", a Hub id, a folder or a GGUF file.
        device: "cpu", "cuda", "mps", or None to choose.
        dtype: None chooses; a name such as "float32", or a torch dtype.
        quantization: None, "int8", "bnb-8bit" or "bnb-4bit".

    Raises:
        UqchatError: the model cannot be found, fetched, read or run; the text names the way out.
    """
    with quick_imports():
        return from_loaded(in_a_thread(lambda: load_model(name, device, dtype, quantization)))


def from_loaded(loaded: LoadedModel, max_waiting: int = 1024) -> LanguageModel:
    """A `LanguageModel` around an already loaded model."""
    return LanguageModel(loaded, max_waiting)


class LanguageModel:
    """Answers and scores; may be used from several threads, whose answers then share one batch.

    Messages are `Message`s, {"role", "content"} mappings, or one string. Estimators are names, or folders or Hub ids of
    trained ones; risks are keyed by the string given.

    Args:
        backend: where the steps come from when that is not the local engine; `loaded.model` may be None then.
    """

    def __init__(self, loaded: LoadedModel, max_waiting: int = 1024, backend: Backend | None = None) -> None:
        self.info = loaded
        self.engine = backend or in_a_thread(lambda: Engine(loaded.model, loaded.tokenizer))
        template, vocabulary = getattr(loaded.tokenizer, "chat_template", None), loaded.tokenizer.get_vocab()
        self._tags = find_reasoning_tags(template, vocabulary)
        self._shelf = Shelf(self)
        self._max_waiting = max_waiting
        self._worker: Worker | DirectReader | None = None
        self._worker_pid = 0
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def name(self) -> str:
        """The name it was loaded by."""
        return self.info.name

    @property
    def model(self) -> Any:
        """The transformers model, usable as ever between requests; None where a backend computes elsewhere."""
        return self.info.model

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.info.tokenizer

    @property
    def available(self) -> list[EstimatorChoice]:
        """The estimators that have a name here, untrained ones first; `refusal` says why one cannot be used."""
        return [self._checked(choice) for choice in self._shelf.choices()]

    def describe(self, name: str) -> EstimatorChoice:
        """What `available` says, of any name, folder or Hub id. Raises UqchatError where there is no such estimator."""
        return self._checked(self._shelf.describe(name))

    def estimator(self, name: str) -> Estimator:
        """An estimator by name, folder or Hub id, opened once for all answers. Raises what `stream` raises."""
        return self._shelf.get(name)

    def _checked(self, choice: EstimatorChoice) -> EstimatorChoice:
        reason = choice.refusal or refusal(self.estimator(choice.name), self.engine.signals)
        return replace(choice, refusal=reason)

    @property
    def refused(self) -> dict[str, str]:
        """Names of the estimators that need more than this model's steps hold, with the reason."""
        reasons = {estimator.name: refusal(estimator, self.engine.signals) for estimator in ESTIMATORS}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def running(self) -> int:
        """Answers that wait or run."""
        return self._worker.num_open if self._worker else 0

    def close(self) -> None:
        """End all answers and free the memory."""
        with self._lock:
            self._is_closed = True
            worker, self._worker = self._worker, None
        if worker and self._worker_pid == os.getpid():
            worker.close()

    # ---- answers

    def stream(
        self,
        messages: Messages,
        estimators: str | Iterable[str] = DEFAULT_ESTIMATORS,
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  frozen
        *,
        answer_prefix: Sequence[int] = (),
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Generator[ScoredToken, None, Answer]:
        """Scored tokens as they come; the generator's return value is the `Answer`.

        A token may come again with the same index: its risks replace the earlier ones.

        Args:
            answer_prefix: ids that the answer begins with; handed out and scored like any token.
            stop: set it to end within one step, with finish_reason "cancelled"; closing the generator does so too.
            on_queue: told how many requests are ahead, whenever that changes.

        Raises:
            UqchatError: unknown estimator, unusable messages, a prompt that does not fit, a failing model.
        """
        chosen = self._choose(estimators)
        request, prompt = self._request(as_messages(messages), generation, answer_prefix, chosen)
        return self._stream(request, prompt, chosen, stop, on_queue)

    def answer(
        self,
        messages: Messages,
        estimators: str | Iterable[str] = DEFAULT_ESTIMATORS,
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  frozen
        *,
        answer_prefix: Sequence[int] = (),
    ) -> Answer:
        """The whole answer: `stream`, drained. Raises what `stream` raises."""
        return drain(self.stream(messages, estimators, generation, answer_prefix=answer_prefix))

    def answers(
        self,
        list_of_messages: Sequence[Messages],
        estimators: str | Iterable[str] = DEFAULT_ESTIMATORS,
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  frozen
    ) -> list[Answer]:
        """One answer for each conversation, in order, decoded in one batch. Raises what `stream` raises."""
        chosen = self._choose(estimators)
        return self._answering().batch(
            [self._request(as_messages(m), generation, (), chosen) for m in list_of_messages], chosen
        )

    def score(
        self,
        messages: Messages,
        answer: str | Sequence[int],
        estimators: str | Iterable[str] = DEFAULT_ESTIMATORS,
        *,
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Answer:
        """Risk of a given answer by teacher forcing: exactly one token for each given id.

        Args:
            answer: text, or token ids as the model would have generated them.
            stop: as in `stream`; the tokens read so far are returned.
            on_queue: as in `stream`.

        Raises:
            InputError: the answer is empty, holds ids outside the vocabulary, or does not fit the context window.
        """
        chosen = self._choose(estimators)
        request, prompt = self._given_request(messages, answer, chosen)
        return _as_given(drain(self._stream(request, prompt, chosen, stop, on_queue)))

    def scores(
        self,
        list_of_messages: Sequence[Messages],
        answers: Sequence[str | Sequence[int]],
        estimators: str | Iterable[str] = DEFAULT_ESTIMATORS,
    ) -> list[Answer]:
        """`score` for many conversations, read together. Raises what `score` raises."""
        if len(list_of_messages) != len(answers):
            raise InputError(f"{len(list_of_messages)} conversations but {len(answers)} answers; give one for each.")
        chosen = self._choose(estimators)
        pairs = zip(list_of_messages, answers, strict=True)
        requests = [self._given_request(messages, answer, chosen) for messages, answer in pairs]
        return [_as_given(answer) for answer in self._answering().batch(requests, chosen)]

    # ---- inside

    def _choose(self, names: str | Iterable[str]) -> list[Estimator]:
        wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
        chosen = [self.estimator(name) for name in wanted]
        for estimator in chosen:
            self._register(estimator)
        return chosen

    def _register(self, estimator: Estimator) -> None:
        """Bring an estimator's adapters into the engine, once."""
        if not estimator.adapters:
            return
        if not isinstance(self.engine, Engine):
            raise InputError(f"{estimator.label} cannot be used here: this model takes no adapters.")
        with self._lock:
            for name, adapter in estimator.adapters.items():
                if name not in self.engine.adapters:
                    self.engine.adapters.add(adapter)

    def _given_request(
        self, messages: Messages, answer: str | Sequence[int], chosen: list[Estimator]
    ) -> tuple[Request, Prompt]:
        return self._request(
            as_messages(messages), GenerationConfig(max_new_tokens=0), self._answer_ids(answer), chosen
        )

    def _answer_ids(self, answer: str | Sequence[int]) -> list[int]:
        if isinstance(answer, str):
            ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        else:
            ids = [int(token_id) for token_id in answer]
        if not ids:
            raise InputError("The answer to score is empty; give some text or token ids.")
        size = len(self.tokenizer) if self.model is None else self.model.get_input_embeddings().weight.shape[0]
        outside = [token_id for token_id in ids if not 0 <= token_id < size]
        if outside:
            raise InputError(f"Token id {outside[0]} is outside this model's vocabulary (0 to {size - 1:,}).")
        return list(ids)

    def _request(
        self, messages: Sequence[Message], generation: GenerationConfig, forced: Sequence[int], chosen: list[Estimator]
    ) -> tuple[Request, Prompt]:
        signals = signals_for(chosen, self.engine.signals)
        wanted, forced = generation.max_new_tokens + len(forced), tuple(forced)
        needed = len(forced) if generation.max_new_tokens == 0 else None
        prompt = build_prompt(messages, self.tokenizer, self.info.context_window, wanted, self._tags, needed)
        room = max(0, prompt.room - len(forced))  # what the context window leaves for new tokens
        generation = replace(generation, max_new_tokens=min(generation.max_new_tokens, room))
        return Request(prompt.ids, generation, forced, signals, prompt.open_tag), prompt

    def _get_worker(self) -> Worker | DirectReader:
        with self._lock:
            if self._is_closed:
                raise InputError("This model has been closed; load it again.")
            if self._worker is None or self._worker_pid != os.getpid():  # threads do not survive a fork
                kind = Worker if isinstance(self.engine, Engine) else DirectReader
                self._worker, self._worker_pid = kind(self.engine, self._max_waiting), os.getpid()
            return self._worker

    def _answering(self) -> Answering:
        window, available = self.info.context_window, self.engine.signals
        return Answering(self._get_worker(), self.name, self.tokenizer, window, available)

    def _stream(
        self,
        request: Request,
        prompt: Prompt,
        chosen: list[Estimator],
        stop: threading.Event | None,
        on_queue: Callable[[int], None] | None,
    ) -> Generator[ScoredToken, None, Answer]:
        return (yield from self._answering().stream(request, prompt, chosen, stop, on_queue))


def _as_given(answer: Answer) -> Answer:
    return answer if answer.finish_reason == "cancelled" else replace(answer, finish_reason="given")
