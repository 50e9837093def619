"""Blocks find what a search of the whole row finds, ties, infinities and odd sizes included."""

from __future__ import annotations

import pytest
import torch

from uqchat.engine.largest import argmax, top


@pytest.mark.parametrize("size", [7, 50, 96, 1024, 1500, 49152])
@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_blocks_give_what_torch_gives(size: int, count: int) -> None:
    torch.manual_seed(size)
    logits = torch.randn(3, size)
    logits[1] = logits[1].bfloat16().float()  # equal values
    logits[2, size // 2 :] = -torch.inf
    values, ids = top(logits, count)
    torch.testing.assert_close(values, logits.topk(min(count, size)).values, rtol=0, atol=0)
    torch.testing.assert_close(logits.gather(1, ids), values, rtol=0, atol=0)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    assert argmax(logits).tolist() == logits.argmax(dim=-1).tolist()


def test_the_first_of_equal_maxima_is_taken_as_generate_does() -> None:
    logits = torch.zeros(1, 1024)
    logits[0, [300, 301, 900]] = 2.0
    assert argmax(logits).tolist() == [300]
