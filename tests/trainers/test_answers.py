"""Answers survive the way to disk, labels lie beside them, and damage is named by file and line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainers.made_answers import make_row
from trainers.answers import ANSWERS, LABELS, Fact, from_line, read_answers, to_line, write_answers, write_labels
from uqchat.errors import InputError


def test_an_answer_survives_the_way_to_disk_and_back() -> None:
    row = make_row(facts=(Fact("Albania", ("Tirana",), "easyfacts-capital-0002"),), choices=("a", "b"))
    assert from_line(to_line(row)) == row


def test_labels_lie_beside_the_answers_and_leave_them_untouched(tmp_path: Path) -> None:
    rows = [make_row(0), make_row(1)]
    write_answers(tmp_path, rows)
    before = (tmp_path / ANSWERS).read_bytes()
    labelled = [replace(rows[0], is_error=True, token_labels=(1, 0, -100)), rows[1]]
    write_labels(tmp_path, labelled)
    assert read_answers(tmp_path) == labelled
    assert (tmp_path / ANSWERS).read_bytes() == before


def test_a_line_that_a_killed_writer_left_half_is_not_an_answer(tmp_path: Path) -> None:
    write_answers(tmp_path, [make_row(0), make_row(1)])
    path = tmp_path / ANSWERS
    path.write_bytes(path.read_bytes()[:-20])
    assert [row.id for row in read_answers(tmp_path)] == ["made-0000"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{nonsense", "line 2 is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"id": "x"}', "lacks answer_ids"),
        (to_line(make_row(1)).replace('"style"', '"stile"').strip(), "lacks style"),
        (to_line(make_row(1)).replace('"answer_ids": [0', '"answer_ids": [9, 0').strip(), "4 ids but 3 spans"),
        (to_line(make_row(1)).replace('"answer_ids": [0', '"answer_ids": ["x"').strip(), "cannot be read"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / ANSWERS).write_text(to_line(make_row()) + line + "\n")
    with pytest.raises(InputError, match=said):
        read_answers(tmp_path)


def test_labels_for_another_answer_are_refused(tmp_path: Path) -> None:
    write_answers(tmp_path, [replace(make_row(), token_labels=(0, 1, 1))])
    path = tmp_path / LABELS
    path.write_text(path.read_text().replace("[0, 1, 1]", "[0, 1]"))
    with pytest.raises(InputError, match="for 2 tokens, but the answer has 3"):
        read_answers(tmp_path)


def test_a_folder_without_answers_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trainers data generate"):
        read_answers(tmp_path)
