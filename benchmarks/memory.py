"""What this process holds: resident, handed out by the C library's allocator, and objects of Python.

Resident memory alone does not tell a leak from an allocator that keeps what was given back to it. What is in use does:
glibc's `mallinfo2` counts what all of its arenas and maps have handed out, torch's tensors among it. Python's small
objects lie in maps of Python's own, so their blocks are counted apart.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.common import Row

FLAT, SAME = 1.05, 1.01  # of requests that are new to the process, and of such as it has had before
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; uordblks and hblkhd are the bytes in use in arenas and in maps."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


@dataclass(frozen=True)
class Reading:
    """Bytes; `in_use` is None where the C library does not say."""

    resident: int
    in_use: int | None
    blocks: int  # of Python's small objects


def read() -> Reading:
    """Now, as it is."""
    return Reading(psutil.Process().memory_info().rss, in_use(), sys.getallocatedblocks())


def read_idle() -> Reading:
    """With nothing under way: garbage collected, and what the allocator need not keep given back to the system."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
    return read()


def in_use() -> int | None:
    """Bytes that malloc has handed out; None without glibc 2.33 or newer."""
    mallinfo2 = getattr(_libc(), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def thirds(readings: Sequence[Reading], events: str) -> list[Row]:
    """In use and resident: medians of the last third against the first.

    Args:
        readings: one for each request, as it ended.
        events: what happened meanwhile, in words.
    """
    known = [reading.in_use for reading in readings if reading.in_use is not None]
    sizes = {"memory in use": known, "resident memory": [reading.resident for reading in readings]}
    claim = f"in the last third of {len(readings)} requests against the first"
    return [_third(f"{what} {claim}", each, events) for what, each in sizes.items() if each]


def _third(claim: str, sizes: Sequence[int], events: str) -> Row:
    third = len(sizes) // 3
    first, last = statistics.median(sizes[:third]), statistics.median(sizes[-third:])
    detail = f"first, last, highest: {_mib(first)}, {_mib(last)}, {_mib(max(sizes))}; {events}"
    return _row(claim, "last", "first", last / first, FLAT, detail)


def idle(before: Reading, after: Reading, count: int) -> Row:
    """With nothing under way, around `count` requests that came before: in use, or resident where that is unknown."""
    pairs = {"in use": (before.in_use, after.in_use), "resident, trimmed": (before.resident, after.resident)}
    known = {name: pair for name, pair in pairs.items() if None not in pair}
    first, last = next(iter(known.values()))
    sizes = "; ".join(f"{name} {_mib(one)}, {_mib(other)}" for name, (one, other) in known.items())
    detail = f"before, after: {sizes}; Python's blocks {before.blocks:,}, {after.blocks:,}"
    claim = f"memory in use with nothing under way, after {count} requests once more against before"
    return _row(claim, "after", "before", last / first, SAME, detail)


def _row(claim: str, arm: str, baseline: str, ratio: float, bar: float, detail: str) -> Row:
    return Row(claim, arm, baseline, ratio, ratio, ratio, f"<= {bar:g}", ratio <= bar, detail)


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"
