"""Losses and temperature against definitions written out and against scikit-like brute force."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.query import positions
from trainers.query_loss import divergence, fit_temperature, reply_loss
from uqchat.errors import InputError


def test_only_the_two_replies_count() -> None:
    """By hand: logits 1 and 3 of no and yes; -log softmax gives log(1 + e^2) for no and log(1 + e^-2) for yes."""
    logits = torch.tensor([[50.0, 1.0, 3.0], [-9.0, 1.0, 3.0]])
    found = reply_loss(logits, (1, 2), torch.tensor([True, False]), torch.tensor([1.0, 2.0]))
    assert float(found) == pytest.approx(math.log1p(math.exp(2)) + 2 * math.log1p(math.exp(-2)), rel=1e-6)


@pytest.mark.parametrize("kind", ["jsd", "forward_kl", "reverse_kl"])
def test_divergences_are_their_definitions_over_the_masked_rows(kind: str) -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    expected = 0.0
    for row, place in mask.nonzero().tolist():
        p, q = logits[row, place].softmax(-1).tolist(), reference[row, place].softmax(-1).tolist()

        def kl(first: list[float], second: list[float]) -> float:
            return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))

        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        expected += {"jsd": (kl(p, middle) + kl(q, middle)) / 2, "forward_kl": kl(q, p), "reverse_kl": kl(p, q)}[kind]
    assert float(divergence(logits, reference, mask, kind)) == pytest.approx(expected, rel=1e-5)


def test_two_equal_models_are_not_apart_and_an_unknown_kind_is_refused() -> None:
    logits, mask = torch.randn(1, 2, 5), torch.ones(1, 2, dtype=torch.bool)
    assert float(divergence(logits, logits.clone(), mask)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="Unknown divergence 'x'. Known: jsd, forward_kl, reverse_kl"):
        divergence(logits, logits, mask, "x")


def test_the_temperature_is_the_best_of_a_fine_grid() -> None:
    torch.manual_seed(1)
    log_odds = torch.randn(400) * 3
    wrong = torch.rand(400) < torch.sigmoid(log_odds / 2.2)  # calibrated at temperature 2.2
    signs = wrong.float() * 2 - 1
    grid = [0.5 * 1.002**i for i in range(1500)]
    losses = [float(torch.nn.functional.softplus(-signs * log_odds / t).mean()) for t in grid]
    assert fit_temperature(log_odds.tolist(), wrong.tolist()) == pytest.approx(
        grid[losses.index(min(losses))], rel=3e-3
    )


def test_the_temperature_stays_in_its_range() -> None:
    assert fit_temperature([5.0, -5.0], [True, False]) == pytest.approx(0.01, rel=1e-3)  # always right: ever sharper
    assert fit_temperature([5.0, -5.0], [False, True]) == pytest.approx(100, rel=1e-3)
    assert fit_temperature([], []) == 1.0


def test_a_token_is_predicted_one_position_before_it_and_rows_keep_their_own_lengths() -> None:
    keep, spoken = positions([(3, 5), (4, 5)], 8, torch.device("cpu"))
    assert keep.tolist() == [2, 3, 7]
    assert spoken.tolist() == [[True, True, False], [False, True, False]]
