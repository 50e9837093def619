"""Selective answering against counting by hand and by brute force, ties being the rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uqchat.errors import InputError
from uqchat.selective import (
    Costs,
    accuracy_at_coverage,
    accuracy_band,
    auarc,
    aurc,
    coverage_at_accuracy,
    e_aurc,
    expected_cost,
    risk_coverage,
)

ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30)
FEW_ROWS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


def columns(rows: Sequence[tuple[int, bool]]) -> tuple[list[int], list[bool]]:
    first, second = zip(*rows, strict=True)
    return list(first), list(second)


def passing(rows: Sequence[tuple[int, bool]], threshold: float) -> list[bool]:
    """The labels of the answers that a threshold lets pass."""
    return [is_error for risk, is_error in rows if risk <= threshold]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_the_curve_has_a_point_for_every_distinct_risk(kind: Callable) -> None:
    """1 right; 2 right and wrong; 3 wrong: of 1, 3 and 4 answers 0, 1 and 2 are wrong."""
    curve = risk_coverage(kind([2, 1, 3, 2]), kind([1, 0, 1, 0]))
    assert curve.thresholds.tolist() == [1, 2, 3]
    assert curve.coverage == pytest.approx([1 / 4, 3 / 4, 1])
    assert curve.selective_risk == pytest.approx([0, 1 / 3, 1 / 2])


@given(ROWS)
def test_the_curve_equals_counting(rows: list[tuple[int, bool]]) -> None:
    curve = risk_coverage(*columns(rows))
    for threshold, coverage, share in zip(curve.thresholds, curve.coverage, curve.selective_risk, strict=True):
        passed = passing(rows, threshold)
        assert (coverage, share) == pytest.approx((len(passed) / len(rows), sum(passed) / len(passed)))
    assert curve.coverage[-1] == 1


@given(FEW_ROWS, st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]))
def test_accuracy_at_coverage_is_the_mean_over_every_order_of_ties(
    rows: list[tuple[int, bool]], coverage: float
) -> None:
    count = int(np.ceil(coverage * len(rows)))
    orders = [p for p in permutations(rows) if all(a[0] <= b[0] for a, b in zip(p, p[1:], strict=False))]
    expected = np.mean([1 - np.mean([is_error for _, is_error in order[:count]]) for order in orders])
    assert accuracy_at_coverage(*columns(rows), coverage) == pytest.approx(expected)


@given(ROWS, st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]))
def test_coverage_at_accuracy_equals_trying_every_threshold(rows: list[tuple[int, bool]], accuracy: float) -> None:
    tried = [passing(rows, threshold) for threshold in range(5)]
    good = [len(passed) / len(rows) for passed in tried if passed and 1 - np.mean(passed) >= accuracy - 1e-9]
    assert coverage_at_accuracy(*columns(rows), accuracy) == pytest.approx(max(good, default=0))


@given(ROWS)
def test_excess_is_nothing_for_a_perfect_order_and_never_negative(rows: list[tuple[int, bool]]) -> None:
    risk, is_error = columns(rows)
    assert e_aurc(is_error, is_error) == pytest.approx(0)
    assert e_aurc(risk, is_error) >= -1e-12
    assert auarc(risk, is_error) == pytest.approx(1 - aurc(risk, is_error))


@given(ROWS, st.sampled_from([Costs(), Costs(1, 0.5, 0.3), Costs(5, 1, 0, 0.2), Costs(0, 0, 1)]))
def test_the_cost_of_every_threshold_equals_adding_up(rows: list[tuple[int, bool]], costs: Costs) -> None:
    curve = expected_cost(*columns(rows), costs)
    declining = costs.refusal if costs.hand_over is None else costs.hand_over
    for threshold, cost in zip(curve.thresholds, curve.cost, strict=True):
        total = 0.0
        for risk, is_error in rows:
            if risk <= threshold:
                total += costs.wrong * is_error
            else:
                total += declining + costs.withheld * (not is_error)
        assert cost == pytest.approx(total / len(rows))
    assert curve.best_cost == pytest.approx(curve.cost.min())
    cheapest = curve.thresholds[curve.cost <= curve.cost.min() + 1e-12]
    assert curve.best_threshold == cheapest.max()


def test_where_mistakes_are_dear_nothing_is_answered_and_where_they_are_free_everything() -> None:
    risk, is_error = [1, 2, 3], [1, 1, 1]
    assert expected_cost(risk, is_error, Costs(wrong=10, refusal=1)).best_threshold == -np.inf
    assert expected_cost(risk, is_error, Costs(wrong=0, refusal=1)).best_coverage == 1


def test_the_band_holds_the_curve_and_is_wider_where_fewer_answers_count() -> None:
    rng = np.random.default_rng(0)
    risk = rng.random(400)
    is_error = rng.random(400) < risk
    band = accuracy_band(risk, is_error, [0.05, 0.25, 1.0])
    assert band.accuracy == pytest.approx([accuracy_at_coverage(risk, is_error, c) for c in band.coverage])
    assert (band.low <= band.accuracy).all() and (band.accuracy <= band.high).all()
    assert band.high[0] - band.low[0] > band.high[2] - band.low[2]
    spread = 1.96 * np.sqrt(is_error.mean() * (1 - is_error.mean()) / 400)
    assert (band.high[2] - band.low[2]) / 2 == pytest.approx(spread, rel=0.15)


def test_one_answer_and_answers_all_alike_have_their_trivial_pictures() -> None:
    for is_error in (0, 1):
        assert risk_coverage([5], [is_error]).selective_risk.tolist() == [is_error]
        assert accuracy_at_coverage([5], [is_error], 1.0) == 1 - is_error
        band = accuracy_band([5, 5, 5], [is_error] * 3, [0.5, 1.0])
        assert band.low.tolist() == band.high.tolist() == [1 - is_error] * 2
    assert coverage_at_accuracy([1, 2], [1, 1], 0.5) == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: risk_coverage([], []), "nothing was given"),
        (lambda: risk_coverage([float("nan")], [0]), "NaN"),
        (lambda: risk_coverage([1, 2], [0]), "2 scores but 1"),
        (lambda: accuracy_at_coverage([1], [0], 0), r"\(0, 1\]"),
        (lambda: coverage_at_accuracy([1], [0], 1.5), r"\[0, 1\]"),
        (lambda: accuracy_band([1], [0], [0.0]), "coverages"),
        (lambda: Costs(wrong=-1), "0 or more"),
        (lambda: Costs(refusal=float("inf")), "finite"),
    ],
)
def test_what_cannot_be_asked_is_said(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
