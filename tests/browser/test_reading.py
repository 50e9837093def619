"""Claims about assets/uqchat.js in a real browser: keys, marks on a selection, redraws.

The server is a list of the events that it was told.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import scored_tokens
from tests.drawing import Running, Stored, sequence
from uqchat.render import RiskView, conversation_html, inspector_html, live_answer_html

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

ASSETS = Path(__file__).parents[2] / "assets"
VIEW = RiskView()
PARTS = {"history": "uq-scroll", "live": "uq-scroll", "inspector": "uq-inspector"}


def open_page(page: Page, **parts: str) -> None:
    """A page with the given parts bound to a trigger that only writes down what it was given."""
    style = (ASSETS / "uqchat.css").read_text(encoding="utf-8")
    page.set_content(
        f"<style>{style} .uq-scroll {{ height: 300px; overflow-y: auto }}</style>"
        '<div class="uq-scroll"><div id="uq-history"><div></div></div><div id="uq-live"><div></div></div></div>'
        '<div class="uq-inspector" id="uq-inspector"><div></div></div><div id="uq-composer"><textarea></textarea></div>'
    )
    page.add_script_tag(content=(ASSETS / "uqchat.js").read_text(encoding="utf-8"))
    page.evaluate("window.events = []")
    for name in ("history", "live", "inspector"):
        redraw(page, name, parts.get(name, ""))
        page.evaluate(
            f"uqchat.bind(document.querySelector('#uq-{name} > div'), (type, data) => events.push([type, data]))"
        )


def redraw(page: Page, name: str, markup: str) -> None:
    """New HTML for one part."""
    page.evaluate("([id, html]) => { document.querySelector(id + ' > div').innerHTML = html }", [f"#uq-{name}", markup])


def events(page: Page) -> list[dict[str, Any]]:
    """What the server was told."""
    told = page.evaluate("events")
    assert all(kind == "select" for kind, _ in told)
    return [data for _, data in told]


def answer(text: str = "one two three", **changes: Any) -> Stored:
    """A finished answer."""
    return Stored("assistant", text, id="a1", tokens=scored_tokens(text), **changes)


def test_a_token_is_reached_walked_to_and_opened_without_a_mouse(page: Page) -> None:
    open_page(page, history=conversation_html([answer()], VIEW))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.i") == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("[document.activeElement.textContent, document.activeElement.role]") == ["two", "button"]
    page.keyboard.press("Enter")
    assert events(page) == [{"action": "token", "message": "a1", "index": 1}]
    assert page.locator('[tabindex="0"]').count() == 1
    assert page.locator(".uq-chosen-token").text_content() == "two"


def test_escape_closes_the_token_and_gives_the_focus_back_to_it(page: Page) -> None:
    tokens = scored_tokens("one two three")
    open_page(
        page, history=conversation_html([answer()], VIEW), inspector=inspector_html(tokens[1], tokens, VIEW, "a1")
    )
    page.locator('.uq-t[data-i="1"]').click()
    page.locator('[aria-label="Next token"]').focus()
    page.keyboard.press("Escape")
    assert events(page)[-1] == {"action": "close"}
    assert page.evaluate("document.activeElement.dataset.i") == "1"
    assert page.locator(".uq-chosen-token").count() == 0


def test_escape_stops_an_answer_under_way_even_from_the_composer(page: Page) -> None:
    open_page(page, live=live_answer_html(Running(scored_tokens("one two")), VIEW, "a2"))
    page.locator("textarea").focus()
    page.keyboard.press("Escape")
    assert events(page) == [{"action": "stop", "message": "a2"}]


def test_a_marked_selection_is_counted_in_characters_not_in_utf16_units(page: Page) -> None:
    open_page(page, history=conversation_html([answer("🙂🙂 is wrong")], VIEW))
    page.evaluate(
        "() => { const [a, b] = document.querySelectorAll('.uq-t'); const r = document.createRange();"
        "r.setStart(a.firstChild, 2); r.setEnd(b.firstChild, 2);"
        "getSelection().removeAllRanges(); getSelection().addRange(r); }"
    )
    page.get_by_role("button", name="Mark wrong").click()
    assert events(page) == [{"action": "mark_span_wrong", "message": "a1", "start": 1, "end": 5}]


@pytest.mark.parametrize("changes", [{"is_example": True}, {"role": "user"}])
def test_only_an_answer_of_this_chat_can_be_marked(page: Page, changes: dict[str, Any]) -> None:
    message = Stored(**{"role": "assistant", "text": "one two", "tokens": scored_tokens("one two"), **changes})
    open_page(page, history=conversation_html([message], VIEW))
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.uq-text'))")
    page.wait_for_timeout(100)
    assert page.locator(".uq-marker").is_hidden()


def test_an_unfolded_reasoning_stays_unfolded_when_the_answer_is_redrawn(page: Page) -> None:
    texts = ("let me think", " more", " Paris")
    tokens = [*sequence(*((text, 0.1) for text in texts[:2]), is_reasoning=True)]
    open_page(page, live=live_answer_html(Running(tuple(tokens[:1])), VIEW, "a2"))
    page.locator("summary").click()
    redraw(page, "live", live_answer_html(Running(tuple(tokens)), VIEW, "a2"))
    page.wait_for_function("document.querySelector('details').open")
    page.locator("summary").click()
    page.wait_for_function("!document.querySelector('details').open")


def test_editing_sends_the_new_text_and_escape_leaves_the_old_one(page: Page) -> None:
    open_page(page, history=conversation_html([Stored("user", "Why?\n<b>", id="u1")], VIEW))
    page.get_by_role("button", name="Edit and ask again").click()
    field = page.get_by_label("Edit the question")
    assert field.input_value() == "Why?\n<b>"
    page.keyboard.press("Escape")
    assert field.count() == 0 and events(page) == []
    page.get_by_role("button", name="Edit and ask again").click()
    field.fill("Why not?")
    page.keyboard.press("Enter")
    assert events(page) == [{"action": "edit", "message": "u1", "text": "Why not?"}]


def test_a_button_sends_its_numbers_as_numbers(page: Page) -> None:
    tokens = scored_tokens("one two three")
    open_page(page, inspector=inspector_html(tokens[1], tokens, VIEW, "a1"))
    page.locator('[data-action="continue"]').first.click()
    other = tokens[1].alternatives[1].token_id
    assert events(page) == [{"action": "continue", "message": "a1", "index": 1, "token_id": other}]


def test_the_page_follows_a_growing_answer_only_for_a_reader_at_its_end(page: Page) -> None:
    def grow(words: int) -> None:
        redraw(page, "live", live_answer_html(Running(scored_tokens("a few words of text " * words)), VIEW, "a2"))

    at_end = (
        "(() => { const s = document.querySelector('.uq-scroll');"
        "return s.scrollTop + s.clientHeight > s.scrollHeight - 5 })()"
    )
    open_page(page)
    grow(300)
    page.wait_for_function(at_end)
    page.locator(".uq-scroll").hover()
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"!{at_end}")
    page.wait_for_timeout(200)
    top = page.evaluate("document.querySelector('.uq-scroll').scrollTop")
    grow(400)
    page.wait_for_timeout(200)
    assert page.evaluate("document.querySelector('.uq-scroll').scrollTop") == top


def test_the_end_of_an_awaited_answer_is_announced_once_and_another_chat_is_not(page: Page) -> None:
    open_page(page, live=live_answer_html(Running(scored_tokens("one")), VIEW, "a1"))
    redraw(page, "live", "")
    redraw(page, "history", conversation_html([answer("one")], VIEW))
    page.wait_for_function("document.querySelector('.uq-voice').textContent.startsWith('Answer finished. ')")
    page.evaluate("document.querySelector('.uq-voice').textContent = ''")
    redraw(page, "history", conversation_html([Stored("assistant", "x", id="other", tokens=scored_tokens("x"))], VIEW))
    page.wait_for_timeout(200)
    assert page.locator(".uq-voice").text_content() == ""


def test_copying_takes_the_answer_without_its_reasoning_and_markdown_as_it_was_written(page: Page) -> None:
    tokens = scored_tokens("hm **Paris**", reasoning=1)
    message = Stored("assistant", "hm **Paris**", tokens=tokens)
    for mode in ("risk", "markdown"):
        open_page(page, history=conversation_html([message], RiskView(mode=mode)))
        page.evaluate("document.execCommand = () => { window.copied = document.activeElement.value }")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
        page.get_by_role("button", name="Copy").click()
        page.wait_for_function("window.copied !== undefined")
        assert page.evaluate("window.copied") == "**Paris**"
