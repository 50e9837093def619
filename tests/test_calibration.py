"""Calibration against scikit-learn, closed forms, populations whose true probabilities are known, and bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from uqchat.calibration import (
    Calibration,
    Calibrations,
    fit_calibration,
    fit_from_marks,
    read_calibrations,
    write_calibrations,
)
from uqchat.calibration_maps import PRIOR, Isotonic, cross_validated_loss, sigmoid
from uqchat.errors import InputError, UqchatError
from uqchat.metrics import auroc, brier_skill, ece
from uqchat.scope import Scope, ScopeDetector

SCOPE = Scope("short factual questions", ("page", "short"), ("easy_facts",), 40)
KINDS = ("isotonic", "platt", "temperature", "best")
ROWS = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=60)


def population(count: int, seed: int, curve: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, ...]:
    """Raw scores, true probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(0, 2, count)
    truth = curve(raw)
    return raw, truth, (rng.random(count) < truth).astype(int)


def fit(raw: Any, labels: Any, kind: str = "isotonic", **more: Any) -> Calibration:
    return fit_calibration(raw, labels, kind, level="answer", scope=SCOPE, **more)  # type: ignore[arg-type]


def test_sigmoid_is_scipys_in_both_tails() -> None:
    x = np.r_[-np.inf, -700, np.linspace(-40, 40, 1001), 700, np.inf]
    np.testing.assert_allclose(sigmoid(x), expit(x), rtol=1e-13, atol=0)


@settings(deadline=None)
@given(ROWS, st.sampled_from(KINDS), st.lists(st.floats(-50, 50), min_size=2, max_size=20))
def test_applying_never_turns_an_order_round(rows: list[tuple[int, bool]], kind: str, raw: list[float]) -> None:
    assume(len({label for _, label in rows}) == 2)
    one = fit([r for r, _ in rows], [label for _, label in rows], kind)
    found = one.apply(sorted(raw))
    assert all(a <= b for a, b in pairwise(found))
    assert 0 < found[0] and found[-1] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_true_probabilities_are_found_again_and_their_spread(kind: str) -> None:
    raw, _, labels = population(6000, 0, lambda x: expit(0.7 * x))
    fresh, truth, fresh_labels = population(6000, 1, lambda x: expit(0.7 * x))
    found = fit(raw, labels, kind).apply(fresh)
    assert np.abs(found - truth).mean() < 0.02
    assert ece(1 - found, 1 - fresh_labels) < 0.03
    spread = np.diff(np.quantile(found, [0.05, 0.95])) - np.diff(np.quantile(truth, [0.05, 0.95]))
    assert abs(spread) < 0.05
    assert auroc(found, fresh_labels) == pytest.approx(auroc(fresh, fresh_labels), abs=0.005)


def test_isotonic_follows_a_curve_that_platt_cannot() -> None:
    """A staircase, .1 and .9 with a plateau at .5: "best" takes the isotonic map for it."""

    def stairs(x: np.ndarray) -> np.ndarray:
        return np.select([x < -2, x < 2], [0.1, 0.5], 0.9)

    raw, _, labels = population(4000, 2, stairs)
    fresh, truth, _ = population(4000, 3, stairs)
    assert fit(raw, labels, "best").kind == "isotonic"
    assert np.abs(fit(raw, labels).apply(fresh) - truth).mean() < 0.04


def test_platt_is_chosen_where_labels_are_few() -> None:
    raw, _, labels = population(60, 4, lambda x: expit(x))
    assert fit(raw, labels, "best").kind in ("platt", "temperature")


def test_centred_isotonic_joins_the_smoothed_steps_of_pooling() -> None:
    """Scores 1 2 | 3 4, errors 0 0 | 1 1: steps (1.5, 0 of 2) and (3.5, 2 of 2), each mixed with 1 at 3/6."""
    one = fit([1, 2, 3, 4], [0, 0, 1, 1])
    assert isinstance(one.map, Isotonic)
    assert one.map.raw == pytest.approx((1.5, 3.5))
    assert one.map.probability == pytest.approx(((0 + PRIOR / 2) / (2 + PRIOR), (2 + PRIOR / 2) / (2 + PRIOR)))
    assert one.apply(2.5) == pytest.approx(0.5)
    assert one.apply(float("-inf")) == one.apply(1.0) == pytest.approx(1 / 6)


def test_the_isotonic_map_agrees_with_scikit_learn_at_the_centre_of_every_large_step() -> None:
    raw, _, labels = population(3000, 5, lambda x: expit(x))
    ours, steps = fit(raw, labels), IsotonicRegression().fit_transform(raw, labels)
    large = [step for step, count in zip(*np.unique(steps, return_counts=True), strict=True) if count >= 100]
    assert len(large) >= 5
    for step in large:
        if 0.1 < step < 0.9:  # beyond, the smoothing moves the small steps at the ends into the large ones
            assert ours.apply(raw[steps == step].mean()) == pytest.approx(step, abs=PRIOR / 100)


def test_platt_equals_logistic_regression_where_its_targets_are_nearly_the_labels() -> None:
    raw, _, labels = population(20_000, 6, lambda x: expit(0.5 * x - 1))
    ours = fit(raw * 1000 + 7, labels, "platt").map
    theirs = LogisticRegression(C=1e6).fit(raw[:, None], labels)
    assert ours.slope * 1000 == pytest.approx(theirs.coef_[0, 0], rel=0.01)
    assert ours.intercept + 7 * ours.slope == pytest.approx(theirs.intercept_[0], abs=0.01)


def test_a_temperature_is_found_again() -> None:
    """Logits three times too large: T = 3."""
    raw, _, labels = population(20_000, 7, lambda x: expit(x / 3))
    assert 1 / fit(raw, labels, "temperature").map.slope == pytest.approx(3, rel=0.1)


def test_a_score_that_ranks_the_wrong_way_round_gets_a_flat_map() -> None:
    raw, _, labels = population(2000, 8, lambda x: expit(-2 * x))
    for kind in ("isotonic", "platt"):
        found = fit(raw, labels, kind).apply(raw)
        assert np.ptp(found) < 0.02
        assert found.mean() == pytest.approx(labels.mean(), abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_count_as_repeated_rows(kind: str) -> None:
    """But for the smoothing, which knows how many rows there are: so the weights keep their number."""
    raw, _, labels = population(400, 9, lambda x: expit(x))
    counts = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 200, 100]))
    weighted = fit(raw, labels, kind, weights=counts).map
    repeated = fit(np.repeat(raw, counts), np.repeat(labels, counts), weighted.kind).map
    grid = np.linspace(-4, 4, 50)
    assert weighted.apply(grid) == pytest.approx(repeated.apply(grid), abs=1e-4)


def test_folds_keep_the_tokens_of_an_answer_together() -> None:
    """Ten copies of each of 40 answers: by rows the isotonic map sees every answer's label, by answers it does not."""
    raw, _, labels = population(40, 10, lambda x: np.full_like(x, 0.5))
    rows = (np.repeat(raw, 10), np.repeat(labels, 10), np.ones(400))
    by_answer = cross_validated_loss("isotonic", *rows, groups=np.repeat(np.arange(40), 10))
    by_row = cross_validated_loss("isotonic", *rows, groups=np.arange(400))
    assert by_answer > by_row


@pytest.mark.parametrize("kind", [float, np.array, torch.tensor, lambda v: torch.tensor(v).bfloat16()])
def test_numbers_of_every_kind_are_mapped(kind: Callable[[float], Any]) -> None:
    one = fit([0, 1, 2, 3], [0, 0, 1, 1], "platt")
    assert isinstance(one.apply(kind(1.5)), float)
    assert one.apply(kind(1.5)) == pytest.approx(0.5)
    assert one.apply(np.zeros((2, 3))).shape == (2, 3)


def test_a_calibrated_risk_has_skill_on_answers_it_never_saw() -> None:
    raw, _, labels = population(800, 11, lambda x: expit(1.2 * x))
    fresh, _, fresh_labels = population(2000, 12, lambda x: expit(1.2 * x))
    assert brier_skill(1 - fit(raw, labels).apply(fresh), 1 - fresh_labels) > 0.25


@pytest.mark.parametrize(
    ("raw", "labels", "more", "says"),
    [
        ([1, 2], [1, 1], {}, "each of the 2 rows is an error"),
        ([1, 2], [0, 0], {}, "each of the 2 rows is right"),
        ([1, 2], [0, 1], {"weights": [0, 1]}, "each of the 1 rows is an error"),
        ([1, 2], [0, 1], {"weights": [1]}, "2 finite numbers"),
        ([1, 2], [0, 1], {"weights": [-1, 1]}, "0 or more"),
        ([1, 2], [0, 1], {"groups": [1]}, "1 groups"),
        ([1, float("inf")], [0, 1], {}, "1 of 2 raw scores are infinite"),
        ([1, float("nan")], [0, 1], {}, "NaN"),
        ([1, 2], [0, 1], {"kind": "beta"}, "known: platt, isotonic, temperature, best"),
        ([], [], {}, "nothing was given"),
    ],
)
def test_what_cannot_be_fitted_is_said(raw: list, labels: list, more: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        fit(raw, labels, **more)


def test_marks_of_a_chat_are_fitted_from_fifty_on() -> None:
    raw, _, labels = population(50, 13, lambda x: expit(x))
    assert fit_from_marks(raw[:49], labels[:49], SCOPE) is None
    assert fit_from_marks(raw, np.ones(50), SCOPE) is None
    assert fit_from_marks(raw, labels, SCOPE).kind == "platt"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["isotonic", "platt", "temperature"])
def test_a_written_calibration_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    raw, _, labels = population(300, 14, lambda x: expit(x))
    detector = ScopeDetector(16, (0.25, -1.5), 0.125)
    one = fit_calibration(raw, labels, kind, level="answer", scope=replace(SCOPE, detector=detector))  # type: ignore[arg-type]
    path = write_calibrations(tmp_path, Calibrations(None, one))
    assert read_calibrations(tmp_path) == Calibrations(None, one)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert Calibration.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_folder_without_the_file_has_no_calibration(tmp_path: Path) -> None:
    assert read_calibrations(tmp_path) is None


def good() -> dict[str, Any]:
    one = fit([0, 1, 2, 3], [0, 0, 1, 1])
    return {"format": "uqchat-calibration", "version": 1, "token": None, "answer": one.to_json()}


def change(path: str, value: Any) -> Callable[[dict], None]:
    """A change of one value deep inside; `...` removes it."""

    def apply(data: dict) -> None:
        *parents, last = path.split(".")
        for name in parents:
            data = data[name]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change("version", 2),
        change("format", "pickle"),
        change("extra", 1),
        change("answer.extra", 1),
        change("answer.scope", ...),
        change("answer.scope.name", " "),
        change("answer.scope.detector", {"layer": 1, "weights": ["a"], "bias": 0}),
        change("answer.level", "token"),
        change("answer.map.raw", [2, 1]),
        change("answer.map.raw", [1]),
        change("answer.map.raw", []),
        change("answer.map.probability", [0, 1]),
        change("answer.map.probability", [0.9, 0.1]),
        change("answer.map.raw", [1, float("nan")]),
        change("answer.map.raw", "12"),
        change("answer.map", {"kind": "platt", "slope": -1, "intercept": 0}),
        change("answer.map", {"kind": "platt", "slope": float("inf"), "intercept": 0}),
        change("answer.map", {"kind": "spline"}),
        change("answer", []),
        change("token", 3),
    ],
)
def test_a_damaged_file_is_refused_in_words(spoil: Callable[[dict], None], tmp_path: Path) -> None:
    data = good()
    (tmp_path / "calibration.json").write_text(json.dumps(data))
    assert read_calibrations(tmp_path) is not None
    spoil(data)
    (tmp_path / "calibration.json").write_text(json.dumps(data))
    with pytest.raises(UqchatError):
        read_calibrations(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b"[1]", b'{"format": 1'])
def test_a_file_that_is_no_calibration_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_bytes(content)
    with pytest.raises(UqchatError, match="calibration"):
        read_calibrations(tmp_path)


def test_probabilities_stay_off_zero_and_one_so_their_logits_are_finite() -> None:
    separable = fit(np.arange(40), np.arange(40) > 19, "temperature")
    assert np.isfinite(logit(separable.apply([-1e9, 0.0, 1e9]))).all()
