"""Entropy of the next-token distribution: how undecided the model was."""

from __future__ import annotations

import math

from uqchat.estimators.base import Estimator
from uqchat.types import Risk, ScoredToken, Signals, TokenStep


class Entropy(Estimator):
    """H = -sum p log p over the whole vocabulary, raw logits at temperature 1 (Malinin & Gales 2021, section 3)."""

    name = "entropy"
    label = "Entropy"
    level = "token"
    needs = Signals(entropy=True)
    unit = "nats"
    value_map = "1 - exp(-entropy)"

    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        """Risk of the newest token."""
        return {step.index: Risk(value=-math.expm1(-step.entropy), raw=step.entropy)}
