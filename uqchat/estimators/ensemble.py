"""What every ensemble of voters does with its votes, however the voters were made. Knows no weight and no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from uqchat.estimators.base import Estimator, stored_risk
from uqchat.estimators.vote_options import UNITS, Reading, aggregated, risk_of
from uqchat.types import Ensemble, Risk, ScoredToken, Signals, Summary, TokenStep

LAGS = {"auto": "auto", "lockstep": "never", "lagging": "always"}


class EnsembleEstimator(Estimator):
    """Risk of a token: how far the voters disagree on it. A voter reads what the answer's row reads.

    Where voters read behind the answer, a token has no risk at first and gets it when they have come to it.
    """

    level = "token"
    unit, value_map = UNITS["mutual_information"]
    cost = "extra rows"
    ensemble = Ensemble(())
    reading = Reading()

    def take(self, ensemble: Ensemble, reading: Reading) -> None:
        """Whose votes count, and how they are read."""
        self.ensemble, self.reading = ensemble, reading
        self.needs = Signals(ensembles=(ensemble,))
        self.unit, self.value_map = UNITS[reading.score]
        self.lag = "never" if ensemble.prediction == "mean" else LAGS[reading.mode]
        self.cost = cost_of(len(set(ensemble.members)))

    def score_token(self, step: TokenStep | ScoredToken, state: Any) -> dict[int, Risk]:
        """The token's risk, if its voters have come to it; a stored token keeps the one it has."""
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        votes = step.signals.votes.get(self.ensemble) if step.signals else None
        if votes is None:
            return {}
        risk = risk_of(votes, self.reading.score)
        if len(set(self.ensemble.members)) == 1:  # the same voter several times never disagrees; this is rounding
            risk = replace(risk, value=0.0, raw=0.0) if self.reading.score == "mutual_information" else risk
        return {step.index: risk}

    def score_answer(self, tokens: Sequence[ScoredToken], state: Any) -> tuple[Risk, Summary] | None:
        """By the chosen aggregation; None, so by the mean over all tokens, where that is the mean."""
        return aggregated(tokens, self.name, self.reading.aggregate)


def cost_of(count: int) -> str:
    """In a few words, what so many voters cost."""
    return f"{count} more {'row' if count == 1 else 'rows'} for each answer"
