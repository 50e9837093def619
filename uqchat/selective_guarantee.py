"""Thresholds with a promise: "of the answered questions at most r are wrong, with confidence 1 - delta".

The promise is about questions drawn like the labelled ones, not about these very ones, and it holds before the labels
are seen: in at most a share delta of all repetitions the certified threshold lets more than r errors through. It says
nothing about questions of another kind; `drift` looks for those. Knows numbers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uqchat.calibration_maps import fit_isotonic
from uqchat.errors import InputError
from uqchat.metrics import Numbers, as_array, as_labels
from uqchat.metrics_weighted import Array

# Where a sequence of tests may begin, as a share of the answers, and its share of delta. Most of it goes to one place:
# that certifies about a third more at r = .3 than equal shares at N/2^k in simulations of calibrated risks (Beta(1.3,
# .8), (1, .5), (2, 1), (.8, .8), (2, 2); 200 to 1,000 answers). The others keep what is left for shapes unlike these.
_STARTS: Final = ((1 / 32, 0.1), (1 / 10, 0.8), (1 / 3, 0.05), (1.0, 0.05))
_GROWTH: Final = 1.1 ** np.arange(1, 61)  # up to 300 times as many rows are looked at
_MAX_POINTS: Final = 100


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A certified threshold and what it is worth on the labelled answers it was certified on."""

    threshold: float
    """An answer passes iff its risk is at most this."""
    max_error: float
    delta: float
    rows: int
    """Labelled answers it rests on."""
    coverage: float
    """Share of them that passes."""
    error: float
    """Share of errors among those that pass."""
    upper_bound: float
    """Clopper-Pearson upper bound, at confidence 1 - delta, of the error share below this very threshold."""


def guaranteed_threshold(risk: Numbers, is_error: Numbers, max_error: float, delta: float) -> float | None:
    """The largest threshold certified to let at most a share `max_error` of errors pass, with confidence 1 - delta.

    A threshold is tested by the exact binomial tail: k errors among n passing answers certify it at a level when
    P(Binomial(n, max_error) <= k) <= level, which is to say that the Clopper-Pearson upper bound at that level is at
    most `max_error`. Sequences of tests start at the N/32, N/10, N/3 and N least risky answers (ties included) with
    10, 80, 5 and 5 % of delta; a start with too few answers to pass even without an error leaves its level to the next.
    Each goes upwards, one distinct risk after the other, until one fails; a sequence that reaches the next start takes
    its level along. The largest threshold reached is returned. A sequence does not pay for its length: to go wrong it
    must pass the test at the very place where the population's error share first exceeds `max_error`.

    It neither splits the answers nor looks at others: report it on answers it has not seen.

    Args:
        risk: (N,), higher is riskier, any unit. is_error: (N,), 1 or True for an error.
        max_error: in (0, 1). delta: in (0, 1).

    Returns:
        The threshold (an answer passes iff risk <= threshold), or None when nothing can be certified.

    Raises:
        InputError: nothing given, lengths differ, a NaN, labels other than 0 and 1, max_error or delta out of range.

    Source: Clopper & Pearson 1934; Angelopoulos, Bates, Candes, Jordan, Lei 2021, Learn then Test (arXiv 2110.01052),
    section 2 (fixed-sequence testing with several starting points); Wiens & Dmitrienko 2005 (levels taken along).
    Deviation: the starts are ranks, not fixed thresholds, so that any unit works. That is exact where the share of
    errors does not fall with the risk at a start; the tests simulate shapes where it does.
    """
    found = guarantee(risk, is_error, max_error, delta)
    return None if found is None else found.threshold


def guarantee(risk: Numbers, is_error: Numbers, max_error: float, delta: float) -> Guarantee | None:
    """`guaranteed_threshold` with the figures that go with it; same arguments and errors."""
    from scipy.stats import beta, binom  # takes longer to come in than all of `uqchat.ui`

    thresholds, answered, errors = _curve(risk, is_error, max_error, delta)
    total = int(answered[-1])
    tails = binom.cdf(errors, answered, max_error)
    best = _last_certified(answered, tails, _starts(total, max_error, delta))
    if best is None:
        return None
    n, k = int(answered[best]), int(errors[best])
    bound = float(beta.ppf(1 - delta, k + 1, n - k)) if k < n else 1.0
    return Guarantee(float(thresholds[best]), max_error, delta, total, n / total, k / n, bound)


def _starts(total: int, max_error: float, delta: float) -> dict[int, float]:
    """Ranks, rising, at which a sequence begins, and its level. Labels play no part in them."""
    found: dict[int, float] = {}
    saved = 0.0
    for place, share in _STARTS:
        rank, saved = math.ceil(place * total), saved + share * delta
        if (1 - max_error) ** rank <= found.get(rank, 0.0) + saved:
            found[rank], saved = found.get(rank, 0.0) + saved, 0.0
    return found


def _last_certified(answered: NDArray[np.intp], tails: Array, starts: dict[int, float]) -> int | None:
    """The highest place that a sequence of tests reaches without a failure.

    Args:
        answered, tails: (K,), per distinct risk, how many answers pass and the binomial tail. starts: as `_starts`.
    """
    places, which = np.unique(np.searchsorted(answered, list(starts)), return_inverse=True)
    levels = np.bincount(which, list(starts.values()))
    best, carried = None, 0.0
    for place, own, end in zip(places, levels, np.r_[places, len(answered)][1:], strict=True):
        level = carried + own
        failed = np.flatnonzero(tails[place:end] > level)
        reached = place + failed[0] if len(failed) else end
        if reached > place:
            best = int(reached) - 1
        carried = level if reached == end else 0.0
    return best


def _curve(risk: Numbers, is_error: Numbers, max_error: float, delta: float) -> tuple[Array, Array, Array]:
    """Distinct risks, rising, and how many answers and errors pass each."""
    for name, value in (("max_error", max_error), ("delta", delta)):
        if not 0 < value < 1:
            raise InputError(f"{name} must lie between 0 and 1; got {value}.")
    scores = as_array(risk, "risk")
    labels = as_labels(is_error, "is_error", len(scores))
    thresholds, rows = np.unique(scores, return_inverse=True)
    return thresholds, np.bincount(rows).cumsum(), np.bincount(rows, labels).cumsum()


def more_rows_needed(risk: Numbers, is_error: Numbers, max_error: float, delta: float) -> int | None:
    """About how many more labelled answers make a certificate likely (two in three), were they like these.

    The share of errors below every threshold is taken from a rising curve through the labels, for the lowest share
    observed is low by luck too; then the number of rows is grown until a threshold would pass its test. A rough guide.

    Args:
        as `guaranteed_threshold`.

    Returns:
        0 when it can be given already; None when the curve lies above `max_error` everywhere, only one kind of label
        is there, or more than 300 times as many answers would be needed.

    Raises:
        InputError: as `guaranteed_threshold`.
    """
    from scipy.stats import binom

    if guarantee(risk, is_error, max_error, delta) is not None:
        return 0
    scores = np.sort(as_array(risk, "risk"))
    labels = as_labels(is_error, "is_error", len(scores))[np.argsort(as_array(risk, "risk"), kind="stable")]
    if labels.min() == labels.max() or np.isinf(scores).any():
        return None
    total = len(scores)
    expected = fit_isotonic(scores, labels, np.ones(total)).apply(scores).cumsum()
    answered = np.unique(np.linspace(1, total, _MAX_POINTS).astype(int))
    passing = np.floor(answered[:, None] * _GROWTH)
    unlucky = binom.ppf(0.8, passing, (expected[answered - 1] / answered)[:, None])
    enough = np.flatnonzero((binom.cdf(unlucky, passing, max_error) <= delta).any(axis=0))
    return math.ceil(total * (_GROWTH[enough[0]] - 1)) if len(enough) else None


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one sample of risks lies from another."""

    score: float
    """Largest distance between the two distribution functions, in [0, 1]."""
    p_value: float
    """Probability of such a distance or more, were both drawn alike."""
    has_drifted: bool
    """Unlikely (p < 0.01) and more than a trifle (score > 0.1)."""


def drift(calibration_risk: Numbers, new_risk: Numbers) -> Drift:
    """Whether risks seen in use look like those of the calibration; needs no labels.

    A promise made on the calibration's questions is about questions like them. Other questions with the same risks go
    unnoticed, and so does any change while few answers have been seen.

    Args:
        calibration_risk: (N,), of the answers that a threshold was certified on. new_risk: (M,), of those since.

    Raises:
        InputError: nothing given, or a NaN.

    Source: the two-sample Kolmogorov-Smirnov test (`scipy.stats.ks_2samp`).
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(as_array(calibration_risk, "calibration_risk"), as_array(new_risk, "new_risk"))
    score, p_value = float(found.statistic), float(found.pvalue)
    return Drift(score, p_value, p_value < 0.01 and score > 0.1)
