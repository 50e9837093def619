"""A trained query's stored scores are those of the merged model; its calibration lies in its folder and is used."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

import trainers.query_calibrate as command
from tests.random_adapters import low_rank, merged
from tests.tiny import tiny_model
from tests.trainers.tiny_cache import make_model, make_tiny_cache
from trainers.cache import FeatureCache
from trainers.query_inputs import make_example
from trainers.query_scores import query_scores
from uqchat.calibration import read_calibrations
from uqchat.errors import InputError
from uqchat.estimators.query import QueryEstimator, ZeroShotQuery
from uqchat.estimators.query_files import QueryFiles, QuerySettings
from uqchat.estimators.query_format import make_query
from uqchat.language_model import from_loaded
from uqchat.origin import origin_of

TEMPERATURE = 1.6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return make_tiny_cache(tmp_path_factory.mktemp("cache"), make_model(), 40)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrained query of the tiny model, saved."""
    monkeypatch.setattr(command, "load_model", lambda *_: tiny_model())
    model = from_loaded(tiny_model())
    settings = QuerySettings("letter_choice", temperature=TEMPERATURE)
    adapter = low_rank(model.model, "x", 4, ("q_proj", "v_proj"))
    QueryEstimator(QueryFiles(settings, adapter, origin_of(model))).save(tmp_path / "query")
    return tmp_path / "query"


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(list(arguments)))


def expected_scores(cache: FeatureCache, folder: Path) -> dict[str, float]:
    """By transformers, one answer at a time, with the adapter in the weights."""
    model = from_loaded(tiny_model())
    changed = merged(model.model, QueryEstimator.from_folder(folder, model, "query").adapter)
    query, found = make_query(model.tokenizer), {}
    for row in cache.answers:
        with torch.no_grad():
            logits = changed(torch.tensor([make_example(row, tiny_model(), query).ids])).logits[0, -1]
        found[row.id] = float(logits[query.no_id] - logits[query.yes_id]) / TEMPERATURE
    return found


def test_calibration_and_risks_are_of_the_scores_of_the_merged_model(
    cache: FeatureCache, folder: Path, tmp_path: Path
) -> None:
    risks = tmp_path / "risks.jsonl"
    caches = ["--caches", str(cache.folder), "--splits", "train", "--no-detector", "--kind", "platt"]
    report = ["--report-caches", str(cache.folder), "--report-splits", "train", "--risks", str(risks)]
    assert run("--query", str(folder), *caches, *report, "--baselines", "entropy,max_prob") == 0
    calibration = read_calibrations(folder).answer
    assert (calibration.rows, calibration.error_share) == (40, 0.5)
    lines = [json.loads(line) for line in risks.read_text().splitlines()]
    expected = expected_scores(cache, folder)
    assert {line["id"]: line["risks"]["query"] for line in lines} == pytest.approx(expected, abs=1e-4)
    assert all(set(line["risks"]) == {"query", "entropy", "max_prob"} for line in lines)
    assert all(line["values"]["query"] == calibration.apply(line["risks"]["query"]) for line in lines)


def test_a_chat_shows_the_calibrated_value(cache: FeatureCache, folder: Path) -> None:
    run("--query", str(folder), "--caches", str(cache.folder), "--splits", "train", "--no-detector", "--kind", "platt")
    model = from_loaded(tiny_model())
    answer = model.score("What is 1?", list(cache.answers[0].answer_ids), [str(folder)])
    risk, calibration = answer.risks[str(folder)], read_calibrations(folder).answer
    assert risk.value == pytest.approx(calibration.apply(risk.raw))
    assert risk.value != pytest.approx(1 / (1 + math.exp(-risk.raw)))
    assert {token.risks[str(folder)].value for token in answer.tokens if not token.is_end} == {risk.value}
    model.close()


def test_the_untrained_query_is_scored_alike(cache: FeatureCache) -> None:
    model, rows = tiny_model(), cache.answers[:3]
    query = make_query(model.tokenizer)
    for row, raw in zip(rows, query_scores(model, ZeroShotQuery(), rows), strict=True):
        with torch.no_grad():
            logits = model.model(torch.tensor([make_example(row, model, query).ids])).logits[0, -1]
        assert raw == pytest.approx(float(logits[query.no_id] - logits[query.yes_id]), abs=1e-4)


def test_what_cannot_be_done_is_said(cache: FeatureCache, folder: Path) -> None:
    with pytest.raises(InputError, match="There is nothing to do"):
        run("--query", str(folder))
    with pytest.raises(InputError, match="--risks and --report-caches go together"):
        run("--query", str(folder), "--risks", "x")
    with pytest.raises(InputError, match="No labelled answer of eval"):
        run("--query", str(folder), "--caches", str(cache.folder), "--splits", "eval", "--no-detector")
    with pytest.raises(InputError, match="entropy is a Entropy|calibrate` is for it"):
        run("--query", "entropy", "--caches", str(cache.folder))
