"""Draws the README's pictures: starts the app on a free port, asks the embedded model, photographs the page.

Knows the page's element ids, nothing of its code. Run it with `make pictures`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "assets" / "pictures"
QUESTION = "What is the capital of Kyrgyzstan?"
SEVERAL = "Name the capitals of France, Bhutan, Canada and Mali, one a sentence."
START_SECONDS = 180
ANSWER_MILLISECONDS = 180_000


@dataclass(frozen=True)
class Shot:
    """One picture: file name, viewport in CSS pixels, colour scheme, what is tinted, another question than usual."""

    name: str
    width: int
    height: int
    scheme: str
    view: str = "Tokens"
    question: str = ""


SHOTS = (
    Shot("desktop-light", 1280, 800, "light"),
    Shot("desktop-dark", 1280, 800, "dark"),
    Shot("phone-light", 390, 844, "light"),
    Shot("phone-dark", 390, 844, "dark"),
    Shot("claims-light", 1280, 800, "light", "Facts", SEVERAL),
    Shot("playground-light", 1280, 860, "light", "Playground"),
)


def main() -> None:
    """Write every picture into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURES)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--only", help="the name of one picture; default: all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with running_app() as url, sync_playwright() as playwright:
        executable = os.environ.get("UQCHAT_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for shot in [shot for shot in SHOTS if args.only in (None, shot.name)]:
            path = args.out / f"{shot.name}.png"
            take(browser, url, shot, args.question, path)
            print(path)
        browser.close()


@contextmanager
def running_app() -> Iterator[str]:
    """The address of an app of our own, with a database of its own; it ends with the block."""
    with tempfile.TemporaryDirectory() as data_dir, tempfile.TemporaryFile("w+") as log:
        environment = os.environ | {
            "UQCHAT_PORT": "0",
            "UQCHAT_DATA_DIR": data_dir,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, str(ROOT / "app.py")]
        app = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            yield wait_for_url(app, log.fileno())
        finally:
            app.terminate()
            app.wait(timeout=30)


def wait_for_url(app: subprocess.Popen[bytes], log: int) -> str:
    """The address the app prints when it listens. Exits with its output when it does not."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and app.poll() is None:
        text = os.pread(log, 1 << 20, 0).decode(errors="replace")
        if found := re.search(r"http://[\d.]+:\d+", text):
            return found[0]
        time.sleep(0.2)
    sys.exit(f"The app did not start:\n{os.pread(log, 1 << 20, 0).decode(errors='replace')}")


def take(browser: Browser, url: str, shot: Shot, question: str, path: Path) -> None:
    """Ask as a new user and photograph the answer; on a wide screen with its riskiest token open."""
    size = {"width": shot.width, "height": shot.height}
    context = browser.new_context(viewport=size, color_scheme=shot.scheme, device_scale_factor=2)
    page = context.new_page()
    page.goto(f"{url}/?__theme={shot.scheme}")
    if shot.view == "Playground":
        page.get_by_role("tab", name="Playground").click()
        page.locator("#uq-pg-table tbody tr").first.wait_for(timeout=ANSWER_MILLISECONDS)
        page.screenshot(path=path, animations="disabled")
        context.close()
        return
    ask(page, shot.question or question)
    page.get_by_label(shot.view, exact=True).check()
    if shot.view != "Tokens":
        page.locator(".uq-claim").first.click()
    elif shot.width > 800:
        open_riskiest_token(page)
    page.screenshot(path=path, animations="disabled")
    context.close()


def ask(page: Page, question: str) -> None:
    """Send the question once the model is ready, and wait for the whole answer."""
    page.locator("#uq-status .uq-is-ready").wait_for(timeout=ANSWER_MILLISECONDS)
    prompt = page.locator("#uq-prompt textarea")
    prompt.fill(question)
    prompt.press("Enter")
    page.locator("#uq-live [aria-busy=true]").wait_for(timeout=ANSWER_MILLISECONDS)
    page.locator("#uq-live [aria-busy=true]").wait_for(state="detached", timeout=ANSWER_MILLISECONDS)
    expect(page.locator("#uq-history")).to_contain_text(question)


def open_riskiest_token(page: Page) -> None:
    """Click the first token of the highest bin in the newest answer."""
    for level in (4, 3, 2, 1, 0):
        tokens = page.locator(f"#uq-history .uq-t.uq-b{level}")
        if tokens.count():
            tokens.last.click()
            expect(page.locator("#uq-inspector")).to_contain_text("%")
            return


if __name__ == "__main__":
    main()
