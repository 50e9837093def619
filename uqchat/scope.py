"""Where a calibration holds: the prompts, lengths and settings it was fitted on. Knows no model and no estimator.

Inside the scope a calibrated value is a probability; outside it the page says that it cannot judge, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import ConfigDict

from uqchat.calibration_maps import sigmoid
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.metrics_weighted import Array

STRICT: Final = ConfigDict(extra="forbid", allow_inf_nan=False)
FALSE_ALARMS: Final = 0.01  # share of prompts like the calibration's that may be called unlike them
_PENALTIES: Final = (3e-3, 1e-2, 3e-2, 0.1)  # L2 on standardised weights, per mean loss
_FOLDS: Final = 5


@dataclass(frozen=True, slots=True)
class ScopeDetector:
    """Whether a prompt is unlike those of the calibration, from one layer's hidden state at the prompt's last position.

    A linear map of the state; its sigmoid is above 0.5 for what lies outside. Kinds of prompt that were not among the
    examples of "outside" can pass as inside.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    layer: int
    """Entry of the L+1 hidden states, as in `Signals.hidden_layers`."""
    weights: tuple[float, ...] = field(repr=False)
    """(D,), of the raw state."""
    bias: float

    def outside_probability(self, state: Any) -> float:
        """How sure it is that the prompt lies outside, in [0, 1].

        Args:
            state: (D,), array, list or tensor.

        Raises:
            InputError: another D than it was fitted to, or a value that is no finite number.
        """
        row = _states(state, "The prompt's state").ravel()
        if len(row) != len(self.weights):
            raise InputError(f"The scope was fitted to states of {len(self.weights)} numbers; got {len(row)}.")
        return float(sigmoid(row @ np.asarray(self.weights) + self.bias))

    @staticmethod
    def fit(states_in: Any, states_out: Any, layer: int) -> ScopeDetector:
        """Logistic regression between prompts of the calibration and others, both kinds weighing the same.

        The penalty is the one of least cross-validated loss. Then the bias is moved so that, of the calibration's own
        prompts that a fold did not see, a share of `FALSE_ALARMS` lies outside.

        Args:
            states_in: (N, D), prompts of the calibration. states_out: (M, D), prompts that ask for no fact.
            layer: where they were read.

        Raises:
            InputError: fewer than ten of a kind, different D, or a value that is no finite number.
        """
        inside, outside = _states(states_in, "states_in"), _states(states_out, "states_out")
        shapes = f"{inside.shape} inside and {outside.shape} outside"
        if inside.ndim != 2 or outside.ndim != 2 or inside.shape[1] != outside.shape[1]:
            raise InputError(f"Both kinds of states must be rows of the same length; got {shapes}.")
        if min(len(inside), len(outside)) < 2 * _FOLDS:
            raise InputError(f"A scope needs {2 * _FOLDS} prompts of each kind or more; got {shapes}.")
        rows = np.concatenate([inside, outside])
        centre, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        is_outside = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
        weights, bias = _fit((rows - centre) / scale, is_outside)
        weights = (weights / scale).astype(np.float32).astype(float)
        return ScopeDetector(layer, tuple(float(f"{w:.6g}") for w in weights), float(bias - weights @ centre))


def _states(values: Any, name: str) -> Array:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    states = np.asarray(values, dtype=np.float64)
    if not np.isfinite(states).all():
        raise InputError(f"{name} must be finite numbers.")
    return states


def _fit(rows: Array, is_outside: Array) -> tuple[Array, float]:
    """Weights and bias on standardised rows, penalty and bias chosen on rows that a fold did not see."""
    unseen = {penalty: np.zeros(len(rows)) for penalty in _PENALTIES}
    for train, test in _folds(len(rows)):
        for penalty, logits in unseen.items():
            weights, bias = _logistic(rows[train], is_outside[train], penalty)
            logits[test] = rows[test] @ weights + bias
    best = min(unseen, key=lambda penalty: _loss(unseen[penalty], is_outside))
    weights, bias = _logistic(rows, is_outside, best)
    return weights, bias - float(np.quantile(unseen[best][is_outside == 0], 1 - FALSE_ALARMS))


def _folds(count: int) -> Iterator[tuple[Any, Any]]:
    order = np.random.default_rng(0).permutation(count)
    for part in range(_FOLDS):
        is_test = np.zeros(count, dtype=bool)
        is_test[order[part::_FOLDS]] = True
        yield ~is_test, is_test


def _logistic(rows: Array, labels: Array, penalty: float) -> tuple[Array, float]:
    from scipy.optimize import minimize  # scipy comes in for fitting alone

    signs, masses = 2 * labels - 1, _masses(labels)

    def loss(parameters: Array) -> tuple[float, Array]:
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (rows @ weights + bias)
        value = (masses * np.logaddexp(0, -margins)).sum() + penalty / 2 * weights @ weights
        slope = -masses * signs * sigmoid(-margins)
        return value, np.r_[rows.T @ slope + penalty * weights, slope.sum()]

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found[:-1], float(found[-1])


def _masses(labels: Array) -> Array:
    """Each kind weighs one half in all."""
    return np.where(labels > 0, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())


def _loss(logits: Array, labels: Array) -> float:
    return float((_masses(labels) * np.logaddexp(0, np.where(labels > 0, -logits, logits))).sum())


@dataclass(frozen=True, slots=True)
class Scope:
    """What a calibration was fitted on. `name` is what the page shows: "short factual questions"."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: str
    prompt_styles: tuple[str, ...] = ()
    data_sets: tuple[str, ...] = ()
    max_answer_tokens: int | None = None
    """Longest answer it holds for; None is any length."""
    temperatures: tuple[float, ...] = (0.0,)
    """Sampling temperatures of the answers; it holds from the lowest to the highest. None given: any."""
    weights_fingerprint: str | None = None
    """Of the base model whose answers they were."""
    detector: ScopeDetector | None = None

    def __post_init__(self) -> None:
        """Raises InputError: no name."""
        if not self.name.strip():
            raise InputError("A scope needs a name; it is shown where a calibrated value is shown.")

    def outside(self, prompt_state: Any | None, generation: GenerationConfig, num_answer_tokens: int) -> str | None:
        """Why the calibration does not hold for an answer, or None if it does.

        Args:
            prompt_state: (D,), the detector's layer at the prompt's last position; None where it cannot be had, and
                then a scope with a detector does not hold.
            generation: how the answer was chosen. num_answer_tokens: its tokens so far.

        Raises:
            InputError: the state has another length than the detector's.
        """
        if self.detector is not None:
            if prompt_state is None:
                return f"it is unknown whether this prompt is like the {self.name} the scores were calibrated on"
            if self.detector.outside_probability(prompt_state) > 0.5:
                return f"this prompt is unlike the {self.name} the scores were calibrated on"
        if self.temperatures and not min(self.temperatures) <= generation.temperature <= max(self.temperatures):
            known = _range(self.temperatures)
            return (
                f"the answer was sampled at temperature {generation.temperature:g}; the calibration holds for {known}"
            )
        if self.max_answer_tokens is not None and num_answer_tokens > self.max_answer_tokens:
            return f"the answer is longer than {self.max_answer_tokens} tokens, the longest it was calibrated on"
        return None


def _range(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
