"""Ensembles of one reading say of an answer what their voters' own models say of it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import trainers.vote_scores as module
from tests.random_adapters import merged
from tests.tiny import tiny_model
from tests.trainers.tiny_cache import make_model, make_tiny_cache, prompt_of
from trainers.cache import FeatureCache
from trainers.metrics_report import read_graded
from uqchat.engine.adapters import Adapter
from uqchat.errors import InputError
from uqchat.estimators.vote_files import VoteFiles, write_vote
from uqchat.estimators.vote_noise import noise_voters
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.language_model import LanguageModel
from uqchat.origin import origin_of
from uqchat.types import Votes


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> FeatureCache:
    return make_tiny_cache(tmp_path_factory.mktemp("cache") / "tiny", model, count=6)


def run(cache: FeatureCache, out: Path, ensembles: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_model", lambda *_: tiny_model())
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        given = ["--caches", str(cache.folder), "--splits", "train", "--out", str(out)]
        return module.main(parser.parse_args([*given, "--ensembles", json.dumps(ensembles)]))


def test_an_ensemble_says_what_models_with_its_voters_weights_say(
    model: LanguageModel, cache: FeatureCache, tmp_path: Path
) -> None:
    """Mutual information and probabilities by transformers, one model for each voter; three voters and two of them."""
    ensembles = {"three": {"weight_noise": 0.5}, "two": {"weight_noise": 0.5, "n_voters": 2}}
    assert run(cache, tmp_path / "a.jsonl", ensembles) == 0
    found = {line["id"]: line["risks"] for line in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())}
    voters = noise_voters(model.model, VoteSettings(weight_noise=0.5))
    models = [merged(tiny_model().model, Adapter("x", dict(voter))) for voter in voters]
    for row in cache.answers:
        prompt, said = prompt_of(model, row.question), row.answer_ids[:-1]
        with torch.no_grad():
            logits = torch.stack([m(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1] for m in models])
        for name, count in (("three", 3), ("two", 2)):
            probs = logits[:count].softmax(-1).double()
            entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
            shared = (entropy(probs.mean(0)) - entropy(probs).mean(0)) / math.log(count)
            assert found[row.id][name] == pytest.approx(shared.mean().item(), abs=1e-4)
            assert found[row.id][f"{name}:max"] == pytest.approx(shared.max().item(), abs=1e-4)
            own = probs[:, range(len(said)), list(said)]
            assert found[row.id][f"{name} surprisal"] == pytest.approx(-own.mean(0).log().mean().item(), abs=1e-3)


def test_a_trained_folder_is_an_ensemble_too(model: LanguageModel, cache: FeatureCache, tmp_path: Path) -> None:
    settings = VoteSettings(weight_noise=0.5)
    voters = tuple(noise_voters(model.model, settings))
    write_vote(VoteFiles(settings, voters, origin_of(model)), tmp_path / "folder")
    assert run(cache, tmp_path / "a.jsonl", {"f": str(tmp_path / "folder"), "s": {"weight_noise": 0.5}}) == 0
    graded = read_graded([tmp_path / "a.jsonl"])
    np.testing.assert_allclose(graded.raw["f"], graded.raw["s"], atol=1e-5)


def test_rows_with_dropout_are_an_ensemble_and_without_it_never_disagree(cache: FeatureCache, tmp_path: Path) -> None:
    assert run(cache, tmp_path / "a.jsonl", {"half": {"rate": 0.5}, "none": {"rate": 0.0}}) == 0
    graded = read_graded([tmp_path / "a.jsonl"])
    assert (graded.raw["half"] > 1e-4).all() and (graded.raw["none:max"] < 1e-6).all()


def test_the_measures_of_an_answer() -> None:
    """Two tokens, two voters: variances .01 and 0, mean probabilities .5 and .25, shares 1/2 and 1."""
    found = module.summary("v", [Votes(math.log(2), 0.5, (0.4, 0.6)), Votes(0.0, 1.0, (0.25, 0.25))])
    assert (found["v"], found["v:max"]) == pytest.approx((0.5, 1.0))
    assert (found["v variance"], found["v variance:max"]) == pytest.approx((0.005, 0.01))
    assert (found["v disagreement"], found["v disagreement:max"]) == pytest.approx((0.25, 0.5))
    assert found["v surprisal"] == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize(
    ("ensembles", "text"),
    [({}, "must be an object"), ({"a": {"voters": 3}}, "cannot be made of"), ({"a": {"alpha": 2}}, "alpha .* 0 to 1")],
)
def test_ensembles_that_cannot_be_made_are_refused(
    cache: FeatureCache, tmp_path: Path, ensembles: object, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        run(cache, tmp_path / "x.jsonl", ensembles)
