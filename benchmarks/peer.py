"""A program that we are compared with, in a process of its own, by a Python that has it: a line of JSON in, one out.

The process first writes one line when it is ready. Its script imports nothing of this repository and is run by
`python -P`: else this folder's module of the same name as the peer's package is found first.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def peer(python: str, script: Path, arguments: Sequence[str], package: str) -> Iterator[Ask]:
    """A running peer: an order to its answer. It takes turns with us, since `Ask` waits.

    Raises:
        RuntimeError: it ended, at once or while it had an order.
    """
    command = [python, "-P", str(script), *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(order: dict[str, Any]) -> dict[str, Any]:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{script.name} ended over {order}; run it by hand to see why")
            return json.loads(line)

        if not process.stdout.readline():
            raise RuntimeError(f"{' '.join(command[:3])} ended at once: is {package} installed there?")
        try:
            yield ask
        finally:
            process.stdin.close()


def timed(ask: Ask, order: dict[str, Any]) -> Callable[[], tuple[float, float]]:
    """An arm: the tokens that one order gave, and the seconds that it took by the peer's own clock."""

    def run() -> tuple[float, float]:
        answer = ask(order)
        return answer["tokens"], answer["seconds"]

    return run
