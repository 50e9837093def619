"""Start to ready from a warm cache, in fresh processes: the shell's answer, a script's model, the page and its model.

Warm is compiled bytecode too, our own included, which a setting of the surroundings may not keep from being written.
Imports, the load, the check of our own forward and a first token are all inside. Seconds, not ratios: they mean
something only on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.common import ROOT, Row, save
from uqchat.ports import open_port

BAR, GIVE_UP, PAUSE = 5.0, 300.0, 0.05
SCRIPT = "import uqchat; next(uqchat.load().stream('Hello'))"
SHELL = ("-m", "uqchat", "answer", "Hello", "--max-new-tokens", "1")


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a fresh process."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more


def run(*arguments: str) -> float:
    """Seconds that a fresh Python takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=surroundings(), check=True, capture_output=True)
    return time.perf_counter() - start


@contextmanager
def app() -> Iterator[str]:
    """`python app.py` on a free port with data of its own; the page's address."""
    port = open_port("127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        environment = surroundings(UQCHAT_PORT=str(port), UQCHAT_DATA_DIR=folder)
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def open_page() -> tuple[float, float]:
    """Seconds until the page is there, and until its model answers."""
    start = time.perf_counter()
    with app() as address:
        page = _seconds_until(lambda: _has_page(address), start)
        return page, _seconds_until(lambda: _answers(address), start)


def _seconds_until(is_done: Callable[[], bool], start: float) -> float:
    while not is_done():
        if time.perf_counter() - start > GIVE_UP:
            raise TimeoutError(f"nothing after {GIVE_UP:.0f} seconds")
        time.sleep(PAUSE)
    return time.perf_counter() - start


def _has_page(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _answers(address: str) -> bool:
    """Whether the page's endpoint gives a token; it refuses while the model loads."""
    call = f"{address}/gradio_api/call/answer"
    body = json.dumps({"data": ["Hello", ["entropy"], "", 1, 0, 0]}).encode()
    request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=GIVE_UP) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=GIVE_UP) as response:
        return b"event: complete" in response.read()


def main(repeats: int) -> None:
    """All four, one after another, `repeats` times, after one warm-up."""
    run("-c", SCRIPT)
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        times.setdefault("script: load and first token", []).append(run("-c", SCRIPT))
        times.setdefault("shell: `uqchat answer`, one token", []).append(run(*SHELL))
        page, model = open_page()
        times.setdefault("page answers", []).append(page)
        times.setdefault("page's model answers", []).append(model)
    rows = [_row(f"seconds from start, warm cache: {name}", seconds) for name, seconds in times.items()]
    save("start", rows, {"repeats": repeats, "model": "embedded"})


def _row(claim: str, seconds: list[float]) -> Row:
    median = statistics.median(seconds)
    detail = ", ".join(f"{each:.1f} s" for each in sorted(seconds))
    return Row(claim, "start", "", median, min(seconds), max(seconds), f"<= {BAR:g} s", median <= BAR, detail)


if __name__ == "__main__":
    main(3)
