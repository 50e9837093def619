"""Selective answering: what answering only below a threshold of the risk buys. Knows numbers only.

An answer passes a threshold iff its risk is at most the threshold, so equal risks pass together. Curves have one point
for every distinct risk; averages over coverage take equal risks as the mean over all their orders. What a threshold
promises for questions to come is in `selective_guarantee`, re-exported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from uqchat.errors import InputError
from uqchat.metrics import Numbers, as_array, as_labels, aurc
from uqchat.metrics_weighted import Array
from uqchat.selective_guarantee import (
    Drift,
    Guarantee,
    drift,
    guarantee,
    guaranteed_threshold,
    more_rows_needed,
)

_MAX_STEPS: Final = 2000  # distinct risks of a band

__all__ = [
    "Band",
    "CostCurve",
    "Costs",
    "Drift",
    "Guarantee",
    "RiskCoverage",
    "accuracy_at_coverage",
    "accuracy_band",
    "auarc",
    "aurc",
    "coverage_at_accuracy",
    "drift",
    "e_aurc",
    "expected_cost",
    "guarantee",
    "guaranteed_threshold",
    "more_rows_needed",
    "risk_coverage",
]


@dataclass(frozen=True, slots=True, eq=False)
class RiskCoverage:
    """The risk-coverage curve: (K,) each, one point per distinct risk, rising thresholds."""

    thresholds: Array
    coverage: Array
    """Share of the answers that pass."""
    selective_risk: Array
    """Share of errors among those that pass."""
    answered: Array
    """Number of answers that pass."""
    errors: Array
    """Number of errors among them."""


def risk_coverage(risk: Numbers, is_error: Numbers) -> RiskCoverage:
    """Coverage and error share at every threshold that makes a difference.

    Args:
        risk: (N,), higher is riskier, any unit. is_error: (N,), 1 or True for an error.

    Raises:
        InputError: nothing given, lengths differ, a NaN, or labels other than 0 and 1.

    Source: El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017 (arXiv 1705.08500), section 2.
    """
    scores, labels = _checked(risk, is_error)
    thresholds, rows = np.unique(scores, return_inverse=True)
    answered, errors = np.bincount(rows).cumsum().astype(float), np.bincount(rows, labels).cumsum()
    return RiskCoverage(thresholds, answered / len(scores), errors / answered, answered, errors)


def accuracy_at_coverage(risk: Numbers, is_error: Numbers, coverage: float) -> float:
    """Share of right answers among the least risky ones, as many as the coverage asks for (rounded up).

    Where the last of them share their risk with others, their mean counts.

    Args:
        risk, is_error: as `risk_coverage`. coverage: in (0, 1].

    Raises:
        InputError: as `risk_coverage`; or coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must lie in (0, 1]; got {coverage}.")
    curve = risk_coverage(risk, is_error)
    count = math.ceil(coverage * curve.answered[-1] - 1e-9)
    errors = np.interp(count, np.r_[0, curve.answered], np.r_[0, curve.errors])
    return float(1 - errors / count)


def coverage_at_accuracy(risk: Numbers, is_error: Numbers, accuracy: float) -> float:
    """The largest share of answers that a threshold lets pass with at least this accuracy; 0 when none does.

    It is chosen and measured on the same answers, so it flatters: for a promise take `guaranteed_threshold`.

    Args:
        risk, is_error: as `risk_coverage`. accuracy: in [0, 1].

    Raises:
        InputError: as `risk_coverage`; or accuracy outside [0, 1].
    """
    if not 0 <= accuracy <= 1:
        raise InputError(f"accuracy must lie in [0, 1]; got {accuracy}.")
    curve = risk_coverage(risk, is_error)
    reached = curve.coverage[1 - curve.selective_risk >= accuracy - 1e-12]
    return float(reached[-1]) if len(reached) else 0.0


def e_aurc(risk: Numbers, is_error: Numbers) -> float:
    """Excess AURC: the AURC less that of an order that puts every error last. 0 is perfect.

    Args:
        risk, is_error: as `risk_coverage`.

    Raises:
        InputError: as `risk_coverage`.

    Source: Geifman, Uziel, El-Yaniv 2019 (arXiv 1805.08206), section 3.
    """
    return aurc(risk, is_error) - aurc(is_error, is_error)


def auarc(risk: Numbers, is_error: Numbers) -> float:
    """Area under the accuracy-rejection curve: accuracy of the n least risky, averaged over n; 1 - AURC.

    Args:
        risk, is_error: as `risk_coverage`.

    Raises:
        InputError: as `risk_coverage`.

    Source: Nadeem, Zucker, Hanczar 2009; Farquhar et al. 2024 sum it over 20 quantiles, here it is exact.
    """
    return 1 - aurc(risk, is_error)


@dataclass(frozen=True, slots=True)
class Costs:
    """What one question costs by how it ends, in any unit; a right answer that is given costs nothing."""

    wrong: float = 1.0
    """A wrong answer was given."""
    refusal: float = 0.25
    """The app declined."""
    withheld: float = 0.0
    """On top of the refusal, where the answer would have been right."""
    hand_over: float | None = None
    """Instead of the refusal: a second model or a person answers, their own mistakes counted in."""

    def __post_init__(self) -> None:
        """Raises InputError: a negative or infinite cost."""
        given = [self.wrong, self.refusal, self.withheld, self.hand_over or 0.0]
        if not all(math.isfinite(cost) and cost >= 0 for cost in given):
            raise InputError(f"Costs must be finite and 0 or more; got {self}.")


@dataclass(frozen=True, slots=True, eq=False)
class CostCurve:
    """Mean cost of a question at every threshold; the first, -inf, declines everything. (K + 1,) each."""

    thresholds: Array
    coverage: Array
    cost: Array
    best_threshold: float
    """The cheapest; of several, the one that answers most."""
    best_cost: float
    best_coverage: float


def expected_cost(risk: Numbers, is_error: Numbers, costs: Costs) -> CostCurve:
    """Mean cost per question of answering below each threshold, and the cheapest threshold.

    Args:
        risk, is_error: as `risk_coverage`. costs: of the four ways a question can end.

    Raises:
        InputError: as `risk_coverage`.

    Source: Chow 1970 (error-reject trade-off), with a cost for a withheld right answer added.
    """
    curve = risk_coverage(risk, is_error)
    answered, errors = np.r_[0, curve.answered], np.r_[0, curve.errors]
    total, rights = answered[-1], answered - errors
    declining = costs.refusal if costs.hand_over is None else costs.hand_over
    withheld = rights[-1] - rights
    cost = (costs.wrong * errors + declining * (total - answered) + costs.withheld * withheld) / total
    thresholds = np.r_[-np.inf, curve.thresholds]
    best = int(np.flatnonzero(cost <= cost.min() + 1e-12)[-1])
    coverage = answered / total
    return CostCurve(thresholds, coverage, cost, float(thresholds[best]), float(cost[best]), float(coverage[best]))


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Accuracy by coverage with a pointwise bootstrap band; (G,) each."""

    coverage: Array
    accuracy: Array
    low: Array
    high: Array


def accuracy_band(
    risk: Numbers,
    is_error: Numbers,
    coverages: Sequence[float] | None = None,
    *,
    samples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Band:
    """The accuracy-coverage curve on a grid, each point with a percentile interval over drawn questions.

    Args:
        risk, is_error: as `risk_coverage`. coverages: (G,) in (0, 1]; 1 % to 100 % when None.
        samples: draws of N questions with replacement. confidence: of the interval, in (0, 1). seed: of the draws.

    Raises:
        InputError: as `risk_coverage`; or a coverage or confidence outside its range.
    """
    scores, labels = _checked(risk, is_error)
    grid = np.linspace(0.01, 1, 100) if coverages is None else as_array(coverages, "coverages")
    if grid.min() <= 0 or grid.max() > 1 or not 0 < confidence < 1:
        raise InputError(f"coverages must lie in (0, 1] and confidence between 0 and 1; got {grid}, {confidence}.")
    curve, counts = risk_coverage(scores, labels), np.ceil(grid * len(scores) - 1e-9)
    answered, errors = _drawn(scores, labels, samples, seed)
    accuracy = _accuracies(curve.answered[None], curve.errors[None], counts)[0]
    drawn = _accuracies(answered.cumsum(axis=1), errors.cumsum(axis=1), counts)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Band(grid, accuracy, low, high)


def _drawn(scores: Array, labels: Array, samples: int, seed: int) -> tuple[Array, Array]:
    """(samples, K) each: answers and errors by rising risk, in draws of N questions with replacement.

    How often each pair of risk and label is drawn is multinomial, so the questions need not be drawn one by one. More
    than `_MAX_STEPS` distinct risks are merged with their neighbours, which the grid of a picture does not show.
    """
    thresholds, rows = np.unique(scores, return_inverse=True)
    steps = min(len(thresholds), _MAX_STEPS)
    rows = rows * steps // len(thresholds)
    shares = np.bincount(2 * rows + labels.astype(int), minlength=2 * steps) / len(scores)
    drawn = np.random.default_rng(seed).multinomial(len(scores), shares, size=samples).reshape(samples, steps, 2)
    return drawn.sum(axis=2).astype(float), drawn[:, :, 1].astype(float)


def _accuracies(answered: Array, errors: Array, counts: Array) -> Array:
    """(B, G): share of right answers among the `counts` least risky, for every row of cumulated answers and errors."""
    rows = [np.interp(counts, np.r_[0, n], np.r_[0, e]) for n, e in zip(answered, errors, strict=True)]
    return 1 - np.array(rows) / counts


def _checked(risk: Numbers, is_error: Numbers) -> tuple[Array, Array]:
    scores = as_array(risk, "risk")
    return scores, as_labels(is_error, "is_error", len(scores))
