"""Adapters for products that stand for several linear layers: what a row adds to all of them is one change.

Knows which columns of a product belong to which layer, not what the layers do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uqchat.engine.adapters import KEPT_PLANS, AdapterSet, Dense, LowRank, row_deltas_of
from uqchat.engine.row_deltas import RowDeltas


@dataclass(frozen=True, slots=True)
class Part:
    """Which columns of a product's output belong to one linear layer, by the layer's name in the model."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FusedDeltas:
    """What the rows add to one product: `deltas` of the columns from the first changed layer to the last."""

    columns: slice
    deltas: RowDeltas

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """x: (B, T, in); y: (B, T, out) of the whole product, changed in place."""
        self.deltas.add_to(x, y[:, :, self.columns])


class FusedPlans:
    """The fused changes of the sets of rows that came last.

    Args:
        products: the parts of every product of the forward.
    """

    def __init__(self, products: Sequence[tuple[Part, ...]]) -> None:
        self.products = products
        self._plans: OrderedDict[tuple[object, ...], dict[str, FusedDeltas]] = OrderedDict()

    def of(self, adapters: AdapterSet, names: Sequence[str | None]) -> dict[str, FusedDeltas]:
        """By the name of a product's first layer; row i of the batch uses the adapter names[i].

        Raises:
            InputError: an unknown name.
        """
        if not any(name is not None for name in names):
            return {}
        key = (adapters.version, *names)
        if key not in self._plans:
            self._plans[key] = self._plan(adapters, names)
            while len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _plan(self, adapters: AdapterSet, names: Sequence[str | None]) -> dict[str, FusedDeltas]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                rows.setdefault(name, []).append(row)
        changes = {name: adapters.deltas_of(name) for name in rows}
        plan = {}
        for parts in self.products:
            touched = [part for part in parts if any(part.name in deltas for deltas in changes.values())]
            if touched:
                columns = slice(touched[0].start, touched[-1].stop)
                users = [(merge(touched, deltas, columns), rows[name]) for name, deltas in changes.items()]
                known = [(delta, its_rows) for delta, its_rows in users if delta is not None]
                plan[parts[0].name] = FusedDeltas(columns, row_deltas_of(parts[0].name, len(names), known))
        return plan


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
