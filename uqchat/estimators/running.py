"""An estimator at work on one answer. Several may ask it for the same step; it looks at each step once.

Knows no loop. Follow-ups stay with the estimator: their replies go to whoever asked for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uqchat.estimators.base import AnswerContext, Estimator
    from uqchat.types import Risk, ScoredToken, TokenStep


class Running:
    """An estimator, its state, and what it said of the newest step and in the end."""

    def __init__(self, estimator: Estimator) -> None:
        self.estimator, self.state = estimator, estimator.new_state()
        self._has_begun = False
        self._step: TokenStep | ScoredToken | None = None
        self._said: dict[int, Risk] = {}
        self._last: dict[int, Risk] | None = None

    def begin(self, context: AnswerContext) -> None:
        """See `Estimator.begin`."""
        if not self._has_begun:
            self._has_begun = True
            self.estimator.begin(context, self.state)

    def push(self, step: TokenStep | ScoredToken) -> dict[int, Risk]:
        """See `Estimator.score_token`."""
        if step is not self._step:
            self._step, self._said = step, self.estimator.score_token(step, self.state)
        return self._said

    def finish(self) -> dict[int, Risk]:
        """See `Estimator.finish`."""
        if self._last is None:
            self._last = self.estimator.finish(self.state)
        return self._last


def run_all(estimators: Sequence[Estimator]) -> list[Running]:
    """All at the beginning of an answer; one that is made of others runs with those of them that were chosen too."""
    running = [Running(one) for one in estimators]
    by_source = {one.estimator.source: one for one in running if one.estimator.source is not None}
    for one in running:
        one.estimator.share(by_source, one.state)
    return running
