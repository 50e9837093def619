"""Adapters for products that stand for several linear layers: what a row adds to all of them is one change.

Knows which columns of a product belong to which layer, not what the layers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from uqchat.engine.adapters import AdapterSet, Dense, LowRank, row_deltas_of
from uqchat.engine.dense_rows import DenseRows
from uqchat.engine.row_deltas import RowDeltas

Changes = dict[str, dict[str, LowRank | Dense]]  # by adapter and layer


@dataclass(frozen=True, slots=True)
class Part:
    """Which columns of a product's output belong to one linear layer, by the layer's name in the model."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FusedDeltas:
    """What the rows add to one product: `deltas` to `columns`, the first changed layer's to the last's, and `dense`."""

    columns: slice
    deltas: RowDeltas | None
    dense: DenseRows | None

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """x: (B, T, in); y: (B, T, out) of the whole product, changed in place."""
        if self.deltas is not None:
            self.deltas.add_to(x, y[:, :, self.columns])
        if self.dense is not None:
            self.dense.add_to(x, y)


class FusedPlans:
    """From adapters of rows to what those change in products.

    Args:
        products: the parts of every product of the forward.
        is_packed: whether the CPU's packed products may be used.
    """

    def __init__(self, products: Sequence[tuple[Part, ...]], is_packed: bool = False) -> None:
        self.products, self.is_packed = products, is_packed

    def of(self, adapters: AdapterSet, names: Sequence[str | None], layers: AbstractSet[str]) -> dict[str, FusedDeltas]:
        """By the name of a product's first layer; row i of the batch uses the adapter names[i], in `layers` only.

        Raises:
            InputError: an unknown name.
        """
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                rows.setdefault(name, []).append(row)
        changes = {name: adapters.deltas_of(name) for name in rows}
        plan = {}
        for parts in self.products:
            own = [part for part in parts if part.name in layers]
            touched = [part for part in own if any(part.name in deltas for deltas in changes.values())]
            if touched:
                plan[parts[0].name] = self._of_product(touched, changes, rows, len(names))
        return plan

    def _of_product(
        self, touched: Sequence[Part], changes: Changes, rows: dict[str, list[int]], num_rows: int
    ) -> FusedDeltas:
        columns = slice(touched[0].start, touched[-1].stop)
        dense = _dense_rows(touched, changes, rows) if self.is_packed else None
        others = {name: deltas for name, deltas in changes.items() if dense is None or rows[name] not in dense.rows}
        users = [(merge(touched, deltas, columns), rows[name]) for name, deltas in others.items()]
        known = [(delta, its_rows) for delta, its_rows in users if delta is not None]
        return FusedDeltas(columns, row_deltas_of(touched[0].name, num_rows, known) if known else None, dense)


def _dense_rows(touched: Sequence[Part], changes: Changes, rows: dict[str, list[int]]) -> DenseRows | None:
    """The adapters that are of full rank in the same layers, those that the first such adapter changes."""
    layers: tuple[Part, ...] = ()
    found: dict[str, list[Tensor]] = {}
    for name, deltas in changes.items():
        own = tuple(part for part in touched if part.name in deltas)
        dense = [deltas[part.name] for part in own]
        if own and own == (layers or own) and all(isinstance(delta, Dense) for delta in dense):
            layers, found[name] = own, [delta.weight for delta in dense]
    if not found:
        return None
    pieces = [(part.start, part.stop) for part in layers]
    return DenseRows([rows[name] for name in found], pieces, list(found.values()))


def merge(parts: Sequence[Part], deltas: dict[str, LowRank | Dense], columns: slice) -> LowRank | Dense | None:
    """One change of the given output columns that does what the deltas do to their layers; None where none applies.

    Low-rank deltas of several layers stay low-rank: their ranks add up. Beside a dense one they become dense.
    """
    own = [(part, deltas[part.name]) for part in parts if part.name in deltas]
    if not own:
        return None
    width = columns.stop - columns.start
    if all(isinstance(delta, LowRank) for _, delta in own):
        a = torch.cat([delta.a for _, delta in own])  # (R, in)
        b = a.new_zeros(width, len(a))
        rank = 0
        for part, delta in own:
            stop = rank + len(delta.a)
            b[part.start - columns.start : part.stop - columns.start, rank:stop] = delta.b
            rank = stop
        return LowRank(a, b)
    whole = [(part, delta.weight if isinstance(delta, Dense) else delta.b @ delta.a) for part, delta in own]
    dtype = next(delta.weight.dtype for _, delta in own if isinstance(delta, Dense))
    weight = torch.zeros(width, whole[0][1].shape[1], dtype=dtype, device=whole[0][1].device)
    for part, change in whole:
        weight[part.start - columns.start : part.stop - columns.start] = change
    return Dense(weight)
