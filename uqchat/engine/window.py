"""Weights of chosen queries on their newest keys, and on the prompt, without a T x T map. Knows no model.

They are exp(q . k_j * scale - lse), with the log-sum-exp that a fused kernel returns, so a row costs O(window). Where
no kernel returns it, it is computed from the scores of the wanted rows only, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

BLOCK = 128  # query rows per block where the log-sum-exp is recomputed
Near = tuple[torch.Tensor, torch.Tensor]  # (B, R, lags): which keys, and whether the row may see them


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer's part of a step of one query per row, put aside until all layers are there."""

    query: torch.Tensor  # (B, H, 1, D)
    keys: torch.Tensor  # (B, Hkv, lags, D)
    lse: torch.Tensor  # (B, H, 1)
    allowed: torch.Tensor  # (B, 1, lags)
    scale: float

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of one kind can be stacked."""
        return self.query.shape, self.keys.shape, self.scale


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
    recorded: list[int] = field(default_factory=list)
    _weights: list[torch.Tensor] = field(default_factory=list)  # of each recorded layer, (B, H, R, lags), float32
    _on_prompt: list[torch.Tensor] = field(default_factory=list)  # of each recorded layer, (B, H, R), float32
    _steps: list[_Step] = field(default_factory=list)
    _stacked: torch.Tensor | None = None
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
        self.recorded.append(layer)
        if self.lags:
            near = self.near(wanted, key, mask, sliding)
            if wanted.shape[2] == 1:
                self._put_aside(wanted, key, lse, near, scale)
            else:
                self._weights.append(window_weights(wanted, key, lse, near, scale))
        if self.prompt_lengths is not None:
            self._on_prompt.append(weight_on_prompt(wanted, key, lse, self.prompt_lengths, scale, mask))

    def weights(self) -> torch.Tensor:
        """(recorded layers, B, H, R, lags), float32, of a whole forward."""
        if self._stacked is None:
            self._stacked = _together(self._steps) if self._steps else torch.stack(self._weights)
            self._weights, self._steps = [], []
        return self._stacked

    def on_prompt(self) -> torch.Tensor:
        """(recorded layers, B, H, R), float32, of a whole forward."""
        return torch.stack(self._on_prompt)

    def near(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, sliding: int | None) -> Near:
        """`near_keys` of a layer; found once for all layers that see the same keys."""
        kind = (key.shape[2], sliding, id(mask))
        if kind not in self._near:
            self._near[kind] = near_keys(query, key, self.lags, self.positions, mask, sliding)
        return self._near[kind]

    def _put_aside(self, query: torch.Tensor, key: torch.Tensor, lse: torch.Tensor, near: Near, scale: float) -> None:
        """A step's small products cost more than they compute: all layers are multiplied in one go at the end."""
        wanted, allowed = near
        index = wanted[:, :, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        self._steps.append(_Step(query, key.gather(2, index), lse, allowed, scale))


def _together(steps: Sequence[_Step]) -> torch.Tensor:
    """`window_weights` of all layers, (layers, B, H, 1, lags), in one product where the layers are alike."""
    if len({step.kind for step in steps}) > 1:
        return torch.cat([_together([step]) for step in steps])
    query = torch.stack([step.query for step in steps])  # (layers, B, H, 1, D)
    keys = torch.stack([step.keys for step in steps])  # (layers, B, Hkv, lags, D)
    lse = torch.stack([step.lse for step in steps]).float()[..., None]
    allowed = torch.stack([step.allowed for step in steps])[:, :, None]  # (layers, B, 1, 1, lags)
    grouped = query.reshape(*keys.shape[:3], -1, keys.shape[-1])  # (layers, B, Hkv, G, D)
    scores = (grouped.float() @ keys.float().mT * steps[0].scale).reshape(*query.shape[:4], -1)
    return (scores - lse).exp().where(allowed, 0.0)


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
