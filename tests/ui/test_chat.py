"""What the handlers of the conversation promise, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import pytest

from tests.doubles import ScriptedHost, wait_until
from tests.ui.conftest import BOB, FakeRequest, Tab
from uqchat.errors import InputError
from uqchat.estimators import ESTIMATOR_NAMES
from uqchat.ui.chat import ask_settings
from uqchat.ui.page import Page

HOSTILE = "<script>alert(1)</script> ${alert(1)} ![x](http://evil.example/x.png) \u202eabc"


def test_an_answer_streams_growing_and_tinted(make_page: Callable[..., Page]) -> None:
    host = ScriptedHost("one two three four five six", delay=0.05)
    tab = Tab(make_page(host))
    tab.open()
    assert tab.html(tab.ask("Count"), "prompt") == ""
    updates = tab.drain()
    streams = [html for html in updates if "uq-t" in html]
    assert len(streams) > 2
    assert all(later.startswith(earlier) for earlier, later in zip(streams, streams[1:], strict=False))
    assert 'aria-busy="true"' in streams[0] and "uq-b" in streams[0]


def test_the_finished_answer_moves_to_the_history(tab: Tab) -> None:
    tab.ask("Capital of France?")
    updates = tab.finish()
    assert "Paris" in tab.html(updates, "history") and tab.html(updates, "live") == ""
    assert tab.html(updates, "send").visible and not tab.html(updates, "stop").visible
    assert [m.text for m in tab.stored()] == ["Capital of France?", "Paris is the capital of France."]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "empty"), ("  \n ", "empty"), ("\u200f\u202e", "empty"), ("\x00\x07", "empty"), ("x" * 100_000, "100,000")],
)
def test_an_unusable_prompt_is_explained_and_changes_nothing(tab: Tab, prompt: str, words: str) -> None:
    with pytest.raises(gr.Error, match=words):
        tab.ask(prompt)
    assert tab.session.chat_id is None
    tab.ask("Now a question")
    tab.finish()
    assert len(tab.stored()) == 2


def test_a_hostile_prompt_is_text_in_the_page_and_unchanged_in_the_store(tab: Tab) -> None:
    html = tab.html(tab.ask(HOSTILE), "history")
    tab.finish()
    assert tab.stored()[0].text == HOSTILE
    assert "<script" not in html and "${" not in html and "<img" not in html


def test_an_error_message_is_escaped(tab: Tab) -> None:
    with pytest.raises(gr.Error) as caught:
        tab.do("<img src=x onerror=alert(1)>")
    assert "<img" not in caught.value.message


def test_while_the_model_loads_the_page_says_so_and_keeps_the_prompt(make_page: Callable[..., Page]) -> None:
    host = ScriptedHost()
    host.set_state("loading", "embedded is being loaded.")
    tab = Tab(make_page(host))
    tab.open()
    with pytest.raises(gr.Error, match="being loaded"):
        tab.ask("Hello?")
    assert tab.session.chat_id is None


def test_stop_keeps_what_was_written_and_the_next_prompt_works_at_once(make_page: Callable[..., Page]) -> None:
    tab = Tab(make_page(ScriptedHost("one two three four", "five", hold_after=2)))
    tab.open()
    tab.ask("Count")
    wait_until(lambda: len(tab.session.run.snapshot().tokens) == 2)
    tab.page.chat.on_stop(tab.request, tab.kept)
    tab.ask("And on?")
    tab.finish()
    assert [(m.text, m.status) for m in tab.stored()][1::2] == [("one two", "cancelled"), ("five", "done")]


def test_a_second_prompt_while_an_answer_streams_is_refused(make_page: Callable[..., Page]) -> None:
    tab = Tab(make_page(ScriptedHost("one two three", hold_after=1)))
    tab.open()
    tab.ask("Count")
    with pytest.raises(gr.Error, match="still being written"):
        tab.ask("Again")
    tab.page.chat.on_stop(tab.request, tab.kept)


def test_closing_the_tab_keeps_the_partial_answer_as_cancelled(make_page: Callable[..., Page]) -> None:
    tab = Tab(make_page(ScriptedHost("one two three four", hold_after=2)))
    tab.open()
    tab.ask("Count")
    run, chat_id = tab.session.run, tab.session.chat_id
    wait_until(lambda: len(run.snapshot().tokens) == 2)
    tab.page.chats.on_unload(tab.request)
    assert run.join(10)
    again = Tab(tab.page, request=FakeRequest("tab-2"))
    assert "one" in again.html(again.open(chat_id), "history")
    assert [(m.text, m.status) for m in again.stored()][1] == ("one two", "cancelled")


def test_turning_to_another_chat_leaves_the_answer_running(make_page: Callable[..., Page]) -> None:
    tab = Tab(make_page(ScriptedHost("one two three four", hold_after=2)))
    tab.open()
    tab.ask("Count")
    run, chat_id, ticket = tab.session.run, tab.session.chat_id, tab.session.ticket
    tab.page.chats.on_new_chat(tab.request, tab.kept)
    assert list(tab.page.chat.follow(tab.request, ticket)) == [gr.skip()]
    tab.page.chat._services.host.release()
    wait_until(lambda: not run.snapshot().is_running)
    assert "three" in tab.html(tab.list("chat_open", chat=chat_id), "history")


def test_another_tab_of_the_same_user_sees_the_running_answer(make_page: Callable[..., Page]) -> None:
    first = Tab(make_page(ScriptedHost("one two three four", hold_after=2)))
    first.open()
    first.ask("Count")
    wait_until(lambda: len(first.session.run.snapshot().tokens) == 2)
    second = Tab(first.page, request=FakeRequest("tab-2"))
    assert "two" in second.html(second.open(first.session.chat_id), "live")
    first.page.chats.on_unload(first.request)
    assert second.session.is_busy, "the second tab still watches"
    second.page.chats.on_unload(second.request)


def test_regenerate_edit_and_versions(tab: Tab) -> None:
    tab.ask("Capital of France?")
    tab.finish()
    question, answer = tab.stored()
    tab.do("retry", message=answer.id)
    tab.finish()
    assert [m.version for m in tab.stored()] == [1, 2]
    tab.do("edit", message=question.id, text="And of Spain?")
    tab.finish()
    assert [(m.text, m.version_count) for m in tab.stored()][0] == ("And of Spain?", 2)
    html = tab.html(tab.do("versions_prev", message=tab.stored()[0].id), "history")
    assert "Capital of France?" in html and "1 / 2" in html


def test_continue_from_an_alternative_makes_a_branch_and_keeps_the_old_version(tab: Tab) -> None:
    tab.ask("Capital of France?")
    tab.finish()
    answer = tab.stored()[1]
    other = answer.tokens[3].alternatives[1]
    tab.do("continue", message=answer.id, index=3, token_id=other.token_id)
    tab.finish()
    branch = tab.stored()[1]
    assert branch.text.startswith("Paris is the" + other.text) and branch.version_count == 2
    tab.do("versions_prev", message=branch.id)
    assert (tab.stored()[1].id, tab.stored()[1].tokens) == (answer.id, answer.tokens)


def test_undo_puts_the_question_back_into_the_composer(tab: Tab) -> None:
    tab.ask("Capital of France?")
    tab.finish()
    updates = tab.page.chat.on_undo(tab.request, tab.kept)
    assert tab.html(updates, "prompt") == "Capital of France?"
    assert tab.html(updates, "questions")


def test_a_token_opens_in_the_inspector_with_every_listed_estimator(tab: Tab) -> None:
    tab.ask("Capital of France?")
    tab.finish()
    updates = tab.do("token", message=tab.stored()[1].id, index=1)
    html = tab.html(updates, "inspector")
    assert all(label in html for label in ("Entropy", "Maximum probability", "Margin"))
    tab.page.views.on_view(tab.request, tab.kept, "margin", "absolute", "risk", [])
    html = tab.html(tab.do("token", message=tab.stored()[1].id, index=1), "inspector")
    assert "Margin" in html and "Maximum probability" not in html


def test_the_example_opens_in_the_inspector_but_cannot_be_changed(tab: Tab) -> None:
    example = tab.page.chat._services.examples.messages[1]
    html = tab.html(tab.do("token", message=example.id, index=5), "inspector")
    assert "could have written" in html and 'data-action="continue"' not in html
    with pytest.raises(gr.Error, match="stored example"):
        tab.do("retry", message=example.id)


def test_marks_are_stored_and_a_second_press_removes_them(tab: Tab) -> None:
    tab.ask("Capital of France?")
    tab.finish()
    answer = tab.stored()[1].id
    tab.do("mark_wrong", message=answer)
    tab.do("mark_span_wrong", message=answer, start=0, end=5)
    assert {(x.is_error, x.start, x.end) for x in tab.stored()[1].labels} == {(True, None, None), (True, 0, 5)}
    tab.do("mark_wrong", message=answer)
    tab.do("unmark_span", message=answer, start=0, end=5)
    assert tab.stored()[1].labels == ()


def test_another_user_reaches_nothing(tab: Tab) -> None:
    tab.ask("My secret question")
    tab.finish()
    answer, chat_id = tab.stored()[1].id, tab.session.chat_id
    other = Tab(tab.page, kept=BOB, request=FakeRequest("tab-9"))
    assert "secret" not in str(other.open(chat_id)) and other.session.chat_id is None
    for action in ("token", "retry", "mark_right", "versions_prev"):
        with pytest.raises(gr.Error, match="not exist"):
            other.do(action, message=answer, index=0)
    for action in ("chat_open", "chat_delete", "chat_rename", "chat_restore"):
        with pytest.raises(gr.Error, match="not exist"):
            other.list(action, chat=chat_id, text="mine")


def test_an_error_of_the_model_is_shown_and_the_chat_goes_on(make_page: Callable[..., Page]) -> None:
    tab = Tab(make_page(ScriptedHost("one two three", fail_after=2, error=InputError("No memory is left."))))
    tab.open()
    tab.ask("Count")
    assert "No memory is left." in tab.html(tab.finish(), "history")
    tab.page.chat._services.host.language_model.fail_after = None
    tab.ask("Again")
    tab.finish()
    assert tab.stored()[-1].status == "done"


@pytest.mark.parametrize("data", [{}, {"message": 3}, {"message": "x", "index": "1"}, {"message": "x", "index": 1.5}])
def test_a_forged_event_is_refused(tab: Tab, data: dict[str, Any]) -> None:
    with pytest.raises(gr.Error):
        tab.do("continue", **data)


def test_a_scored_text_is_a_turn_like_any_other(tab: Tab) -> None:
    updates = tab.score("Capital of France?", "Lyon, I think.")
    panel = tab.page.widgets.scoring
    assert (updates[panel.question], updates[panel.answer]) == ("", "")
    html = tab.html(tab.finish(), "history")
    assert "Scored, not generated" in html and "Lyon" in html
    answer = tab.stored()[1]
    assert "could have" in tab.html(tab.do("token", message=answer.id, index=1), "inspector")
    tab.do("continue", message=answer.id, index=1, token_id=answer.tokens[1].alternatives[1].token_id)
    tab.finish()
    assert tab.stored()[1].version_count == 2 and tab.stored()[1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("question", "answer", "words"), [("", "x", "message is empty"), ("x", " ", "answer is empty")]
)
def test_an_unusable_text_to_score_is_explained_and_changes_nothing(
    tab: Tab, question: str, answer: str, words: str
) -> None:
    with pytest.raises(gr.Error, match=words):
        tab.score(question, answer)
    assert tab.session.chat_id is None


def test_a_waiting_question_shows_how_many_are_ahead(make_page: Callable[..., Page]) -> None:
    tab = Tab(make_page(ScriptedHost("one two", queue=(3, 2), hold_after=0)))
    tab.open()
    tab.ask("Count")
    updates = tab.page.chat.follow(tab.request, tab.session.ticket)
    wait_until(lambda: "2 requests are ahead of yours" in str(next(updates)))
    tab.page.chat.on_stop(tab.request, tab.kept)


def test_settings_become_a_generation_config() -> None:
    settings = ask_settings("Be brief", 12.0, 7.0, 0.5, 0.9, 0.1, 1.1, 40.0, "END\n\\n\\n")
    generation = settings.generation
    assert (settings.system, generation.max_new_tokens, generation.seed, generation.top_k) == ("Be brief", 12, 7, 40)
    assert generation.stop_strings == ("END", "\n\n")
    assert (generation.temperature, generation.top_p, generation.min_p) == (0.5, 0.9, 0.1)
    with pytest.raises(InputError, match="top_p"):
        ask_settings("", None, None, 0.0, 0.0, 0.0, 1.0, None, "")


def test_the_settings_reach_the_model(tab: Tab) -> None:
    tab.ask("Hello", "Be brief", 2, 5, 0.7, 1.0, 0.0, 1.0, 3, "")
    tab.finish()
    request = tab.page.chat._services.host.requests[-1]
    assert request.dicts[0] == {"role": "system", "content": "Be brief"}
    assert (request.generation.max_new_tokens, request.generation.seed, request.generation.top_k) == (2, 5, 3)
    assert set(request.estimators) == set(ESTIMATOR_NAMES)


def test_after_a_restart_an_old_page_is_told_to_reload(tab: Tab) -> None:
    tab.ask("Capital of France?")
    tab.finish()
    tab.page.chats.on_unload(tab.request)
    with pytest.raises(gr.Error, match="restarted"):
        tab.ask("And of Spain?")


def test_a_browser_without_our_id_gets_one_and_is_refused_elsewhere(tab: Tab) -> None:
    fresh = tab.page.chats.on_load(FakeRequest("t"), "login:alice", None, None)
    assert len(tab.html(fresh, "user")) == 32
    with pytest.raises(gr.Error, match="reload"):
        tab.page.chat.respond(FakeRequest("t"), "login:alice", "Hi", "", 1, 0, 0.0, 1.0, 0.0, 1.0, 0, "")


def test_a_message_with_control_characters_is_sent_without_them_and_says_so(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", said.append)
    tab.ask("Capital\r\nof\tFrance?")
    tab.finish()
    assert said == []
    tab.do("ask", text="a\x00b\x07c")
    assert said == ["Control characters in your message were left out."]
    assert tab.page.chat._services.host.requests[-1].messages[-1].text == "abc"
