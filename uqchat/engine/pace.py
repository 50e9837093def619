"""How much of the time readings behind an answer may take while answers are being written. Knows rows and a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from uqchat.engine.rows import Row

SHARE = 0.06  # of the time that writing takes
PIECE = 48  # ids that are read behind at a time while answers are written, of all voters together


class Pace:
    """Counts the seconds of both, from when writing began."""

    def __init__(self) -> None:
        self.written = 0.0
        self.read_behind = 0.0
        self.piece = 0.0  # what the last reading behind took

    @contextmanager
    def writing(self, rows: Sequence[Row]) -> Iterator[None]:
        """A step of the rows that write."""
        if not rows:
            self.written = self.read_behind = 0.0
        began = time.perf_counter()
        yield
        if rows:
            self.written += time.perf_counter() - began

    @contextmanager
    def reading(self, rows: list[Row], is_writing: bool) -> Iterator[list[Row]]:
        """A reading; gives the rows that may read now: none of those behind once they have had their share."""
        is_behind = bool(rows) and rows[0].request.is_behind
        if is_behind and is_writing and self.read_behind + self.piece > SHARE * self.written:
            yield []
            return
        began = time.perf_counter()
        yield rows
        if is_behind and is_writing:
            self.piece = time.perf_counter() - began
            self.read_behind += self.piece

    def chunk(self, row: Row, most: int, is_writing: bool) -> int:
        """Ids of each row of a group that are read at a time."""
        if row.request.is_behind and is_writing:
            most = min(most, PIECE)
        return max(1, most // len(row.group))
