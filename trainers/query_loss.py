"""What the query is trained by: the reply to it, and staying close to the base where it speaks. Knows no data.

Source: Kapoor et al. 2024 (arXiv 2406.08391), section 4.2; divergences as in its public code, with rows masked by their
own lengths (there, all rows of a batch got the longest row's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from uqchat.errors import InputError

Divergence = Literal["jsd", "forward_kl", "reverse_kl"]


def reply_loss(logits: Tensor, label_ids: tuple[int, int], is_error: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the cross entropies of "no" and "yes", of which one is right.

    Args:
        logits: (B, V) of the position that gives the reply; only the two labels count.
        label_ids: of no and yes. is_error: (B,), 1 wants no. weights: (B,).
    """
    two = logits[:, list(label_ids)]  # (B, 2)
    return (cross_entropy(two, 1 - is_error.long(), reduction="none") * weights).sum()


def divergence(logits: Tensor, reference: Tensor, mask: Tensor, kind: Divergence = "jsd") -> Tensor:
    """Summed over the positions of the mask: how far the changed model p is from the base q, over the vocabulary.

    jsd = KL(p | m) / 2 + KL(q | m) / 2 with m = (p + q) / 2; forward_kl = KL(q | p); reverse_kl = KL(p | q). Nats.

    Args:
        logits, reference: (B, K, V), of p and q. mask: (B, K).

    Raises:
        InputError: an unknown kind.
    """
    p, q = log_softmax(logits[mask], dim=-1), log_softmax(reference[mask], dim=-1)  # (N, V)
    if kind == "jsd":
        middle = torch.logaddexp(p, q) - math.log(2)
        return (_kl(p, middle) + _kl(q, middle)) / 2
    if kind == "forward_kl":
        return _kl(q, p)
    if kind == "reverse_kl":
        return _kl(p, q)
    raise InputError(f"Unknown divergence {kind!r}. Known: {', '.join(get_args(Divergence))}.")


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum over rows of KL(p | q), both as log-probabilities."""
    return kl_div(q, p, reduction="sum", log_target=True)


def fit_temperature(log_odds: Sequence[float], is_error: Sequence[float | bool]) -> float:
    """The temperature with the least cross entropy, by golden-section search on stored log odds; in [1/100, 100].

    The cross entropy is convex in 1 / temperature, so there is one minimum.
    """
    x = torch.tensor(list(log_odds), dtype=torch.float64)
    sign = torch.tensor([1.0 if wrong else -1.0 for wrong in is_error], dtype=torch.float64)
    if not len(x):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.softplus(-sign * x / math.exp(log_temperature)).mean())

    low, high, ratio = math.log(0.01), math.log(100.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
