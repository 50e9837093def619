"""Changes of full rank in a product of the fast forward: a decoding step multiplies all of them in one go.

A row at a time the CPU reads a change at a fraction of the memory's speed. One packed product of every row with every
change computes k times too much, of which each row keeps its own part, and is still the faster for the few rows of a
step. Positions of a prompt are many, so there each change meets its own rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

Piece = tuple[int, int]  # first and last + 1 of the columns that one layer gives
PACKED_ROWS = 8  # rows that the packed order is chosen for


@dataclass(eq=False)
class DenseRows:
    """k changes of the same layers.

    Args:
        rows: of each change, the rows of the batch that use it.
        pieces: the columns of the product's output that are changed, layer after layer.
        weights: of each change, its layers' weights in that order, (out, in).
    """

    rows: Sequence[Sequence[int]]
    pieces: Sequence[Piece]
    weights: Sequence[Sequence[Tensor]]
    _packed: Tensor | None = field(init=False, default=None)

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """x: (B, T, in); y: (B, T, out) of the whole product, changed in place."""
        if x.shape[1] == 1 and all(len(rows) == 1 for rows in self.rows):
            self._add_step(x, y)
            return
        for rows, weights in zip(self.rows, self.weights, strict=True):
            picked = x[list(rows)]
            for (start, stop), weight in zip(self.pieces, weights, strict=True):
                y[list(rows), :, start:stop] += F.linear(picked, weight)

    def _add_step(self, x: Tensor, y: Tensor) -> None:
        if self._packed is None:
            stacked = torch.cat([weight for weights in self.weights for weight in weights])
            self._packed = torch.ops.mkldnn._reorder_linear_weight(stacked, PACKED_ROWS)
        count, first = len(self.rows), self.rows[0][0]
        flat = [row for (row,) in self.rows]
        index: slice | list[int] = slice(first, first + count) if flat == list(range(first, first + count)) else flat
        every = torch.ops.mkldnn._linear_pointwise(x[index, 0], self._packed, None, "none", [], "")
        own = every.view(count, count, -1).diagonal(dim1=0, dim2=1).T  # (k, all pieces)
        at = 0
        for start, stop in self.pieces:
            y[index, 0, start:stop] += own[:, at : at + stop - start]
            at += stop - start
