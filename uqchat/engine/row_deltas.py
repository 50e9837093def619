"""What the rows of a batch add to one linear layer's output: stacked weight changes, multiplied in one go.

Knows tensors and row numbers, no adapter's name and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uqchat.errors import InputError


@dataclass(frozen=True, eq=False)
class RowGroup:
    """k weight changes, each used by m rows.

    Args:
        rows: the k * m rows, those of the first change first; a slice when they lie side by side.
        a: (k, in, r), None for changes of full rank.
        b: (k, r, out), or (k, in, out) without `a`.
    """

    rows: slice | Tensor
    a: Tensor | None
    b: Tensor

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """Add x @ a @ b of these rows to y, in place. x: (B, T, in), y: (B, T, out)."""
        picked = x[self.rows].to(self.b.dtype)  # (k * m, T, in)
        if len(picked) != len(self.b):
            picked = picked.reshape(len(self.b), -1, picked.shape[2])  # (k, m * T, in)
        hidden = picked if self.a is None else torch.bmm(picked, self.a)
        if not isinstance(self.rows, slice):
            delta = torch.bmm(hidden, self.b).view(-1, *y.shape[1:])
            y.index_add_(0, self.rows, delta.to(y.dtype))
            return
        target = y[self.rows]
        if hidden.dtype == y.dtype and len(hidden) == len(target):
            target.baddbmm_(hidden, self.b)
        else:
            target.add_(torch.bmm(hidden, self.b).view(target.shape))


class RowDeltas:
    """All that one layer's output gets; a forward hook of that layer."""

    def __init__(self, layer: str, num_rows: int, groups: Sequence[RowGroup]) -> None:
        self.layer, self.num_rows, self.groups = layer, num_rows, tuple(groups)
        rows = self.groups[0].rows
        is_everywhere = isinstance(rows, slice) and rows == slice(0, num_rows)
        self._is_uniform = is_everywhere and len(self.groups[0].b) == 1

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """The hook: changes the output in place."""
        self.add_to(args[0], output)

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """Add what x, (B, T, in), makes of the rows' changes to y, (B, T, out), in place.

        Where all rows share one change, rows and positions may have been merged: (N, in) and (N, out).

        Raises:
            InputError: x has not the rows that were planned for, or they cannot be told apart.
        """
        if x.dim() == 2 and self._is_uniform:
            self.groups[0].add_to(x[None], y[None])
            return
        if x.dim() != 3 or x.shape[0] != self.num_rows:
            raise InputError(
                f"Layer {self.layer!r} got an input of shape {tuple(x.shape)}, but adapters are set for "
                f"{self.num_rows} rows: ({self.num_rows}, positions, features) is needed."
            )
        for group in self.groups:
            group.add_to(x, y)


def group_rows(rows: Sequence[Sequence[int]], a: Sequence[Tensor] | None, b: Sequence[Tensor]) -> RowGroup:
    """Stack changes that are used by equally many rows.

    Args:
        rows: of each change, the rows of the batch that use it.
        a: (r, in) of each, None for changes of full rank.
        b: (out, r) of each, or (out, in) without `a`.
    """
    flat = [row for its_rows in rows for row in its_rows]
    index: slice | Tensor = slice(flat[0], flat[0] + len(flat))
    if flat != list(range(flat[0], flat[0] + len(flat))):
        index = torch.tensor(flat, device=b[0].device)
    if a is None:
        return RowGroup(index, None, _stack(b).mT)
    rank = max(len(each) for each in a)
    stacked_a = _stack([_pad(each, rank - len(each), 0) for each in a])
    stacked_b = _stack([_pad(each, 0, rank - each.shape[1]) for each in b])
    return RowGroup(index, stacked_a.mT, stacked_b.mT.contiguous())  # (k, in, r), (k, r, out)


def _pad(tensor: Tensor, rows: int, columns: int) -> Tensor:
    return nn.functional.pad(tensor, (0, columns, 0, rows)) if rows or columns else tensor


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """(k, ...) of k tensors; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
