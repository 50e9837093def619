"""Chromium for the browser tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needs import skip_or_fail

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all browser tests: UQCHAT_CHROMIUM, one on the PATH, or Playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        executable = find_chromium(playwright)
        if executable is None:
            skip_or_fail("no Chromium: install chromium, run `playwright install chromium`, or set UQCHAT_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


def find_chromium(playwright: Playwright) -> str | None:
    """Path of the Chromium to drive, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    candidates = [os.environ.get("UQCHAT_CHROMIUM"), *map(shutil.which, names), playwright.chromium.executable_path]
    return next((path for path in candidates if path and Path(path).exists()), None)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of a new user at 1280 x 800."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()
