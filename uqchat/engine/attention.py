"""Attention for the model's own code: torch's fused kernel, whose log-sum-exp goes to the window that records it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from uqchat.engine.window import AttentionWindow

NAME = "uqchat_window"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_window: AttentionWindow | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function in transformers' form; records into `attention_window` when that is given.

    Args:
        query: (B, H, Q, D). key, value: (B, Hkv, K, D). attention_mask: None (causal) or (B or 1, 1, Q, K).
    """
    window = attention_window
    is_recorded = window is not None and window.is_wanted(module.layer_idx)
    is_folded = attention_mask is not None and query.shape[2] > 1  # transformers would repeat the keys
    if not (is_recorded or is_folded):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, lse = _fused(query, key, value, attention_mask, scale)
    if lse is None:
        out = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)[0]
    else:
        out = out.transpose(1, 2).contiguous()
    if window is not None and is_recorded:
        window.record(module.layer_idx, query, key, lse, attention_mask, scale, kwargs.get("sliding_window"))
    return out, None


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Output (B, H, Q, D) and log-sum-exp (B, H, Q) from the CPU's flash kernel; (None, None) where there is none."""
    if query.device.type != "cpu" or query.shape[-1] != value.shape[-1]:
        return None, None
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    if length == 1 or mask is not None:  # fold the group into query rows: the keys are read once, not repeated
        folded = query.reshape(batch, key.shape[1], groups * length, size)
        mask = mask if mask is None else mask.repeat(1, 1, groups, 1)
        out, lse = flash(folded, key, value, False, mask, scale)
    else:
        repeated = (states.repeat_interleave(groups, dim=1) for states in (key, value)) if groups > 1 else (key, value)
        out, lse = flash(query, *repeated, True, None, scale)
    return out.reshape(batch, heads, length, size), lse.reshape(batch, heads, length)


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU's fused kernel: output (B, H, Q, D) and log-sum-exp (B, H, Q), natural logarithm, float32."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
