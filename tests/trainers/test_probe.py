"""A probe is trained from cached states, finds what is there, and scores live answers as it scored the cached ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainers.tiny_cache import forced_steps, make_model, make_tiny_cache
from trainers.__main__ import main
from trainers.answers import read_answers, write_labels
from trainers.probe_data import answer_table, token_table
from trainers.training_set import (
    DataConfig,
    balanced_weights,
    fold_of,
    macro_auroc,
    part_validation,
    read_training_set,
    token_weights,
)
from uqchat.estimators.probe import Probe
from uqchat.language_model import LanguageModel

SMALL = ["--epochs", "12", "--batch-size", "8", "--sizes", "[16]", "--members", "2", "--dropout", "0.0"]
SMALL += ["--learning-rate", "0.01", "--prefixes", "1", "--validation", "0.2"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The tiny one that gave the answers."""
    return make_model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Path:
    """A few answers with labels."""
    folder = tmp_path_factory.mktemp("cache")
    make_tiny_cache(folder, model)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A complete run."""
    folder = tmp_path_factory.mktemp("runs") / "probe"
    assert main(["probe", "--run-dir", str(folder), "--caches", json.dumps([str(cache)]), *SMALL]) == 0
    return folder


def test_it_finds_the_layer_and_the_errors(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["layers"] == [2]  # the labels come from layer 2
    sweep = json.loads((run / "sweep.json").read_text())
    assert set(sweep) == {"1", "2"} and sweep["2"] > 0.8
    assert result["metrics"]["validation auroc"] > 0.8 and result["metrics"]["validation token_auroc"] > 0.8


def test_all_answers_may_train_with_none_left_to_validate(tmp_path: Path, cache: Path) -> None:
    run = tmp_path / "run"
    options = [*SMALL, "--validation", "0", "--layers", "[2]", "--keep", "last", "--epochs", "1"]
    assert main(["probe", "--run-dir", str(run), "--caches", json.dumps([str(cache)]), *options]) == 0
    assert json.loads((run / "result.json").read_text())["metrics"] == {}
    assert (run / "artifact" / "model.safetensors").is_file()


def test_live_answers_are_scored_as_the_cached_ones(run: Path, cache: Path, model: LanguageModel) -> None:
    probe = Probe.from_folder(run / "artifact", model, "probe")
    data = read_training_set(DataConfig(caches=(str(cache),)), print)
    answers, tokens = answer_table(data, probe.parts.answer.config), token_table(data, probe.parts.tokens.config)
    expected = probe.parts.answer.module(answers.inputs).mean(-1)
    by_token = probe.parts.tokens.module(tokens.inputs).mean(-1)
    for index in (0, 7, 30):
        row, state, risks = data.rows[index], probe.new_state(), {}
        for step in forced_steps(model, row.question, row.answer_ids, probe.needs):
            risks |= probe.score_token(step, state)
        assert probe.score_answer([], state)[0].raw == pytest.approx(expected[index].item(), abs=0.02)  # float16
        for place in tokens.rows_of([index]).tolist():
            assert risks[int(tokens.place[place])].raw == pytest.approx(by_token[place].item(), abs=0.02)


def test_the_artifact_says_where_it_comes_from(run: Path, model: LanguageModel) -> None:
    info = json.loads((run / "artifact" / "config.json").read_text())["info"]
    assert "one (train, page)" in info["training_data"] and info["hidden_size"] == 32
    assert "validation auroc" in info["metrics"]


def test_a_set_can_be_left_out_and_validation_parts_by_question(cache: Path) -> None:
    lines: list[str] = []
    data = read_training_set(DataConfig(caches=(str(cache),), leave_out=("two",)), lines.append)
    assert {row.set for row in data.rows} == {"one"} and len(data) == 80
    train, validation = part_validation(data, 0.3, 0)
    assert not {row.id for row in train.rows} & {row.id for row in validation.rows}
    assert len(train) + len(validation) == 80 and 10 <= len(validation) <= 40
    assert {fold_of(row, 3, 0) for row in data.rows} == {0, 1, 2}


@pytest.mark.parametrize(
    ("label", "message"), [(True, "All 160 answers are wrong"), (None, "No labelled answer is left")]
)
def test_labels_that_teach_nothing_are_refused(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], label: bool | None, message: str
) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    rows = [
        replace(row, is_error=label, token_labels=row.token_labels and label and None) for row in read_answers(copy)
    ]
    write_labels(copy, [replace(row, token_labels=None) for row in rows])
    folder = tmp_path / "run"
    assert main(["probe", "--run-dir", str(folder), "--caches", json.dumps([str(copy)]), *SMALL]) == 1
    assert message in capsys.readouterr().err
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "artifact").exists()


def test_a_cache_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["probe", "--run-dir", str(tmp_path / "run"), "--caches", json.dumps([str(tmp_path / "nowhere")])]
    assert main(arguments) == 1
    assert "holds no cached features" in capsys.readouterr().err


def test_both_classes_weigh_the_same_in_every_group() -> None:
    labels = torch.tensor([1.0, 1, 1, 0, 1, 0, float("nan")])
    weights = balanced_weights(labels, ["a"] * 4 + ["b"] * 3)
    # By hand: group a has 4 rows, 2 for each class; group b has 2, 1 each; scaled to mean 1 over all 7.
    expected = torch.tensor([2 / 3, 2 / 3, 2 / 3, 2, 1, 1, 0]) * 7 / 6
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(balanced_weights(torch.ones(3)), torch.ones(3))


def test_wrong_tokens_right_facts_and_other_words_weigh_two_to_two_to_one() -> None:
    labels, is_fact = (
        torch.tensor([1, 1, 0, 0, 0, 0, -100]),
        torch.tensor([True, True, True, False, False, False, True]),
    )
    weights = token_weights(labels, is_fact)
    assert weights[:2].sum() == pytest.approx(0.4 * 7) and weights[2].item() == pytest.approx(0.4 * 7)
    assert weights[3:6].sum() == pytest.approx(0.2 * 7) and weights[6] == 0


def test_macro_auroc_is_the_mean_of_the_sets_that_have_both_labels() -> None:
    found = macro_auroc([0.9, 0.1, 0.4, 0.6, 0.5], [1, 0, 1, 0, 1], ["a", "a", "b", "b", "c"])
    assert found == {"auroc": 0.5, "auroc a": 1.0, "auroc b": 0.0}
