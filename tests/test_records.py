"""Records files: what is written comes back, what is broken is named, what was begun goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.doubles import scored_tokens
from uqchat.errors import InputError
from uqchat.records import Record, decode_tokens, encode_tokens, read_records
from uqchat.records_files import RecordsWriter, read_table
from uqchat.types import Risk

TOKENS = scored_tokens("Paris is <b> &\nthe capital")


def record(number: int, is_error: bool | None, risk: float = 0.5) -> Record:
    """One answer with the risks of two estimators."""
    return Record(
        question_id=f"q{number}",
        question=f"Question {number}?",
        answer="Paris",
        is_error=is_error,
        risks={"entropy": Risk(risk, 2 * risk, "scope"), "uq_head": Risk(1 - risk, -1.0)},
        set="facts",
        category="capital",
        references=("Paris", "City of Light"),
        style="page",
        tokens=TOKENS,
        seconds=0.25,
        model="embedded",
        versions={"calibrations": {"entropy": "scope"}},
    )


def write(path: Path, records: list[Record]) -> Path:
    """A finished file of these records."""
    writer = RecordsWriter(path, {"model": "embedded"})
    writer.add(records)
    writer.finish()
    return path


def test_a_record_comes_back_whole(tmp_path: Path) -> None:
    given = record(3, True, 0.75)
    back = read_records(write(tmp_path / "run.parquet", [record(1, False), given])).row(1)
    assert replace(back, tokens=()) == replace(given, tokens=())
    assert [token.text for token in back.tokens] == [token.text for token in TOKENS]
    assert [token.span for token in back.tokens] == [token.span for token in TOKENS]
    assert [t.is_end for t in back.tokens] == [t.is_end for t in TOKENS]
    for token, given_token in zip(back.tokens, TOKENS, strict=True):
        assert token.risks["rauq"].value == pytest.approx(given_token.risks["rauq"].value, abs=1e-4)


def test_no_tokens_are_an_empty_text() -> None:
    assert encode_tokens(()) == "" and decode_tokens("") == ()


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"texts": ["a"], "risks": {"x": []}}'])
def test_tokens_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="tokens"):
        decode_tokens(text)


def test_an_interrupted_run_goes_on_where_it_was_even_after_half_a_row(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    RecordsWriter(path, {"seed": 1}).add([record(1, True), record(2, False)])
    part = tmp_path / "run.parquet.part"
    part.write_text(part.read_text()[:-20])  # killed in the middle of the second row
    writer = RecordsWriter(path, {"seed": 1})
    assert writer.done == {("facts", "q1", "page", 0)}
    writer.add([record(2, False), record(3, None)])
    assert list(writer.finish().strings("question_id")) == ["q1", "q2", "q3"]
    assert not part.exists()


def test_a_run_with_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    RecordsWriter(path, {"seed": 1}).add([record(1, True)])
    with pytest.raises(InputError, match=r"other settings \(seed\).*--restart"):
        RecordsWriter(path, {"seed": 2})
    assert RecordsWriter(path, {"seed": 2}, restart=True).done == set()


def test_an_empty_run_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no question"):
        RecordsWriter(tmp_path / "run.parquet", {}).finish()
    assert not (tmp_path / "run.parquet").exists()


@pytest.mark.parametrize("missing", ["question", "answer", "is_error", "risk_x"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    columns = {"question": ["a"], "answer": ["b"], "is_error": [True], "risk_x": [0.5]}
    del columns[missing]
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    with pytest.raises(InputError, match="no column " + ("risk_<estimator>" if missing == "risk_x" else missing)):
        read_records(tmp_path / "own.parquet")


def csv(tmp_path: Path, *rows: str) -> Path:
    """A small file of one's own."""
    path = tmp_path / "own.csv"
    path.write_text("question,answer,is_error,risk_x\n" + "\n".join(rows) + "\n")
    return path


def test_missing_risks_and_grades_are_left_out_and_told(tmp_path: Path) -> None:
    records = read_records(csv(tmp_path, "a,b,true,0.5", "a,b,wrong,nan", "a,b,,0.25", "a,b,0,0.75"))
    found = records.labelled("x")
    assert found.rows.tolist() == [0, 3]
    assert found.is_error.tolist() == [True, False] and found.risk.tolist() == [0.5, 0.75]
    assert [note.split(" answers")[0] for note in records.notes()] == ["1 of 4", "1 of 4"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a,b,true,0.5"], "Fewer than two"),
        (["a,b,true,0.5", "a,b,true,0.7"], "is wrong"),
        (["a,b,0,0.5", "a,b,0,0.7"], "is right"),
    ],
)
def test_one_row_all_right_and_all_wrong_are_told(tmp_path: Path, rows: list[str], words: str) -> None:
    assert words in " ".join(read_records(csv(tmp_path, *rows)).notes())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,b,maybe,0.5", "is_error must be true"),
        ("a,b,true,high", "must hold numbers"),
        ("a,b,true,7", "between 0"),
        ("a,b,true,nan", "every value of risk_x is missing"),
    ],
)
def test_values_that_are_none_are_explained(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_records(csv(tmp_path, row))


def test_foreign_column_names_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('prompt,output,wrong,uncertainty,refs\na,b,1,0.5,"[""x"", ""y""]"\n')
    mapping = {
        "question": "prompt",
        "answer": "output",
        "is_error": "wrong",
        "risk_own": "uncertainty",
        "references": "refs",
    }
    table = read_table(path, mapping)
    assert table["risk_own"].to_pylist() == [0.5] and table["references"].to_pylist() == [["x", "y"]]
    with pytest.raises(InputError, match="no column 'nowhere'"):
        read_table(path, mapping | {"answer": "nowhere"})


def test_what_is_no_records_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 or not")
    for name, words in (("broken.parquet", "cannot be read"), ("gone.csv", "does not exist"), ("a.txt", "must end in")):
        with pytest.raises(InputError, match=words):
            read_records(tmp_path / name)


def test_a_hundred_thousand_rows_are_read(tmp_path: Path) -> None:
    risk = np.random.default_rng(0).random(100_000)
    columns = {"question": ["q"] * 100_000, "answer": ["a"] * 100_000, "is_error": risk > 0.5, "risk_x": risk}
    pq.write_table(pa.table(columns), tmp_path / "big.parquet")
    records = read_records(tmp_path / "big.parquet")
    assert records.labelled("x").is_error.sum() == (risk > 0.5).sum()
    assert math.isnan(records.row(99_999).seconds)
