"""The frozen records that cross boundaries. Knows no model, no estimator and no interface.

Every record is plain data, so it pickles, compares and prints. Probabilities are natural-log (nats).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from uqchat.errors import InputError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "stop_string", "length", "cancelled", "error"]
Level = Literal["token", "sentence", "answer"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TextPart:
    """One piece of text inside a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; a plain string given as content becomes one `TextPart`."""

    role: Role
    content: tuple[TextPart, ...]

    def __init__(self, role: str, content: str | Iterable[TextPart]) -> None:
        if role not in get_args(Role):
            raise InputError(f"A message's role must be one of {', '.join(get_args(Role))}; got {role!r}.")
        parts = (TextPart(content),) if isinstance(content, str) else tuple(content)
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "content", parts)

    @property
    def text(self) -> str:
        """All text parts joined."""
        return "".join(part.text for part in self.content)

    def to_dict(self) -> dict[str, str]:
        """The {"role", "content"} form that chat templates and files use."""
        return {"role": self.role, "content": self.text}


def as_messages(messages: str | Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages from `Message`s, {"role", "content"} mappings, or one string (a single user message).

    Raises:
        InputError: an item has no role or content, or content is neither a string nor a list of text parts.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    return [item if isinstance(item, Message) else _from_mapping(item, i) for i, item in enumerate(messages)]


def _from_mapping(item: Any, position: int) -> Message:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        raise InputError(f'Message {position} must have "role" and "content"; got {str(item)[:80]!r}.')
    content = item["content"]
    if isinstance(content, str):
        return Message(item["role"], content)
    if not isinstance(content, list | tuple):
        kind = type(content).__name__
        raise InputError(f"Message {position}: content must be a string or a list of text parts; got {kind}.")
    return Message(item["role"], [_text_part(part, position) for part in content])


def _text_part(part: Any, position: int) -> TextPart:
    if isinstance(part, TextPart):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return TextPart(part["text"])
    raise InputError(f'Message {position}: a content part must be {{"type": "text", "text": ...}}; got {part!r}.')


@dataclass(frozen=True, slots=True)
class Signals:
    """What an estimator needs of each step. The engine captures the union of all that are asked for."""

    top_n: int = 0  # how many of the largest log-probabilities
    entropy: bool = False  # entropy of the full next-token distribution

    def __or__(self, other: Signals) -> Signals:
        return Signals(top_n=max(self.top_n, other.top_n), entropy=self.entropy or other.entropy)

    def missing(self, available: Signals) -> list[str]:
        """Names of the signals asked for here that `available` does not cover."""
        names = [f"top-{self.top_n} log-probabilities"] if self.top_n > available.top_n else []
        return names + (["entropy of the full distribution"] if self.entropy and not available.entropy else [])


@dataclass(frozen=True, slots=True)
class Alternative:
    """One candidate for a position; `logprob` in nats, from the raw logits at temperature 1."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One token as the engine hands it out, before any estimator has seen it.

    `span` is [start, end) in Python characters of the answer's text; an unfinished character, a special token and
    the end token have text '' and an empty span. `logprob` and `entropy` (nats) are of the raw logits.
    """

    index: int
    token_id: int
    text: str
    span: Span
    logprob: float
    entropy: float
    alternatives: tuple[Alternative, ...] = ()
    is_reasoning: bool = False
    is_end: bool = False  # an end-of-sequence id


@dataclass(frozen=True, slots=True)
class Risk:
    """`value` in [0, 1], higher is riskier; `raw` in the estimator's own unit.

    `calibration` names the scope in which `value` is a probability of error; None means a fixed, uncalibrated map.
    """

    value: float
    raw: float
    calibration: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A `TokenStep` with the risk that each selected estimator gives it."""

    index: int
    token_id: int
    text: str
    span: Span
    logprob: float
    entropy: float
    alternatives: tuple[Alternative, ...] = ()
    risks: dict[str, Risk] = field(default_factory=dict)
    is_reasoning: bool = False
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, max and sum of an estimator's raw scores over an answer."""

    mean: float
    max: float
    sum: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting in the queue, until the first token (queue left out), and all of it (queue left out)."""

    queue: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. Token texts joined give `text`; `risks` and `summaries` follow the estimators' order."""

    text: str
    tokens: tuple[ScoredToken, ...]
    risks: dict[str, Risk]
    summaries: dict[str, Summary]
    finish_reason: FinishReason
    model: str = ""
    prompt_tokens: int = 0
    dropped_messages: int = 0  # oldest messages left out because the context window was full
    timings: Timings = Timings()

    def to_json(self) -> dict[str, Any]:
        """The answer as plain dicts and lists, ready for `json.dumps`."""
        return asdict(self)
