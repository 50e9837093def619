"""Sampling against transformers' own logits processors and against counting."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from uqchat.config import GenerationConfig
from uqchat.engine.sampling import filter_logits, penalise_repetition, sample
from uqchat.errors import InputError


def draw(logits: torch.Tensor, config: GenerationConfig, seed: int = 0) -> int:
    generator = torch.Generator().manual_seed(seed)
    return sample(logits[None], [config], [generator], [None]).item()


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(5, 1, 0), (0, 0.7, 0), (0, 1, 0.2), (20, 0.8, 0.05), (1, 1, 0)])
def test_filters_keep_what_transformers_keeps(top_k: int, top_p: float, min_p: float) -> None:
    torch.manual_seed(1)
    for _ in range(20):
        logits = torch.randn(200) * 3
        expected = TemperatureLogitsWarper(0.8)(None, logits[None])
        for is_on, warper in (
            (top_k, lambda: TopKLogitsWarper(top_k)),
            (top_p < 1, lambda: TopPLogitsWarper(top_p)),
            (min_p, lambda: MinPLogitsWarper(min_p)),
        ):
            expected = warper()(None, expected) if is_on else expected
        torch.testing.assert_close(filter_logits(logits / 0.8, top_k, top_p, min_p), expected[0])


def test_repetition_penalty_equals_transformers() -> None:
    torch.manual_seed(2)
    logits, history = torch.randn(50), torch.tensor([3, 3, 9, 41])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(history[None], logits[None].clone())[0]
    torch.testing.assert_close(penalise_repetition(logits, history, 1.3), expected)


def test_repetition_penalty_can_change_a_greedy_choice() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0]])
    config = GenerationConfig(repetition_penalty=1.5)
    assert sample(logits, [config], [None], [torch.tensor([0])]).item() == 1


def test_temperature_zero_is_argmax_for_every_row() -> None:
    logits = torch.randn(4, 30)
    chosen = sample(logits, [GenerationConfig()] * 4, [None] * 4, [None] * 4)
    assert chosen.tolist() == logits.argmax(-1).tolist()


def test_same_seed_gives_same_token_and_other_rows_do_not_matter() -> None:
    logits = torch.randn(3, 100)
    config = GenerationConfig(temperature=1.0)
    together = sample(logits, [config] * 3, [torch.Generator().manual_seed(s) for s in (7, 8, 9)], [None] * 3)
    assert together.tolist() == [draw(logits[i], config, seed) for i, seed in enumerate((7, 8, 9))]


def test_frequencies_follow_the_softmax() -> None:
    """10,000 draws of probabilities .7, .2, .1: each share within 4 standard errors."""
    probs = torch.tensor([0.7, 0.2, 0.1])
    generator = torch.Generator().manual_seed(0)
    config = GenerationConfig(temperature=1.0)
    logits = probs.log()[None]
    counts = torch.zeros(3)
    for _ in range(10_000):
        counts[sample(logits, [config], [generator], [None])] += 1
    error = 4 * (probs * (1 - probs) / 10_000).sqrt()
    assert ((counts / 10_000 - probs).abs() < error).all()


def test_a_greedy_row_beside_a_warm_one_stays_greedy() -> None:
    logits = torch.randn(2, 100)
    settings = [GenerationConfig(), GenerationConfig(temperature=5.0)]
    chosen = sample(logits, settings, [None, torch.Generator().manual_seed(1)], [None, None])
    assert chosen[0] == logits[0].argmax()


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(logits, [GenerationConfig(temperature=1.0)], [generator], [None]).item() for _ in range(200)}
    assert drawn == {1, 3}


def test_sampling_leaves_the_logits_as_they_were() -> None:
    logits = torch.randn(1, 40)
    before = logits.clone()
    config = GenerationConfig(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2)
    sample(logits, [config], [torch.Generator().manual_seed(0)], [torch.tensor([1, 2])])
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"max_new_tokens": -1},
        {"seed": -1},
        {"stop_strings": ("",)},
        {"temperature": float("nan")},
    ],
)
def test_a_setting_out_of_range_is_named_with_what_is_allowed(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        GenerationConfig(**wrong)
