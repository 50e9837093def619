"""`uqchat heads` on a tiny model: what it shows, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.heads.making import ATTENTION, write_folder
from tests.test_head_check import answers_judged_by
from tests.tiny import tiny_model
from uqchat import cli, cli_heads
from uqchat.language_model import LanguageModel


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    made = LanguageModel(tiny_model())
    monkeypatch.setattr(cli_heads, "load_language_model", lambda args: made)
    return made


@pytest.fixture
def head(model: LanguageModel, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "head", model.model, "luh", (ATTENTION,))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["heads", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_show_names_size_features_and_what_is_unsure(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "show", str(head))
    assert code == 0 and found["features"] == "basic_attention 16" and found["level"] == "token"
    assert found["is_revising"] and found["info"] is None and "layout" in found["notes"][0]
    assert cli.main(["heads", "show", str(head), "--layout", "legacy"]) == 0
    text = capsys.readouterr().out
    assert f"| Parameters | {found['parameters']:,} |" in text and "layout `legacy`" in text and "Note:" not in text


def rows_for(head: Path, model: LanguageModel, layout: str) -> list[dict[str, Any]]:
    """Labelled by the head itself in one layout."""
    answers = answers_judged_by(head, model.engine, layout=layout)
    return [
        {"prompt_ids": a.prompt_ids, "answer_ids": a.answer_ids, "claims": a.claims, "is_error": a.is_error}
        for a in answers
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_check_decides_the_layout_and_the_estimator_uses_it_from_then_on(
    head: Path, model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", rows_for(head, model, "legacy"))
    assert model.estimator(str(head)).head.config.layout == "current"
    code, found = run(capsys, "check", str(head), "--rows", rows)
    assert code == 0 and found["layout"] == "legacy" and found["rows"] == 12
    assert found["scores"]["legacy/layers"] > found["scores"]["current/layers"]
    again = LanguageModel(tiny_model()).estimator(str(head))
    assert again.head.config.layout == "legacy" and again.notes == ()


def test_export_writes_both_formats_and_keeps_what_is_there(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(capsys, "export", str(head), "--to", str(tmp_path / "own"))
    assert code == 0 and found["files"] == ["README.md", "config.json", "model.safetensors"]
    code, found = run(capsys, "export", str(tmp_path / "own"), "--to", str(tmp_path / "luh"), "--format", "luh")
    assert found["files"] == ["config.yaml", "weights.pth"]
    first, last = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (head, tmp_path / "luh"))
    assert first["feature_extractor"] == last["feature_extractor"] and first["head_type"] == last["head_type"]
    code, found = run(capsys, "export", str(head), "--to", str(tmp_path / "luh"))
    assert code == 2 and "not empty" in found["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "HEAD"], "--rows"),
        (["check", "HEAD", "--rows", "/no/such/file"], "no file /no/such/file"),
        (["export", "HEAD"], "--to FOLDER"),
        (["show", "/no/such/head"], "neither a folder here nor a Hub id"),
        (["burn", "HEAD"], "invalid choice: 'burn'"),
    ],
)
def test_what_is_missing_is_told(
    arguments: list[str], message: str, head: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(capsys, *(str(head) if a == "HEAD" else a for a in arguments))
    assert code == 2 and message in found["error"]["message"]
