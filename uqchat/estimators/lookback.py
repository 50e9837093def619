"""Lookback ratio: how much the model reads its own words rather than the prompt. No training, one pass.

Source: Chuang et al. 2024, "Lookback Lens" (arXiv 2407.07071), equations 1 and 2. They train a classifier on the ratios
of all heads; without one only their mean is left. It was made for answers that should follow from a text in the prompt;
of answers from memory it says little, and it grows with the answer's length.
"""

from __future__ import annotations

from dataclasses import dataclass

from uqchat.errors import InputError
from uqchat.estimators.base import AnswerContext, Estimator, stored_risk
from uqchat.types import Risk, ScoredToken, Signals, TokenStep


@dataclass
class LookbackState:
    """Tokens of the prompt, and of the answer so far."""

    prompt_length: int = 0
    num_new: int = 0


class Lookback(Estimator):
    """1 - the mean over layers and heads of a / (a + b): a and b are the mean weights on prompt and answer keys.

    The answer's first token is predicted before there is any answer to look at, so its risk is 0.
    """

    name = "lookback"
    label = "Lookback ratio"
    level = "token"
    needs = Signals(prompt_attention=True)
    unit = "share of attention on the answer's own words"
    value_map = "the share itself"

    def new_state(self) -> LookbackState:
        """An answer without tokens."""
        return LookbackState()

    def begin(self, context: AnswerContext, state: LookbackState) -> None:
        """How long the prompt is."""
        state.prompt_length = len(context.prompt_ids)

    def score_token(self, step: TokenStep | ScoredToken, state: LookbackState) -> dict[int, Risk]:
        """Risk of the newest token. A stored token has no attention and keeps the risk it has.

        Raises:
            InputError: the model gave no attention, or nobody said how long the prompt is.
        """
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        if step.signals is None or step.signals.prompt_attention is None or not state.prompt_length:
            raise InputError("The lookback ratio needs attention on the prompt, which this model did not give.")
        on_prompt = (
            step.signals.prompt_attention.cpu().double().clamp(0, 1)
        )  # (layers, H), summed over the prompt's keys
        raw = 0.0
        if state.num_new:
            looking_back = on_prompt / state.prompt_length
            looking_at_itself = (1 - on_prompt) / state.num_new
            raw = (looking_at_itself / (looking_back + looking_at_itself)).mean().item()
        state.num_new += 1
        return {step.index: Risk(value=raw, raw=raw)}
