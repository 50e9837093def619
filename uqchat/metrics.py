"""How well risks rank errors, and how true probabilities are. Plain numbers in, plain numbers out.

Knows no model and no estimator. Lists, NumPy arrays and tensors are taken; what cannot be measured (nothing given, a
NaN, only right answers) is an `InputError` that says so, never a NaN. The formulas are in `metrics_weighted`, the
intervals in `metrics_bootstrap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from uqchat import metrics_weighted
from uqchat.errors import InputError
from uqchat.metrics_weighted import Array

Numbers = Sequence[float] | Any
EceVariant = Literal["equal_width", "adaptive", "kapoor2024"]


def as_array(values: Numbers, name: str) -> Array:
    """Numbers of any kind as (N,) float64.

    Raises:
        InputError: empty, not numeric, or a NaN among them.
    """
    if hasattr(values, "detach"):  # a tensor, maybe bfloat16 and on a GPU
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers; got {str(values)[:80]!r}.") from error
    if not len(array):
        raise InputError(f"{name}: nothing was given; at least one number is needed.")
    if np.isnan(array).any():
        raise InputError(f"{name}: {int(np.isnan(array).sum())} of {len(array)} are NaN; leave those rows out.")
    return array


def as_labels(values: Numbers, name: str, count: int) -> Array:
    """0/1 or boolean labels as (N,) float64.

    Raises:
        InputError: another length than `count`, or a value that is neither 0 nor 1.
    """
    labels = as_array(values, name)
    if len(labels) != count:
        raise InputError(f"{count} scores but {len(labels)} labels in {name}; give one for each.")
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"{name} must be 0 or 1; got {labels[~np.isin(labels, (0, 1))][0]}.")
    return labels


def as_probabilities(values: Numbers, name: str) -> Array:
    """Numbers in [0, 1] as (N,) float64.

    Raises:
        InputError: one lies outside.
    """
    array = as_array(values, name)
    outside = array[(array < 0) | (array > 1)]
    if len(outside):
        raise InputError(f"{name} must be probabilities in [0, 1]; got {outside[0]}.")
    return array


def needs_both(labels: Array, metric: str) -> None:
    """Refuse labels of one class.

    Raises:
        InputError: every answer is right, or every one wrong.
    """
    if labels.min() == labels.max():
        kind = "an error" if labels[0] else "right"
        raise InputError(f"{metric} needs errors and right answers; each of the {len(labels)} answers is {kind}.")


def _once(labels: Array) -> Array:
    return np.ones((1, len(labels)))


def auroc(risk: Numbers, is_error: Numbers) -> float:
    """Probability that an error has a higher risk than a right answer, ties counting half. 0.5 is chance.

    Args:
        risk: (N,), higher is riskier, any unit. is_error: (N,), 1 or True for an error.

    Raises:
        InputError: see `as_array`, `as_labels`; or only one class.

    Source: Hanley & McNeil 1982; equals scikit-learn's `roc_auc_score`.
    """
    scores = as_array(risk, "risk")
    labels = as_labels(is_error, "is_error", len(scores))
    needs_both(labels, "AUROC")
    return float(metrics_weighted.auroc(scores, labels, _once(labels))[0])


def average_precision(risk: Numbers, is_error: Numbers) -> float:
    """Area under the precision-recall curve of finding errors by risk: the sum of precision times recall gained.

    Equal risks enter together, so their order does not matter.

    Args:
        risk: (N,), higher is riskier. is_error: (N,), 1 or True for an error.

    Raises:
        InputError: see `as_array`, `as_labels`; or no error among the labels.

    Source: scikit-learn's `average_precision_score`, which it equals.
    """
    scores = as_array(risk, "risk")
    labels = as_labels(is_error, "is_error", len(scores))
    if not labels.any():
        raise InputError(f"Average precision needs at least one error; all {len(labels)} answers are right.")
    return float(metrics_weighted.average_precision(scores, labels, _once(labels))[0])


def aurc(risk: Numbers, is_error: Numbers) -> float:
    """Area under the risk-coverage curve: the share of errors among the n least risky answers, averaged over n.

    Equal risks count with the mean over all their orders. Lower is better; 0 when nothing is wrong.

    Args:
        risk: (N,), higher is riskier. is_error: (N,), 1 or True for an error.

    Raises:
        InputError: see `as_array`, `as_labels`.

    Source: Geifman, Uziel, El-Yaniv 2019 (arXiv 1805.08206), eq. 3; lm-polygraph's RCC-AUC divided by N.
    """
    scores = as_array(risk, "risk")
    labels = as_labels(is_error, "is_error", len(scores))
    return float(metrics_weighted.aurc(scores, labels, _once(labels))[0])


@dataclass(frozen=True, slots=True)
class Rejection:
    """What `prr` gives: the areas under three rejection curves, and where the first lies between the others."""

    raw: float
    oracle: float
    random: float
    normalised: float


def prr(risk: Numbers, quality: Numbers, max_rejection: float = 1.0) -> Rejection:
    """Prediction-rejection ratio: how much of what a perfect order gains is gained by rejecting the riskiest first.

    Quality is scaled to [0, 1] by its own range. raw = mean, over 1 to floor(max_rejection N) kept sets from all rows
    downwards, of the mean quality kept; oracle = the same with risk = -quality; random = mean quality;
    normalised = (raw - random) / (oracle - random): 1 perfect, 0 chance.

    Args:
        risk: (N,), higher is riskier. quality: (N,), higher is better. max_rejection: in (0, 1]; papers use 0.5.

    Raises:
        InputError: see `as_array`; lengths differ; every quality is the same; too few rows for `max_rejection`.

    Source: Malinin & Gales 2021 (arXiv 2002.07650); Fadeeva et al. 2023 (lm-polygraph,
    `ue_metrics/pred_rej_area.py`). Deviations: the random baseline is the exact expectation, there the mean of 1,000
    shuffles; equal risks count with the mean over all their orders, there in the order that argsort leaves.
    """
    scores, values = as_array(risk, "risk"), as_array(quality, "quality")
    if len(scores) != len(values):
        raise InputError(f"{len(scores)} risks but {len(values)} qualities; give one for each.")
    if not 0 < max_rejection <= 1 or int(max_rejection * len(values) + 1e-9) < 2:
        raise InputError(f"max_rejection must be in (0, 1] and leave two sets to compare; got {max_rejection}.")
    if values.min() == values.max():
        raise InputError(f"PRR needs answers of different quality; each of the {len(values)} has {values[0]}.")
    values = (values - values.min()) / (values.max() - values.min())
    raw, oracle = (
        float(metrics_weighted.prefix_mean(order, values, _once(values), max_rejection)[0])
        for order in (scores, -values)
    )
    random = float(values.mean())
    return Rejection(raw, oracle, random, (raw - random) / (oracle - random))


def brier(confidence: Numbers, is_correct: Numbers) -> float:
    """Mean squared distance of the probability of being right from what happened, in [0, 1]; lower is better.

    Args:
        confidence: (N,), P(correct). is_correct: (N,), 1 or True for a right answer.

    Raises:
        InputError: see `as_probabilities`, `as_labels`.

    Source: Brier 1950; equals scikit-learn's `brier_score_loss`.
    """
    scores = as_probabilities(confidence, "confidence")
    labels = as_labels(is_correct, "is_correct", len(scores))
    return float(metrics_weighted.brier(scores, labels, _once(labels))[0])


def brier_skill(confidence: Numbers, is_correct: Numbers) -> float:
    """1 - Brier / Brier of the constant forecast "share of right answers": 1 perfect, 0 as good as that share.

    The share is that of these very answers, which no forecast made beforehand knows exactly: the comparison is strict.

    Args:
        confidence: (N,), P(correct). is_correct: (N,), 1 or True for a right answer.

    Raises:
        InputError: see `as_probabilities`, `as_labels`; or only one class.

    Source: Murphy 1973; Wilks, Statistical Methods in the Atmospheric Sciences, 8.4.2 (reference = climatology).
    """
    scores = as_probabilities(confidence, "confidence")
    labels = as_labels(is_correct, "is_correct", len(scores))
    needs_both(1 - labels, "The Brier skill score")
    return float(metrics_weighted.brier_skill(scores, labels, _once(labels))[0])


def ece(confidence: Numbers, is_correct: Numbers, n_bins: int = 10, variant: EceVariant = "equal_width") -> float:
    """Expected calibration error: |mean confidence - share right| of the bins, weighted by their rows. In [0, 1].

    - "equal_width": bins of width 1 / n_bins, (lo, hi], 0 in the first and 1 in the last.
    - "adaptive": bins of equally many rows, edges at quantiles; equal confidences share a bin.
    - "kapoor2024": the published one. Takes P(correct), decides "correct" above 0.5, and compares max(P, 1-P) with
      whether that decision was right, in bins [lo, hi) of [0, 1], so only the upper half is used and a confidence of
      exactly 1 is dropped. It measures the decision's calibration and cannot be compared with the other two.

    Args:
        confidence: (N,), P(correct). is_correct: (N,), 1 or True for a right answer. n_bins: at least 1.

    Raises:
        InputError: see `as_probabilities`, `as_labels`; unknown variant; no bin.

    Source: Naeini et al. 2015; Nguyen & O'Connor 2015 (adaptive); Kapoor et al. 2024 (arXiv 2406.08391,
    `third_party/calibration.py` of calibration-tuning).
    """
    scores = as_probabilities(confidence, "confidence")
    labels = as_labels(is_correct, "is_correct", len(scores))
    if variant not in get_args(EceVariant) or n_bins < 1:
        names = ", ".join(get_args(EceVariant))
        raise InputError(f"ECE needs one of the variants {names} and at least 1 bin; got {variant!r}, {n_bins}.")
    if variant == "kapoor2024":
        return float(metrics_weighted.ece_kapoor2024(scores, labels, _once(labels), n_bins)[0])
    return float(metrics_weighted.ece(scores, labels, _once(labels), n_bins, variant == "adaptive")[0])


def ece_floor(confidence: Numbers, n_bins: int = 10, samples: int = 200, seed: int = 0) -> float:
    """The equal-width ECE that these very confidences would have on average, were every one of them true.

    Bins of few answers are off by chance, so no forecast reaches 0; an ECE near this floor shows no miscalibration.

    Args:
        confidence: (N,), P(correct). n_bins: as in `ece`. samples: how often labels are drawn. seed: of the draws.

    Raises:
        InputError: see `as_probabilities`.

    Source: the consistency resampling of Broecker & Smith 2007 (Weather and Forecasting 22, section 3).
    """
    scores = as_probabilities(confidence, "confidence")
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges[1:-1], scores, side="left")
    rng = np.random.default_rng(seed)
    gaps = [np.abs(np.bincount(bins, scores - (rng.random(len(scores)) < scores))).sum() for _ in range(samples)]
    return float(np.mean(gaps) / len(scores))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bar of a reliability diagram: rows with a confidence in (low, high], 0 in the first."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Numbers, is_correct: Numbers, n_bins: int = 10) -> list[ReliabilityBin]:
    """The bins of the equal-width ECE that hold rows: their mean confidence and share of right answers.

    Args:
        confidence: (N,), P(correct). is_correct: (N,), 1 or True for a right answer. n_bins: at least 1.

    Raises:
        InputError: see `as_probabilities`, `as_labels`.
    """
    scores = as_probabilities(confidence, "confidence")
    labels = as_labels(is_correct, "is_correct", len(scores))
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges[1:-1], scores, side="left")
    found = [(b, bins == b) for b in range(n_bins) if (bins == b).any()]
    return [
        ReliabilityBin(
            float(edges[b]), float(edges[b + 1]), float(scores[m].mean()), float(labels[m].mean()), int(m.sum())
        )
        for b, m in found
    ]
