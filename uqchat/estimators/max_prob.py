"""Maximum probability: how likely the likeliest next token was."""

from __future__ import annotations

import math

from uqchat.estimators.base import Estimator
from uqchat.types import Risk, ScoredToken, Signals, TokenStep


class MaxProb(Estimator):
    """-log p1 with p1 the largest next-token probability (Hendrycks & Gimpel 2017, section 2, as a surprisal)."""

    name = "max_prob"
    label = "Maximum probability"
    level = "token"
    needs = Signals(top_n=1)
    unit = "nats, -log of the largest probability"
    value_map = "1 - largest probability"

    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        """Risk of the newest token."""
        largest = step.alternatives[0].logprob
        return {step.index: Risk(value=-math.expm1(min(largest, 0.0)), raw=-min(largest, 0.0))}
