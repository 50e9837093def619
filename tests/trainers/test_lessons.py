"""What is a target and what is not; which questions never are lessons; sources that cannot be used say why."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model
from tests.trainers.tiny_cache import make_model, make_tiny_cache
from tests.trainers.tiny_lessons import write_instructions
from trainers.answers import IGNORED, write_labels
from trainers.lesson_sources import LessonConfig
from trainers.lessons import Lesson, pad_lessons, read_lessons, response_loss
from trainers.questions import read_questions
from trainers.run_folder import TrainingError
from trainers.splits import split
from uqchat.errors import InputError


def read(**settings: object) -> tuple[list[Lesson], list[Lesson]]:
    return read_lessons(LessonConfig(**settings), tiny_model(), lambda _: None)  # type: ignore[arg-type]


def test_the_response_and_its_end_are_targets_and_the_prompt_is_not(tmp_path: Path) -> None:
    learned, _ = read(instructions=(str(write_instructions(tmp_path)),), validation=0.0)
    tokenizer = tiny_model().tokenizer
    assert tokenizer.decode(learned[1].ids) == "<|user|>Say b.<|assistant|>bbbb<|end|>"
    assert tokenizer.decode(learned[1].labels) == "bbbb<|end|>" and not any(learned[1].is_wrong)


def test_a_long_response_is_cut_and_a_prompt_without_room_is_counted_and_left_out(tmp_path: Path) -> None:
    path, said = write_instructions(tmp_path, 4), []
    config = LessonConfig(instructions=(str(path),), validation=0.0, max_length=10)
    learned, _ = read_lessons(config, tiny_model(), said.append)
    assert {len(lesson.ids) for lesson in learned} == {10}
    with pytest.raises(TrainingError, match="No lesson is left"):
        read_lessons(replace(config, max_length=8), tiny_model(), said.append)
    assert any("4 lessons left out, no room for a response: letters" in line for line in said)


def test_questions_that_calibrate_are_no_lessons_and_styles_are_asked_apart(tmp_path: Path) -> None:
    path = tmp_path / "colours_train.jsonl"
    rows = [{"id": f"q{i}", "question": f"What is colour {i}?", "answers": [f"c{i}", "x"]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned, held_out = read(questions=(str(path),), validation=0.3, styles=("short", "page"))
    calibrating = {question.id for question in split(read_questions(path, "colours"))["calibration"]}
    keys = [{lesson.key.split()[1] for lesson in part} for part in (learned, held_out)]
    assert calibrating and not calibrating & (keys[0] | keys[1]) and not keys[0] & keys[1]
    assert len(learned) + len(held_out) == 2 * (40 - len(calibrating))
    texts = [tiny_model().tokenizer.decode(lesson.ids) for lesson in learned]
    assert any(text.startswith("<|system|>Answer the question in a few words.<|user|>What") for text in texts)
    assert all("c" in text.rsplit("<|assistant|>", 1)[1] for text in texts)


def test_of_own_answers_right_ones_are_learned_and_wrong_tokens_unlearned(tmp_path: Path) -> None:
    cache = make_tiny_cache(tmp_path / "cache", make_model(), 12)
    rows = [replace(row, is_error=number % 2 == 1) for number, row in enumerate(cache.answers)]
    rows[3] = replace(rows[3], token_labels=None)
    write_labels(cache.folder, rows)
    learned, _ = read(caches=(str(cache.folder),), validation=0.0)
    assert len(learned) == 11  # a wrong answer without token labels says nothing of its tokens
    right, wrong = learned[0], learned[1]
    assert right.labels == rows[0].answer_ids and not any(right.is_wrong)
    for label, is_wrong, token_id, own in zip(
        wrong.labels, wrong.is_wrong, rows[1].answer_ids, rows[1].token_labels, strict=True
    ):
        assert (label, is_wrong) == (IGNORED if own == IGNORED else token_id, own == 1)


def test_as_many_as_asked_are_drawn_with_the_seed(tmp_path: Path) -> None:
    path = str(write_instructions(tmp_path))
    draws = [read(instructions=(path,), validation=0.0, per_source=5, data_seed=seed)[0] for seed in (0, 0, 1)]
    keys = [[lesson.key for lesson in draw] for draw in draws]
    assert len(keys[0]) == 5 and keys[0] == keys[1] != keys[2]


def test_the_shared_seed_tasks_are_read_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "instruction"
    folder.mkdir(parents=True)
    write_instructions(folder).rename(folder / "seed_train.jsonl")
    monkeypatch.setenv("UQCHAT_SHARED", str(tmp_path))
    assert len(read(instructions=("seed",), validation=0.0)[0]) == 24
    with pytest.raises(InputError, match="There is no instruction set 'sead' in .*; there is seed"):
        read(instructions=("sead",))


def test_padding_is_no_target() -> None:
    lessons = [Lesson((1, 2, 3), (2, 3), (False, True), "g", "a"), Lesson((1, 5), (5,), (False,), "g", "b")]
    labels, wrong = pad_lessons(lessons)
    assert labels.tolist() == [[2, 3], [IGNORED, 5]] and wrong.tolist() == [[False, True], [False, False]]


def test_the_loss_is_the_log_likelihood_and_of_wrong_tokens_that_of_not_saying_them() -> None:
    found = response_loss(torch.tensor([0.25, 0.25]).log(), torch.tensor([False, True]))
    assert found.tolist() == pytest.approx([-math.log(0.25), -math.log(0.75)], rel=1e-5)
    sure = torch.tensor([0.0], requires_grad=True)
    response_loss(sure, torch.tensor([True])).sum().backward()
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "There is nothing to learn"),
        ({"instructions": ("x",), "styles": ("shout",)}, "must be among page, short, sentence"),
        ({"instructions": ("x",), "max_length": 4}, "max_length must be 8 or more"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        LessonConfig(**settings)  # type: ignore[arg-type]


def test_a_file_without_one_usable_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('not json\n{"instruction": "x", "output": ""}\n')
    with pytest.raises(InputError, match="holds no instruction with an output"):
        read(instructions=(str(path),))
