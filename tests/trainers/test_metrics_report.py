"""The report of risks, against the metrics themselves on the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from trainers.__main__ import main
from trainers.metrics_report import Plan, evaluate, read_graded
from uqchat.errors import InputError
from uqchat.metrics import auroc, brier_skill
from uqchat.metrics_bootstrap import macro_difference

DOMAINS = {"in domain": ("easy", "hard"), "out of domain": ("far",)}


def rows(style: str = "page", seed: int = 0) -> list[dict[str, Any]]:
    """Three sets of 80 answers; `good` follows the errors, `poor` hardly, `half` has no score for every other one."""
    rng = np.random.default_rng(seed)
    found = []
    for name, share in (("easy", 0.3), ("hard", 0.8), ("far", 0.5)):
        for i in range(80):
            wrong = bool(rng.random() < share)
            good, poor = 2 * wrong + rng.normal(), 0.2 * wrong + rng.normal()
            risks = {"good": good, "poor": poor, "half": good if i % 2 else None}
            values = {"good": float(1 / (1 + np.exp(-good)))}
            found.append({"set": name, "style": style, "is_error": wrong, "risks": risks, "values": values})
    return found


def written(tmp_path: Path, content: list[dict[str, Any]], name: str = "risks.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in content))
    return path


def column(found: list[dict[str, Any]], sets: tuple[str, ...], estimator: str) -> tuple[list[float], list[bool]]:
    kept = [row for row in found if row["set"] in sets and row["risks"][estimator] is not None]
    return [row["risks"][estimator] for row in kept], [row["is_error"] for row in kept]


def test_every_place_has_the_metric_of_its_rows(tmp_path: Path) -> None:
    content = rows()
    found = evaluate(read_graded([written(tmp_path, content)]), Plan(DOMAINS, samples=50))["page"]
    cells = found["auroc"]["good"]
    each = {name: auroc(*column(content, (name,), "good")) for name in ("easy", "hard", "far")}
    assert {name: cells[name]["value"] for name in each} == pytest.approx(each)
    assert cells["in domain"]["value"] == pytest.approx((each["easy"] + each["hard"]) / 2)
    assert cells["in domain, pooled"]["value"] == pytest.approx(auroc(*column(content, ("easy", "hard"), "good")))
    assert cells["in domain"]["low"] < cells["in domain"]["value"] < cells["in domain"]["high"]
    assert found["sets"]["hard"]["rows"] == 80


def test_metrics_of_calibration_read_the_probabilities_and_only_those(tmp_path: Path) -> None:
    content = rows()
    found = evaluate(read_graded([written(tmp_path, content)]), Plan(DOMAINS, samples=20))["page"]
    kept = [row for row in content if row["set"] == "far"]
    expected = brier_skill([1 - r["values"]["good"] for r in kept], [not r["is_error"] for r in kept])
    assert found["brier_skill"].keys() == {"good"}
    assert found["brier_skill"]["good"]["far"]["value"] == pytest.approx(expected)


def test_gains_are_paired_and_over_the_best_baseline_of_the_place(tmp_path: Path) -> None:
    content = rows()
    plan = Plan(DOMAINS, baselines=("poor", "half"), metrics=("auroc",), samples=300)
    found = evaluate(read_graded([written(tmp_path, content)]), plan)["page"]["auroc"]
    assert found["poor"]["easy"]["over"] == "half"
    assert "gain" not in found["half"]["easy"]
    sets = []
    for name in ("easy", "hard"):
        kept = [row for row in content if row["set"] == name and row["risks"]["half"] is not None]
        sets.append(
            ([r["risks"]["poor"] for r in kept], [r["risks"]["half"] for r in kept], [r["is_error"] for r in kept])
        )
    expected = macro_difference("auroc", sets, samples=300)
    gain = found["poor"]["in domain"]["gain"]
    assert gain["value"] == pytest.approx(expected.value)
    assert gain["low"] == pytest.approx(expected.low, abs=0.05)
    assert found["good"]["in domain"]["gain"]["value"] == pytest.approx(0)  # the same scores, on the rows of both


def test_prompt_styles_are_reported_apart_and_a_set_of_one_class_has_no_value(tmp_path: Path) -> None:
    content = [*rows("page"), *rows("short", 1)]
    for row in content:
        row["is_error"] |= row["style"] == "short" and row["set"] == "hard"
    found = evaluate(read_graded([written(tmp_path, content)]), Plan(DOMAINS, metrics=("auroc", "ece"), samples=20))
    assert found.keys() == {"page", "short"}
    cells = found["short"]["auroc"]["good"]
    assert cells["hard"] is None
    assert cells["in domain"] == cells["easy"]
    assert found["short"]["ece"]["good"]["hard"]["value"] > 0


def test_the_command_writes_both_files_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path, [*rows(), {"set": "easy", "is_error": None, "risks": {}}])
    command = ["report", "--risks", str(path), "--in-domain", "easy,hard", "--out-of-domain", "far", "--samples", "20"]
    assert main([*command, "--baseline", "poor", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["page"]["auroc"]["good"]["easy"]["value"] > 0.5
    assert "| `good` |" in text and "over poor" in text and "in domain, pooled" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 4 for line in lines)
    assert main([*command, "--baseline", "pour"]) == 1
    assert "known: good, half, poor" in capsys.readouterr().err
    assert main(["report", "--risks", str(tmp_path / "none.jsonl")]) == 1
    assert "There is no file" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", "[]", '{"set": "a", "is_error": 1}', '{"set": "a", "risks": {}}', "3"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "risks.jsonl"
    path.write_text(json.dumps(rows()[0]) + "\n" + line)
    with pytest.raises(InputError, match="line 2"):
        read_graded([path])


def test_records_are_read_without_the_further_answers_to_a_question(tmp_path: Path) -> None:
    columns = {"question": ["a", "b", "b"], "answer": ["x"] * 3, "is_error": [True, False, True], "set": ["easy"] * 3}
    columns |= {
        "sample": [0, 0, 1],
        "risk_good": [0.9, 0.1, 0.2],
        "raw_good": [3.0, -2.0, -1.0],
        "style": ["short"] * 3,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "records.parquet")
    graded = read_graded([tmp_path / "records.parquet"])
    assert graded.raw["good"].tolist() == [3.0, -2.0]
    assert graded.probability["good"].tolist() == [0.9, 0.1]
    assert graded.styles.tolist() == ["short", "short"]


def test_no_labelled_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No labelled answer"):
        read_graded([written(tmp_path, [{"set": "a", "is_error": None, "risks": {}}])])


def test_cards_get_held_out_figures_beside_entropy_and_a_second_report_takes_their_place(tmp_path: Path) -> None:
    content = rows()
    for row in content:
        row["risks"]["entropy"] = row["risks"].pop("poor")
    card = tmp_path / "cards" / "good" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("# Good\n\n| Seed | 0 |\n")
    arguments = ["report", "--risks", str(written(tmp_path, content)), "--in-domain", "easy,hard", "--samples", "20"]
    arguments += ["--baseline", "entropy", "--metrics", "auroc", "--cards", str(card.parents[1])]
    for _ in range(2):
        assert main([*arguments, "--out", str(tmp_path / "report")]) == 0
    text = card.read_text()
    cells = json.loads((tmp_path / "report" / "report.json").read_text())["page"]["auroc"]
    value, other = (cells[name]["in domain"]["value"] for name in ("good", "entropy"))
    line = next(line for line in text.splitlines() if line.startswith("| page | AUROC | in domain"))
    assert f"| {value:.3f} [" in line and f"| {other:.3f} [" in line and line.endswith("over entropy |")
    assert text.startswith("# Good\n\n| Seed | 0 |\n") and text.count("## On held-out questions") == 1
    assert main([*arguments[:-1], str(tmp_path)]) == 1


def test_lines_of_one_answer_from_several_files_are_one_answer(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    line = {"key": "q1", "set": "a", "is_error": True}
    first.write_text(json.dumps(line | {"risks": {"x": 1.0}}) + "\n")
    second.write_text(
        json.dumps(line | {"risks": {"y": 2.0}}) + "\n" + json.dumps(line | {"key": "q2", "risks": {"y": 3.0}}) + "\n"
    )
    graded = read_graded([first, second])
    assert graded.raw["x"].tolist()[:1] == [1.0] and np.isnan(graded.raw["x"][1])
    assert graded.raw["y"].tolist() == [2.0, 3.0]
