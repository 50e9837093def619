"""One command ends with calibrated scores on a model of another build; its plan names only what the trainers take."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

import trainers.__main__ as shell
from tests.tiny import tiny_model
from trainers import combination
from trainers.__main__ import TRAINERS
from trainers.common import read_settings
from trainers.prepare import OWN, PrepareError, Source, is_done, run
from trainers.prepare_plan import ModelFacts, Request, Step, make_plan
from trainers.questions import read_questions
from uqchat.calibration import read_calibrations
from uqchat.config import read_config
from uqchat.errors import InputError
from uqchat.grading import normalise
from uqchat.language_model import from_loaded
from uqchat.models import load_model
from uqchat.paths import ASSETS

FACTS = ModelFacts(30, 576, 9, 5e8, True, 200.0, 1500.0, ("entropy", "max_prob", "margin", "rauq"))


def write_model(folder: Path, kind: str) -> Path:
    loaded = tiny_model(kind)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def write_questions(folder: Path, model: Path, count: int) -> Path:
    """A random model is never right, so every second question is one that its own answer answers."""
    loaded = from_loaded(load_model(str(model), "cpu", "float32"))
    rows = []
    for number in range(count):
        question = f"What is number {number}?"
        words = normalise(loaded.answer(question, generation=short()).text).split() if number % 2 else []
        rows.append({"id": f"q{number}", "question": question, "answers": [max(words, key=len)] if words else ["Lima"]})
    path = folder / "numbers_train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded.close()
    return path


def short() -> object:
    from trainers.data import MAX_NEW_TOKENS
    from uqchat.config import GenerationConfig

    return GenerationConfig(max_new_tokens=MAX_NEW_TOKENS["page"])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A GPT-2 of a few kilobytes and its questions; estimators go to a folder of the test."""
    folder = tmp_path_factory.mktemp("quick")
    model = write_model(folder / "model", "gpt2")
    questions = write_questions(folder, model, 26)
    return ["prepare", "--model", str(model), "--preset", "quick", "--questions", str(questions), "--dtype", "float32"]


def test_quick_ends_with_calibrated_untrained_scores_of_a_model_of_another_build(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimators = read_config().estimators_dir
    assert shell.main([*quick, "--dry-run"]) == 0
    assert not estimators.exists() and not (estimators.parent / "prepare").exists()
    assert "numbers-calibration-page" in capsys.readouterr().out
    assert shell.main(quick) == 0
    found = read_calibrations(estimators / "model/entropy")
    assert found.answer.rows >= 24 and 0 < found.answer.error_share < 1
    answer = from_loaded(load_model(quick[2], "cpu", "float32")).answer("What is number 3?", ["entropy"], short())
    assert answer.risks["entropy"].value == pytest.approx(found.answer.apply(answer.risks["entropy"].raw))
    # What is done is not done twice.
    monkeypatch.setitem(TRAINERS, "data", ("trainers.nowhere", ""))
    assert shell.main(quick) == 0


@pytest.mark.parametrize("preset", ["quick", "standard", "full"])
@pytest.mark.parametrize("has_attention", [True, False])
def test_every_command_of_the_plan_is_one_that_its_trainer_takes(
    preset: str, has_attention: bool, tmp_path: Path
) -> None:
    facts = ModelFacts(**{**vars_of(FACTS), "has_attention": has_attention})
    options = ("--model", "embedded", "--dtype", "float32")
    steps = make_plan(Request(options, preset, (OWN,), tmp_path / "work", tmp_path / "out"), facts)
    for step in steps:
        module = importlib.import_module(TRAINERS[step.command[0]][0])
        parser = argparse.ArgumentParser(exit_on_error=False)
        module.add_arguments(parser)
        args = parser.parse_args(step.command[1:])
        if hasattr(module, "TrainConfig"):
            read_settings(module.TrainConfig, args)
    names = [step.name for step in steps]
    assert ("train query" in names) == (preset != "quick")
    trained = preset != "quick" and has_attention
    assert [name in names for name in ("train uq_head", "train combination")] == [trained, trained]


def test_the_combination_is_of_what_is_trained_as_in_the_one_that_ships(tmp_path: Path) -> None:
    steps = {step.name: step for step in make_plan(Request((), "standard", (OWN,), tmp_path, tmp_path / "out"), FACTS)}
    parser = argparse.ArgumentParser()
    combination.add_arguments(parser)
    step = steps["train combination"]
    settings = read_settings(combination.TrainConfig, parser.parse_args(step.command[1:]))
    shipped = json.loads((ASSETS / "estimators/smollm2-135m-instruct/combination/config.json").read_text())
    assert [asdict(combination.member_of(text)) for text in settings.members] == shipped["members"]
    folders = {os.path.normpath(Path(settings.output) / member) for member in settings.members}
    commands = [steps[name].command for name in ("train probe", "train uq_head")]
    assert folders == {command[command.index("--output") + 1] for command in commands}


def test_the_plan_counts_the_questions(tmp_path: Path) -> None:
    steps = make_plan(Request((), "standard", (OWN,), tmp_path, tmp_path / "out"), FACTS)
    rows = {step.name: step.rows for step in steps}
    train, held_out = (len(read_questions(path, "easy_facts")) for path in (OWN.train, OWN.eval))
    assert (train, held_out) == (1050, 456)
    assert rows["easy_facts-train-page"] + rows["easy_facts-calibration-page"] == train
    assert rows["easy_facts-eval-short"] == held_out
    assert all(step.seconds > 0 for step in steps)


def vars_of(facts: ModelFacts) -> dict[str, object]:
    return {name: getattr(facts, name) for name in facts.__dataclass_fields__}


def test_a_step_that_fails_ends_the_run_and_what_was_done_stays_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def command(arguments: tuple[str, ...]) -> int:
        calls.append(arguments[0])
        (tmp_path / arguments[0]).touch()
        return int(arguments[0] == "b" and calls.count("b") == 1)

    monkeypatch.setattr(shell, "main", command)
    steps = [Step(name, (name,), tmp_path / name) for name in "abc"]
    with pytest.raises(PrepareError, match="b did not come to its end"):
        run(tmp_path, steps)
    assert [is_done(tmp_path, step) for step in steps] == [True, False, False]
    assert run(tmp_path, steps) == 0
    assert calls == ["a", "b", "b", "c"]
    assert not is_done(tmp_path, Step("a", ("a", "--other"), tmp_path / "a"))  # another command is another step


def test_no_room_and_odd_files_are_told_before_anything_runs(quick: list[str], tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="--max-disk allows 1e-09"):
        from trainers import prepare

        parser = argparse.ArgumentParser()
        prepare.add_arguments(parser)
        prepare.main(parser.parse_args([*quick[1:], "--max-disk", "1e-9"]))
    assert shell.main([*quick, "--eval-questions", "a", "b"]) == 1
    with pytest.raises(InputError, match="Unknown preset 'x'. Known: quick, standard, full"):
        make_plan(Request((), "x", (Source("a", OWN.train),), tmp_path, tmp_path), FACTS)
