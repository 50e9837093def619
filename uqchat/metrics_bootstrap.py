"""Percentile-bootstrap intervals for the metrics: of one score, of a difference, and of macro means over sets.

Rows are drawn with replacement within each set, every set at its own size. Scores compared on the same rows share the
draws, so a difference is paired. Draws that hold one class only are left out. What varies is the sample of questions;
the training of an estimator is taken as given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from uqchat.errors import InputError
from uqchat.metrics import Numbers, as_array, as_labels, as_probabilities, needs_both
from uqchat.metrics_weighted import METRICS, OF_PROBABILITIES, Array

_CELLS = 4_000_000  # of the weight matrix at a time: 32 MB
DEFINED_FOR_ONE_CLASS: Final = ("brier", "ece", "ece_adaptive", "aurc")


@dataclass(frozen=True, slots=True)
class Interval:
    """A value on all rows and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    metric: str, scores: Numbers, labels: Numbers, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """A metric with its percentile interval.

    Args:
        metric: a key of `metrics_weighted.METRICS`. scores: (N,), risks, or P(error) for brier, brier_skill and the
            two ece. labels: (N,), is_error. samples: draws. confidence: in (0, 1). seed: of the draws.

    Raises:
        InputError: unknown metric; whatever the metric refuses.

    Source: Efron & Tibshirani 1993, 13.3. The interval of an ECE leans upwards: drawing rows twice adds noise to
    each bin, and noise adds to an absolute gap.
    """
    return macro_bootstrap(metric, [(scores, labels)], samples=samples, confidence=confidence, seed=seed)


def bootstrap_difference(
    metric: str,
    scores: Numbers,
    baseline: Numbers,
    labels: Numbers,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """metric(scores) - metric(baseline) on the same rows, paired. Arguments and errors as `bootstrap`."""
    sets = [(scores, baseline, labels)]
    return macro_difference(metric, sets, samples=samples, confidence=confidence, seed=seed)


def macro_bootstrap(
    metric: str,
    sets: Sequence[tuple[Numbers, Numbers]],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Unweighted mean over sets of a metric. `sets`: (scores, labels) each; else as `bootstrap`."""
    draws = [replicates(metric, s, labels, samples, seed + i) for i, (s, labels) in enumerate(_some(sets))]
    return interval_of(np.mean(draws, axis=0), confidence)


def macro_difference(
    metric: str,
    sets: Sequence[tuple[Numbers, Numbers, Numbers]],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Unweighted mean over sets of metric(scores) - metric(baseline). `sets`: (scores, baseline, labels) each."""
    draws = [
        replicates(metric, s, labels, samples, seed + i) - replicates(metric, base, labels, samples, seed + i)
        for i, (s, base, labels) in enumerate(_some(sets))
    ]
    return interval_of(np.mean(draws, axis=0), confidence)


def _some(sets: Sequence[tuple[Numbers, ...]]) -> Sequence[tuple[Numbers, ...]]:
    if not len(sets):
        raise InputError("A mean over sets needs at least one set.")
    return sets


def replicates(metric: str, scores: Numbers, labels: Numbers, samples: int, seed: int) -> Array:
    """The metric on all rows, then on each draw: (1 + samples,), nan for a draw that leaves it undefined.

    The same seed and N give the same draws, so vectors of two scores on the same rows may be subtracted, and vectors of
    several sets averaged; `interval_of` makes an interval of the result. Arguments and errors as `bootstrap`.
    """
    if metric not in METRICS:
        raise InputError(f"Unknown metric {metric!r}; known: {', '.join(METRICS)}.")
    values = (as_probabilities if metric in OF_PROBABILITIES else as_array)(scores, "scores")
    errors = as_labels(labels, "labels", len(values))
    if metric not in DEFINED_FOR_ONE_CLASS:
        needs_both(errors, metric)
    blocks = [np.ones((1, len(values))), *_draws(len(values), samples, seed)]
    return np.concatenate([METRICS[metric](values, errors, weights) for weights in blocks])


def _draws(count: int, samples: int, seed: int) -> Iterator[Array]:
    """Weight matrices that together hold `samples` draws of `count` rows with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // count)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def interval_of(draws: Array, confidence: float = 0.95) -> Interval:
    """The first entry with the percentile bounds of the others, nan left out. Raises InputError: a bad confidence."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1; got {confidence}.")
    value, rest = draws[0], draws[1:][~np.isnan(draws[1:])]
    if not len(rest):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(rest, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))
