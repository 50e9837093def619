"""The contract that every estimator keeps. Knows no model, no loop and no interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from uqchat.types import Level, Risk, ScoredToken, Signals, Summary, TokenStep


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an estimator may ask about the language model that it is to score."""

    num_layers: int
    is_instruct: bool  # it brought a chat template of its own


class Estimator(Protocol):
    """Turns the engine's steps into risk, higher is riskier.

    A new estimator is one file with a subclass and one line in `uqchat.estimators.ESTIMATORS`. One instance scores
    one answer at a time; what it must remember between steps is its state.
    """

    name: ClassVar[str]
    """Stable snake_case name, used in code, files and the shell."""
    label: ClassVar[str]
    """Name shown to people."""
    level: ClassVar[Level]
    """What one score covers; a sentence or answer score tints the span it covers."""
    needs: Signals
    """What the engine must capture."""
    trainable: ClassVar[bool] = False
    unit: ClassVar[str]
    """Unit of the raw score, for the legend."""
    value_map: ClassVar[str]
    """The fixed map from raw to value while uncalibrated, for the legend."""

    def for_model(self, facts: ModelFacts) -> Self:
        """The estimator as it works on this model; most do not depend on it."""
        return self

    def new_state(self) -> Any:
        """Whatever one answer needs between its steps; None if each token stands alone."""
        return None

    def score_token(self, step: TokenStep | ScoredToken, state: Any) -> dict[int, Risk]:
        """Risk by token index; an index already given before is a revision."""
        ...

    def score_answer(self, tokens: Sequence[ScoredToken], state: Any) -> tuple[Risk, Summary] | None:
        """Answer-level risk and summary of raw scores, or None for the mean over the answer's tokens."""
        return None
