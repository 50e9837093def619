"""Threads that torch computes with: who may have a team of them.

torch on Linux keeps a team of OpenMP threads for every thread that computes. As long as all teams together fit on the
cores their members wait by spinning, and the next product begins at once; with one team more they sleep in between,
and every small product waits for them to wake: measured, a token of the embedded model takes 16 ms in place of 9. So
the model's thread keeps the only team: what loads ends with its thread, and what scores computes alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def in_a_thread(make: Callable[[], T]) -> T:
    """What `make` gives, or raises, computed in a thread whose team ends with it."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(make())
        except BaseException as error:  # noqa: BLE001  raised again by who waits
            raised.append(error)

    thread = threading.Thread(target=run, name="uqchat-load", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


@contextmanager
def alone() -> Iterator[None]:
    """Without a team: for small products, in threads beside the model's."""
    import torch

    count = torch.get_num_threads()
    if count == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
