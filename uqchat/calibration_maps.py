"""Monotone maps from a raw score to a probability of error, and how they are fitted to labelled answers.

Knows numbers only: no estimator, no scope, no file. A map never reverses the order of two scores: a score that ranks
errors below right answers gets a flat map, not an inverted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import ConfigDict

from uqchat.errors import InputError
from uqchat.metrics_weighted import Array

Kind = Literal["isotonic", "platt", "temperature"]
PRIOR: Final = 1.0  # answers' worth of belief in the overall share of errors, mixed into each step of the isotonic map
STRICT: Final = ConfigDict(extra="forbid", allow_inf_nan=False)
_FOLDS: Final = 5


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), of any shape, exact in both tails."""
    return np.exp(-np.logaddexp(0, -x))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising line through (raw, probability) points, flat beyond the first and the last."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    raw: tuple[float, ...]
    probability: tuple[float, ...]
    kind: Literal["isotonic"] = "isotonic"

    def __post_init__(self) -> None:
        """Raises InputError: no points, unequal lengths, not rising, or a probability that is not between 0 and 1."""
        is_rising = all(a < b for a, b in pairwise(self.raw)) and all(a <= b for a, b in pairwise(self.probability))
        if not self.raw or len(self.raw) != len(self.probability) or not is_rising:
            raise InputError("An isotonic map needs as many raw scores as probabilities, both in rising order.")
        if not 0 < self.probability[0] <= self.probability[-1] < 1:
            raise InputError("An isotonic map's probabilities must lie between 0 and 1, both left out.")

    def apply(self, raw: Array) -> Array:
        """P(error) of raw scores of any shape."""
        return np.interp(raw, self.raw, self.probability)


@dataclass(frozen=True, slots=True)
class Logistic:
    """sigmoid(slope raw + intercept), the slope never negative. A temperature T is slope 1 / T without intercept."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    slope: float
    intercept: float
    kind: Literal["platt", "temperature"] = "platt"

    def __post_init__(self) -> None:
        """Raises InputError: a falling curve."""
        if self.slope < 0:
            raise InputError(f"A calibration must not fall: its slope is {self.slope}.")

    def apply(self, raw: Array) -> Array:
        """P(error) of raw scores of any shape, kept off exactly 0 and 1."""
        return np.clip(sigmoid(self.slope * np.asarray(raw) + self.intercept), 1e-6, 1 - 1e-6)


Map = Isotonic | Logistic


def fit_isotonic(raw: Array, labels: Array, weights: Array) -> Isotonic:
    """Centred isotonic regression with smoothed steps.

    Pool adjacent violators gives steps; each becomes one point at its mean score, and lines join the points, so that
    order is kept inside a step too. A step of n answers with e errors gets (e + PRIOR p) / (n + PRIOR), p the overall
    share of errors (itself (e + 1) / (n + 2)), so that no step of a few answers claims 0 or 1; steps that this puts
    out of order are pooled once more.

    Args:
        raw: (N,), finite. labels: (N,), 1 for an error. weights: (N,), their mean 1.

    Source: Ayer et al. 1955 (pooling); Oron & Flournoy 2017 (centring, arXiv 1701.05964; lm-polygraph's
    `IsotonicPCCNormalizer` does the same); Zadrozny & Elkan 2002 (as calibration).
    """
    scores, rows = np.unique(raw, return_inverse=True)
    mass, errors = np.bincount(rows, weights), np.bincount(rows, weights * labels)
    centres, mass, errors = _pool(errors / mass, mass, scores, mass, errors)
    base = (errors.sum() + 1) / (mass.sum() + 2)
    smoothed = (errors + PRIOR * base) / (mass + PRIOR)
    centres, mass, values = _pool(smoothed, mass + PRIOR, centres, mass + PRIOR, (mass + PRIOR) * smoothed)
    return Isotonic(tuple(centres.tolist()), tuple((values / mass).tolist()))


def _pool(values: Array, weights: Array, centres: Array, *masses: Array) -> list[Array]:
    """Pool adjacent violators: the steps' weighted mean centres and sums of each mass."""
    from scipy.optimize import isotonic_regression  # scipy comes in for fitting alone

    starts = isotonic_regression(values, weights=weights).blocks[:-1]
    pooled = np.add.reduceat(centres * weights, starts) / np.add.reduceat(weights, starts)
    return [pooled, *(np.add.reduceat(mass, starts) for mass in masses)]


def fit_platt(raw: Array, labels: Array, weights: Array) -> Logistic:
    """A logistic curve with Platt's smoothed targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2).

    Args:
        raw: (N,), finite. labels: (N,), 1 for an error. weights: (N,), their mean 1.

    Source: Platt 1999, section 2.2; Lin, Lin & Weng 2007. Deviation: the slope is held at 0 or above.
    """
    from scipy.optimize import minimize

    errors, rights = (weights * labels).sum(), (weights * (1 - labels)).sum()
    targets = np.where(labels > 0, (errors + 1) / (errors + 2), 1 / (rights + 2))
    centre, scale = raw.mean(), raw.std() or 1.0
    scores = (raw - centre) / scale

    def loss(parameters: Array) -> tuple[float, Array]:
        logits = parameters[0] * scores + parameters[1]
        residual = weights * (sigmoid(logits) - targets)
        value = (weights * (np.logaddexp(0, logits) - targets * logits)).sum()
        return value / len(raw), np.array([residual @ scores, residual.sum()]) / len(raw)

    start = np.array([0.0, math.log((errors + 1) / (rights + 1))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)], tol=1e-12)
    slope, intercept = found.x
    return Logistic(float(slope / scale), float(intercept - slope * centre / scale))


def fit_temperature(raw: Array, labels: Array, weights: Array) -> Logistic:
    """One temperature for raw scores that are logits of an error: the one of least log loss, e^-7 to e^7.

    Args:
        raw: (N,), finite. labels: (N,), 1 for an error. weights: (N,), their mean 1.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        logits = raw / math.exp(log_temperature)
        return float((weights * (np.logaddexp(0, logits) - labels * logits)).mean())

    found = minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-7})
    return Logistic(math.exp(-found.x), 0.0, "temperature")


FITS: Final[dict[Kind, Callable[[Array, Array, Array], Map]]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "temperature": fit_temperature,
}
"""By kind; where two predict unseen answers equally well, the earlier one is taken."""


def log_loss(predicted: Array, labels: Array, weights: Array) -> float:
    """Weighted mean of -log of the probability given to what happened (nats)."""
    return float(-(weights * np.log(np.where(labels > 0, predicted, 1 - predicted))).sum() / weights.sum())


def cross_validated_loss(kind: Kind, raw: Array, labels: Array, weights: Array, groups: Array, seed: int = 0) -> float:
    """Log loss of a kind of map on answers it was not fitted to, over five folds of whole groups."""
    names, rows = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names))[rows] % min(_FOLDS, len(names))
    losses, masses = [], []
    for part in np.unique(fold):
        seen, unseen = fold != part, fold == part
        if len(np.unique(labels[seen])) == 2:
            fitted = FITS[kind](raw[seen], labels[seen], weights[seen])
            losses.append(log_loss(fitted.apply(raw[unseen]), labels[unseen], weights[unseen]))
            masses.append(weights[unseen].sum())
    return float(np.average(losses, weights=masses)) if losses else math.inf
