"""Voters of a tiny model learn, each from its own rows; a run that died ends bitwise as one that did not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import trainers.vote as trainer
from tests.random_adapters import merged
from tests.tiny import tiny_model
from tests.trainers.tiny_lessons import run_tiny, write_instructions
from trainers.lesson_sources import LessonConfig
from trainers.lesson_task import LessonTask, check_divisible, trimmed
from trainers.lessons import read_lessons
from trainers.row_lora import RowLora
from trainers.run_folder import TrainingError
from uqchat.engine.adapters import Adapter
from uqchat.errors import InputError
from uqchat.estimators.vote_files import read_vote
from uqchat.estimators.vote_noise import noise_voters
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.language_model import from_loaded

SMALL = ["--epochs", "4", "--batch-size", "6", "--validation", "0.3", "--checkpoint-every", "3", "--log-every", "1",
         "--learning-rate", "0.02", "--patience", "0", "--evaluations-per-epoch", "2", "--rank", "4",
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


def test_the_voters_learn_and_the_folder_names_base_data_and_command(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    looks = [line["validation_log_likelihood"] for line in lines if "validation_log_likelihood" in line]
    assert max(looks) > looks[0] + 0.5
    found = read_vote(whole / "artifact", from_loaded(tiny_model()))
    assert len(found.voters) == 3 and found.settings.rank == 4
    assert found.info.training_data.startswith("letters ") and found.info.base_model == "tiny-llama"
    assert found.info.metrics["validation log_likelihood"] == pytest.approx(max(looks))


def test_a_run_that_died_and_was_resumed_ends_bitwise_as_one_that_did_not(
    letters: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], LessonTask.loss

    def dying(self: LessonTask, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return real(self, *args)

    folder = tmp_path / "run"
    monkeypatch.setattr(LessonTask, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(letters, folder)
    early = shutil.copytree(folder, tmp_path / "early")
    assert run(letters, early, "--finish") == 0
    result = json.loads((early / "result.json").read_text())
    assert (result["steps"], result["best_step"] <= 6) == (6, True)
    assert len(read_vote(early / "artifact", from_loaded(tiny_model())).voters) == 3
    assert run(letters, folder, "--resume") == 0
    for name in ("metrics.jsonl", "artifact/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def made(letters: Path, noise: float = 0.5) -> tuple[LessonTask, RowLora, tuple[dict[str, Any], ...]]:
    model = tiny_model()
    lessons, _ = read_lessons(LessonConfig(instructions=(str(letters),), validation=0.0), model, lambda _: None)
    starts = noise_voters(model.model, VoteSettings(weight_noise=noise, rank=4))
    module = RowLora(model.model, [trainer.balanced(voter) for voter in starts], scale=2.0)
    return LessonTask(lessons, [], module, 0.0), module, starts


def test_each_row_is_read_by_its_own_voter_as_by_a_model_with_that_voters_weights(letters: Path) -> None:
    """Row k of the batch by voter k mod 3, alone and without padding, by transformers on merged weights."""
    task, module, starts = made(letters)
    models = [merged(tiny_model().model, Adapter("x", dict(start))) for start in starts]
    indices, expected = [4, 0, 9, 17, 2, 11], 0.0
    for place, index in enumerate(indices):
        lesson = task.learned[index]
        with torch.no_grad():
            log_probs = models[place % 3](torch.tensor([lesson.ids])).logits[0].log_softmax(-1)
        start = len(lesson.ids) - len(lesson.labels)
        expected -= float(log_probs[range(start - 1, len(lesson.ids) - 1), lesson.labels].sum())
    found, count = task.loss(module, indices)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert count == sum(len(task.learned[i].labels) for i in indices)


def test_a_row_teaches_no_other_voter(letters: Path) -> None:
    task, module, _ = made(letters)
    task.loss(module, [3])[0].backward()
    for parameter in module.parameters():
        assert parameter.grad[0].abs().sum() > 0 and not parameter.grad[1:].any()


def test_states_that_were_kept_give_the_loss_of_whole_forwards(letters: Path) -> None:
    """Voters that begin in block 1; float16 keeps three digits."""
    model = tiny_model()
    lessons, _ = read_lessons(LessonConfig(instructions=(str(letters),), validation=0.0), model, lambda _: None)
    starts = noise_voters(model.model, VoteSettings(param_filter=r"layers\.1\..*(q_proj|v_proj)", rank=4))
    module = RowLora(model.model, [trainer.balanced(voter) for voter in starts])
    tasks = [LessonTask(lessons, [], module, gigabytes) for gigabytes in (1.0, 0.0)]
    assert [task.inputs.starts_at for task in tasks] == [1, 0]
    found = [task.loss(module, range(6))[0].item() for task in tasks]
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_what_was_learned_is_what_begins_where_nothing_was(letters: Path) -> None:
    _, module, starts = made(letters)
    for change, start in zip(module.changes(), starts, strict=True):
        for name, delta in change.items():
            torch.testing.assert_close(delta.scale * delta.b @ delta.a, start[name].b @ start[name].a)


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("n-voters", "1", "a single voter never disagrees"),
        ("weight-noise", "0", "must be above 0"),
        ("batch-size", "7", "cannot be shared equally by 3 voters: batch_size must be a multiple of 3"),
        ("accumulation", "4", "in 4 parts .* multiple of 12"),
        ("param-filter", "q_prj", "is found in no linear layer's name. There are: .*q_proj"),
        ("lora-alpha", "0", "lora_alpha must be above 0"),
    ],
)
def test_what_would_train_no_ensemble_is_refused(
    letters: Path, tmp_path: Path, setting: str, value: str, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        run(letters, tmp_path / "run", f"--{setting}", value)


def test_the_last_batch_is_shared_equally_too() -> None:
    assert len(trimmed(list(range(11)), 3)) == 9  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="2 lessons are too few"):
        trimmed(list(range(2)), 3)  # type: ignore[arg-type]
    check_divisible(12, 2, 2, 3)
