"""RAUQ: low probability that attention carries on from token to token. No training, one pass.

Source: Vazhentsev et al. 2025, "Uncertainty-aware attention heads" (arXiv 2505.20045), section 3.2, with the 1 that the
reference implementation in lm-polygraph adds to the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from uqchat.errors import InputError
from uqchat.estimators.base import Estimator, ModelFacts
from uqchat.types import Risk, ScoredToken, Signals, StepSignals, TokenStep

ALPHA_BASE, ALPHA_INSTRUCT = 0.2, 0.5
TINY = 1e-300  # keeps the logarithm finite where a probability has underflowed


def middle_third(num_layers: int) -> tuple[int, ...]:
    """The layers that RAUQ looks at, at least one."""
    first, last = num_layers // 3, math.ceil(2 * num_layers / 3)
    return tuple(range(first, max(last, first + 1)))


def carry_on(probability: float, attention: float, before: float, alpha: float) -> float:
    """Confidence of a token from its own probability and the confidence of the token that it attends to (eq. 4)."""
    return alpha * probability + (1 - alpha) * attention * before


def rauq_score(attention_to_previous: Any, log_probs: Any, alpha: float, layers: Sequence[int]) -> float:
    """RAUQ of one answer: max over layers of the mean -log confidence, plus 1.

    Args:
        attention_to_previous: (L, H, T-1), weight of token t on token t-1 for t = 1..T-1.
        log_probs: (T,), natural log of the probability of each token.
        alpha: share of the token's own probability, in [0, 1].
        layers: which of the L layers count; in each, the head with the largest mean weight is taken.

    Raises:
        InputError: the lengths do not belong together, no layer is named, or there is no token.
    """
    weights = np.asarray(attention_to_previous, dtype=np.float64)
    probabilities = np.exp(np.asarray(log_probs, dtype=np.float64))
    count = len(probabilities)
    if count == 0 or len(layers) == 0 or weights.ndim != 3 or weights.shape[2] != count - 1:
        raise InputError(
            f"RAUQ needs attention (L, H, T-1), T >= 1 log-probabilities and at least one layer; "
            f"got attention {weights.shape}, {count} log-probabilities, {len(layers)} layers."
        )
    scores = []
    for layer in layers:
        head = weights[layer].mean(axis=-1).argmax() if count > 1 else 0
        confidence = [probabilities[0]]
        for t in range(1, count):
            confidence.append(carry_on(probabilities[t], weights[layer, head, t - 1], confidence[-1], alpha))
        scores.append(-np.log(np.maximum(confidence, TINY)).mean())
    return float(max(scores)) + 1


@dataclass
class RauqState:
    """One answer so far, reasoning and end token left out."""

    indices: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    attention: list[np.ndarray] = field(default_factory=list)  # of token t >= 1: (layers, H), weight on token t-1
    heads: list[int] = field(default_factory=list)  # chosen head of each layer
    confidences: list[list[float]] = field(default_factory=list)  # of each layer, one for each token
    sums: np.ndarray | None = None  # (layers, H), of the attention so far
    risks: dict[int, float] = field(default_factory=dict)  # raw by token index, as last handed out


class Rauq(Estimator):
    """Streams with a lag: a token's attention is known when the next one is computed, so its risk is then revised.

    Until then, and for a last token that nothing follows, its confidence is its probability alone. The mean of the
    tokens' raw scores is the answer's score: all come from the layer that is least confident about the answer.
    """

    name = "rauq"
    label = "RAUQ"
    level = "token"
    needs = Signals(attention_lags=2)
    unit = "1 - log of the probability carried along"
    value_map = "1 - probability carried along by attention"

    def __init__(self, alpha: float = ALPHA_BASE) -> None:
        self.alpha = alpha

    def for_model(self, facts: ModelFacts) -> Rauq:
        """The middle third of this model's layers; alpha by its kind."""
        made = Rauq(ALPHA_INSTRUCT if facts.is_instruct else ALPHA_BASE)
        made.needs = Signals(attention_lags=2, attention_layers=middle_third(facts.num_layers))
        return made

    def new_state(self) -> RauqState:
        """An answer without tokens."""
        return RauqState()

    def score_token(self, step: TokenStep | ScoredToken, state: RauqState) -> dict[int, Risk]:
        """Risks that this step adds or changes. A stored token has no attention and keeps the risk it has."""
        if isinstance(step, ScoredToken):
            return {step.index: step.risks[self.name]} if self.name in step.risks else {}
        self._take_attention(step, state)
        if not (step.is_reasoning or step.is_end):
            state.indices.append(step.index)
            state.probabilities.append(math.exp(step.logprob))
        else:
            state.risks[step.index] = 1 - step.logprob
        return self._changes(state, step)

    def _take_attention(self, step: TokenStep, state: RauqState) -> None:
        """The step's signals are those of the position before: the newest token's weight on the one before it."""
        if len(state.probabilities) < 2 or len(state.attention) == len(state.probabilities) - 1:
            return
        if step.signals is None or step.signals.attention is None:
            raise InputError("RAUQ needs attention weights, which this model did not give.")
        weights = self._own_layers(step.signals)[:, :, 1].cpu().double().numpy()  # (layers, H)
        state.attention.append(weights)
        state.sums = weights if state.sums is None else state.sums + weights
        self._extend(state)

    def _own_layers(self, signals: StepSignals) -> torch.Tensor:
        """Another estimator may have asked for more layers."""
        own = self.needs.attention_layers
        if own is None or tuple(own) == tuple(signals.attention_layers):
            return signals.attention
        return signals.attention[[signals.attention_layers.index(layer) for layer in own]]

    def _extend(self, state: RauqState) -> None:
        heads = state.sums.argmax(axis=1).tolist()
        if not state.confidences:
            state.confidences = [[] for _ in heads]
            state.heads = [-1] * len(heads)
        for layer, head in enumerate(heads):
            if head != state.heads[layer]:
                state.confidences[layer] = [state.probabilities[0]]
                state.heads[layer] = head
            known = state.confidences[layer]
            for t in range(len(known), len(state.attention) + 1):
                weight = state.attention[t - 1][layer, head]
                known.append(carry_on(state.probabilities[t], weight, known[-1], self.alpha))

    def _changes(self, state: RauqState, step: TokenStep) -> dict[int, Risk]:
        known = max(state.confidences, key=lambda c: -sum(np.log(np.maximum(c, TINY))), default=[])
        confidence = [*known, *state.probabilities[len(known) :]]
        raws = dict(zip(state.indices, (1 - np.log(np.maximum(confidence, TINY))).tolist(), strict=True))
        raws.setdefault(step.index, 1 - step.logprob)
        changed = {i: raw for i, raw in raws.items() if state.risks.get(i) != raw or i == step.index}
        state.risks |= changed
        return {i: Risk(value=-math.expm1(-(raw - 1)), raw=raw) for i, raw in changed.items()}
