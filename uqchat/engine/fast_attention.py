"""Attention over the cache's own layout: head groups folded into query rows, keys never repeated. Knows no model.

On a CPU the fused kernel also gives the log-sum-exp, from which attention windows follow; elsewhere torch's own
attention runs, and who needs the log-sum-exp computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uqchat.engine.attention import flash

FEW = 64  # queries for which two plain half-precision products beat the fused kernel; measured over 500 to 1,500 keys
Attended = tuple[Tensor, Tensor | None]


def fold_mask(mask: Tensor, groups: int) -> Tensor:
    """(B, 1, T, K) once for each query head of a group: (B, 1, groups * T, K), whose last T rows are the mask."""
    return mask if mask.shape[2] == 1 else mask.repeat(1, 1, groups, 1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, needs_lse: bool = True
) -> Attended:
    """Attention of all heads.

    Args:
        query: (B, T, H, D). key, value: (B, Hkv, K, D).
        mask: added to the scores, as `fold_mask` gives it; None is causal, the queries being the last keys.
        needs_lse: the log-sum-exp will be used, of more than a row or two.

    Returns:
        (B, T, H * D), and the log-sum-exp (B, H, T) in float32 where the kernel gives it.
    """
    length = query.shape[1]
    if query.device.type != "cpu":
        return _by_torch(query, key, value, mask, scale), None
    if length == 1:
        return _one_query(query, key, value, mask, scale)
    if mask is None:
        return _causal(query, key, value, scale)
    is_plain = length <= FEW and not needs_lse and query.dtype == torch.bfloat16
    folded = _folded(query, key.shape[1])
    if is_plain:
        out, lse = _by_products(folded, key, value, mask, scale), None
    else:
        out, lse = flash(folded, key, value, False, mask, scale)
        lse = lse.reshape(len(query), -1, length)
    out = out.view(len(query), key.shape[1], -1, length, query.shape[3]).permute(0, 3, 1, 2, 4)  # (B, T, Hkv, G, D)
    return out.reshape(len(query), length, -1), lse


def _folded(query: Tensor, kv_heads: int) -> Tensor:
    """(B, T, H, D) to (B, Hkv, G * T, D): a group's heads are further rows of queries to its keys."""
    batch, length, _, size = query.shape
    return query.view(batch, length, kv_heads, -1, size).permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, size)


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """query: (B, Hkv, R, D), mask: (B or 1, 1, R, K) -> (B, Hkv, R, D)."""
    shape = (*query.shape[:3], key.shape[2])
    allowed = mask.expand(shape).flatten(0, 1) if len(mask) > 1 else mask[0].expand(shape[1:])
    scores = torch.baddbmm(allowed, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), value.flatten(0, 1)).view(query.shape)


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Attended:
    batch, _, heads, size = query.shape
    folded = query.view(batch, key.shape[1], -1, size)  # (B, Hkv, G, D)
    out, lse = flash(folded, key, value, False, mask, scale)
    return out.reshape(batch, 1, heads * size), lse.reshape(batch, heads, 1)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
    """Each key head is a sequence of its own to the kernel, so that its group reads it without a copy."""
    batch, length, heads, size = query.shape
    groups = heads // key.shape[1]
    own = _folded(query, key.shape[1]).reshape(-1, groups, length, size)  # (B * Hkv, G, T, D)
    key, value = (states.flatten(0, 1)[:, None].expand(-1, groups, -1, -1) for states in (key, value))
    out, lse = flash(own, key, value, True, None, scale)
    out = out.view(batch, -1, groups, length, size).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads * size), lse.reshape(batch, heads, length)


def _by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    is_causal = mask is None and query.shape[1] > 1
    mask = mask if mask is None else mask[:, :, -query.shape[1] :]
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)
