"""The promise of a certified threshold, in simulation with known populations, and against the exact bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from uqchat.errors import InputError
from uqchat.selective import drift, guarantee, guaranteed_threshold, more_rows_needed

SPLITS, ROWS, DELTA = 2000, 400, 0.1
GRID = np.linspace(0, 1, 4001)
Curve = Callable[[np.ndarray], np.ndarray]


def dip(x: np.ndarray) -> np.ndarray:
    """Safe up to .2, bad to .4, safe to .7, bad again: the share of errors crosses .3 more than once."""
    return np.select([x < 0.2, x < 0.4, x < 0.7], [0.25, 0.5, 0.1], 0.8)


POPULATIONS: dict[str, tuple[Curve, float, int | None]] = {
    "rising": (lambda x: x, 0.2, None),
    "rising, with ties": (lambda x: x, 0.3, 8),
    "steep": (lambda x: 1 / (1 + np.exp(-12 * (x - 0.35))), 0.1, None),
    "never good enough": (lambda x: np.full_like(x, 0.3001), 0.3, None),
    "up, down and up": (dip, 0.3, None),
    "falling": (lambda x: 0.6 - 0.5 * x, 0.4, None),
}


def sample(
    curve: Curve, levels: int | None, rng: np.random.Generator, count: int = ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Risks, uniform on [0, 1] or on a few levels, and errors of the probability that the curve gives."""
    risk = rng.random(count)
    if levels:
        risk = (np.floor(risk * levels) + 0.5) / levels
    return risk, rng.random(count) < curve(risk)


def true_error(curve: Curve, levels: int | None, threshold: float) -> float:
    """The population's share of errors among answers at or below the threshold."""
    if levels:
        risks = (np.arange(levels) + 0.5) / levels
        return float(curve(risks[risks <= threshold + 1e-9]).mean())
    risks = np.linspace(0, threshold, 2001)
    return float(curve((risks[1:] + risks[:-1]) / 2).mean())


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_stated_share_of_errors_is_exceeded_in_at_most_delta_of_two_thousand_splits(name: str) -> None:
    curve, max_error, levels = POPULATIONS[name]
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(SPLITS):
        threshold = guaranteed_threshold(*sample(curve, levels, rng), max_error, DELTA)
        broken += threshold is not None and true_error(curve, levels, threshold) > max_error
    assert broken / SPLITS <= DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / SPLITS)


def test_the_promise_is_useful() -> None:
    """Errors as probable as the risk says: an error share of .3 is reached at a risk of .6; 400 get to 3/4 of it."""
    rng = np.random.default_rng(1)
    found = [guaranteed_threshold(*sample(lambda x: x, None, rng), 0.3, DELTA) or 0 for _ in range(200)]
    assert np.mean(found) > 0.45


def test_a_naive_threshold_breaks_the_promise_that_ours_keeps() -> None:
    """The largest threshold whose observed share is low enough exceeds r about every other time: the test can fail."""
    rng = np.random.default_rng(2)
    broken = 0
    for _ in range(300):
        risk, is_error = sample(lambda x: x, None, rng)
        order = np.argsort(risk)
        share = is_error[order].cumsum() / np.arange(1, ROWS + 1)
        broken += true_error(lambda x: x, None, risk[order][share <= 0.2].max(initial=0.0)) > 0.2
    assert broken / 300 > 0.3


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=120), st.sampled_from([0.2, 0.5, 0.7])
)
def test_what_is_certified_has_a_clopper_pearson_bound_below_the_limit(rows: list, max_error: float) -> None:
    """The bound is computed by scipy's own interval, one-sided."""
    risk, is_error = (np.array(column) for column in zip(*rows, strict=True))
    found = guarantee(risk, is_error, max_error, 0.2)
    if found is None:
        return
    kept = is_error[risk <= found.threshold]
    bound = binomtest(int(kept.sum()), len(kept), alternative="less").proportion_ci(1 - 0.2, "exact").high
    assert found.upper_bound == pytest.approx(bound) and bound <= max_error + 1e-9
    assert (found.coverage, found.error) == pytest.approx((len(kept) / len(rows), kept.mean()))
    assert found.threshold in risk


def test_sequences_start_at_several_places_and_end_at_the_first_failure() -> None:
    """The 10 least risky of 320 answers are wrong, then 310 are right: N/32 fails, N/2 passes and goes to the end."""
    risk, is_error = np.arange(320), np.arange(320) < 10
    assert guaranteed_threshold(risk, is_error, 0.1, 0.1) == 319
    is_error = (np.arange(320) >= 50) & (np.arange(320) < 300)
    reached = guaranteed_threshold(risk, is_error, 0.1, 0.1)
    assert reached is not None and 40 <= reached < 60


def test_nothing_is_certified_on_few_rows_or_on_wrong_answers() -> None:
    """Without an error n answers certify r when (1 - r)^n <= delta: n = 22 for r = .1, delta = .1."""
    assert guaranteed_threshold(np.zeros(21), np.zeros(21), 0.1, 0.1) is None
    assert guaranteed_threshold(np.zeros(22), np.zeros(22), 0.1, 0.1) == 0
    assert guaranteed_threshold(np.arange(500), np.ones(500), 0.5, 0.1) is None
    assert guaranteed_threshold([0.5], [0], 0.1, 0.1) is None


def test_the_order_of_the_rows_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    risk, is_error = sample(lambda x: x, 20, rng)
    order = rng.permutation(ROWS)
    assert guarantee(risk, is_error, 0.3, 0.1) == guarantee(risk[order], is_error[order], 0.3, 0.1)


def test_the_rows_said_to_be_missing_are_about_enough_and_far_fewer_are_not() -> None:
    rng = np.random.default_rng(4)
    tried, certified = 0, {0.1: 0, 2: 0}
    for _ in range(60):
        risk, is_error = sample(lambda x: x, None, rng, 60)
        more = more_rows_needed(risk, is_error, 0.2, 0.1)
        if not more:  # certified already, or these rows show nothing safe
            continue
        tried += 1
        for share in certified:
            rows = sample(lambda x: x, None, rng, 60 + int(share * more))
            certified[share] += guaranteed_threshold(*rows, 0.2, 0.1) is not None
    assert tried > 20 and certified[2] > 2 * tried / 3 and certified[0.1] < tried / 2


def test_no_number_of_rows_helps_where_nothing_is_safe_and_none_is_needed_where_it_is_certified() -> None:
    assert more_rows_needed(np.arange(100), np.ones(100), 0.3, 0.1) is None
    assert more_rows_needed(np.arange(100), np.zeros(100), 0.3, 0.1) == 0


def test_drift_sees_other_questions_and_not_the_same_ones() -> None:
    rng = np.random.default_rng(5)
    base = rng.beta(2, 3, 500)
    assert not drift(base, rng.beta(2, 3, 200)).has_drifted
    assert drift(base, rng.beta(4, 2, 200)).has_drifted
    assert not drift(base, rng.beta(4, 2, 3)).has_drifted
    alarms = [drift(base, rng.beta(2, 3, 100)).has_drifted for _ in range(300)]
    assert np.mean(alarms) < 0.04


@pytest.mark.parametrize(("max_error", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1), (float("nan"), 0.1)])
def test_a_promise_that_means_nothing_is_refused(max_error: float, delta: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        guaranteed_threshold([1, 2], [0, 1], max_error, delta)
    with pytest.raises(InputError, match="between 0 and 1"):
        more_rows_needed([1, 2], [0, 1], max_error, delta)


def test_a_sample_without_answers_promises_nothing() -> None:
    with pytest.raises(InputError, match="nothing was given"):
        guaranteed_threshold([], [], 0.1, 0.1)
    with pytest.raises(InputError, match="nothing was given"):
        drift([], [0.5])
