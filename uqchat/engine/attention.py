"""Scaled dot-product attention that also gives the weights on the last few keys, and on the prompt. Knows no estimator.

The output comes from torch's fused kernel. The weights of the window are exp(q . k_j * scale - lse), with the
log-sum-exp that the kernel returns, so a row costs O(window) and no T x T map exists. Where no kernel returns it,
the log-sum-exp is computed from the scores of the wanted rows only, a block of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "uqchat_window"
BLOCK = 128  # query rows per block where the log-sum-exp is recomputed


Near = tuple[torch.Tensor, torch.Tensor]  # (B, R, lags): which keys, and whether the row may see them


@dataclass
class AttentionWindow:
    """What one forward should record, and what it has recorded.

    Args:
        lags: weights on keys p, p-1, ..., p-lags+1 of a query at position p; lag 0 is the token itself.
        rows: how many of the last query rows of each sequence are wanted.
        positions: (B, R) which key each of those rows is; None: they are the last keys.
        layers: which layers to record; None is all.
        prompt_lengths: (B,) how many first keys are the prompt, where the weights on it are to be summed.
    """

    lags: int
    rows: int
    positions: torch.Tensor | None
    layers: frozenset[int] | None = None
    prompt_lengths: torch.Tensor | None = None
    weights: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (B, H, R, lags), float32
    on_prompt: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (B, H, R), float32
    _near: dict[tuple[int, int | None, int], Near] = field(default_factory=dict)

    def is_wanted(self, layer: int) -> bool:
        """Whether this layer is to be recorded."""
        return self.layers is None or layer in self.layers

    def record(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        lse: torch.Tensor | None,
        mask: torch.Tensor | None,
        scale: float,
        sliding: int | None = None,
    ) -> None:
        """Take what is wanted of one layer's attention.

        Args:
            query: (B, H, Q, D). key: (B, Hkv, K, D). lse: (B, H, Q), None where no kernel gave it.
            mask: (B or 1, 1, Q, K), bool or additive; None is causal.
        """
        if not self.is_wanted(layer):
            return
        wanted = query[:, :, -self.rows :]
        lse = log_sum_exp(wanted, key, mask, scale) if lse is None else lse[:, :, -self.rows :]
        if self.lags:
            near = self.near(wanted, key, mask, sliding)
            self.weights[layer] = window_weights(wanted, key, lse, near, scale)
        if self.prompt_lengths is not None:
            self.on_prompt[layer] = weight_on_prompt(wanted, key, lse, self.prompt_lengths, scale, mask)

    def near(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, sliding: int | None) -> Near:
        """`near_keys` of a layer; found once for all layers that see the same keys."""
        kind = (key.shape[2], sliding, id(mask))
        if kind not in self._near:
            self._near[kind] = near_keys(query, key, self.lags, self.positions, mask, sliding)
        return self._near[kind]


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


def log_sum_exp(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Log of the softmax's denominator of the last R query rows, (B, H, R), float32, a block of rows at a time."""
    batch, heads, rows, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, rows, size).float()
    keys = key.float().transpose(-1, -2).unsqueeze(2)
    first = key.shape[2] - rows  # without a mask the rows are the last positions
    parts = []
    for start in range(0, rows, BLOCK):
        scores = grouped[..., start : start + BLOCK, :] @ keys * scale  # (B, Hkv, G, block, K)
        if mask is None:
            last = torch.arange(first + start, first + start + scores.shape[-2], device=query.device)
            allowed = torch.arange(key.shape[2], device=query.device) <= last[:, None]
        else:
            allowed = mask[:, :, -rows:][:, :, start : start + BLOCK].unsqueeze(2)
        if allowed.dtype == torch.bool:
            scores = scores.masked_fill(~allowed, -torch.inf)
        else:
            scores = scores + allowed
        parts.append(scores.logsumexp(dim=-1))
    return torch.cat(parts, dim=-1).reshape(batch, heads, rows)


def near_keys(
    query: torch.Tensor,
    key: torch.Tensor,
    lags: int,
    positions: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    sliding_window: int | None = None,
) -> Near:
    """The `lags` newest keys of each row, and which of them exist and may be seen.

    Args:
        query: (B, H, R, D). key: (B, Hkv, K, D).
        positions: (B, R) which key each row is; None: the rows are the last keys.
        mask: (B or 1, 1, Q, K), bool or additive, of which the last R rows count.
    """
    batch, _, rows, _ = query.shape
    if positions is None:
        positions = torch.arange(key.shape[2] - rows, key.shape[2], device=key.device).expand(batch, rows)
    wanted = positions[..., None] - torch.arange(lags, device=key.device)  # (B, R, lags)
    allowed = wanted >= 0
    wanted = wanted.clamp(min=0)
    if sliding_window:
        allowed = allowed & (torch.arange(lags, device=key.device) < sliding_window)
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = seen[:, 0, -rows:].expand(batch, -1, -1)
        allowed = allowed & seen.gather(2, wanted)
    return wanted, allowed


def window_weights(query: torch.Tensor, key: torch.Tensor, lse: torch.Tensor, near: Near, scale: float) -> torch.Tensor:
    """Attention weights on the near keys of each row; 0 where there is no key or the row may not see it.

    Args:
        query: (B, H, R, D). key: (B, Hkv, K, D). lse: (B, H, R). near: as `near_keys` gives them.

    Returns:
        (B, H, R, lags) float32.
    """
    batch, heads, rows, size = query.shape
    wanted, allowed = near
    index = wanted[:, None, :, :, None].expand(-1, key.shape[1], -1, -1, size)
    keys = key[:, :, None].expand(-1, -1, rows, -1, -1).gather(3, index)  # (B, Hkv, R, lags, D)
    grouped = query.reshape(batch, key.shape[1], -1, rows, size).transpose(2, 3)  # (B, Hkv, R, G, D)
    scores = grouped.float() @ keys.float().mT * scale
    scores = scores.transpose(2, 3).reshape(batch, heads, rows, -1)
    return (scores - lse.float()[..., None]).exp().where(allowed[:, None], 0.0)


def weight_on_prompt(
    query: torch.Tensor,
    key: torch.Tensor,
    lse: torch.Tensor,
    prompt_lengths: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention weights on the first `prompt_lengths` keys of each sequence, summed, a block of rows at a time.

    Args:
        query: (B, H, R, D), the last rows. key: (B, Hkv, K, D). lse: (B, H, R). prompt_lengths: (B,).
        mask: (B or 1, 1, Q, K), bool or additive, of which the last R rows count; None is causal.

    Returns:
        (B, H, R) float32, in [0, 1].
    """
    batch, heads, rows, size = query.shape
    longest = min(int(prompt_lengths.max()), key.shape[2])
    grouped = query.reshape(batch, key.shape[1], -1, rows, size).float()
    keys = key[:, :, :longest].float().transpose(-1, -2).unsqueeze(2)
    index = torch.arange(longest, device=key.device)
    is_prompt = index < prompt_lengths[:, None].to(key.device)  # (B, longest)
    sums = []
    for start in range(0, rows, BLOCK):
        scores = (grouped[..., start : start + BLOCK, :] @ keys * scale).reshape(batch, heads, -1, longest)
        weights = (scores - lse[:, :, start : start + BLOCK, None].float()).exp()
        if mask is None:
            last = torch.arange(start, start + weights.shape[2], device=key.device) + key.shape[2] - rows
            allowed = (index <= last[:, None])[None]
        else:
            seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            allowed = seen[:, 0, -rows:][:, start : start + BLOCK, :longest]
        sums.append(weights.where((allowed & is_prompt[:, None])[:, None], 0.0).sum(dim=-1))
    return torch.cat(sums, dim=-1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
