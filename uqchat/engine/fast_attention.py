"""Attention over the cache's own layout: head groups folded into query rows, keys never repeated. Knows no model.

On a CPU the fused kernel also gives the log-sum-exp, from which attention windows follow; elsewhere torch's own
attention runs, and who needs the log-sum-exp computes it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from uqchat.engine.attention import flash

Attended = tuple[Tensor, Tensor | None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Attended:
    """Attention of all heads.

    Args:
        query: (B, T, H, D). key, value: (B, Hkv, K, D).
        mask: (B or 1, 1, T, K), added to the scores; None is causal, the queries being the last keys.

    Returns:
        (B, T, H * D), and the log-sum-exp (B, H, T) in float32 where the kernel gives it.
    """
    if query.device.type != "cpu":
        return _by_torch(query, key, value, mask, scale), None
    if query.shape[1] == 1:
        return _one_query(query, key, value, mask, scale)
    return _causal(query, key, value, scale) if mask is None else _masked(query, key, value, mask, scale)


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Attended:
    batch, _, heads, size = query.shape
    folded = query.view(batch, key.shape[1], -1, size)  # (B, Hkv, G, D)
    out, lse = flash(folded, key, value, False, mask, scale)
    return out.reshape(batch, 1, heads * size), lse.reshape(batch, heads, 1)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Attended:
    """Head groups become further query rows, each with a copy of the mask."""
    batch, length, heads, size = query.shape
    groups = heads // key.shape[1]
    folded = query.view(batch, length, -1, groups, size).permute(0, 2, 3, 1, 4)  # (B, Hkv, G, T, D)
    folded = folded.reshape(batch, -1, groups * length, size)
    out, lse = flash(folded, key, value, False, mask.repeat(1, 1, groups, 1), scale)
    out = out.view(batch, -1, groups, length, size).permute(0, 3, 1, 2, 4)  # (B, T, Hkv, G, D)
    return out.reshape(batch, length, heads * size), lse.reshape(batch, heads, length)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
    """Each key head is a sequence of its own to the kernel, so that its group reads it without a copy."""
    batch, length, heads, size = query.shape
    groups = heads // key.shape[1]
    own = query.view(batch, length, -1, groups, size).permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B * Hkv, G, T, D)
    key, value = (states.flatten(0, 1)[:, None].expand(-1, groups, -1, -1) for states in (key, value))
    out, lse = flash(own, key, value, True, None, scale)
    out = out.view(batch, -1, groups, length, size).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads * size), lse.reshape(batch, heads, length)


def _by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    is_causal = mask is None and query.shape[1] > 1
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)
