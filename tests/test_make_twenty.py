"""The page of twenty answers shows ten of each kind that nobody picked, and is the one that the records give."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from uqchat.records import Records
from uqchat.records_files import checked, read_table
from uqchat.render import RiskView, encode

SCRIPT = Path(__file__).parent.parent / "assets" / "make_twenty.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    pytest.importorskip("playwright")
    spec = importlib.util.spec_from_file_location("make_twenty", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_of_each_kind_are_the_first_of_a_shuffle_and_all_are_drawn(script: ModuleType) -> None:
    records = Records(checked(read_table(script.SOURCE), "easy_facts"), "easy_facts")
    found = script.chosen(records)
    assert [row.is_error for rows in found.values() for row in rows] == [False] * 10 + [True] * 10
    again = script.chosen(records)
    assert [r.question for r in again[True] + again[False]] == [r.question for r in found[True] + found[False]]
    in_file = [records.row(number).question for number in range(len(records))]
    shown = [row.question for row in found[True]]
    wrong = [question for question, is_error in zip(in_file, records.is_error, strict=True) if is_error]
    assert shown != wrong[:10], "the file's own order is by how it was written"
    page = script.page_of(found, RiskView("uq_head")).decode()
    assert all(encode(row.question) in page for rows in found.values() for row in rows)
    assert "<script" not in page and "Calibrated for" in page


def test_the_page_that_ships_is_the_one_that_the_shipped_records_give(script: ModuleType) -> None:
    records = Records(checked(read_table(script.SOURCE), "easy_facts"), "easy_facts")
    made = script.page_of(script.chosen(records), RiskView(script.ESTIMATOR)).decode()
    shipped = script.PAGE.read_text(encoding="utf-8")
    assert shipped.partition("<body>")[2] == made.partition("<body>")[2], "run: python assets/make_twenty.py"
