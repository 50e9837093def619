"""Metrics against values derived by hand, scikit-learn, the reference results and brute force over all orders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from uqchat import metrics
from uqchat.errors import InputError
from uqchat.metrics import aurc, auroc, average_precision, brier, brier_skill, ece, ece_floor, prr, reliability

# Few distinct scores, so that ties are the rule.
ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40)
FEW_ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=6)


def columns(rows: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    first, second = zip(*rows, strict=True)
    return list(first), list(second)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_average_precision_sums_precision_times_recall_gained(kind: type) -> None:
    """Errors at ranks 1 and 3 of 4: (1/1) * 1/2 + (2/3) * 1/2 = 5/6."""
    assert average_precision(kind([0.9, 0.8, 0.7, 0.1]), kind([1, 0, 1, 0])) == pytest.approx(5 / 6)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda v: torch.tensor(v).bfloat16()])
def test_auroc_counts_pairs_and_half_of_ties(kind: Callable[[list[float]], object]) -> None:
    """Errors .75, .5 against rights .5, .25: 3 of 4 pairs won, 1 tied: 3.5 / 4."""
    assert auroc(kind([0.75, 0.5, 0.5, 0.25]), kind([1, 1, 0, 0])) == pytest.approx(0.875)


@given(ROWS)
def test_ranking_metrics_equal_scikit_learn_with_ties(rows: list[tuple[int, bool]]) -> None:
    risk, is_error = columns(rows)
    assume(0 < sum(is_error) < len(is_error))
    assert auroc(risk, is_error) == pytest.approx(roc_auc_score(is_error, risk))
    assert average_precision(risk, is_error) == pytest.approx(average_precision_score(is_error, risk))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_brier_equals_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    confidence, is_correct = columns(rows)
    expected = brier_score_loss(np.array(is_correct), np.array(confidence), labels=[False, True])
    assert brier(confidence, is_correct) == pytest.approx(expected)


def test_brier_skill_compares_with_the_share_of_right_answers() -> None:
    """Brier (.01 + .09 + .04 + .04) / 4 = .045 against .25 for always saying one half: 1 - .18."""
    assert brier_skill([0.9, 0.3, 0.2, 0.8], [1, 0, 0, 1]) == pytest.approx(0.82)
    assert brier_skill([0.5, 0.5], [1, 0]) == pytest.approx(0)


def over_all_orders(risk: Sequence[float], values: Sequence[float], rejected: int) -> float:
    """Mean quality of the n least risky, over the last `rejected` n, over every order that the risks allow."""
    count, found = len(risk), []
    for order in permutations(range(count)):
        if all(risk[a] <= risk[b] for a, b in zip(order, order[1:], strict=False)):
            means = np.cumsum([values[i] for i in order]) / np.arange(1, count + 1)
            found.append(means[count - rejected :].mean())
    return float(np.mean(found))


@given(FEW_ROWS, st.sampled_from([0.3, 0.5, 1.0]))
def test_rejection_areas_are_the_mean_over_every_order_of_ties(rows: list[tuple[int, int]], rejection: float) -> None:
    risk, quality = columns(rows)
    assume(len(set(quality)) > 1 and int(rejection * len(risk)) >= 2)
    scaled = (np.array(quality) - min(quality)) / (max(quality) - min(quality))
    rejected = int(rejection * len(risk))
    found = prr(risk, quality, rejection)
    assert found.raw == pytest.approx(over_all_orders(risk, scaled, rejected))
    assert found.oracle == pytest.approx(over_all_orders(list(-scaled), scaled, rejected))
    assert found.random == pytest.approx(over_all_orders([0] * len(risk), scaled, rejected))
    errors = [q > 1 for q in quality]
    assert aurc(risk, errors) == pytest.approx(over_all_orders(risk, errors, len(risk)))


def test_a_perfect_order_has_ratio_one_and_the_worst_less_than_nothing() -> None:
    assert prr([1, 2, 3, 4], [1, 1, 0, 0]).normalised == pytest.approx(1)
    assert prr([4, 3, 2, 1], [1, 1, 0, 0]).normalised < -0.5
    assert prr([7, 7, 7, 7], [1, 1, 0, 0]).normalised == pytest.approx(0)


def reference(shared: Path, key: str) -> list[dict]:
    return json.loads((shared / "fixtures" / "formulas" / "reference_values.json").read_text())[key]["cases"]


def test_prr_equals_lm_polygraph(shared: Path) -> None:
    """Its random baseline is a mean of 1,000 shuffles, so the normalised ratio is compared with that put in."""
    for case in reference(shared, "prr"):
        for rejection, expected in ((1.0, case["prr_1.0"]), (0.5, case["prr_0.5"])):
            found = prr(case["uncertainty"], case["quality"], rejection)
            assert (found.raw, found.oracle) == pytest.approx((expected["raw"], expected["oracle"]), abs=1e-6)
            assert found.random == pytest.approx(expected["random"], abs=0.01)
            theirs = (found.raw - expected["random"]) / (found.oracle - expected["random"])
            assert theirs == pytest.approx(expected["normalised"], abs=1e-6)


def test_kapoor2024_equals_calibration_tuning(shared: Path) -> None:
    for case in reference(shared, "paper_ece"):
        assert ece(case["p_correct"], case["label"], variant="kapoor2024") == pytest.approx(case["ece"], abs=1e-6)


def test_kapoor2024_drops_a_confidence_of_one_and_the_correct_one_does_not() -> None:
    """Ten certain answers, all wrong: nothing is left for the published one."""
    assert ece([1.0] * 10, [0] * 10, variant="kapoor2024") == 0
    assert ece([1.0] * 10, [0] * 10) == 1


def binned(confidence: Sequence[float], is_correct: Sequence[float], n_bins: int) -> float:
    """ECE row by row, bin by bin."""
    total = 0.0
    for b in range(n_bins):
        members = [
            (c, y)
            for c, y in zip(confidence, is_correct, strict=True)
            if b / n_bins < c <= (b + 1) / n_bins or (b == 0 and c == 0)
        ]
        total += abs(sum(c - y for c, y in members))
    return total / len(confidence)


@given(st.lists(st.tuples(st.integers(0, 16), st.booleans()), min_size=1, max_size=40), st.sampled_from([1, 4, 8]))
def test_equal_width_ece_equals_counting(rows: list[tuple[int, bool]], n_bins: int) -> None:
    sixteenths, is_correct = columns(rows)
    confidence = [c / 16 for c in sixteenths]  # exact, and often on an edge
    assert ece(confidence, is_correct, n_bins) == pytest.approx(binned(confidence, is_correct, n_bins))
    bars = reliability(confidence, is_correct, n_bins)
    assert sum(bar.count for bar in bars) == len(rows)
    gaps = sum(bar.count * abs(bar.confidence - bar.accuracy) for bar in bars) / len(rows)
    assert gaps == pytest.approx(ece(confidence, is_correct, n_bins))


def test_the_floor_is_what_a_perfect_forecast_gets_by_chance() -> None:
    """One bin of n rows at 1/2: the mean of |Binomial(n, 1/2) / n - 1/2|, (2 * 1/2 + 8 * 1/4) / 16 for n = 4."""
    assert ece_floor([0.5] * 4, samples=20_000) == pytest.approx(3 / 16, abs=0.005)
    assert ece_floor([0.0, 1.0, 1.0]) == 0
    rng = np.random.default_rng(0)
    confidence = rng.random(300)
    found = [ece(confidence, rng.random(300) < confidence) for _ in range(200)]
    assert ece_floor(confidence) == pytest.approx(np.mean(found), abs=0.004)


def test_adaptive_ece_has_bins_of_equal_size_and_keeps_ties_together() -> None:
    """Two bins of two: |.15 - 0| and |.35 - 1|, half each; alike confidences make one bin: |.5 - .25|."""
    assert ece([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 2, "adaptive") == pytest.approx((0.15 + 0.65) / 2)
    assert ece([0.5] * 4, [1, 0, 0, 0], 4, "adaptive") == pytest.approx(0.25)


@given(ROWS, st.randoms())
def test_the_order_of_the_rows_changes_nothing(rows: list[tuple[int, bool]], random: object) -> None:
    risk, is_error = columns(rows)
    assume(0 < sum(is_error) < len(is_error))
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    for metric in (auroc, average_precision, aurc, lambda r, e: prr(r, np.array(e) < 1).raw):
        assert metric(*columns(mixed)) == pytest.approx(metric(risk, is_error))


@pytest.mark.parametrize(
    ("metric", "scores", "labels", "says"),
    [
        (auroc, [0.1, 0.2], [1], "2 scores but 1"),
        (auroc, [0.1, 0.2], [1, 1], "each of the 2 answers is an error"),
        (auroc, [0.1, 0.2], [0, 0], "each of the 2 answers is right"),
        (auroc, [float("nan"), 0.2], [0, 1], "1 of 2 are NaN"),
        (auroc, [0.1, 0.2], [0, 2], "0 or 1; got 2"),
        (auroc, ["high", "low"], [0, 1], "must be numbers"),
        (auroc, [], [], "nothing was given"),
        (average_precision, [1, 2], [0, 0], "at least one error"),
        (average_precision, [float("nan"), 1], [1, 0], "NaN"),
        (brier, [1.5], [1], "got 1.5"),
        (brier_skill, [0.5, 0.5], [1, 1], "right"),
        (aurc, [1.0], [], "nothing was given"),
        (prr, [1, 2], [1, 1], "each of the 2 has 1"),
        (prr, [1, 2], [1], "2 risks but 1"),
        (lambda r, q: prr(r, q, 0.2), [1, 2], [0, 1], "max_rejection"),
        (lambda c, y: ece(c, y, variant="wide"), [0.5], [1], "kapoor2024"),
        (lambda c, y: ece(c, y, 0), [0.5], [1], "at least 1 bin"),
    ],
)
def test_what_cannot_be_measured_is_said(metric: Callable, scores: list, labels: list, says: str) -> None:
    with pytest.raises(InputError, match=says):
        metric(scores, labels)


def test_the_public_names_are_there() -> None:
    for name in ("auroc", "average_precision", "brier", "brier_skill", "ece", "aurc", "prr"):
        assert callable(getattr(metrics, name))
