"""What a frozen lower half of the model gives for each input, computed once and kept in memory. Knows no label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainers.lora import can_start_at, pad_left, states_at


class Inputs:
    """Ids of each input, or the states that enter the first changed block, where that is allowed and pays.

    Args:
        first: the first block that is changed; before it nothing depends on what is trained.
        max_bytes: that the states may take, in half precision; more, and ids are read anew every time.
    """

    def __init__(self, base: PreTrainedModel, rows: Sequence[Sequence[int]], first: int, max_bytes: float) -> None:
        self.device = base.device
        self._ids = [torch.tensor(row) for row in rows]
        size = sum(map(len, rows)) * base.config.get_text_config().hidden_size * 2
        self.starts_at = first if size <= max_bytes and can_start_at(base, first) else 0
        self._first, self._base = first, base
        self._states: dict[int, Tensor] = {}

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Padded ids or states, and the mask, on the model's device."""
        padded, mask = pad_left([self._row(i) for i in indices])
        return padded.to(self.device), mask.to(self.device)

    def _row(self, index: int) -> Tensor:
        """Ids, or states; these are computed when first asked for, alone, so that no neighbour's padding tints them."""
        if not self.starts_at:
            return self._ids[index]
        if index not in self._states:
            ids = self._ids[index][None].to(self.device)
            found = states_at(self._base, self._first, ids, torch.ones_like(ids, dtype=torch.bool))[0].cpu()
            self._states[index] = found.to(_half(self._base.dtype)).clone()
        return self._states[index]

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Ids of each."""
        return [len(self._ids[i]) for i in indices]


def _half(dtype: torch.dtype) -> torch.dtype:
    return torch.float16 if dtype == torch.float32 else dtype


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places 0 to N-1 in parts of at most `size`, sorted by length, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]
