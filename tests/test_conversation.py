"""Claims about asking, answering again, editing, continuing and stopping, with a scripted model."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import ScriptedHost, scored_token, scored_tokens, token_id_of, wait_until
from uqchat.answer_run import AnswerRun
from uqchat.config import AppConfig, GenerationConfig
from uqchat.conversation import AskSettings, Conversations
from uqchat.errors import BusyError, InputError, ModelError, StoreError
from uqchat.estimators import ESTIMATOR_NAMES
from uqchat.prompt_text import clean_prompt, title_of
from uqchat.store import Store

ANSWER = "Paris is the capital of France."
PLAIN = AskSettings()


def chat_with(
    *answers: Any, max_prompt_chars: int = 20_000, **script: Any
) -> tuple[Conversations, Store, ScriptedHost]:
    """Conversations over a store in memory and a scripted model."""
    store, host = Store("sqlite://"), ScriptedHost(*(answers or (ANSWER,)), **script)
    return Conversations(store, host, AppConfig(max_prompt_chars=max_prompt_chars)), store, host


def ended(run: AnswerRun) -> AnswerRun:
    """The same run, at its end."""
    assert run.join(10)
    return run


def asked(chats: Conversations, text: str = "Capital?", chat_id: str | None = None) -> str:
    """Asks as ann and waits; the chat's id."""
    chat_id, run = chats.ask("ann", chat_id, text, PLAIN)
    ended(run)
    return chat_id


def texts(store: Store, chat_id: str) -> list[str]:
    """The texts of ann's active branch."""
    return [message.text for message in store.path("ann", chat_id)]


def test_an_answer_streams_and_is_stored_with_every_estimator() -> None:
    chats, store, host = chat_with(hold_after=3, queue=(2, 1))
    chat_id, run = chats.ask("ann", None, "Capital of France?", PLAIN)
    wait_until(lambda: len(run.snapshot().tokens) == 3)
    assert run.snapshot().status == "streaming"
    assert chats.run_for("ann", chat_id) is run
    assert store.path("ann", chat_id)[-1].status == "streaming"
    host.release()
    ended(run)
    message = store.path("ann", chat_id)[-1]
    assert message.id == run.message_id
    assert (message.status, message.finish_reason, message.text, message.model) == ("done", "stop", ANSWER, "scripted")
    assert message.tokens == scored_tokens(ANSWER) == run.snapshot().tokens
    assert list(message.tokens[0].risks) == list(ESTIMATOR_NAMES)
    assert chats.run_for("ann", chat_id) is None


def test_the_model_gets_the_system_message_and_the_active_branch() -> None:
    chats, store, host = chat_with("One.", "Two.", "Three.")
    chat_id = asked(chats, "first")
    ended(chats.regenerate("ann", store.path("ann", chat_id)[-1].id, PLAIN))
    ended(chats.ask("ann", chat_id, "second", AskSettings("  Be brief.\n", GenerationConfig(seed=7)))[1])
    assert host.requests[-1].dicts == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "second"},
    ]
    assert host.requests[-1].generation.seed == 7
    assert host.requests[0].dicts == [{"role": "user", "content": "first"}]  # an empty system message is left out


def test_reasoning_is_not_given_back_to_the_model() -> None:
    chats, store, host = chat_with(scored_tokens("let me think\n\nParis.", reasoning=3))
    chat_id = asked(chats)
    asked(chats, "And Italy?", chat_id)
    assert host.requests[-1].dicts[1] == {"role": "assistant", "content": "Paris."}
    assert texts(store, chat_id)[1] == "let me think\n\nParis."


def test_a_question_without_an_answer_is_not_given_to_the_model() -> None:
    chats, _, host = chat_with(fail_after=0, error=ModelError("No memory left."))
    chat_id = asked(chats, "fails")
    asked(chats, "works", chat_id)
    assert host.requests[-1].dicts == [{"role": "user", "content": "works"}]


def test_the_first_question_gives_the_chat_its_title_and_a_chosen_title_stays() -> None:
    chats, store, _ = chat_with()
    chat_id = asked(chats, "\n  " + "long " * 30 + "\nsecond line")
    assert store.get_chat("ann", chat_id).title == ("long " * 30)[:59].rstrip() + "…"
    asked(chats, "another", chat_id)
    assert store.get_chat("ann", chat_id).title.startswith("long")
    named = store.create_chat("ann", "Mine").id
    asked(chats, "question", named)
    assert store.get_chat("ann", named).title == "Mine"


def test_stop_keeps_the_partial_answer_and_the_next_question_works_at_once() -> None:
    chats, store, host = chat_with(hold_after=2)
    chat_id, run = chats.ask("ann", None, "Capital?", PLAIN)
    wait_until(lambda: len(run.snapshot().tokens) == 2)
    chats.stop("ann", chat_id)
    _, second = chats.ask("ann", chat_id, "Again?", PLAIN)
    assert run.snapshot().status == "cancelled"
    host.release()
    ended(second)
    first = store.path("ann", chat_id)[1]
    assert (first.status, first.finish_reason, first.text, len(first.tokens)) == (
        "cancelled",
        "cancelled",
        "Paris is",
        2,
    )
    assert second.snapshot().status == "done"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ModelError("The GPU has no memory left."), "The GPU has no memory left."),
        (ZeroDivisionError("x"), "Something went"),
    ],
)
def test_a_failure_keeps_the_partial_answer_and_says_why(error: Exception, shown: str) -> None:
    chats, store, _ = chat_with(fail_after=2, error=error)
    chat_id = asked(chats)
    message = store.path("ann", chat_id)[-1]
    assert (message.status, message.finish_reason, message.text) == ("error", "error", "Paris is")
    assert message.error.startswith(shown)
    assert "ZeroDivision" not in message.error
    assert chats.run_for("ann", chat_id) is None


def test_one_answer_at_a_time_in_a_chat_and_many_in_others() -> None:
    chats, store, host = chat_with(hold_after=1)
    chat_id, run = chats.ask("ann", None, "Capital?", PLAIN)
    _, other = chats.ask("ann", None, "Elsewhere?", PLAIN)
    for call in (
        lambda: chats.ask("ann", chat_id, "again", PLAIN),
        lambda: chats.regenerate("ann", run.message_id, PLAIN),
        lambda: chats.edit("ann", store.path("ann", chat_id)[0].id, "new", PLAIN),
        lambda: chats.continue_from("ann", run.message_id, 0, 5, PLAIN),
    ):
        with pytest.raises(InputError, match="still being written"):
            call()
    host.release()
    ended(run), ended(other)
    assert len(store.all_messages("ann", chat_id)) == 2


def test_of_eight_questions_at_once_one_is_asked() -> None:
    chats, store, host = chat_with(hold_after=1)
    chat_id = store.create_chat("ann").id
    outcomes: list[str] = []

    def ask() -> None:
        try:
            chats.ask("ann", chat_id, "Capital?", PLAIN)
            outcomes.append("asked")
        except InputError:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    host.release()
    assert sorted(outcomes) == ["asked"] + ["refused"] * 7
    assert len(store.all_messages("ann", chat_id)) == 2


def test_regenerate_and_edit_add_versions_and_keep_the_old_ones() -> None:
    chats, store, _ = chat_with("One.", "Two.", "Three.")
    chat_id = asked(chats)
    question, answer = store.path("ann", chat_id)
    ended(chats.regenerate("ann", answer.id, PLAIN))
    again = store.path("ann", chat_id)[-1]
    assert (again.text, again.version, again.version_count, again.parent_id) == ("Two.", 2, 2, question.id)
    ended(chats.edit("ann", question.id, "Capital of Italy?", PLAIN))
    assert texts(store, chat_id) == ["Capital of Italy?", "Three."]
    store.select_version("ann", store.path("ann", chat_id)[0].id, -1)
    assert texts(store, chat_id) == ["Capital?", "Two."]


def test_continue_from_a_token_begins_with_the_kept_ids_and_the_chosen_one() -> None:
    chats, store, host = chat_with()
    chat_id = asked(chats)
    answer = store.path("ann", chat_id)[-1]
    ended(chats.continue_from("ann", answer.id, 3, answer.tokens[3].alternatives[1].token_id, PLAIN))
    branch = store.path("ann", chat_id)[-1]
    assert host.requests[-1].answer_prefix == (*(t.token_id for t in answer.tokens[:3]), token_id_of(" other3"))
    assert branch.text == "Paris is the other3 of France."
    assert (branch.version, branch.version_count) == (2, 2)
    store.select_version("ann", branch.id, -1)
    assert texts(store, chat_id)[-1] == ANSWER


@pytest.mark.parametrize(("index", "token_id"), [(-1, 5), (99, 5), (0, -1)])
def test_continue_from_a_token_that_does_not_exist_is_refused(index: int, token_id: int) -> None:
    chats, store, _ = chat_with()
    answer = store.path("ann", asked(chats))[-1]
    with pytest.raises(InputError):
        chats.continue_from("ann", answer.id, index, token_id, PLAIN)


def test_an_answer_of_another_model_is_not_continued() -> None:
    chats, store, host = chat_with()
    answer = store.path("ann", asked(chats))[-1]
    host.switch("another")
    with pytest.raises(InputError, match="by scripted, and another is loaded"):
        chats.continue_from("ann", answer.id, 0, 5, PLAIN)


def test_questions_are_edited_and_answers_are_answered_again_not_the_other_way() -> None:
    chats, store, _ = chat_with()
    question, answer = store.path("ann", asked(chats))
    for call in (
        lambda: chats.edit("ann", answer.id, "x", PLAIN),
        lambda: chats.regenerate("ann", question.id, PLAIN),
        lambda: chats.continue_from("ann", question.id, 0, 1, PLAIN),
    ):
        with pytest.raises(InputError, match="Only"):
            call()


@pytest.mark.parametrize("text", ["", "  \n\t ", "\x00\x1b", "\u200b\u200f\ufeff"])
def test_an_empty_question_is_refused_before_anything_is_stored(text: str) -> None:
    chats, store, _ = chat_with()
    with pytest.raises(InputError, match="empty"):
        chats.ask("ann", None, text, PLAIN)
    assert store.list_chats("ann") == []


def test_a_question_that_is_too_long_is_refused_with_both_numbers() -> None:
    chats, _, _ = chat_with()
    with pytest.raises(InputError, match="100,000 characters; 20,000 are allowed"):
        chats.ask("ann", None, "x" * 100_000, PLAIN)
    with pytest.raises(InputError, match="system message has 100,000"):
        chats.ask("ann", None, "x", AskSettings(system="x" * 100_000))


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("bell\x07, escape\x1b[31m, nul\x00, del\x7f, c1\x9b", "bell, escape[31m, nul, del, c1"),
        ("\u200fשלום\u200e <script>${alert(1)}</script> ![x](http://x/y.png)", None),
        ("half \ud83d pair", "half \ufffd pair"),
        ("  spaces stay  ", None),
    ],
)
def test_a_text_is_kept_as_typed_except_for_control_characters(typed: str, kept: str | None) -> None:
    assert clean_prompt(typed, 1000) == (typed if kept is None else kept)


@given(st.text(st.characters()))
def test_cleaning_a_second_time_changes_nothing_and_a_title_is_one_line(text: str) -> None:
    try:
        once = clean_prompt(text, 10**6)
    except InputError:
        return
    assert clean_prompt(once, 10**6) == once
    assert 0 < len(title_of(once)) <= 60 and len(title_of(once).splitlines()) == 1
    once.encode()


@pytest.mark.parametrize("state", ["loading", "switching", "failed", "empty"])
def test_without_a_ready_model_nothing_is_stored_and_the_reason_is_given(state: str) -> None:
    chats, store, host = chat_with()
    host.set_state(state, "The model is loading, 40 %.")
    with pytest.raises(BusyError, match="loading, 40 %. Please ask again when a model is ready."):
        chats.ask("ann", None, "Capital?", PLAIN)
    assert store.list_chats("ann") == []


def test_the_place_in_the_queue_is_shown_while_waiting() -> None:
    chats, _, host = chat_with(queue=(3,), hold_after=0)
    _, run = chats.ask("ann", None, "Capital?", PLAIN)
    wait_until(lambda: run.snapshot().queue_position == 3)
    assert run.snapshot().status == "waiting"
    host.release()
    ended(run)
    assert run.snapshot().queue_position is None


def test_wait_change_returns_when_there_is_something_new() -> None:
    chats, _, host = chat_with(hold_after=2)
    _, run = chats.ask("ann", None, "Capital?", PLAIN)
    wait_until(lambda: len(run.snapshot().tokens) == 2)
    version = run.wait_change(0, 10)
    assert version > 0
    assert run.wait_change(version, 0.01) == version
    host.release()
    while run.snapshot().is_running:
        version = run.wait_change(version, 10)
    assert run.snapshot().status == "done"


def test_a_token_given_again_replaces_the_earlier_one() -> None:
    first, revised, second = scored_token(0, "Hi"), scored_token(0, "Hi", top=0.5), scored_token(1, " you", 2)
    chats, store, _ = chat_with([first, second, revised, scored_token(2, "!", 6)], fail_after=2)
    chat_id = asked(chats)
    assert store.path("ann", chat_id)[-1].tokens == (revised, second)


def test_the_last_page_that_goes_away_stops_the_answer() -> None:
    chats, store, _ = chat_with(hold_after=1)
    chat_id, run = chats.ask("ann", None, "Capital?", PLAIN)
    run.attach(), run.attach()
    run.detach()
    assert not run.is_stopping
    wait_until(lambda: len(run.snapshot().tokens) == 1)
    run.detach()
    ended(run)
    assert store.path("ann", chat_id)[-1].status == "cancelled"


def test_partial_text_reaches_the_store_while_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash would leave: the run saves as it goes, not only at its end."""
    monkeypatch.setattr("uqchat.answer_run.SAVE_EVERY_S", 0.0)
    chats, store, host = chat_with(hold_after=3, delay=0.01)
    chat_id, run = chats.ask("ann", None, "Capital?", PLAIN)
    wait_until(lambda: store.path("ann", chat_id)[-1].text.startswith("Paris"))
    assert store.path("ann", chat_id)[-1].status == "streaming"
    host.release()
    ended(run)


class FullStore(Store):
    """Refuses to save answers while `is_full`."""

    is_full = True

    def save_answer(self, *args: Any, **kwargs: Any) -> None:
        """As `Store.save_answer`, or no space left."""
        if self.is_full:
            raise StoreError("The disk is full.")
        super().save_answer(*args, **kwargs)


def test_an_answer_that_cannot_be_saved_stays_in_memory_and_is_saved_later() -> None:
    store, host = FullStore("sqlite://"), ScriptedHost(ANSWER)
    chats = Conversations(store, host, AppConfig())
    chat_id = asked(chats)
    run = chats.run_for("ann", chat_id)
    assert (run.snapshot().text, run.snapshot().status) == (ANSWER, "done")
    assert run.snapshot().error == "This answer is not saved. The disk is full."
    store.is_full = False
    asked(chats, "And Italy?", chat_id)
    assert texts(store, chat_id) == ["Capital?", ANSWER, "And Italy?", ANSWER]
    assert chats.run_for("ann", chat_id) is None


def test_closing_stops_and_saves_every_answer() -> None:
    chats, store, _ = chat_with(hold_after=2)
    ids = [chats.ask("ann", None, f"Question {i}?", PLAIN)[0] for i in range(3)]
    for chat_id in ids:
        wait_until(lambda chat_id=chat_id: len(chats.run_for("ann", chat_id).snapshot().tokens) == 2)
    chats.close()
    assert [store.path("ann", chat_id)[-1].text for chat_id in ids] == ["Paris is"] * 3


CALLS: dict[str, Callable[[Conversations, str, str, str], Any]] = {
    "ask": lambda c, chat, question, answer: c.ask("bob", chat, "x", PLAIN),
    "score": lambda c, chat, question, answer: c.score("bob", chat, "x", "y", PLAIN),
    "regenerate": lambda c, chat, question, answer: c.regenerate("bob", answer, PLAIN),
    "edit": lambda c, chat, question, answer: c.edit("bob", question, "x", PLAIN),
    "continue_from": lambda c, chat, question, answer: c.continue_from("bob", answer, 0, 1, PLAIN),
    "rescore": lambda c, chat, question, answer: c.rescore("bob", answer, "entropy", PLAIN),
}


def test_every_public_method_is_covered_by_the_tests_of_rights() -> None:
    public = {name for name, _ in inspect.getmembers(Conversations, inspect.isfunction) if not name.startswith("_")}
    assert public == set(CALLS) | {"run_for", "stop", "close"}


@pytest.mark.parametrize("name", CALLS)
def test_another_users_chat_is_unknown_and_changes_nothing(name: str) -> None:
    chats, store, host = chat_with()
    chat_id = asked(chats)
    before = store.all_messages("ann", chat_id)
    with pytest.raises(StoreError):
        CALLS[name](chats, chat_id, before[0].id, before[1].id)
    assert store.all_messages("ann", chat_id) == before
    assert len(host.requests) == 1 and host.language_model.scored == []


def test_another_user_neither_sees_nor_stops_a_running_answer() -> None:
    chats, _, host = chat_with(hold_after=1)
    chat_id, run = chats.ask("ann", None, "Capital?", PLAIN)
    assert chats.run_for("bob", chat_id) is None
    chats.stop("bob", chat_id)
    assert not run.is_stopping
    host.release()
    assert ended(run).snapshot().status == "done"


def test_conversations_load_no_interface_and_no_model() -> None:
    code = "import sys, uqchat.conversation; print(sorted({'gradio', 'torch', 'transformers'} & set(sys.modules)))"
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout.strip() == "[]"
