"""A sweep trains each variant without one set, judges it there, keeps what is done, and never chooses a baseline."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.trainers.tiny_cache import make_model, make_tiny_cache
from trainers.__main__ import main
from trainers.common import build_settings
from trainers.sweep import MODULES, mean_over_sets, read_plan
from trainers.training_set import DataConfig, read_parts
from uqchat.errors import InputError

COMMON = {"epochs": 30, "batch_size": 16, "dropout": 0.0, "learning_rate": 0.01, "sizes": [8], "members": 1}
VARIANTS = {"the state": {"layers": [2], "positions": ["mean"]}, "Nothing": {"layers": [1], "epochs": 1}}
BASELINES = {"prompt only": {"layers": [2], "positions": ["prompt"], "use_tokens": False}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of two sets."""
    folder = tmp_path_factory.mktemp("cache")
    make_tiny_cache(folder, make_model())
    return folder


def write_plan(folder: Path, **more: object) -> Path:
    path = folder / "plan.json"
    plan = {"trainer": "probe", "common": COMMON, "variants": VARIANTS, "baselines": BASELINES, **more}
    path.write_text(json.dumps(plan))
    return path


def sweep(run: Path, plan: Path, cache: Path, *more: str) -> int:
    caches = ["--caches", json.dumps([str(cache)]), "--judge-splits", '["train"]']
    return main(["sweep", "--run-dir", str(run), "--plan", str(plan), *caches, *more])


def test_the_variant_that_does_best_on_sets_left_out_is_chosen_and_told(tmp_path: Path, cache: Path) -> None:
    run = tmp_path / "run"
    assert sweep(run, write_plan(tmp_path), cache) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["choice"] == "the state" and result["auroc"]["the state"].keys() == {"one page", "two page"}
    assert mean_over_sets(result["auroc"]["the state"]) > 0.8 > mean_over_sets(result["auroc"]["prompt only"])
    assert json.loads((run / "choice.json").read_text()) == {**COMMON, **VARIANTS["the state"]}
    text = (run / "sweep.md").read_text()
    assert "| **the state** |" in text and "| max entropy |" in text
    # Each run left its set out of training, and kept its last weights.
    for left_out, other in (("one", "two"), ("two", "one")):
        folder = run / "the-state" / left_out
        card = (folder / "artifact" / "README.md").read_text()
        assert f"{other} (train, page) 80" in card and f"{left_out} (train" not in card
        assert json.loads((folder / "config.json").read_text())["loop"]["keep"] == "last"


def test_a_sweep_that_was_stopped_trains_only_what_is_missing(tmp_path: Path, cache: Path) -> None:
    run, plan = tmp_path / "run", write_plan(tmp_path)
    assert sweep(run, plan, cache) == 0
    before = (run / "result.json").read_text()
    done = run / "nothing" / "two" / "result.json"
    stamps = {path: path.stat().st_mtime_ns for path in run.glob("*/*/result.json") if path != done}
    done.unlink()
    (run / "result.json").unlink()
    assert sweep(run, plan, cache, "--resume") == 0
    assert (run / "result.json").read_text() == before and done.is_file()
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_sets_that_judge_train_nothing(cache: Path) -> None:
    config = DataConfig(caches=(str(cache),), judged=("one",), judge_splits=("train",))
    train, judged = read_parts(config, lambda line: None)
    assert {row.set for row in train.rows} == {"two"} and {row.set for row in judged.rows} == {"one"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"trainer": "magic"}, "Known: probe, uq-head"),
        ({"variants": {}}, "needs variants"),
        ({"variants": {"a b": {}, "A-b": {}}}, "names differ"),
        ({"extra": 1}, "may have"),
        ({"variants": {"a": {"layer": [2]}}}, None),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], more: dict[str, object], told: str | None
) -> None:
    plan = write_plan(tmp_path, **more)
    if told is None:
        assert sweep(tmp_path / "run", plan, cache) == 1
        assert "Unknown setting 'layer'" in capsys.readouterr().err
        return
    with pytest.raises(InputError, match=told):
        read_plan(plan)


@pytest.mark.parametrize("path", sorted(Path("trainers/sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_plans_that_ship_can_be_run(path: Path) -> None:
    plan = read_plan(path)
    module = importlib.import_module(MODULES[plan.trainer])
    assert len(plan.everything) > 1  # something to choose from
    for settings in plan.everything.values():
        build_settings(module.TrainConfig, {**settings, "caches": ("a",), "judged": ("b",), "keep": "last"})
