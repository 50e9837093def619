"""Preallocated keys and values of all rows, growing as answers do. Knows which row sits where, not what it says.

Rows lie left-aligned: row i holds its own positions 0..length-1, whatever its neighbours hold. Decoding rows fill the
first places, so that a step reads one contiguous block and copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256  # positions are allocated in steps of this many
SLACK = 1024  # at most so many positions are allocated beyond what is asked for, so that growing copies rarely
KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # of every layer, (H, T, D) each, T at least the row's length


@dataclass(slots=True)
class Place:
    """Where the next forward writes: rows first..first+len(starts)-1, each from its own position."""

    first: int
    starts: list[int]
    columns: torch.Tensor | None = None  # (B, T) the positions to write, when the rows' starts differ
    rows: slice | torch.Tensor | None = None  # of the storage; None: from `first` on, one for each start
    index: torch.Tensor | None = field(init=False, default=None)  # (B, 1) the rows that those positions are in

    def __post_init__(self) -> None:
        if self.rows is None:
            self.rows = slice(self.first, self.first + len(self.starts))
        if self.columns is not None:
            own = self.rows
            index = torch.arange(own.start, own.stop, own.step or 1) if isinstance(own, slice) else own
            self.index = index.to(self.columns.device)[:, None]

    def part(self, rows: slice | torch.Tensor) -> Place:
        """The place of some of its rows."""
        columns = None if self.columns is None else self.columns[rows]
        if isinstance(rows, slice):
            chosen = range(len(self.starts))[rows]
            own = slice(self.first + chosen.start, self.first + chosen.stop, chosen.step)
            return Place(self.first, [self.starts[row] for row in chosen], columns, own)
        return Place(self.first, [self.starts[row] for row in rows.tolist()], columns, rows + self.first)


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer: (rows, H, capacity, D)."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for the model's own shapes, which need not be those of the configuration."""
        rows, length = self._cache.rows, self._cache.capacity
        self.keys = key_states.new_zeros((rows, key_states.shape[1], length, key_states.shape[3]))
        self.values = value_states.new_zeros((rows, value_states.shape[1], length, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, T, D) at the rows' places; returns all keys and values up to the longest of those rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place, length = self._cache.place, key_states.shape[2]
        total = max(place.starts) + length
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            if place.columns is None:
                held[place.rows, :, place.starts[0] : total] = new
            else:
                held[place.index, :, place.columns] = new.transpose(1, 2)  # (B, T, H, D)
        return self.keys[place.rows, :, :total], self.values[place.rows, :, :total]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Positions that hold something already, of the longest row in this forward."""
        return max(self._cache.place.starts)

    def get_max_length(self) -> int:
        """-1: grows."""
        return -1

    def resize(self, rows: int, capacity: int) -> None:
        """Move to larger (or smaller) storage, keeping what fits."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros((rows, old.shape[1], capacity, old.shape[3]))
            r, c = min(rows, old.shape[0]), min(capacity, old.shape[2])
            new[:r, :, :c] = old[:r, :, :c]
            setattr(self, name, new)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row to another."""
        for states in (self.keys, self.values):
            states[target, :, :length] = states[source, :, :length]

    def mend(self, lengths: Sequence[int]) -> None:
        """0 for NaN and infinity behind the first `lengths` positions of the first rows, and in all other rows."""
        for states in (self.keys, self.values):
            for row, length in enumerate(lengths):
                states[row : row + 1, :, length:].nan_to_num_(0.0, 0.0, 0.0)  # a row may have no storage yet
            states[len(lengths) :].nan_to_num_(0.0, 0.0, 0.0)

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        for states in (self.keys, self.values):
            kept = states[first, :, :length].clone()
            states[first, :, :length] = states[second, :, :length]
            states[second, :, :length] = kept


class RowCache(Cache):
    """All layers' storage and the place of the next forward."""

    def __init__(self, num_layers: int) -> None:
        self.rows, self.capacity = 1, GROWTH
        self.place = Place(0, [0])
        super().__init__(layers=[RowLayer(self) for _ in range(num_layers)])

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many positions; gives memory back only when nothing is held."""
        if rows <= self.rows and length <= self.capacity:
            return
        capacity = self.capacity
        if length > capacity:
            length = max(length, capacity + min(capacity // 4, SLACK))
            capacity = -(-length // GROWTH) * GROWTH
        rows = self.rows if rows <= self.rows else max(rows, min(2 * self.rows, rows + 4))
        for layer in self.layers:
            layer.resize(rows, capacity)
        self.rows, self.capacity = rows, capacity

    def release(self) -> None:
        """Drop all storage; the next forward allocates anew."""
        self.rows, self.capacity = 1, GROWTH
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another place in every layer."""
        for layer in self._used():
            layer.copy(source, target, length)

    def mend(self, lengths: Sequence[int]) -> None:
        """See `RowLayer.mend`; in every layer."""
        for layer in self._used():
            layer.mend(lengths)

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange two rows of at most `length` positions in every layer."""
        for layer in self._used():
            layer.swap(first, second, min(length, self.capacity))

    def save(self, place: int, length: int, is_last: bool = False) -> KeysAndValues:
        """A row's first `length` positions: a copy, or the storage itself when its only row is about to leave."""
        if is_last and self.rows == 1:
            return [(layer.keys[0], layer.values[0]) for layer in self._used()]
        states = [s[place, :, :length] for layer in self._used() for s in (layer.keys, layer.values)]
        if len({each.shape for each in states}) == 1:  # one block: many small ones leave holes between them
            copies: Sequence[torch.Tensor] = torch.stack(states).unbind()
        else:
            copies = [each.clone() for each in states]
        return list(zip(copies[::2], copies[1::2], strict=True))

    def load(self, place: int, saved: KeysAndValues, length: int) -> None:
        """Write the first `length` positions of a saved row to a place."""
        for layer, (keys, values) in zip(self.layers, saved, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[place, :, :length] = keys[:, :length]
            layer.values[place, :, :length] = values[:, :length]

    def adopt(self, saved: KeysAndValues) -> bool:
        """Go on in a saved row's own storage, as its only row; False when something is held already."""
        if self._used():
            return False
        for layer, (keys, values) in zip(self.layers, saved, strict=True):
            layer.keys, layer.values, layer.is_initialized = keys[None], values[None], True
        self.rows, self.capacity = 1, saved[0][0].shape[1]
        return True

    def _used(self) -> list[RowLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
