"""Asking the model gives what replaying gives; an interrupted file of risks goes on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import trainers.score as trainer
from tests.tiny import tiny_model
from tests.trainers.tiny_cache import make_model, make_tiny_cache
from trainers.ask import can_replay, reader
from trainers.cache import FeatureCache
from trainers.metrics_report import read_graded
from trainers.replay import Opened, replay
from uqchat.errors import InputError
from uqchat.language_model import LanguageModel
from uqchat.types import Signals


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> FeatureCache:
    return make_tiny_cache(tmp_path_factory.mktemp("cache") / "tiny", model, count=20)


def test_what_no_cache_holds_is_asked_of_the_model_with_the_same_result(
    model: LanguageModel, cache: FeatureCache
) -> None:
    opened = Opened(model.info)
    entropy = opened.uncalibrated("entropy")
    replayed = list(replay(cache, [entropy]))
    entropy.needs = Signals(entropy=True, hidden_layers=(0,))  # layer 0 was not cached
    assert not can_replay(cache, entropy)
    asked = list(reader(model.info, limit=7)(cache, [entropy], ["train"]))
    assert len(asked) == 7 and list(reader(model.info)(cache, [entropy], ["eval"])) == []
    for ours, theirs in zip(asked, replayed, strict=False):
        assert ours.answer == theirs.answer
        assert ours.risks["entropy"].raw == pytest.approx(theirs.risks["entropy"].raw, abs=1e-4)


def run(cache: FeatureCache, out: Path, *more: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "load_model", lambda *_: tiny_model())
        parser = argparse.ArgumentParser()
        trainer.add_arguments(parser)
        given = ["--caches", str(cache.folder), "--splits", "train", "--out", str(out), *more]
        return trainer.main(parser.parse_args(given))


def test_a_file_that_was_cut_off_goes_on_and_a_report_reads_it(cache: FeatureCache, tmp_path: Path) -> None:
    out = tmp_path / "risks.jsonl"
    names = ("--estimators", "entropy", "max_prob as sure", "--statistics", "risk,max")
    assert run(cache, out, *names, "--limit", "9") == 0
    whole = out.read_text()
    out.write_text(whole[:-30])  # the last line lost its end
    assert run(cache, out, *names) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 20 and len({line["key"] for line in lines}) == 20
    assert whole.splitlines()[0] == out.read_text().splitlines()[0]
    graded = read_graded([out])
    assert set(graded.raw) == {"entropy", "entropy:max", "sure", "sure:max"}
    assert (graded.raw["entropy:max"] >= graded.raw["entropy"]).all()


def test_unknown_statistics_are_refused(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--statistics takes risk, mean, max"):
        run(cache, tmp_path / "x.jsonl", "--estimators", "entropy", "--statistics", "median")
