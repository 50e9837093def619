"""The tables of the README are what a count by hand gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.__main__ import main
from trainers.selective_table import (
    BEGIN,
    END,
    accuracy_table,
    certified_table,
    doubling,
    section,
    shipped_table,
    tries_table,
)
from uqchat.records import read_records


def write(path: Path, risk: np.ndarray, wrong: np.ndarray, **columns: object) -> Path:
    """A records file of one score."""
    count = len(risk)
    table = {"question": ["q"] * count, "answer": ["a"] * count, "is_error": wrong.astype(bool), "risk_x": risk}
    pq.write_table(pa.table({**table, **columns}), path)
    return path


def cells(table: str) -> list[str]:
    """The last row."""
    return [cell.strip() for cell in table.split("\n")[-1].strip("|").split("|")]


def test_a_perfect_score_is_right_until_the_wrong_answers_begin(tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "r.parquet", np.linspace(0, 1, 200), np.arange(200) >= 100))
    everything = np.ones(200, dtype=bool)
    row = cells(accuracy_table(records, everything))
    assert [cell.split(" ")[0] for cell in row] == ["x", "100%", "100%", "100%", "100%", "50%", "1.000"]
    assert "answers 50.0%" in doubling(records, everything, 0.5)
    assert doubling(records, everything, 0.51) == ""


def test_a_guarantee_lets_nothing_be_answered_where_all_is_wrong_and_everything_where_all_is_right(
    tmp_path: Path,
) -> None:
    everything = np.ones(400, dtype=bool)
    wrong = read_records(write(tmp_path / "w.parquet", np.linspace(0, 1, 400), np.ones(400)))
    right = read_records(write(tmp_path / "r.parquet", np.linspace(0, 1, 400), np.zeros(400)))
    assert cells(certified_table(wrong, everything, 5))[1:] == ["0.0% (0%)"] * 4
    shares = [float(cell.split("%")[0]) for cell in cells(certified_table(right, everything, 5))[1:]]
    assert min(shares) > 95


def test_of_several_answers_the_surest_and_the_riskiest_are_counted(tmp_path: Path) -> None:
    risk = np.array([0.5, 0.1, 0.9, 0.2, 0.3, 0.8])
    wrong = np.array([1, 0, 1, 0, 0, 1])
    names = {"question_id": ["a", "a", "a", "b", "b", "b"], "sample": [0, 1, 2, 0, 1, 2]}
    row = cells(tries_table(read_records(write(tmp_path / "r.parquet", risk, wrong, **names))))
    # Median of the first risks is 0.35: a needs two answers, b one.
    # For both questions the riskiest is wrong and the surest right; trying again mends the first answer to a alone.
    assert row == ["x", "50.0%", "100.0%", "0.0%", "+100 [+100, +100]", "100.0%", "+50 [+0, +100]", "1.50"]


def test_what_ships_certifies_by_its_marked_answers_alone(tmp_path: Path) -> None:
    """600 marked answers right up to a risk of .5; of the 400 others, all right, half are answered."""
    risk = np.r_[np.linspace(0, 1, 600), np.linspace(0, 1, 400)]
    wrong = np.r_[np.linspace(0, 1, 600) > 0.5, np.zeros(400)]
    split = ["calibration"] * 600 + ["eval"] * 400
    records = read_records(write(tmp_path / "r.parquet", risk, wrong, split=split))
    row = cells(shipped_table(records))
    assert 50 < float(row[1].split("%")[0]) < 57 and row[1].endswith("0% wrong")
    text = section(records, 2)
    assert text.startswith("`r`: 400 questions, 100.0% right.") and "the 600 answers that certify" in text


def test_the_tables_are_written_between_the_marks_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write(tmp_path / "r.parquet", np.linspace(0, 1, 40), np.arange(40) % 2)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = ["selective", "--records", str(file), "--splits", "3", "--into", str(page)]
    assert main(command) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n`r`: 40 questions, 50.0% right.") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    page.write_text("no marks")
    assert main(command) == 1 and "no marks" in page.read_text()
    assert "has no marks" in capsys.readouterr().err
