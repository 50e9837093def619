"""Entropy of the next-token distribution: how undecided the model was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from uqchat.types import Risk, ScoredToken, Signals, Summary, TokenStep


class Entropy:
    """H = -sum p log p over the whole vocabulary, raw logits at temperature 1 (Malinin & Gales 2021, section 3)."""

    name = "entropy"
    label = "Entropy"
    level = "token"
    needs = Signals(entropy=True)
    trainable = False
    unit = "nats"
    value_map = "1 - exp(-entropy)"

    def new_state(self) -> None:
        """Each token stands alone."""

    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        """Risk of the newest token."""
        return {step.index: Risk(value=-math.expm1(-step.entropy), raw=step.entropy)}

    def score_answer(self, tokens: Sequence[ScoredToken], state: None) -> tuple[Risk, Summary] | None:
        """The mean over the answer's tokens."""
