"""What the list of chats, import and export promise, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest

from tests.ui.conftest import BOB, FakeRequest, Tab
from uqchat.ui.page import Page


def asked(tab: Tab, text: str) -> str:
    """Asks in a new chat; its id."""
    tab.page.chats.on_new_chat(tab.request, tab.kept)
    tab.ask(text)
    tab.finish()
    return tab.session.chat_id or ""


def test_a_first_question_names_the_chat_and_puts_it_on_top(tab: Tab) -> None:
    asked(tab, "First question")
    tab.page.chats.on_new_chat(tab.request, tab.kept)
    html = tab.html(tab.ask("Second question"), "chats")
    assert 0 < html.index("Second question") < html.index("First question")
    tab.finish()


def test_a_refresh_shows_the_chat_that_was_open(tab: Tab) -> None:
    chat_id = asked(tab, "Capital of France?")
    again = Tab(tab.page, request=FakeRequest("tab-2"))
    updates = again.open(chat_id)
    assert "Paris" in again.html(updates, "history") and again.html(updates, "questions") == ""


@pytest.mark.parametrize("last_chat", [None, "gone", 3, {"x": 1}])
def test_without_a_chat_the_page_shows_the_example_and_questions(tab: Tab, last_chat: str | None) -> None:
    updates = tab.open(last_chat)
    assert "Stored example" in tab.html(updates, "history") and 'data-action="ask"' in tab.html(updates, "questions")


def test_rename_search_delete_and_undo(tab: Tab) -> None:
    first, second = asked(tab, "About cats"), asked(tab, "About dogs")
    assert "Felines &lt;b&gt;" in tab.html(tab.list("chat_rename", chat=first, text="Felines <b>"), "chats")
    html = tab.html(tab.page.chats.on_search(tab.request, tab.kept, "felines"), "chats")
    assert "Felines" in html and "dogs" not in html
    tab.page.chats.on_search(tab.request, tab.kept, "")
    updates = tab.list("chat_delete", chat=second)
    assert "Undo" in tab.html(updates, "chats") and "Stored example" in tab.html(updates, "history")
    updates = tab.list("chat_restore", chat=second)
    assert "About dogs" in tab.html(updates, "history") and "Undo" not in tab.html(updates, "chats")


@pytest.mark.parametrize("label", ["JSON", "CSV", "HTML"])
def test_a_chat_is_exported(tab: Tab, label: str) -> None:
    asked(tab, "Capital of France?")
    updates = tab.page.chats.on_export(tab.request, tab.kept, label)
    path = Path(tab.html(updates, "download").value["path"])
    assert path.suffix == f".{label.lower()}" and b"Paris" in path.read_bytes()


def test_an_exported_chat_comes_back_for_another_user(tab: Tab) -> None:
    asked(tab, "Capital of France?")
    tab.page.chats.on_export(tab.request, tab.kept, "JSON")
    data = next(Path(tab.session.export.name).iterdir()).read_bytes()
    other = Tab(tab.page, kept=BOB, request=FakeRequest("tab-2"))
    other.open()
    updates = other.page.chats.on_upload(other.request, BOB, data)
    assert "Paris" in other.html(updates, "history")
    assert other.session.chat_id != tab.session.chat_id


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe"])
def test_a_file_that_is_no_chat_is_refused_and_nothing_is_added(tab: Tab, data: bytes) -> None:
    with pytest.raises(gr.Error):
        tab.page.chats.on_upload(tab.request, tab.kept, data)
    assert "No chats yet" in tab.html(tab.open(), "chats")


def test_with_a_login_chats_belong_to_the_name_whatever_the_browser_sends(make_page: Callable[..., Page]) -> None:
    page = make_page()
    alice = Tab(page, request=FakeRequest("tab-1", "alice"))
    alice.open()
    chat_id = asked(alice, "Capital of France?")
    bob = Tab(page, request=FakeRequest("tab-2", "bob"))
    bob.open(chat_id)
    assert bob.session.chat_id is None
    elsewhere = Tab(page, kept=BOB, request=FakeRequest("tab-3", "alice"))
    elsewhere.open(chat_id)
    assert elsewhere.session.chat_id == chat_id
