"""Maximum probability: how likely the likeliest next token was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from uqchat.types import Risk, ScoredToken, Signals, Summary, TokenStep


class MaxProb:
    """-log p1 with p1 the largest next-token probability (Hendrycks & Gimpel 2017, section 2, as a surprisal)."""

    name = "max_prob"
    label = "Maximum probability"
    level = "token"
    needs = Signals(top_n=1)
    trainable = False
    unit = "nats, -log of the largest probability"
    value_map = "1 - largest probability"

    def new_state(self) -> None:
        """Each token stands alone."""

    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        """Risk of the newest token."""
        largest = step.alternatives[0].logprob
        return {step.index: Risk(value=-math.expm1(min(largest, 0.0)), raw=-min(largest, 0.0))}

    def score_answer(self, tokens: Sequence[ScoredToken], state: None) -> tuple[Risk, Summary] | None:
        """The mean over the answer's tokens."""
