"""Who waits, who reads and who runs: admission by places and memory, prefixes used again. Runs no forward itself."""

from __future__ import annotations

import time
from collections import deque

from uqchat.engine.failure import if_memory_allows
from uqchat.engine.forward import Forward
from uqchat.engine.prefix import PrefixStore
from uqchat.engine.rows import Batch, Row

MAX_ROWS = 16  # rows that decode together; beyond about ten, one more is no longer nearly free
MAX_PREFIX_BYTES = 2**30  # saved beginnings of conversations


class Lineup:
    """The waiting rows and the batch that they join.

    Args:
        memory: bytes that keys and values may take, at most a quarter of it for saved prefixes.
        min_shared: shortest beginning that is used again; None takes the store's.
    """

    def __init__(self, forward: Forward, memory: int, min_shared: int | None = None) -> None:
        self.forward = forward
        self.prefixes = PrefixStore(min(memory // 4, MAX_PREFIX_BYTES), min_shared)
        self.memory = memory - self.prefixes.max_bytes  # for rows
        self.batch = Batch(forward)
        self.waiting: deque[Row] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any row waits, reads or runs."""
        return bool(self.waiting or len(self.batch))

    def admit(self) -> None:
        """Begin to read waiting rows while there are places and memory; one of several that read the same."""
        for row in list(self.waiting):
            if any(row.request.is_twin_of(reader.request) for reader in self.batch.reading):
                continue
            if not self._fits(row):
                if row.request.is_behind:  # keeps nobody waiting who writes
                    continue
                return
            self._take(row)
            self.batch.reading.extend(row.group)
            self._reuse(row)

    def _reuse(self, row: Row) -> None:
        """Begin behind what is saved of this prompt; with voters, behind what is saved for all of them."""
        ids = row.to_read[: row.num_reused]
        found = [(each, self.prefixes.find(ids, each.kept_as)) for each in row.group]
        length = min(one.length for _, one in found)
        if not length:
            return
        is_only = len(self.batch) == 1
        with if_memory_allows("a saved conversation was not used again"):
            for each, one in found:
                self.forward.load(self.batch.place(each), one.saved, length, one.is_whole and is_only)
            for each, _ in found:
                each.length = length

    def take_twins(self, row: Row) -> list[Row]:
        """Waiting rows with this very prompt join the running ones with a copy of its keys and values."""
        twins = []
        for twin in [w for w in self.waiting if w.request.is_twin_of(row.request)]:
            if self._fits(twin):
                self._take(twin)
                for source, copy in zip(row.group, twin.group, strict=True):
                    self.batch.clone(source, copy)
                twins.append(twin)
        return twins

    def keep(self, row: Row) -> None:
        """Save what a running row, which leaves next, and its voters hold for the conversation's next turn."""
        if row not in self.batch.running or not self.prefixes.max_bytes or not row.is_seen:
            return
        with if_memory_allows("an answer was not kept for the next turn"):
            for each in row.group:
                saved = self.forward.save(self.batch.place(each), each.length, len(self.batch) == 1)
                if saved is not None:
                    self.prefixes.put(each.ids[: each.length], saved, each.kept_as)

    def leave(self, row: Row, is_broken: bool = False) -> None:
        """Take a row and its voters out, wherever they are; the last in the batch frees the memory.

        It may have given that memory away.

        Args:
            is_broken: what it wrote need not be numbers. Nor need it where nobody has seen its logits yet.
        """
        if row in self.waiting:
            self.waiting.remove(row)
        is_broken = is_broken or (row.length > 0 and not row.is_seen)
        for each in row.group:
            self.batch.leave(each)
        if is_broken:  # also what is released next: a saved beginning may lie in it
            self.forward.mend([each.length for each in (*self.batch.running, *self.batch.reading)])
        if not len(self.batch):
            self.forward.release()

    def reset(self) -> None:
        """Forget all rows and free their memory, after an error."""
        self.waiting.clear()
        self.batch = Batch(self.forward)
        self.prefixes.clear()
        self.forward.release()

    def _fits(self, row: Row) -> bool:
        rows = [*row.group, *self.batch.running, *self.batch.reading]
        if len(rows) > MAX_ROWS:
            return False
        longest = max(len(r.to_read) + r.request.generation.max_new_tokens for r in rows)
        return len(rows) == len(row.group) or self.forward.bytes_for(longest) * len(rows) <= self.memory

    def _take(self, row: Row) -> None:
        self.waiting.remove(row)
        row.started = time.perf_counter()
