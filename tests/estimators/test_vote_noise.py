"""Noise has the size that was asked for, and alpha says how much of it the voters share."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.random_adapters import change_of
from tests.tiny import tiny_model
from uqchat.errors import InputError
from uqchat.estimators.vote_noise import noise_voters, weight_deviation
from uqchat.estimators.vote_settings import VoteSettings, matching_layers
from uqchat.int8 import quantize_linear_layers

LAYER = "layer"


class Wide(torch.nn.Module):
    """One linear layer that is large enough for its noise to have the deviation it should."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(300, 200)


def changes(**settings: object) -> list[torch.Tensor]:
    made = VoteSettings(**{"param_filter": "layer", "n_voters": 2, **settings})
    return [change_of(voter[LAYER]) for voter in noise_voters(Wide(), made)]


@pytest.mark.parametrize("noise", ["low_rank", "dense"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.25, 0.0])
def test_noise_has_the_wanted_deviation_and_the_wanted_share_in_common(noise: str, alpha: float) -> None:
    """Own and shared parts have unit variance, so the size is noise std(W) and two voters correlate by 1 - alpha."""
    base = Wide().layer.weight.detach().std(correction=0)
    first, second = changes(noise=noise, alpha=alpha, weight_noise=0.4, rank=64)
    for change in (first, second):
        assert change.std() / base == pytest.approx(0.4, rel=0.03)
    both = torch.stack([first.flatten(), second.flatten()])
    assert torch.corrcoef(both)[0, 1] == pytest.approx(1 - alpha, abs=0.03)


def test_noise_is_seeded_and_a_layers_noise_does_not_depend_on_the_others() -> None:
    model = tiny_model().model
    both = noise_voters(model, VoteSettings())
    again = noise_voters(model, VoteSettings(param_filter="q_proj"))
    other = noise_voters(model, VoteSettings(seed=1))
    name = next(name for name in both[0] if name.endswith("q_proj"))
    torch.testing.assert_close(both[0][name].a, again[0][name].a, rtol=0, atol=0)
    assert not torch.equal(both[0][name].a, other[0][name].a)
    assert not torch.equal(both[0][name].a, both[1][name].a)


def test_without_noise_no_voter_changes_anything() -> None:
    assert noise_voters(tiny_model().model, VoteSettings(weight_noise=0)) == ({}, {}, {})


def test_a_quantised_layers_deviation_is_that_of_the_weights_it_stands_for() -> None:
    model = Wide()
    plain = weight_deviation(model.layer)
    quantised = copy.deepcopy(model)
    quantize_linear_layers(quantised)
    assert weight_deviation(quantised.layer) == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize(("top", "blocks"), [(1.0, {0, 1}), (0.5, {1}), (1 / 3, {1}), (0.51, {0, 1})])
def test_voters_differ_in_the_upper_share_of_the_blocks(top: float, blocks: set[int]) -> None:
    layers = matching_layers(tiny_model().model, "q_proj", top)
    assert {int(layer.split(".")[2]) for layer in layers} == blocks
    assert matching_layers(tiny_model().model, "lm_head", top) == ("lm_head",)


def test_layers_below_that_share_are_told_apart_from_no_layers() -> None:
    with pytest.raises(InputError, match=r"matches only in blocks below 1 of 2.*Set top=1"):
        matching_layers(tiny_model().model, r"layers\.0\.", 0.5)


@pytest.mark.parametrize("top", [0, -0.5, 1.5, float("nan"), "half"])
def test_a_share_outside_its_range_is_refused(top: object) -> None:
    with pytest.raises(InputError, match="top of an ensemble must be above 0 to 1"):
        VoteSettings(top=top)
