"""Keys and values of what was read before, to be used again by the next turn. Knows no conversation, only ids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from uqchat.engine.cache import KeysAndValues

MIN_SHARED = 64  # a shorter beginning is soon read again; and a first question rounds in bf16 as if asked alone
Key = tuple[str | None, tuple[int, ...]]  # adapter of the row, see `Row.kept_as`; ids


@dataclass(frozen=True, slots=True)
class Found:
    """A saved row, how many of its positions are wanted, and whether those are all that it holds."""

    saved: KeysAndValues | None
    length: int
    is_whole: bool


NOTHING = Found(None, 0, False)


class PrefixStore:
    """Saved rows by their ids, bounded in bytes; the least recently used goes first.

    Args:
        max_bytes: memory that all saved rows may take together.
        min_shared: common beginnings shorter than this are read again; None takes `MIN_SHARED`.
    """

    def __init__(self, max_bytes: int, min_shared: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.min_shared = min_shared
        self.num_bytes = 0
        self._rows: OrderedDict[Key, KeysAndValues] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, ids: Sequence[int], adapter: str | None = None) -> Found:
        """The saved row with the longest common beginning; `NOTHING` when none is worth it."""
        best, shared = None, (MIN_SHARED if self.min_shared is None else self.min_shared) - 1
        for key in self._rows:
            if key[0] == adapter:
                length = common_length(key[1], ids)
                best, shared = (key, length) if length > shared else (best, shared)
        if best is None:
            return NOTHING
        self._rows.move_to_end(best)
        return Found(self._rows[best], shared, shared == len(best[1]))

    def put(self, ids: Sequence[int], saved: KeysAndValues, adapter: str | None = None) -> None:
        """Keep a row; rows that it extends are dropped, as they hold nothing that it lacks."""
        key = (adapter, tuple(ids))
        for old in [k for k in self._rows if k[0] == adapter and k[1] == key[1][: len(k[1])]]:
            self._drop(old)
        self._rows[key] = saved
        self.num_bytes += size_of(saved)
        while self.num_bytes > self.max_bytes and self._rows:
            self._drop(next(iter(self._rows)))

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self.num_bytes = 0

    def _drop(self, key: Key) -> None:
        self.num_bytes -= size_of(self._rows.pop(key))


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def size_of(saved: KeysAndValues) -> int:
    """Bytes of a saved row."""
    return sum(tensor.nbytes for pair in saved for tensor in pair)
