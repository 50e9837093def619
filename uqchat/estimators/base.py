"""The contract that every estimator keeps. Knows no model, no loop and no interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from uqchat.types import Level, Risk, ScoredToken, Signals, Summary, TokenStep


class Estimator(Protocol):
    """Turns the engine's steps into risk, higher is riskier.

    A new estimator is one file with such a class and one line in `uqchat.estimators.ESTIMATORS`.
    """

    name: str
    """Stable snake_case name, used in code, files and the shell."""
    label: str
    """Name shown to people."""
    level: Level
    """What one score covers; a sentence or answer score tints the span it covers."""
    needs: Signals
    """What the engine must capture."""
    trainable: bool
    unit: str
    """Unit of the raw score, for the legend."""
    value_map: str
    """The fixed map from raw to value while uncalibrated, for the legend."""

    def new_state(self) -> Any:
        """Whatever one answer needs between its steps; None if nothing."""

    def score_token(self, step: TokenStep | ScoredToken, state: Any) -> dict[int, Risk]:
        """Risk by token index; an index already given before is a revision."""

    def score_answer(self, tokens: Sequence[ScoredToken], state: Any) -> tuple[Risk, Summary] | None:
        """Answer-level risk and summary of raw scores, or None for the mean over the answer's tokens."""
