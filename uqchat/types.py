"""The frozen records that cross boundaries. Knows no model, no estimator and no interface.

Every record is plain data, so it pickles, compares and prints. Probabilities are natural-log (nats).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from uqchat.errors import InputError

if TYPE_CHECKING:
    import torch

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "stop_string", "length", "cancelled", "error", "given"]
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
class Ensemble:
    """Voters beside an answer: each reads the prompt and every chosen token as a row of its own."""

    members: tuple[str, ...]
    """Names of adapters, one for each voter."""
    prediction: Literal["base", "mean"] = "base"
    """Whose distribution is shown and sampled: the answer's own row's, or the mean of the voters'."""


@dataclass(frozen=True, slots=True)
class Votes:
    """What an ensemble says of one token: of the voters' distributions at temperature 1, from their raw logits."""

    mutual_information: float
    """Nats, 0 to ln n: entropy of the mean distribution less the mean of the entropies."""
    vote_share: float
    """Share of the voters whose likeliest token this is."""
    probabilities: tuple[float, ...]
    """Of this token, by each voter."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What an estimator needs of each step. The engine captures the union of all that are asked for."""

    top_n: int = 0
    """How many of the largest log-probabilities."""
    entropy: bool = False
    """Entropy of the full next-token distribution."""
    hidden_layers: tuple[int, ...] = ()
    """Entries of the L+1 hidden states, 0 to L: i is the input of block i, L the final, normed state."""
    attention_lags: int = 0
    """Weights on the k newest keys; lag 0 is the token itself."""
    attention_layers: tuple[int, ...] | None = None
    """Layers whose attention is wanted; None is all."""
    prompt_rows: bool = False
    """Hidden states and attention of every prompt position too."""
    prompt_attention: bool = False
    """Each head's attention on all of the prompt together, in `attention_layers`."""
    input_ids: bool = False
    """The id that was read at the position."""
    watched_ids: tuple[int, ...] | range = ()
    """Ids whose log-probabilities are wanted, chosen or not."""
    ensembles: tuple[Ensemble, ...] = ()
    """Voters that are to judge each token."""
    voter_rows: int = 0
    """Of a source of steps: how many voters it can run beside an answer."""

    def __or__(self, other: Signals) -> Signals:
        askers = [s for s in (self, other) if s.has_attention]
        layers = None
        if askers and all(s.attention_layers is not None for s in askers):
            layers = tuple(sorted({layer for s in askers for layer in s.attention_layers or ()}))
        return Signals(
            top_n=max(self.top_n, other.top_n),
            entropy=self.entropy or other.entropy,
            hidden_layers=tuple(sorted({*self.hidden_layers, *other.hidden_layers})),
            attention_lags=max(self.attention_lags, other.attention_lags),
            attention_layers=layers,
            prompt_rows=self.prompt_rows or other.prompt_rows,
            prompt_attention=self.prompt_attention or other.prompt_attention,
            input_ids=self.input_ids or other.input_ids,
            watched_ids=tuple(dict.fromkeys((*self.watched_ids, *other.watched_ids))),
            ensembles=tuple(dict.fromkeys((*self.ensembles, *other.ensembles))),
        )

    @property
    def voters(self) -> tuple[str, ...]:
        """Adapters of all voters, each once."""
        return tuple(dict.fromkeys(name for ensemble in self.ensembles for name in ensemble.members))

    @property
    def has_attention(self) -> bool:
        """Whether anything about attention is wanted."""
        return bool(self.attention_lags or self.prompt_attention)

    @property
    def has_tensors(self) -> bool:
        """Whether anything is wanted that only a forward of the model itself can give."""
        return bool(self.hidden_layers or self.has_attention or self.input_ids)

    @property
    def _num_lags(self) -> int:
        """A source that can give windows can also sum over the prompt."""
        return max(self.attention_lags, int(self.prompt_attention))

    def missing(self, available: Signals) -> list[str]:
        """Names of the signals asked for here that `available` does not cover."""
        absent_layers = [i for i in self.hidden_layers if i not in available.hidden_layers]
        return [
            name
            for name, is_missing in (
                (f"top-{self.top_n} log-probabilities", self.top_n > available.top_n),
                ("entropy of the full distribution", self.entropy and not available.entropy),
                (f"hidden states of layer {', '.join(map(str, absent_layers))}", bool(absent_layers)),
                ("attention weights", self._num_lags > available._num_lags),
                ("log-probabilities of given tokens", any(i not in available.watched_ids for i in self.watched_ids)),
                (_voters_missing(len(self.voters), available), len(self.voters) > available.voter_rows),
            )
            if is_missing
        ]


def _voters_missing(count: int, available: Signals) -> str:
    at_most = f" (at most {available.voter_rows})" if available.voter_rows else ""
    return f"room for {count} voters beside an answer{at_most}"


@dataclass(frozen=True, slots=True)
class StepSignals:
    """Tensors of the position that predicted a token, detached, on the model's device.

    With one leading dimension P when they belong to a prompt's P - 1 earlier positions.
    """

    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (D,), the model's dtype."""
    attention: torch.Tensor | None = None
    """(layers, H, lags), float32."""
    attention_layers: tuple[int, ...] = ()
    top_logprobs: torch.Tensor | None = None
    """(top_n,), descending, when more are asked for than the alternatives hold."""
    prompt_attention: torch.Tensor | None = None
    """(layers, H), float32, in [0, 1]: the attention weights on all prompt keys, summed."""
    input_ids: torch.Tensor | None = None
    """() int64, the id read at this position."""
    prompt: StepSignals | None = None
    """With an answer's first token, when prompt rows are asked for: the positions before the one that predicted it."""
    watched: torch.Tensor | None = None
    """(len(watched_ids),), float32, nats, from the raw logits at temperature 1; not on prompt rows."""
    watched_ids: tuple[int, ...] = ()
    """Whose they are: all that the answer's estimators asked for, in that order, each once."""
    votes: Mapping[Ensemble, Votes] = field(default_factory=dict)
    """What each ensemble says of the token."""


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
    the end token have text '' and an empty span. `logprob` and `entropy` (nats) are of the raw logits; `entropy` is
    None where the source of steps does not see the whole distribution.
    """

    index: int
    token_id: int
    text: str
    span: Span
    logprob: float
    entropy: float | None
    alternatives: tuple[Alternative, ...] = ()
    is_reasoning: bool = False
    is_end: bool = False  # an end-of-sequence id
    signals: StepSignals | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Risk:
    """`value` in [0, 1], higher is riskier; `raw` in the estimator's own unit.

    `calibration` names the scope in which `value` is a probability of error; None means a fixed, uncalibrated map.
    `voters`: where an ensemble judged the token, the probability that each of its members gives it.
    """

    value: float
    raw: float
    calibration: str | None = None
    voters: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A `TokenStep` with the risk that each selected estimator gives it."""

    index: int
    token_id: int
    text: str
    span: Span
    logprob: float
    entropy: float | None
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


Outcome = Literal["answered", "marked", "declined", "stopped", "trimmed", "handed_over", "cannot_judge"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy made of an answer, see `policy_judge`. `risk` is the answer's by `estimator`, None if unknown."""

    outcome: Outcome
    policy: str
    version: int
    action: str
    estimator: str
    threshold: float
    risk: float | None
    reason: str
    """One sentence for the reader."""
    basis: str = ""
    """One sentence: what is promised and where the threshold comes from."""
    tries: int = 1
    """Answers that were written until this one was chosen."""
    extra_tokens: int = 0
    """Tokens that were written besides those of the answer that is shown."""
    hidden: tuple[Span, ...] = ()
    """Characters [start, end) of the text that were too risky to show."""
    answered_by: str = ""
    """The second model, where it answered."""

    @property
    def is_hidden(self) -> bool:
        """Whether the answer is only shown when the reader asks for it."""
        return self.outcome == "declined"


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. Token texts joined give `text`; `risks` and `summaries` follow the estimators' order.

    `finish_reason` is "given" for a text that was scored and not generated.
    """

    text: str
    tokens: tuple[ScoredToken, ...]
    risks: dict[str, Risk]
    summaries: dict[str, Summary]
    finish_reason: FinishReason
    model: str = ""
    prompt_tokens: int = 0
    dropped_messages: int = 0  # oldest messages left out because the context window was full
    timings: Timings = Timings()
    outside_scope: dict[str, str] = field(default_factory=dict)
    """By estimator: why its values are no probabilities of error here, though it is calibrated."""
    failures: dict[str, str] = field(default_factory=dict)
    """By estimator: why it could not finish, where that did not end the answer."""
    decision: Decision | None = None
    """What the policy that was asked for made of it."""

    def to_json(self) -> dict[str, Any]:
        """The answer as plain dicts and lists, ready for `json.dumps`; "voters" only where there were any."""
        plain = asdict(self)
        for risks in (plain["risks"], *(token["risks"] for token in plain["tokens"])):
            for risk in risks.values():
                if not risk["voters"]:
                    del risk["voters"]
        return plain
