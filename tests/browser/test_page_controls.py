"""Scoring a text, what a refresh keeps, the chart's bars and the first moments of a page, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.test_chat_page import SLOW, ask
from tests.doubles import ScriptedHost
from uqchat.config import AppConfig
from uqchat.ui.serve import close, launch
from uqchat.ui.services import open_services

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a page over a scripted host is served."""
    config = AppConfig(data_dir=tmp_path_factory.mktemp("page"), port=0)
    services = open_services(config, ScriptedHost("Paris is the capital of France."))
    page = launch(services, prevent_thread_lock=True, quiet=True)
    yield page.blocks.local_url
    page.blocks.close()
    close(services)


@pytest.fixture
def chat(page: Page, address: str) -> Page:
    """The open chat; nothing goes wrong in it."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{error} {error.stack}"))
    page.goto(address)
    expect(page.locator("#uq-history .uq-message").first).to_be_visible(timeout=SLOW)
    yield page
    assert wrong == []


def finished(page: Page) -> None:
    """Waits for the end of an answer."""
    expect(page.locator("#uq-history .uq-answer .uq-line")).to_be_visible(timeout=SLOW)
    expect(page.locator("#uq-send")).to_be_visible(timeout=SLOW)


def test_a_pasted_answer_is_tinted_inspected_and_continued(chat: Page) -> None:
    chat.get_by_role("tab", name="Score").click()
    question, answer = chat.locator("#uq-score-question textarea"), chat.locator("#uq-score-answer textarea")
    answer.fill("Lyon, I think, for a long time.")
    chat.locator("#uq-score").click()
    expect(chat.get_by_text("The message is empty")).to_be_visible(timeout=SLOW)
    assert answer.input_value() == "Lyon, I think, for a long time."
    question.fill("What is the capital of France?")
    chat.locator("#uq-score").click()
    expect(chat.locator("#uq-history")).to_contain_text("Scored, not generated", timeout=SLOW)
    finished(chat)
    assert question.input_value() == answer.input_value() == ""
    chat.locator("#uq-history .uq-t").nth(2).click()
    chat.locator('#uq-inspector [data-action="continue"]').first.click()
    expect(chat.locator("#uq-history .uq-answer .uq-versions")).to_contain_text("2 / 2", timeout=SLOW)
    chat.locator('#uq-history .uq-answer [data-action="versions_prev"]').click()
    expect(chat.locator("#uq-history")).to_contain_text("Scored, not generated")


def test_settings_and_view_survive_a_refresh_until_they_are_reset(chat: Page) -> None:
    chat.get_by_label("Markdown").check()
    chat.get_by_label("Within answer").check()
    chat.locator("#uq-estimator input").click()
    chat.get_by_role("option", name="Margin").click()
    expect(chat.locator("#uq-legend")).to_contain_text("fifth")
    chat.get_by_role("tab", name="Settings").click()
    chat.get_by_label("System prompt").fill("Be brief.")
    chat.get_by_label("Tokens at most").fill("12")
    chat.locator('input[type="number"][aria-label*="Temperature"]').fill("0.5")
    top_p = chat.locator('input[type="number"][aria-label*="Top-p"]')
    top_p.fill("0.5")
    chat.wait_for_timeout(500)
    chat.get_by_label("Reset to default value").nth(1).click()
    expect(top_p).to_have_value("1")
    chat.wait_for_timeout(1500)  # the page has no sign of what its browser has stored
    chat.reload()
    expect(chat.get_by_label("Markdown")).to_be_checked(timeout=SLOW)
    expect(chat.get_by_label("Within answer")).to_be_checked()
    expect(chat.locator("#uq-estimator input")).to_have_value("Margin")
    expect(chat.locator("#uq-legend")).to_contain_text("fifth")
    chat.get_by_role("tab", name="Settings").click()
    expect(chat.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(chat.get_by_label("Tokens at most")).to_have_value("12")
    expect(chat.locator('input[type="number"][aria-label*="Temperature"]')).to_have_value("0.5")
    expect(top_p).to_have_value("1")
    for reload in (False, True):
        if reload:
            chat.wait_for_timeout(1500)
            chat.reload()
            chat.get_by_role("tab", name="Settings").click()
        else:
            chat.locator("#uq-reset").click()
        expect(chat.get_by_label("System prompt")).to_have_value("", timeout=SLOW)
        expect(chat.get_by_label("Tokens at most")).to_have_value("256")
        expect(chat.locator("#uq-estimator input")).to_have_value("Entropy")
        expect(chat.get_by_label("Absolute")).to_be_checked()
        expect(chat.get_by_label("Tokens", exact=True)).to_be_checked()


def test_a_bar_of_the_chart_opens_its_token(chat: Page) -> None:
    ask(chat, "What is the capital of France?")
    finished(chat)
    for number in (4, 1):
        bar = chat.locator("#uq-chart .barlayer .point").nth(number)
        bar.hover(force=True, timeout=SLOW)  # something transparent lies over the bars
        chat.wait_for_timeout(300)  # Plotly looks for what is under the mouse a moment later
        bar.click(force=True)
        expect(chat.locator(f'#uq-inspector .uq-inspect[data-i="{number}"]')).to_be_visible(timeout=SLOW)
        expect(chat.locator(f'#uq-history .uq-chosen-token[data-i="{number}"]')).to_be_visible()


def test_a_question_sent_while_the_page_still_opens_is_asked_once_it_has(page: Page, address: str) -> None:
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: held.append(route))
    page.goto(address)
    ask(page, "What is the capital of France?")
    page.wait_for_timeout(500)
    for route in held:  # it grows meanwhile
        route.continue_()
    page.unroute("**/queue/join*")
    expect(page.locator("#uq-history .uq-user")).to_contain_text("capital of France", timeout=SLOW)
    finished(page)
    assert page.get_by_text("does not know who you are").count() == 0
    assert page.locator("#uq-history .uq-user").count() == 1
