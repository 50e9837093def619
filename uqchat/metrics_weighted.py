"""The formulas behind `metrics`, for many weightings of the same rows at once: a bootstrap sample is a weighting.

Every function takes scores (N,), labels (N,) and weights (B, N), whole numbers that say how often each row was drawn,
and returns (B,) float64: nan where a weighting leaves the metric undefined (only one class drawn). Nothing is checked
here; `metrics` does that. Rows of equal score enter together, so their order never matters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weighted = Callable[[Array, Array, Array], Array]


def _by_score(scores: Array, *masses: Array) -> list[Array]:
    """Sums of each mass (B, N) over rows of equal score, scores ascending: (B, distinct scores)."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    return [np.add.reduceat(mass[:, order], starts, axis=1) for mass in masses]


def auroc(scores: Array, labels: Array, weights: Array) -> Array:
    """P(an error scores above a right answer) + half of P(they tie): the Mann-Whitney statistic."""
    errors, rights = _by_score(scores, weights * labels, weights * (1 - labels))
    below = rights.cumsum(axis=1) - rights
    wins = (errors * (below + rights / 2)).sum(axis=1)
    return _ratio(wins, errors.sum(axis=1) * rights.sum(axis=1))


def average_precision(scores: Array, labels: Array, weights: Array) -> Array:
    """Sum of precision times recall gained, from the riskiest score down."""
    errors, drawn = (mass[:, ::-1] for mass in _by_score(scores, weights * labels, weights))
    precision = errors.cumsum(axis=1) / np.maximum(drawn.cumsum(axis=1), 1e-12)
    return _ratio((precision * errors).sum(axis=1), errors.sum(axis=1))


def brier(scores: Array, labels: Array, weights: Array) -> Array:
    """Mean squared distance of a probability from what happened."""
    return (weights * (scores - labels) ** 2).sum(axis=1) / weights.sum(axis=1)


def brier_skill(scores: Array, labels: Array, weights: Array) -> Array:
    """1 - Brier / Brier of the share of ones itself, as a constant forecast."""
    share = (weights * labels).sum(axis=1) / weights.sum(axis=1)
    return 1 - _ratio(brier(scores, labels, weights), share * (1 - share))


def ece(scores: Array, labels: Array, weights: Array, n_bins: int = 10, is_adaptive: bool = False) -> Array:
    """Mean over rows of |mean score - share of ones| of the row's bin.

    Equal width: bins (0, 1/n], (1/n, 2/n] ..., 0 in the first. Adaptive: as many rows in each, as far as ties let; the
    edges are those of all rows, whatever the weights.
    """
    edges = np.quantile(scores, np.linspace(0, 1, n_bins + 1)) if is_adaptive else np.linspace(0, 1, n_bins + 1)
    return _gap(np.searchsorted(edges[1:-1], scores, side="left"), n_bins, scores, labels, weights)


def ece_kapoor2024(scores: Array, labels: Array, weights: Array, n_bins: int = 10) -> Array:
    """ECE of the two-way decision: bins [lo, hi) over max(P, 1-P); a confidence of exactly 1 is in no bin."""
    confidence = np.maximum(scores, 1 - scores)
    is_right = (labels == (scores > 0.5)).astype(np.float64)
    is_kept = confidence < 1
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges[1:-1], confidence, side="right")
    kept = _gap(bins, n_bins, confidence, is_right, weights * is_kept)
    return kept * (weights * is_kept).sum(axis=1) / weights.sum(axis=1)


def _gap(bins: NDArray[np.intp], n_bins: int, scores: Array, labels: Array, weights: Array) -> Array:
    """Sum over bins of |weighted sum of score - label| / weighted rows."""
    members = np.zeros((len(scores), n_bins))
    members[np.arange(len(scores)), bins] = scores - labels
    return _ratio(np.abs(weights @ members).sum(axis=1), weights.sum(axis=1), empty=0.0)


def prefix_mean(scores: Array, values: Array, weights: Array, max_rejection: float = 1.0) -> Array:
    """Mean of the values of the n lowest scores, averaged over n = N - floor(max_rejection N) + 1 ... N.

    Within a group of m equal scores with sum e, after n0 rows of sum E0, the j-th row brings e / m, its expectation
    over all orders: the mean there is (E0 + e j / m) / (n0 + j), and its sum over j is a difference of harmonic
    numbers.
    """
    drawn, sums = _by_score(scores, weights, weights * values)
    ends, before = drawn.cumsum(axis=1), sums.cumsum(axis=1) - sums
    starts = ends - drawn
    total = ends[:, -1:]
    first = np.maximum(starts, total - np.floor(max_rejection * total + 1e-9))
    harmonic = np.r_[0.0, np.cumsum(1 / np.arange(1, int(total.max()) + 1))]
    slope = sums / np.maximum(drawn, 1)
    counted = np.maximum(ends - first, 0)
    spread = harmonic[ends.astype(int)] - harmonic[np.minimum(first, ends).astype(int)]
    parts = slope * counted + (before - slope * starts) * spread
    return parts.sum(axis=1) / counted.sum(axis=1)


def aurc(scores: Array, labels: Array, weights: Array) -> Array:
    """Area under the risk-coverage curve: the error share of the n safest, averaged over n."""
    return prefix_mean(scores, labels, weights)


def prr(scores: Array, labels: Array, weights: Array, max_rejection: float = 1.0) -> Array:
    """Normalised prediction-rejection ratio with quality = 1 - error."""
    quality = 1 - labels
    random = (weights * quality).sum(axis=1) / weights.sum(axis=1)
    raw = prefix_mean(scores, quality, weights, max_rejection)
    oracle = prefix_mean(labels, quality, weights, max_rejection)
    return _ratio(raw - random, oracle - random)


def _ratio(top: Array, bottom: Array, empty: float = np.nan) -> Array:
    """top / bottom, `empty` where the bottom is nothing but rounding."""
    is_defined = np.abs(bottom) > 1e-12
    return np.where(is_defined, top / np.where(is_defined, bottom, 1), empty)


METRICS: Final[dict[str, Weighted]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "aurc": aurc,
    "prr": prr,
    "prr_50": partial(prr, max_rejection=0.5),
    "brier": brier,
    "brier_skill": brier_skill,
    "ece": ece,
    "ece_adaptive": partial(ece, is_adaptive=True),
}
"""By the name that `metrics_bootstrap` takes."""
OF_PROBABILITIES: Final = ("brier", "brier_skill", "ece", "ece_adaptive")
"""Those that want a probability of error as score."""
