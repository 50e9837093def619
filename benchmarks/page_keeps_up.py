"""The page against a model that writes 30 tokens a second: does the browser show a long answer as fast?

A really launched page and a headless Chromium; the model is a script, so nothing but the page is measured. Ten coloured
answers of the same length stand above. It needs Playwright and a Chromium, and says so where there is none.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Row, save
from uqchat.config import AppConfig
from uqchat.estimators import ESTIMATOR_NAMES
from uqchat.types import Alternative, Answer, Risk, ScoredToken

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

TOKENS = 500
RATE = 30.0  # tokens per second
ABOVE = 10
BAR = 0.95
WAIT_MS = 120_000
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
# Notes, once a frame, when the number of the last token on the screen changes, and when the answer is no longer busy.
RECORDER = """() => {
  const seen = (window.seen = []);
  window.endedAt = null;
  let last = -1;
  const look = () => {
    const live = document.querySelector('#uq-live [aria-busy="true"]');
    const tokens = live ? live.querySelectorAll(".uq-t") : [];
    const newest = tokens.length ? Number(tokens[tokens.length - 1].dataset.i) : -1;
    if (newest > last) seen.push([Date.now() / 1000, (last = newest)]);
    if (seen.length && !live) window.endedAt = Date.now() / 1000;
    else requestAnimationFrame(look);
  };
  look();
}"""

FINISHED = "document.querySelectorAll('#uq-history .uq-answer:not([data-example])').length"


@dataclass(frozen=True)
class Run:
    """One measured answer: the shown rate in tokens per second, tokens behind and seconds to the end at its end."""

    rate: float
    tokens_behind: int
    seconds_to_end: float


class SteadyModel:
    """Answers every question with TOKENS tokens: at once, or at RATE when `is_paced`. The host and its model in one."""

    name = "script"

    def __init__(self) -> None:
        self.is_paced = False
        self.times: list[float] = []
        self._tokens = [_token(index) for index in range(TOKENS)]

    def status(self) -> Any:
        """Always ready."""
        from uqchat.host import HostStatus

        return HostStatus("ready", self.name, "The script is ready.")

    def stream(
        self, *_args: Any, stop: threading.Event | None = None, **_options: Any
    ) -> Generator[ScoredToken, None, Answer]:
        """As `LanguageModel.stream`."""
        self.times, begun = [], time.monotonic()
        for index, token in enumerate(self._tokens):
            if self.is_paced:
                time.sleep(max(0.0, begun + index / RATE - time.monotonic()))
            if stop is not None and stop.is_set():
                break
            self.times.append(time.time())
            yield token
        tokens = tuple(self._tokens[: len(self.times)])
        return Answer("".join(token.text for token in tokens), tokens, {}, {}, "stop", self.name)

    def start(self) -> None:
        """Ready already."""

    def close(self) -> None:
        """Nothing to free."""


def _token(index: int) -> ScoredToken:
    text = f" word{index % 1000:03d}"
    risk = 0.5 + 0.49 * math.sin(index)
    alternatives = tuple(Alternative(10 + k, f" other{k}", math.log(0.5) - k) for k in range(10))
    risks = {name: Risk(risk, risk) for name in ESTIMATOR_NAMES}
    span = (index * len(text), (index + 1) * len(text))
    return ScoredToken(index, 10 + index, text, span, -risk, risk, alternatives, risks)


def main(repeats: int) -> None:
    """Measure; skip with a message where there is no browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("page_keeps_up is skipped: pip install playwright")
        return
    with sync_playwright() as playwright:
        chromium = find_chromium(playwright)
        if chromium is None:
            print("page_keeps_up is skipped: no Chromium; run `playwright install chromium` or set UQCHAT_CHROMIUM")
            return
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        model = SteadyModel()
        with _served(model) as address:
            runs = [_measure(browser, address, model) for _ in range(repeats)]
        browser.close()
    settings = {"tokens": TOKENS, "tokens_per_second": RATE, "answers_above": ABOVE, "repeats": repeats}
    save("page_keeps_up", [_row(runs)], settings)


def find_chromium(playwright: Playwright) -> str | None:
    """Path of a Chromium: UQCHAT_CHROMIUM, one on the PATH, or Playwright's own; None without any."""
    candidates = [os.environ.get("UQCHAT_CHROMIUM"), shutil.which("chromium"), playwright.chromium.executable_path]
    return next((path for path in candidates if path and Path(path).exists()), None)


@contextmanager
def _served(model: SteadyModel) -> Iterator[str]:
    from uqchat.ui.serve import close, launch
    from uqchat.ui.services import open_services

    with tempfile.TemporaryDirectory() as folder:
        services = open_services(AppConfig(data_dir=Path(folder), port=0), model)
        page = launch(services, prevent_thread_lock=True, quiet=True)
        yield page.blocks.local_url
        page.blocks.close()
        close(services)


def _measure(browser: Browser, address: str, model: SteadyModel) -> Run:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.locator("#uq-history .uq-message").first.wait_for()
    model.is_paced = False
    for number in range(ABOVE):
        _ask(page, lambda number=number: page.wait_for_function(f"{FINISHED} === {number + 1}"))
    model.is_paced = True
    page.evaluate(RECORDER)
    _ask(page, lambda: page.wait_for_function("window.endedAt"))
    seen, ended = page.evaluate("window.seen"), page.evaluate("window.endedAt")
    context.close()
    return _run(model.times, seen, ended)


def _ask(page: Page, wait: Callable[[], object]) -> None:
    page.locator("#uq-prompt textarea").fill("Write a long answer.")
    page.locator("#uq-prompt textarea").press("Enter")
    wait()
    page.locator("#uq-send").wait_for()


def _run(produced: list[float], seen: list[tuple[float, int]], ended: float) -> Run:
    """From the times at which tokens were produced, and (time, number of the newest token) on the screen.

    The last tokens may first be seen when the answer is finished: `ended` then is when they were shown.
    """
    shown_at_end = max((newest + 1 for when, newest in seen if when <= produced[-1]), default=0)
    last = seen[-1][0] if seen[-1][1] == len(produced) - 1 else ended
    # n tokens are n - 1 steps: a page without any delay shows exactly the rate that they were written at.
    return Run((len(produced) - 1) / (last - produced[0]), len(produced) - shown_at_end, ended - produced[-1])


def _row(runs: list[Run]) -> Row:
    ratios = sorted(run.rate / RATE for run in runs)
    median = statistics.median(ratios)
    detail = (
        f"shown {statistics.median(run.rate for run in runs):.1f} tokens/s, "
        f"{statistics.median(run.tokens_behind for run in runs):.0f} tokens behind at the last one, "
        f"finished {statistics.median(run.seconds_to_end for run in runs):.2f} s after it"
    )
    claim = f"the page against a model at {RATE:g} tokens/s, {TOKENS} tokens below {ABOVE} coloured answers"
    return Row(claim, "shown", "written", median, ratios[0], ratios[-1], f">= {BAR:g}", median >= BAR, detail)


if __name__ == "__main__":
    main(3)
