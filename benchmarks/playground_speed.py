"""The playground with many records: how soon are they drawn, and does the threshold follow the pointer?

A really launched page and a headless Chromium. Needs Playwright and a Chromium, and says so where there is none.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Row, save
from benchmarks.page_keeps_up import FLAGS, SteadyModel, find_chromium
from uqchat.config import AppConfig

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = (10_000, 100_000)
BARS = {10_000: 2.0}  # seconds; the larger one is reported
SCORES = ("entropy", "max_prob", "probe", "uq_head")
MOVES = 40
FRAME_MS = 34.0  # two frames at 60 a second
WAIT_MS = 120_000
# Notes how long after a pointer event the figures beside the curve change.
RECORDER = """() => {
  const figure = document.querySelector('[data-n=answered]');
  window.delays = [];
  let moved = null;
  document.querySelector('.uq-pg-curve').addEventListener('pointermove', () => (moved ??= performance.now()), true);
  new MutationObserver(() => {
    if (moved !== null) window.delays.push(performance.now() - moved);
    moved = null;
  }).observe(figure, { childList: true, characterData: true, subtree: true });
}"""


def main(repeats: int) -> None:
    """Measure; skip with a message where there is no browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playground_speed is skipped: it needs Playwright (requirements-dev.txt)")
        return
    rows = []
    with sync_playwright() as playwright:
        chromium = find_chromium(playwright)
        if chromium is None:
            print("playground_speed is skipped: no Chromium")
            return
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for size in SIZES:
            with _served(size) as address:
                runs = [_measure(browser, address, size) for _ in range(repeats)]
            rows += _rows(size, [drawn for drawn, _ in runs], [delay for _, found in runs for delay in found])
        browser.close()
    save("playground_speed", rows, {"moves": MOVES, "scores": len(SCORES)})


@contextmanager
def _served(size: int) -> Iterator[str]:
    from uqchat.ui.serve import close, launch
    from uqchat.ui.services import open_services

    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "records" / "many.parquet", size)
        services = open_services(AppConfig(data_dir=Path(folder), port=0), SteadyModel())
        page = launch(services, prevent_thread_lock=True, quiet=True)
        yield page.blocks.local_url
        page.blocks.close()
        close(services)


def _write(path: Path, size: int) -> None:
    """Answers whose risk is their probability of being wrong, by every score, with a category of twenty."""
    generator = np.random.default_rng(0)
    risk = generator.random(size)
    columns = {
        "question": [f"Question {i}?" for i in range(size)],
        "answer": [f"Answer {i}" for i in range(size)],
        "is_error": generator.random(size) < risk,
        "category": [f"category {i % 20}" for i in range(size)],
    }
    for name in SCORES:
        columns[f"risk_{name}"] = np.clip(risk + generator.normal(0, 0.1, size), 0, 1)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)


def _measure(browser: Browser, address: str, size: int) -> tuple[float, list[float]]:
    """Seconds from the choice to the curves, and milliseconds from each pointer move to the figures."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(address)
    page.locator("#uq-history .uq-message").first.wait_for(timeout=WAIT_MS)
    page.get_by_role("tab", name="Playground").click()
    page.locator("#uq-pg-table tbody tr").first.wait_for(timeout=WAIT_MS)
    runs = page.locator("#uq-pg-runs input")
    runs.click()
    runs.press("Backspace")  # away with the records that ship
    option = page.get_by_role("option", name="many")
    option.wait_for(timeout=WAIT_MS)
    begun = time.perf_counter()
    option.click()
    page.wait_for_function(
        "size => Number(document.querySelector('.uq-pg-slider').max) > 0.3 * size", arg=size, timeout=WAIT_MS
    )  # two fifths of the answers are shown, the others certify
    drawn = time.perf_counter() - begun
    delays = _follow(page)
    page.context.close()
    return drawn, delays


def _follow(page: Page) -> list[float]:
    page.wait_for_timeout(1000)
    box = page.locator(".uq-pg-curve svg").bounding_box()
    assert box is not None
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, height)
    page.mouse.down()
    page.evaluate(RECORDER)
    for step in range(MOVES):
        page.mouse.move(box["x"] + box["width"] * (0.2 + 0.6 * step / MOVES), height)
        page.wait_for_timeout(20)
    page.mouse.up()
    return list(page.evaluate("window.delays"))


def _rows(size: int, drawn: list[float], delays: list[float]) -> list[Row]:
    seconds, bar = statistics.median(drawn), BARS.get(size)
    delay, low, high = (float(value) for value in np.quantile(delays, [0.5, 0.05, 0.95]))
    return [
        Row(
            f"{size:,} records in the playground, from their choice to four curves, seconds",
            "drawn",
            "",
            seconds,
            min(drawn),
            max(drawn),
            f"<= {bar:g}" if bar else "reported",
            bar is None or seconds <= bar,
            f"{len(SCORES)} scores, {size:,} answers",
        ),
        Row(
            f"{size:,} records: from a pointer move to the figures beside the curve, milliseconds",
            "followed",
            "",
            delay,
            low,
            high,
            f"<= {FRAME_MS:g}",
            delay <= FRAME_MS,
            f"{len(delays)} moves; 5 % to 95 % in brackets",
        ),
    ]
