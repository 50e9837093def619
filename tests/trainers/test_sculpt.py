"""A tiny model's head learns the variance of logits; a run that died ends bitwise as one that did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trainers.sculpt as trainer
from tests.tiny import tiny_model
from tests.trainers.tiny_lessons import run_tiny, write_instructions
from trainers.lesson_sources import LessonConfig
from trainers.lessons import read_lessons
from trainers.response_states import read_states
from uqchat.errors import InputError
from uqchat.estimators.sculpt import Sculpt
from uqchat.language_model import from_loaded

SMALL = ["--epochs", "3", "--batch-size", "16", "--validation", "0.3", "--checkpoint-every", "3",
         "--log-every", "1", "--shortlist", "300", "--learning-rate", "0.02", "--patience", "0",
         "--evaluations-per-epoch", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_instructions(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(letters, folder) == 0
    return folder


def run(letters: Path, folder: Path, *more: str) -> int:
    return run_tiny(trainer, folder, "--instructions", json.dumps([str(letters)]), *SMALL, *more)


def test_sampled_logits_explain_held_out_tokens_better_than_the_plain_softmax(whole: Path) -> None:
    metrics = json.loads((whole / "result.json").read_text())["metrics"]
    assert metrics["validation log_likelihood"] > metrics["validation plain log_likelihood"] + 0.5


def test_the_folder_scores_tokens_and_names_base_data_and_command(whole: Path) -> None:
    model = from_loaded(tiny_model())
    answer = model.answer("Say a.", estimators=[str(whole / "artifact")])
    assert all(risk.raw > 0 for token in answer.tokens for risk in token.risks.values())
    info = json.loads((whole / "artifact/config.json").read_text())["info"]
    assert info["base_model"] == "tiny-llama" and info["training_data"].startswith("letters ")
    assert "validation log_likelihood" in info["metrics"]


def test_a_run_that_died_and_was_resumed_ends_bitwise_as_one_that_did_not(
    letters: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], trainer.SculptTask.loss

    def dying(self: trainer.SculptTask, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return real(self, *args)

    folder = tmp_path / "run"
    monkeypatch.setattr(trainer.SculptTask, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(letters, folder)
    assert run(letters, folder, "--resume") == 0
    for name in ("metrics.jsonl", "artifact/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_states_are_those_that_predicted_the_response(letters: Path) -> None:
    """Each lesson alone, without padding: the final state times the output layer gives that position's logits."""
    model = tiny_model()
    lessons, _ = read_lessons(LessonConfig(instructions=(str(letters),), validation=0.0), model, lambda _: None)
    found = read_states(model.model, lessons[:9], (1, 2), lambda _: None)
    targets, logits = [], []
    for lesson in lessons[:9]:
        start = len(lesson.ids) - len(lesson.labels)
        with torch.no_grad():
            logits.append(model.model(torch.tensor([lesson.ids])).logits[0, start - 1 : -1])
        targets += lesson.ids[start:]
    assert found.targets.tolist() == targets
    own = model.model.get_output_embeddings()(found.states[:, -1])
    torch.testing.assert_close(own, torch.cat(logits), atol=1e-4, rtol=1e-4)


def test_layers_may_be_named_and_the_final_one_must_be_there(letters: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layers = \(0, 1\) is not allowed"):
        run(letters, tmp_path / "a", "--layers", "[0, 1]")
    assert run(letters, tmp_path / "b", "--layers", "[0, 2]", "--epochs", "1") == 0
    assert json.loads((tmp_path / "b/artifact/config.json").read_text())["layers"] == [0, 2]


def test_more_layers_than_the_model_has_are_refused(letters: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="n_layers = 3 is not allowed: this model has 2 layers"):
        run(letters, tmp_path / "run", "--n-layers", "3")


def test_a_saved_head_is_read_back_as_it_was(whole: Path) -> None:
    model = from_loaded(tiny_model())
    first = Sculpt.from_folder(whole / "artifact", model, "sculpt")
    assert first.config.layers == (1, 2) and first.needs.hidden_layers == (1, 2)
