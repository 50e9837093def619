"""Which rows run through which blocks: a voter's row enters where it begins to differ from its answer's row.

Below the first block that its adapter changes, a voter would compute what its answer's row computes: the same ids with
the same weights. So it takes that row's states there, and holds no keys and values below. Knows no forward and no
signal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uqchat.engine.adapters import KEPT_PLANS, AdapterSet
from uqchat.engine.fused_deltas import FusedDeltas, FusedPlans
from uqchat.errors import InputError

Rows = slice | Tensor  # numbers of rows; a slice wherever they are evenly spaced, so that nothing is copied
EVERY = slice(None)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Blocks one after another that the same rows run through."""

    start: int = 0
    """Its first block; it ends where the next one starts."""
    rows: Rows = field(default_factory=lambda: EVERY)
    """Of the batch."""
    entering: Tensor | None = None
    """Where the states of each of its rows are among those of the stretch before; None in the first."""
    answers: Rows = field(default_factory=lambda: EVERY)
    """Which of its rows are no voters'."""
    deltas: Mapping[str, FusedDeltas] = field(default_factory=dict)
    """What its rows add to a product, by the name of that product's first layer."""
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    """Factors of a product's input, (rows, 1, in)."""


WHOLE = (Stretch(),)  # all rows through all blocks, no adapter


class Stretches:
    """The stretches of the sets of rows that came last.

    Args:
        plans: what adapters change in the forward's products.
        block_of: by a layer's name, the block that it is in; the number of blocks for what lies behind them.
        alone: layers whose input no other layer of their product reads.
    """

    def __init__(self, plans: FusedPlans, block_of: Mapping[str, int], alone: frozenset[str]) -> None:
        self.plans, self.block_of, self.alone = plans, block_of, alone
        self._kept: OrderedDict[tuple[object, ...], tuple[Stretch, ...]] = OrderedDict()

    def of(
        self, adapters: AdapterSet, names: Sequence[str | None], leaders: Sequence[int] | None = None
    ) -> tuple[Stretch, ...]:
        """From the lowest to the highest; the last one holds all rows.

        Args:
            names: row i of the batch uses the adapter names[i].
            leaders: of a voter's row, the row of its answer; of any other row, its own number. None: no voters.

        Raises:
            InputError: an unknown name, or input scales of a layer that shares its input.
        """
        leaders = range(len(names)) if leaders is None else leaders
        if not any(name is not None for name in names):
            return WHOLE
        key = (adapters.version, *names, *leaders)
        if key not in self._kept:
            self._kept[key] = self._plan(adapters, names, leaders)
            while len(self._kept) > KEPT_PLANS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _plan(self, adapters: AdapterSet, names: Sequence[str | None], leaders: Sequence[int]) -> tuple[Stretch, ...]:
        scaled = next((layer for layer in adapters.scales(names) if layer not in self.alone), None)
        if scaled is not None:
            raise InputError(
                f"Layer {scaled!r} shares its input with others here, so it cannot be scaled alone; o_proj and"
                " down_proj have inputs of their own."
            )
        first = [self._first_block(adapters, name) for name in names]
        begins = [0 if own == row else min(first[row], first[own]) for row, own in enumerate(leaders)]
        starts = sorted(set(begins))
        found: list[Stretch] = []
        below: list[int] = []
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            rows = [row for row, begin in enumerate(begins) if begin <= start]
            its_names = [names[row] for row in rows]
            layers = {
                name for name, block in self.block_of.items() if start <= block and (stop is None or block < stop)
            }
            scales = adapters.scales(its_names)
            entering = [below.index(row if row in below else leaders[row]) for row in rows] if below else None
            found.append(
                Stretch(
                    start,
                    evenly(rows, len(names)),
                    None if entering is None else torch.tensor(entering, device=adapters.model.device),
                    evenly([at for at, row in enumerate(rows) if leaders[row] == row], len(rows)),
                    self.plans.of(adapters, its_names, layers),
                    {layer: factors for layer, factors in scales.items() if layer in layers},
                )
            )
            below = rows
        return tuple(found)

    def _first_block(self, adapters: AdapterSet, name: str | None) -> int:
        """The first block in which the adapter changes anything."""
        behind = max(self.block_of.values())
        if name is None:
            return behind
        return min((self.block_of[layer] for layer in adapters.layers_of(name)), default=behind)


def evenly(rows: Sequence[int], count: int) -> Rows:
    """Ascending numbers of some of `count` rows, as a slice where they are evenly spaced."""
    if len(rows) == count:
        return EVERY
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    wanted = range(rows[0], rows[-1] + 1, step)
    return slice(wanted.start, wanted.stop, step) if list(wanted) == list(rows) else torch.tensor(rows)
