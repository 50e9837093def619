"""The claims view in a real browser, on a desktop and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.doubles import ScriptedHost
from uqchat.config import AppConfig
from uqchat.ui.serve import close, launch
from uqchat.ui.services import open_services

pytestmark = pytest.mark.browser
ANSWER = " ".join(f"In {1900 + i} the town of Osh{i} was here." for i in range(30))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page over a model that tells of many towns."""
    folder: Path = tmp_path_factory.mktemp("claims")
    services = open_services(AppConfig(data_dir=folder, port=0), ScriptedHost(ANSWER))
    page = launch(services, prevent_thread_lock=True, quiet=True)
    yield page.blocks.local_url
    page.blocks.close()
    close(services)


def asked(browser: Browser, address: str, width: int, height: int) -> Page:
    """A page of this size whose only answer is tinted by facts."""
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.goto(address)
    expect(page.locator("#uq-status .uq-is-ready")).to_be_visible()
    page.locator("#uq-prompt textarea").fill("Towns?")
    page.keyboard.press("Enter")
    expect(page.locator("#uq-history .uq-answer:not([data-example])")).to_contain_text("Osh29 was here.")
    page.get_by_label("Facts").check()
    expect(page.locator("#uq-history .uq-c")).to_have_count(60)
    return page


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_a_press_in_the_list_shows_and_marks_the_claim_and_the_keyboard_goes_on(
    browser: Browser, address: str, width: int, height: int
) -> None:
    page = asked(browser, address, width, height)
    if width < 800:
        page.locator(".uq-toggle-panel").click()
    rows, chosen = page.locator(".uq-claim"), page.locator("#uq-history .uq-c.uq-chosen-claim")
    rows.first.click()
    expect(chosen).to_have_count(1)
    expect(chosen).to_have_text(rows.first.locator(".uq-claim-text").inner_text())
    expect(chosen).to_be_in_viewport()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(rows.nth(1)).to_have_attribute("aria-current", "true")
    expect(chosen).to_have_text(rows.nth(1).locator(".uq-claim-text").inner_text())
    expect(chosen).to_be_in_viewport()
    assert is_uncovered(page)
    page.get_by_label("Tokens").check()
    expect(page.locator(".uq-claim")).to_have_count(0)
    page.context.close()


def is_uncovered(page: Page) -> bool:
    """Whether the marked claim is what lies on top in its own middle."""
    return page.evaluate(
        """() => {
            const claim = document.querySelector(".uq-c.uq-chosen-claim"), box = claim.getClientRects()[0];
            const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
            return claim.contains(top);
        }"""
    )
