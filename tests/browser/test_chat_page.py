"""The chat in a real browser, over a scripted host and (marked `model`) over the real embedded model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.doubles import ScriptedHost, wait_until
from uqchat.config import AppConfig
from uqchat.host import ModelHost
from uqchat.ui.serve import close, launch
from uqchat.ui.services import Services, open_services

pytestmark = pytest.mark.browser
LONG = "Write a long story about a river, its people and its towns."
ANSWER = " ".join(f"word{i} of a long story about a river," for i in range(40))
BUSY = '#uq-live .uq-answer[aria-busy="true"] .uq-t'
HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror='window.hit=1'> ${window.hit=1} "
    "![x](http://192.0.2.1/x) \u202e{{hit}} `**"
)
SLOW = 60_000  # ms that the real model may take on a shared machine


@pytest.fixture(scope="module", params=["scripted", pytest.param("embedded", marks=pytest.mark.model)])
def services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Everything behind the page, with a database on disk."""
    config = AppConfig(data_dir=tmp_path_factory.mktemp("page"), port=0)
    host = ScriptedHost(ANSWER, delay=0.03) if request.param == "scripted" else ModelHost(config)
    services = open_services(config, host)
    wait_until(lambda: host.status().state == "ready", timeout=300)
    yield services
    close(services)


@pytest.fixture(scope="module")
def address(services: Services) -> Iterator[str]:
    """Where the page is served."""
    page = launch(services, prevent_thread_lock=True, quiet=True)
    yield page.blocks.local_url
    page.blocks.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser user of its own; at the end nothing was wrong in the console and nobody else was asked for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    wrong: list[str] = []
    context.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("request", lambda request: None if is_local(request.url) else wrong.append(request.url))
    yield context
    context.close()
    assert wrong == []


@pytest.fixture
def page(context: BrowserContext, address: str) -> Page:
    """The open chat."""
    return open_page(context, address)


def is_local(url: str) -> bool:
    """Whether a request stays on this machine."""
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).hostname in ("127.0.0.1", "localhost")


def open_page(context: BrowserContext, address: str, width: int = 1280, height: int = 800) -> Page:
    """A new tab with the chat, ready to be used."""
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.goto(address)
    expect(page.locator("#uq-history .uq-message").first).to_be_visible(timeout=SLOW)
    expect(page.locator("#uq-status .uq-is-ready")).to_be_visible(timeout=SLOW)
    return page


def ask(page: Page, text: str) -> None:
    """Types and presses Enter."""
    page.locator("#uq-prompt textarea").fill(text)
    page.locator("#uq-prompt textarea").press("Enter")


def stop(page: Page) -> None:
    """Presses Esc and waits for the answer to be a finished one."""
    page.keyboard.press("Escape")
    expect(page.locator("#uq-history")).to_contain_text("Stopped", timeout=SLOW)
    expect(page.locator("#uq-send")).to_be_visible(timeout=SLOW)


def ask_and_stop(page: Page, tokens: int = 8) -> None:
    """A short finished answer."""
    ask(page, LONG)
    expect(page.locator(BUSY).nth(tokens)).to_be_visible(timeout=SLOW)
    stop(page)


def answer_text(page: Page) -> str:
    """The last finished answer."""
    return page.locator("#uq-history .uq-answer .uq-text").last.text_content() or ""


def test_an_answer_is_tinted_while_it_streams(page: Page) -> None:
    ask(page, LONG)
    expect(page.locator(BUSY).first).to_be_visible(timeout=SLOW)
    early = page.locator(BUSY).count()
    assert re.search(r"uq-b[0-4]", page.locator(BUSY).first.get_attribute("class") or "")
    expect(page.locator(BUSY).nth(early + 5)).to_be_visible(timeout=SLOW)
    stop(page)


def test_stop_halts_at_once_and_the_next_prompt_works(page: Page) -> None:
    ask_and_stop(page)
    stopped = answer_text(page)
    ask(page, "Tell me more about the river.")
    expect(page.locator(BUSY).first).to_be_visible(timeout=SLOW)
    assert page.locator("#uq-history .uq-answer .uq-text").first.text_content() == stopped
    stop(page)


def test_a_refresh_restores_the_chat(page: Page) -> None:
    ask_and_stop(page)
    before = answer_text(page)
    page.evaluate("console.error = () => {}")  # a request that leaving cuts off is no fault of the page that opens
    page.reload()
    expect(page.locator("#uq-history .uq-answer .uq-text").last).to_have_text(before, timeout=SLOW)
    expect(page.locator("#uq-history .uq-user").first).to_contain_text("a long story")


def test_another_browser_never_sees_the_chats_of_the_first(page: Page, browser: Browser, address: str) -> None:
    ask_and_stop(page)
    expect(page.locator("#uq-chats [data-chat]").first).to_be_visible()
    other = browser.new_context()
    stranger = open_page(other, address)
    expect(stranger.locator("#uq-chats")).to_contain_text("No chats yet")
    expect(stranger.locator("#uq-history")).to_contain_text("Stored example")
    other.close()


def test_a_token_opens_in_the_inspector_by_keyboard(page: Page) -> None:
    ask_and_stop(page)
    page.locator('#uq-history .uq-t[tabindex="0"]').first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator('#uq-inspector .uq-inspect[data-i="2"]')).to_be_visible(timeout=SLOW)
    expect(page.locator("#uq-inspector .uq-alternatives li").first).to_be_visible()


def test_continue_from_here_branches_and_the_old_version_stays(page: Page) -> None:
    ask_and_stop(page)
    old = answer_text(page)
    page.locator("#uq-history .uq-answer .uq-t").nth(3).click()
    page.locator('#uq-inspector [data-action="continue"]').first.click()
    expect(page.locator(BUSY).nth(5)).to_be_visible(timeout=SLOW)
    stop(page)
    expect(page.locator("#uq-history .uq-answer .uq-versions")).to_contain_text("2 / 2")
    new = answer_text(page)
    assert new != old and new.split()[:2] == old.split()[:2]
    page.locator('#uq-history .uq-answer [data-action="versions_prev"]').click()
    expect(page.locator("#uq-history .uq-answer .uq-text").last).to_have_text(old)


def test_a_tab_closed_in_the_middle_leaves_a_cancelled_answer(
    page: Page, context: BrowserContext, services: Services, address: str
) -> None:
    ask(page, LONG)
    expect(page.locator(BUSY).nth(5)).to_be_visible(timeout=SLOW)
    page.close()
    wait_until(lambda: services.host.language_model.running == 0 if isinstance(services.host, ScriptedHost) else True)
    again = open_page(context, address)
    expect(again.locator("#uq-history")).to_contain_text("Stopped", timeout=SLOW)
    assert answer_text(again)


def test_a_hostile_prompt_stays_text(page: Page) -> None:
    ask(page, HOSTILE)
    expect(page.locator("#uq-history .uq-user .uq-text").last).to_have_text(HOSTILE)
    expect(page.locator(BUSY).first).to_be_visible(timeout=SLOW)
    stop(page)
    page.get_by_label("Markdown").check()
    expect(page.locator("#uq-history .uq-md").first).to_be_visible()
    assert page.evaluate("window.hit") is None


def test_a_prompt_that_is_too_long_is_explained_and_stays_in_the_composer(page: Page) -> None:
    ask(page, "x" * 100_000)
    expect(page.get_by_text("100,000 characters")).to_be_visible(timeout=SLOW)
    assert len(page.locator("#uq-prompt textarea").input_value()) == 100_000
    ask(page, "   ")
    expect(page.get_by_text("The message is empty")).to_be_visible()


def test_the_first_minute_fits_one_screen_and_a_press_asks(page: Page) -> None:
    expect(page.locator("#uq-questions section")).to_have_count(3)
    for selector in ("#uq-history .uq-answer", "#uq-legend", "#uq-inspector", "#uq-prompt", "#uq-send"):
        expect(page.locator(selector).first).to_be_in_viewport(ratio=1)
    expect(page.locator("#uq-questions .uq-ask").last).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    question = page.locator("#uq-questions .uq-ask").first
    text = question.text_content() or ""
    question.click()
    expect(page.locator("#uq-history .uq-user")).to_contain_text(text)
    expect(page.locator("#uq-history .uq-answer .uq-line").last).to_be_visible(timeout=SLOW)


def test_shift_enter_breaks_the_line(page: Page) -> None:
    box = page.locator("#uq-prompt textarea")
    box.fill("one")
    box.press("Shift+Enter")
    box.type("two")
    assert box.input_value() == "one\ntwo"
    expect(page.locator("#uq-history")).to_contain_text("Stored example")


def test_a_switch_of_estimator_and_scale_recolours(page: Page) -> None:
    def classes() -> list[str]:
        return page.locator("#uq-history .uq-t").evaluate_all("all => all.map(one => one.className)")

    first = classes()
    page.get_by_label("Within answer").check()
    expect(page.locator("#uq-legend")).to_contain_text("fifth")
    wait_until(lambda: classes() != first)
    second = classes()
    page.locator("#uq-estimator input").click()
    page.get_by_role("option", name="Maximum probability").click()
    expect(page.locator("#uq-legend")).to_contain_text("probability")
    wait_until(lambda: classes() != second)


def test_a_chat_is_renamed_deleted_and_brought_back(page: Page) -> None:
    ask_and_stop(page)
    page.locator("#uq-chats li").first.hover()
    page.locator("#uq-chats [data-rename]").first.click()
    page.locator(".uq-rename input").fill("The river <b>")
    page.locator(".uq-rename input").press("Enter")
    expect(page.locator("#uq-chats .uq-chat-name").first).to_have_text("The river <b>")
    page.locator('#uq-chats [data-action="chat_delete"]').first.click()
    expect(page.locator("#uq-history")).to_contain_text("Stored example")
    page.locator('#uq-chats [data-action="chat_restore"]').click()
    expect(page.locator("#uq-history .uq-user")).to_contain_text("a long story")


def test_a_chat_leaves_as_a_file_and_comes_back(page: Page, tmp_path: Path) -> None:
    ask_and_stop(page)
    with page.expect_download(timeout=SLOW) as waiting:
        page.locator("#uq-export-json").click()
    waiting.value.save_as(tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text())
    before = page.locator("#uq-chats li").count()
    page.locator('#uq-transfer input[type="file"]').set_input_files(tmp_path / "chat.json")
    expect(page.locator("#uq-chats li")).to_have_count(before + 1, timeout=SLOW)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(
    context: BrowserContext, address: str, scheme: str
) -> None:
    page = open_page(context, address, 390, 844)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#uq-history .uq-user")).to_be_in_viewport()
    expect(page.get_by_text(re.compile("alibrated")).first).to_be_in_viewport()
    page.locator("#uq-history .uq-answer .uq-t").nth(2).click()
    expect(page.locator("#uq-inspector .uq-alternatives")).to_be_in_viewport(timeout=SLOW)
    page.locator('#uq-inspector [data-action="close"]').click()
    page.locator(".uq-toggle-chats").click()
    expect(page.locator("#uq-new")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(context: BrowserContext, address: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(context, address)
    page.emulate_media(color_scheme=scheme)
    ask_and_stop(page)
    page.locator("#uq-history .uq-answer .uq-t").nth(3).click()
    expect(page.locator("#uq-inspector .uq-alternatives")).to_be_visible()
    for tab in ("Inspect", "Score", "Settings", "Model", "Estimators", "Help", "Inspect"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        if tab == "Estimators":
            page.locator(".uq-head summary").first.click()
        if tab == "Help":  # the last look is at the list of claims
            page.get_by_label("Sentences").check()
            expect(page.locator(".uq-claim").first).to_be_attached()
        found = Axe().run(page).response["violations"]
        serious = [
            (v["id"], [n["html"][:160] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], tab
