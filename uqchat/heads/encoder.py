"""The transformer encoder inside heads: as a whole for training, and row by row with kept keys and values.

Knows nothing of features and heads. Both ways read the weights of the same `nn.TransformerEncoder`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from uqchat.errors import InputError

GROW = 64  # places added at least when the kept keys are full


def make_encoder(
    size: int, num_heads: int, num_layers: int, dropout: float, num_inner: int = 2048
) -> nn.TransformerEncoder:
    """Post-norm layers with GELU, PyTorch's defaults otherwise; published heads have 2,048 inner units.

    Raises:
        InputError: the heads do not divide the size.
    """
    if size % num_heads:
        raise InputError(f"A head of size {size} cannot be split among {num_heads} attention heads.")
    layer = nn.TransformerEncoderLayer(size, num_heads, num_inner, dropout, "gelu", batch_first=True)
    return nn.TransformerEncoder(layer, num_layers=num_layers, enable_nested_tensor=False)


def run_encoder(
    encoder: nn.TransformerEncoder, rows: torch.Tensor, is_real: torch.Tensor | None, is_causal: bool
) -> torch.Tensor:
    """All rows (B, T, d) at once; `is_real` (B, T) is False for padding, which no row looks at."""
    length = rows.shape[1]
    future = torch.ones(length, length, dtype=torch.bool, device=rows.device).triu(1) if is_causal else None
    hidden = None if is_real is None else ~is_real.bool()
    return encoder(rows, mask=future, src_key_padding_mask=hidden)


class KeptLayer:
    """Keys and values of the rows that one layer has seen, (heads, T, size)."""

    def __init__(self) -> None:
        self.length = 0
        self._keys = self._values = torch.empty(0)

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add rows; gives all keys and values."""
        needed = self.length + keys.shape[1]
        if self._keys.dim() != 3 or needed > self._keys.shape[1]:
            self._keys, self._values = (
                self._grown(old, new, needed) for old, new in ((self._keys, keys), (self._values, values))
            )
        self._keys[:, self.length : needed] = keys
        self._values[:, self.length : needed] = values
        self.length = needed
        return self._keys[:, :needed], self._values[:, :needed]

    def _grown(self, old: torch.Tensor, new: torch.Tensor, needed: int) -> torch.Tensor:
        larger = new.new_empty(new.shape[0], max(needed + GROW, 2 * self.length), new.shape[2])
        if self.length:
            larger[:, : self.length] = old[:, : self.length]
        return larger


class RowEncoder:
    """Runs an encoder, in eval mode, over rows that come a few at a time, and keeps what later rows look at.

    With `is_causal` every result equals that of the whole causal pass, at the cost of the new rows alone. Without, the
    rows given in one call see each other and all earlier ones, but earlier results are not revised: give all rows to a
    fresh one for that.
    """

    def __init__(self, encoder: nn.TransformerEncoder, is_causal: bool) -> None:
        self.encoder, self.is_causal = encoder, is_causal
        self.kept = [KeptLayer() for _ in encoder.layers]

    @property
    def length(self) -> int:
        """Rows seen so far."""
        return self.kept[0].length

    def push(self, rows: torch.Tensor) -> torch.Tensor:
        """New rows (n, d) to their results (n, d)."""
        mask = self._mask(len(rows), rows.device) if self.is_causal and len(rows) > 1 else None
        for layer, kept in zip(self.encoder.layers, self.kept, strict=True):
            rows = layer.norm1(rows + self._attend(layer.self_attn, rows, kept, mask))
            rows = layer.norm2(rows + layer.linear2(functional.gelu(layer.linear1(rows))))
        return rows

    def _mask(self, count: int, device: torch.device) -> torch.Tensor:
        """(count, T): which rows each new one may look at."""
        last = torch.arange(self.length, self.length + count, device=device)
        return torch.arange(self.length + count, device=device) <= last[:, None]

    def _attend(
        self, attention: nn.MultiheadAttention, rows: torch.Tensor, kept: KeptLayer, mask: torch.Tensor | None
    ) -> torch.Tensor:
        joined = functional.linear(rows, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for part in joined.chunk(3, dim=-1)
        )  # (heads, n, size)
        keys, values = kept.extend(key, value)
        out = functional.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask)[0]
        return attention.out_proj(out.transpose(0, 1).flatten(1))
