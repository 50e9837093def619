"""The largest of a wide row, found a block at a time: several times as fast on a CPU as a search of the whole row."""

from __future__ import annotations

import math

from torch import Tensor

BLOCK = 256  # at most so many logits; the largest power of two up to it that divides the vocabulary is taken
Top = tuple[Tensor, Tensor]  # values and ids


def argmax(logits: Tensor) -> Tensor:
    """(B, V) -> (B,), the first of equal ones as `torch.argmax` gives it."""
    width = math.gcd(logits.shape[-1], BLOCK)
    blocks = logits.unflatten(-1, (-1, width))  # (B, V / width, width)
    best = blocks.amax(dim=-1).argmax(dim=-1)  # the first block that holds the maximum
    inside = blocks.gather(1, best[:, None, None].expand(-1, 1, width))[:, 0]
    return best * width + inside.argmax(dim=-1)


def top(logits: Tensor, count: int) -> Top:
    """(B, V) -> the `count` largest of each row, descending, and their ids, both (B, count).

    They lie in the `count` blocks with the largest maxima.
    """
    size = logits.shape[-1]
    width, count = math.gcd(size, BLOCK), min(count, size)
    if count * width >= size // 2 or width * width < count:
        return tuple(logits.topk(count, dim=-1))
    blocks = logits.unflatten(-1, (-1, width))
    best = blocks.amax(dim=-1).topk(count, dim=-1).indices  # (B, count)
    candidates = blocks.gather(1, best[:, :, None].expand(-1, -1, width)).flatten(1)
    values, at = candidates.topk(count, dim=-1)
    return values, best.gather(1, at // width) * width + at % width
