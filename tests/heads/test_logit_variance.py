"""Sampled logits against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from uqchat.heads.logit_variance import LogitVariance, draw, expected_entropy, log_likelihood, shortlist


def test_without_variance_every_draw_is_the_plain_softmax() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    best = shortlist(logits, 39)
    drawn = draw(best.logits, torch.full((5, 39), -60.0), torch.randn(7, 5, 39))
    plain = logits.log_softmax(-1)
    targets = torch.tensor([0, 7, 39, 3, 12])
    expected = plain[torch.arange(5), targets]
    torch.testing.assert_close(log_likelihood(drawn, best.place_of(targets)), expected, atol=1e-5, rtol=1e-5)
    entropy = -(plain.exp() * plain).sum(-1)
    torch.testing.assert_close(expected_entropy(drawn), entropy, atol=1e-5, rtol=1e-5)


def test_the_likelihood_is_the_mean_probability_over_the_draws() -> None:
    """Two tokens with logits 1 and 0, sigma 2 on the first, noise +1 and -1: its logit is 3 or -1.

    p = (1 / (1 + e^-3) + 1 / (1 + e^1)) / 2.
    """
    logits, log_variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(4.0)]])
    drawn = draw(logits, log_variance, torch.tensor([[[1.0]], [[-1.0]]]))
    high, low = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(1))
    assert log_likelihood(drawn, torch.tensor([0])).item() == pytest.approx(math.log((high + low) / 2), rel=1e-5)
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (high, low)]
    assert expected_entropy(drawn).item() == pytest.approx(sum(entropies) / 2, rel=1e-5)


def test_tokens_below_the_shortlist_are_one_class_that_keeps_their_mass() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 1.0]])
    best = shortlist(logits, 2)
    assert best.ids.tolist() == [[0, 3]]
    others = logits.softmax(-1)[0, [1, 2]].sum()
    torch.testing.assert_close(best.logits.softmax(-1)[0, 2], others)
    assert best.place_of(torch.tensor([3])).tolist() == [1] and best.place_of(torch.tensor([2])).tolist() == [2]
    assert shortlist(logits, 300).ids.shape == (1, 3)


def test_an_untrained_head_gives_all_tokens_of_a_position_one_variance() -> None:
    torch.manual_seed(0)
    head = LogitVariance(8, 2, width=4, rank=3)
    found = head(torch.randn(5, 2, 8), torch.randn(5, 6, 8))
    assert found.shape == (5, 6)
    torch.testing.assert_close(found, found[:, :1].expand(-1, 6))


def test_what_the_head_says_of_a_token_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    head = LogitVariance(8, 2, width=4, rank=3)
    torch.nn.init.normal_(head.state.weight)
    states, embeddings = torch.randn(5, 2, 8), torch.randn(5, 6, 8)
    whole = head(states, embeddings)
    assert whole.std() > 0.01
    torch.testing.assert_close(head(states, embeddings[:, 2:3]), whole[:, 2:3])
