"""What the soak says of memory: a leak is seen, what the allocator keeps of freed memory is none."""

from __future__ import annotations

import ctypes

import pytest

from benchmarks import memory
from benchmarks.memory import Reading

MIB = 2**20
BLOCK, COUNT = 50_000, 400  # below the size from which malloc maps each piece apart

needs_glibc = pytest.mark.skipif(memory.in_use() is None, reason="this C library does not tell what is in use")


@pytest.fixture
def libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None)
    found.malloc.restype, found.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    found.free.argtypes = [ctypes.c_void_p]
    return found


@needs_glibc
@pytest.mark.parametrize(("size", "count"), [(BLOCK, COUNT), (64 * MIB, 1)])  # in an arena, and in a map of its own
def test_what_is_held_counts_as_in_use_and_what_is_freed_does_not(libc: ctypes.CDLL, size: int, count: int) -> None:
    before = memory.in_use()
    held = [libc.malloc(size) for _ in range(count)]
    grown = memory.in_use() - before
    for pointer in held:
        libc.free(pointer)
    assert grown == pytest.approx(size * count, rel=0.05, abs=MIB)
    assert memory.in_use() - before == pytest.approx(0, abs=MIB)


def test_objects_of_python_are_counted_apart() -> None:
    before = memory.read_idle().blocks
    kept = [object() for _ in range(20_000)]
    assert memory.read_idle().blocks - before == pytest.approx(len(kept), abs=2_000)


def test_an_idle_reading_is_taken_without_garbage() -> None:
    class Node:
        def __init__(self) -> None:
            self.own, self.rest = self, [object() for _ in range(1_000)]

    before = memory.read_idle().blocks
    for _ in range(50):
        Node()
    assert memory.read_idle().blocks - before < 5_000


def series(resident: list[int], in_use: list[int | None]) -> list[Reading]:
    return [Reading(r * MIB, None if u is None else u * MIB, 0) for r, u in zip(resident, in_use, strict=True)]


def test_thirds_are_compared_by_their_medians_each_kind_of_memory_by_itself() -> None:
    """First third 100, 300, 100 and last 110, 110, 110: 1.1 resident; 50 all along in use, but for a peak."""
    readings = series([100, 300, 100, 150, 150, 150, 110, 110, 110], [50, 50, 50, 90, 50, 50, 50, 50, 50])
    in_use, resident = memory.thirds(readings, "nothing else happened")
    assert (in_use.ratio, in_use.is_met) == (1.0, True) and in_use.claim.startswith("memory in use")
    assert resident.ratio == pytest.approx(1.1) and not resident.is_met and resident.bar == "<= 1.05"
    assert in_use.detail == "first, last, highest: 50 MiB, 50 MiB, 90 MiB; nothing else happened"


def test_where_the_c_library_does_not_tell_resident_memory_alone_is_reported() -> None:
    (row,) = memory.thirds(series([100] * 6, [None] * 6), "")
    assert row.claim.startswith("resident memory in the last third of 6") and row.is_met
    idle = memory.idle(Reading(100 * MIB, None, 5), Reading(102 * MIB, None, 5), 60)
    assert idle.ratio == pytest.approx(1.02) and not idle.is_met


def test_an_idle_process_is_judged_by_what_is_in_use() -> None:
    before, after = Reading(100 * MIB, 80 * MIB, 1_000), Reading(150 * MIB, 80 * MIB, 2_000)
    row = memory.idle(before, after, 60)
    assert row.ratio == 1.0 and row.is_met
    assert row.detail == (
        "before, after: in use 80 MiB, 80 MiB; resident, trimmed 100 MiB, 150 MiB; Python's blocks 1,000, 2,000"
    )
    assert not memory.idle(before, Reading(100 * MIB, 82 * MIB, 1_000), 60).is_met
