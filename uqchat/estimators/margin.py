"""Margin: how far the likeliest next token was ahead of the second."""

from __future__ import annotations

import math

from uqchat.estimators.base import Estimator
from uqchat.types import Risk, ScoredToken, Signals, TokenStep


class Margin(Estimator):
    """1 - (p1 - p2) with p1 >= p2 the two largest next-token probabilities (Scheffer et al. 2001, section 2)."""

    name = "margin"
    label = "Margin"
    level = "token"
    needs = Signals(top_n=2)
    unit = "difference of probabilities, subtracted from 1"
    value_map = "1 - (largest - second probability)"

    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        """Risk of the newest token; with a vocabulary of one there is no second, and no risk."""
        first, second = [math.exp(a.logprob) for a in step.alternatives[:2]] + [0.0] * (2 - len(step.alternatives[:2]))
        raw = min(max(1 - (first - second), 0.0), 1.0)
        return {step.index: Risk(value=raw, raw=raw)}
