"""A tiny model's LoRA learns under dropout and its rows differ; a run that died goes on bitwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trainers.dropout as trainer
from tests.tiny import tiny_model
from tests.trainers.tiny_lessons import run_tiny, write_instructions
from trainers.lesson_task import LessonTask
from uqchat.errors import InputError
from uqchat.estimators.dropout import Dropout
from uqchat.estimators.dropout_files import DropoutSettings
from uqchat.language_model import from_loaded

SMALL = ["--epochs", "3", "--batch-size", "6", "--validation", "0.3", "--checkpoint-every", "3", "--log-every", "1",
         "--learning-rate", "0.03", "--patience", "0", "--evaluations-per-epoch", "2", "--rank", "4",
         "--lora-alpha", "8", "--param-filter", "q_proj|v_proj|up_proj|down_proj"]  # fmt: skip


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_instructions(tmp_path_factory.mktemp("data"))


def run(letters: Path, folder: Path, *more: str) -> int:
    return run_tiny(trainer, folder, "--instructions", json.dumps([str(letters)]), *SMALL, *more)


@pytest.fixture(scope="module")
def whole(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(letters, folder) == 0
    return folder


def test_the_lora_learns_and_its_rows_disagree(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    looks = [line["validation_log_likelihood"] for line in lines if "validation_log_likelihood" in line]
    assert max(looks) > looks[0] + 0.2
    found = Dropout.from_folder(whole / "artifact", from_loaded(tiny_model()), "dropout")
    assert found.parts.settings == DropoutSettings(5, 0.1, found.parts.settings.param_filter, 0)
    assert found.parts.info.training_data.startswith("letters ") and len(found.adapters) == 5
    answer = from_loaded(tiny_model()).answer("Say a.", estimators=[str(whole / "artifact")])
    assert any(risk.raw > 0 for token in answer.tokens for risk in token.risks.values())


def test_a_run_that_died_and_was_resumed_ends_bitwise_as_one_that_did_not(
    letters: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from the random state, which lies in the checkpoint."""
    calls, real = [0], LessonTask.loss

    def dying(self: LessonTask, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    folder = tmp_path / "run"
    monkeypatch.setattr(LessonTask, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(letters, folder)
    assert run(letters, folder, "--resume") == 0
    for name in ("metrics.jsonl", "artifact/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("n-samples", "1", "n_samples must be 2 or more"),
        ("dropout", "0", "dropout above 0"),
        ("param-filter", "q_prj", "is found in no linear layer's name"),
        ("lora-alpha", "0", "lora_alpha must be above 0"),
    ],
)
def test_what_would_give_no_ensemble_is_refused(
    letters: Path, tmp_path: Path, setting: str, value: str, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        run(letters, tmp_path / "run", f"--{setting}", value)
