"""A folder of voters gives back what was written, and refuses what it cannot mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.random_adapters import low_rank
from tests.tiny import tiny_model
from uqchat.errors import InputError
from uqchat.estimators.vote_files import VoteFiles, read_vote, write_vote
from uqchat.estimators.vote_settings import VoteSettings, matching_layers
from uqchat.language_model import LanguageModel
from uqchat.origin import ArtifactError, origin_of

ENDS = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(tiny_model())


def made(model: Any, count: int = 3, **settings: Any) -> VoteFiles:
    voters = tuple(dict(low_rank(model.model, "v", 2 + number, ENDS).deltas) for number in range(count))
    return VoteFiles(VoteSettings(n_voters=count, **settings), voters, origin_of(model, training_data="made up"))


def test_a_folder_gives_back_the_settings_and_every_voters_change(model: LanguageModel, tmp_path: Path) -> None:
    files = made(model, alpha=0.5, weight_noise=0.1, rank=3, prediction="mean", seed=7, noise="dense")
    write_vote(files, tmp_path)
    found = read_vote(tmp_path, model)
    assert (found.settings, found.info) == (files.settings, files.info)
    for old, new in zip(files.voters, found.voters, strict=True):
        assert set(old) == set(new) == set(matching_layers(model.model, "q_proj|v_proj"))
        for layer in old:
            torch.testing.assert_close(
                new[layer].scale * new[layer].b @ new[layer].a, old[layer].scale * old[layer].b @ old[layer].a
            )
    assert "made up" in (tmp_path / "README.md").read_text()


def test_voters_of_another_model_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    write_vote(made(model), tmp_path)
    with pytest.raises(ArtifactError, match="fingerprint"):
        read_vote(tmp_path, LanguageModel(tiny_model(seed=1)))
    assert read_vote(tmp_path, LanguageModel(tiny_model(seed=1)), allow_mismatch=True).settings.n_voters == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [({"n_voters": 2}, "voters.2"), ({"alpha": 2}, "alpha"), ({"wheight": 1}, "wheight"), ({"n_voters": 4}, "each")],
)
def test_a_wrong_configuration_is_named(model: LanguageModel, tmp_path: Path, change: dict, text: str) -> None:
    write_vote(made(model), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=text):
        read_vote(tmp_path, model)


def test_half_a_pair_and_a_wrong_shape_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    write_vote(made(model), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith(".a"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match="one factor"):
        read_vote(tmp_path, model)
    save_file({**tensors, name: torch.ones(2, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="the layer takes"):
        read_vote(tmp_path, model)


def test_voters_that_do_not_belong_together_are_not_written(model: LanguageModel, tmp_path: Path) -> None:
    files = made(model)
    with pytest.raises(InputError, match="2"):
        write_vote(replace(files, voters=files.voters[:2]), tmp_path)
    odd = dict(list(files.voters[0].items())[1:])
    with pytest.raises(InputError, match="same layers"):
        write_vote(replace(files, voters=(odd, *files.voters[1:])), tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"n_voters": 0}, {"n_voters": 16}, {"weight_noise": -0.1}, {"alpha": 1.01}, {"rank": 0}, {"param_filter": "("}],
)
def test_settings_outside_what_is_allowed_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        VoteSettings(**wrong)


def test_an_expression_that_matches_nothing_names_near_misses(model: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"q_prj.*There are: q_proj"):
        matching_layers(model.model, "q_prj")
