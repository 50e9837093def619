"""What the playground shows, against counts made one by one."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uqchat.errors import InputError
from uqchat.records import Records
from uqchat.records_files import checked
from uqchat.records_split import calibration_part
from uqchat.ui.playground_data import (
    ERROR_LEVELS,
    Wish,
    make_curve,
    make_policy,
    opening,
    payload,
)
from uqchat.ui.playground_export import curves_csv, curves_figure
from uqchat.ui.playground_html import answer_html, preview_html, table_html
from uqchat.ui.playground_tables import questions, slices, wilson


def run(risk: Any, is_error: Any, name: str = "run", **columns: Any) -> Records:
    """Records of one estimator, x."""
    count = len(risk)
    table = {
        "question": [f"q{i}" for i in range(count)],
        "answer": [f"a{i}" for i in range(count)],
        "is_error": [bool(error) for error in is_error],
        "risk_x": [float(value) for value in risk],
        **columns,
    }
    return Records(checked(pa.table(table), name), name)


def useful(count: int = 2000, seed: int = 0) -> Records:
    """Answers whose risk is their probability of being wrong, two digits, so that many are tied."""
    generator = np.random.default_rng(seed)
    risk = generator.random(count).round(2)
    return run(risk, generator.random(count) < risk)


def test_the_two_parts_share_no_question_even_when_it_has_many_answers() -> None:
    ids = [f"q{i // 5}" for i in range(500)]
    records = run(np.linspace(0, 1, 500), np.arange(500) % 2, question_id=ids)
    curve = make_curve(records, "x")
    mine, other = ({ids[row] for row in found.rows} for found in (curve.calibration, curve.report))
    assert mine and other and not mine & other
    assert len(curve.calibration.rows) + len(curve.report.rows) == 500
    other_grades = run(np.zeros(500), np.ones(500), question_id=ids)
    assert (calibration_part(records) == calibration_part(other_grades)).all()


def test_marked_answers_certify_and_others_join_them_up_to_three_fifths() -> None:
    ids = [f"q{i}" for i in range(2000)]
    for marked, share in ((0, 0.6), (600, 0.6), (1500, 0.75)):
        split = ["calibration"] * marked + ["eval"] * (2000 - marked)
        mine = calibration_part(run(np.linspace(0, 1, 2000), np.arange(2000) % 2, question_id=ids, split=split))
        assert mine[:marked].all() and mine.mean() == pytest.approx(share, abs=0.03)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60))
def test_the_browser_gets_every_risk_and_grade_in_order(pairs: list[tuple[int, bool]]) -> None:
    curve = make_curve(run([risk / 8 for risk, _ in pairs], [error for _, error in pairs]), "x")
    sent = json.loads(payload([curve], curve.key, Wish()))["curves"][0]
    risk = np.frombuffer(base64.b64decode(sent["risk"]), "<f4")
    error = np.frombuffer(base64.b64decode(sent["error"]), "u1")
    assert sent["count"] == len(risk) == len(error) and (np.diff(risk) >= 0).all()
    given_pairs = sorted((pairs[row][0] / 8, pairs[row][1]) for row in curve.report.rows)
    assert sorted(zip(risk.tolist(), error.astype(bool).tolist(), strict=True)) == given_pairs


def test_the_payload_is_text_and_nothing_else() -> None:
    curve = make_curve(run([0.1, 0.2], [True, False], name="</script><b>${x}&"), "x")
    text = payload([curve], curve.key, Wish())
    assert not set("<&$") & set(text) and json.loads(text)["chosen"] == "</script><b>${x}&: x"


def test_the_certified_threshold_comes_from_the_calibration_part_alone() -> None:
    records = useful()
    curve = make_curve(records, "x")
    flipped = records.table["is_error"].to_pylist()
    for row in curve.report.rows:
        flipped[row] = True
    other = Records(
        records.table.set_column(records.table.column_names.index("is_error"), "is_error", pa.array(flipped)), "run"
    )
    assert make_curve(other, "x").certified(Wish(0.3, 0.1)) == curve.certified(Wish(0.3, 0.1)) is not None


def test_it_opens_at_the_strictest_level_that_is_of_use() -> None:
    curve = make_curve(useful(), "x")
    chosen, wish = opening([curve])
    certified = {level: chosen.certified(Wish(level)) for level in ERROR_LEVELS}
    of_use = [level for level, t in certified.items() if t is not None and chosen.coverage(t) >= 0.1]
    assert wish.max_error == of_use[0]


def test_where_nothing_can_be_certified_it_opens_all_the_same() -> None:
    curve = make_curve(run(np.linspace(0, 1, 100), np.ones(100)), "x")
    assert opening([curve])[0] is curve and curve.certified(Wish(0.5)) is None


@pytest.mark.parametrize("count", [1, 2, 19])
def test_few_answers_are_shown_whole_and_certify_nothing(count: int) -> None:
    curve = make_curve(run(np.linspace(0, 1, count), np.zeros(count)), "x")
    assert len(curve.report.risk) == count and curve.certified(Wish(0.5)) is None


def test_all_right_and_all_wrong_have_the_trivial_curve() -> None:
    right = make_curve(run(np.linspace(0, 1, 300), np.zeros(300)), "x")
    wrong = make_curve(run(np.linspace(0, 1, 300), np.ones(300)), "x")
    assert right.accuracy(1.0) == 1 and wrong.accuracy(1.0) == 0 and wrong.certified(Wish(0.5)) is None
    assert right.certified(Wish(0.3)) == right.calibration.risk.max()


def test_the_worst_mistakes_come_first_on_both_sides() -> None:
    curve = make_curve(run([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 1, 1, 1, 0, 0]), "x")
    answered, declined = questions(curve, 0.5, 10)
    assert answered == [1, 2, 0] and declined == [5, 4, 3]
    assert [len(side) for side in questions(curve, 0.5, 1)] == [1, 1]


def test_a_slice_is_shown_only_when_its_interval_is_narrow() -> None:
    errors = np.arange(230) % 2
    names = ["big"] * 200 + ["small"] * 30
    found, hidden = slices(make_curve(run(np.full(230, 0.1), errors, category=names), "x"), 0.5)
    assert [(one.name, one.count, one.answered) for one in found] == [("big", 200, 200)] and hidden == 1
    assert found[0].accuracy == 0.5 and found[0].high - found[0].accuracy <= 0.15


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263 has the score interval .2553 to .3662.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_policy_promises_something_only_at_the_certified_threshold() -> None:
    curve, wish = make_curve(useful(), "x"), Wish(0.3, 0.1)
    threshold = curve.certified(wish)
    rank = int((curve.report.risk <= threshold).sum())
    policy = make_policy(curve, rank, wish, "easy", "decline")
    assert policy.threshold == threshold and policy.guarantee.max_error == 0.3
    assert policy.accuracy == curve.accuracy(threshold) and policy.calibrated_on.num_answers == len(
        curve.calibration.risk
    )
    by_hand = make_policy(curve, rank + 300, wish, "easy", "mark")
    assert by_hand.guarantee is None and by_hand.threshold == curve.report.risk[rank + 299]
    with pytest.raises(InputError, match="name"):
        make_policy(curve, rank, wish, "<b>", "mark")


def test_the_exported_curve_is_the_one_that_is_counted() -> None:
    curve = make_curve(useful(400), "x")
    rows = list(csv.DictReader(io.StringIO(curves_csv([curve]))))
    assert len(rows) == len(np.unique(curve.report.risk))
    for row in rows[:: len(rows) // 7]:
        passes = curve.report.risk <= float(row["threshold"])
        assert float(row["coverage"]) == pytest.approx(passes.mean())
        assert float(row["accuracy"]) == pytest.approx(1 - curve.report.is_error[passes].mean())
    drawn = curves_figure([curve]).data[-1]
    assert drawn.name == "run: x" and len(drawn.x) == len(rows)


def test_what_others_wrote_stays_text() -> None:
    nasty = '<img src=x onerror="1">'
    records = run([0.1, 0.9], [1, 0], question=[nasty, nasty], answer=[nasty, nasty], category=[nasty, "b"])
    curve = make_curve(records, "x")
    for html in (
        table_html(curve, questions(curve, 0.5, 5), (1, 1)),
        answer_html(records.row(0), "x", 0),
        preview_html([nasty], [[nasty]]),
    ):
        assert "<img" not in html and "&lt;img" in html


def test_a_hundred_thousand_answers_become_a_curve(tmp_path: Path) -> None:
    curve = make_curve(useful(100_000), "x")
    assert len(payload([curve], curve.key, Wish())) < 500_000
    assert curve.certified(Wish(0.1)) is not None
