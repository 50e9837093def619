"""What crosses the engine's boundary: requests in, token steps and endings out. Knows no model and no estimator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from uqchat.config import GenerationConfig
from uqchat.engine.text import ReasoningTags
from uqchat.types import FinishReason, Signals, Timings, TokenStep


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate, or with `forced_ids` and no new tokens, to score.

    `forced_ids` are ids that the answer begins with; they are handed out like any token and do not count as new.
    """

    prompt_ids: tuple[int, ...]
    generation: GenerationConfig = GenerationConfig()
    forced_ids: tuple[int, ...] = ()
    signals: Signals = Signals()
    open_tag: ReasoningTags | None = None
    adapter: str | None = None
    is_behind: bool = False
    """Reads what another answer wrote; it makes way for those that are being written."""

    def is_twin_of(self, other: Request) -> bool:
        """Whether this one reads exactly what `other` reads, so that both can go on from the same logits."""
        mine, theirs = ((r.prompt_ids, r.forced_ids, r.adapter) for r in (self, other))
        wants_the_same = not self.signals.has_tensors or self.signals == other.signals
        wants_the_same &= self.signals.ensembles == other.signals.ensembles
        return mine == theirs and not self.forced_ids and wants_the_same

    @property
    def companions(self) -> tuple[str, ...]:
        """Adapters of the rows that run beside the answer's own: its voters, but for one that writes the answer."""
        return tuple(name for name in self.signals.voters if name != self.adapter)


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A token of the row with this key."""

    key: int
    step: TokenStep


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The row with this key has ended; `error` is set when the reason is "error"."""

    key: int
    reason: FinishReason
    timings: Timings
    error: Exception | None = None


Event = StepEvent | FinishEvent


class Backend(Protocol):
    """A source of token steps: the local engine, or a server that returns log-probabilities."""

    signals: Signals
    """The most that this source can give of each step."""

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """All rows in one batch; keys are positions in `requests`. Closing the iterator stops the rows."""
