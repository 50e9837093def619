"""The table and the curves say what was counted, and the figure is an SVG that any viewer reads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import trainers.coverage_figure as module
from uqchat.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def risks(tmp_path: Path) -> Path:
    """100 answers, 20 right: `oracle` ranks them rightly, `blind` does not know."""
    rows = [
        {"set": "a" if i % 2 else "b", "is_error": i >= 20, "risks": {"oracle": i, "blind": 1.0, "a<b": -i}}
        for i in range(100)
    ]
    rows.append({"set": "c", "is_error": True, "risks": {"oracle": 1.0}})
    path = tmp_path / "risks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*given: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.main(parser.parse_args(list(given)))


def test_the_table_counts_the_right_among_the_answered(risks: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("--risks", str(risks), "--scores", "oracle=Oracle,blind", "--sets", "a,b") == 0
    said = capsys.readouterr().out
    assert "100 answers to questions of a, b, 20.0% right" in said
    oracle, blind = (line for line in said.splitlines() if line.startswith(("| Oracle", "| blind")))
    cells = [cell.split()[0] for cell in oracle.split("|")[2:-1]]
    assert cells == ["100%", "100%", "100%", "100%", "100%", "57%", "40%", "20%", "1.000"]
    *shares, area = (cell.split()[0] for cell in blind.split("|")[2:-1])
    assert set(shares) == {"20%"} and area == "0.500"


def test_the_figure_has_a_curve_and_a_name_for_each_score(risks: Path, tmp_path: Path) -> None:
    into = tmp_path / "page.md"
    into.write_text(f"before\n{module.MARKS[0]}\nold\n{module.MARKS[1]}\nafter\n")
    path = tmp_path / "pictures" / "a.svg"
    assert run("--risks", str(risks), "--sets", "a,b", "--figure", str(path), "--into", str(into)) == 0
    drawn = ElementTree.fromstring(path.read_text())
    assert len(drawn.findall(f"{SVG}polyline")) == 3
    texts = [element.text for element in drawn.findall(f"{SVG}text")]
    assert {"oracle", "blind", "a<b"} <= set(texts)
    text = into.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| oracle |" in text and "old" not in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--scores", "probe"], "Unknown score 'probe'"),
        (["--sets", "z"], "Unknown set 'z'"),
        (["--sets", "c", "--scores", "blind"], "No answer of c has all of blind"),
    ],
)
def test_what_is_not_there_is_said(risks: Path, given: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        run("--risks", str(risks), *given)
