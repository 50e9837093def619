"""Claims about scoring a given text as a turn of a chat, with a scripted model."""

from __future__ import annotations

import pytest

from tests.doubles import scored_tokens, wait_until
from tests.test_conversation import PLAIN, asked, chat_with, ended, texts
from uqchat.conversation import AskSettings
from uqchat.errors import BusyError, InputError, ModelError
from uqchat.transfer import export_chat, import_chat

TEXT = "Lyon is the capital of France."


def test_a_given_answer_becomes_a_turn_with_scores_and_says_so() -> None:
    chats, store, host = chat_with()
    chat_id = asked(chats, "first")
    again, run = chats.score("ann", chat_id, "Capital of France?", TEXT, AskSettings("Be brief."))
    ended(run)
    question, answer = store.path("ann", chat_id)[2:]
    assert (again, question.text) == (chat_id, "Capital of France?")
    assert (answer.text, answer.status, answer.finish_reason, answer.model) == (TEXT, "done", "given", "scripted")
    assert answer.tokens == scored_tokens(TEXT, has_end=False)
    messages, text = host.language_model.scored[0]
    assert [m.role for m in messages] == ["system", "user", "assistant", "user"] and text == TEXT
    assert len(host.requests) == 1, "nothing is generated"


def test_a_scored_text_can_be_continued_answered_again_and_followed_by_a_question() -> None:
    chats, store, host = chat_with("And so on.")
    chat_id, run = chats.score("ann", None, "Capital?", TEXT, PLAIN)
    ended(run)
    answer = store.path("ann", chat_id)[1]
    ended(chats.continue_from("ann", answer.id, 2, answer.tokens[2].alternatives[1].token_id, PLAIN))
    assert host.requests[-1].answer_prefix[:2] == tuple(token.token_id for token in answer.tokens[:2])
    ended(chats.regenerate("ann", answer.id, PLAIN))
    assert store.path("ann", chat_id)[1].version == 3
    store.select_version("ann", store.path("ann", chat_id)[1].id, -2)
    asked(chats, "Sure?", chat_id)
    assert host.requests[-1].dicts[1] == {"role": "assistant", "content": TEXT}
    assert store.get_chat("ann", chat_id).title == "Capital?"


def test_a_scored_text_leaves_as_a_file_and_comes_back_as_one() -> None:
    chats, store, _ = chat_with()
    chat_id, run = chats.score("ann", None, "Capital?", TEXT, PLAIN)
    ended(run)
    copy = import_chat(store, "bob", export_chat(store, "ann", chat_id, "json")[1])
    one, other = store.path("ann", chat_id)[1], store.path("bob", copy.id)[1]
    assert (other.text, other.tokens, other.finish_reason) == (one.text, one.tokens, "given")
    assert "Scored, not generated" in export_chat(store, "ann", chat_id, "html")[1].decode()


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        (" ", TEXT, "message is empty"),
        ("Capital?", "\n\u202e", "answer is empty"),
        ("Capital?", "x" * 101, "The answer has 101 characters; 100 are allowed"),
    ],
)
def test_a_text_that_cannot_be_scored_is_explained_and_changes_nothing(question: str, answer: str, words: str) -> None:
    chats, store, host = chat_with(max_prompt_chars=100)
    with pytest.raises(InputError, match=words):
        chats.score("ann", None, question, answer, PLAIN)
    assert store.list_chats("ann") == [] and host.language_model.scored == []


def test_without_a_model_a_text_is_refused_with_the_reason() -> None:
    chats, store, host = chat_with()
    host.set_state("loading", "embedded is being loaded.")
    with pytest.raises(BusyError, match="being loaded"):
        chats.score("ann", None, "Capital?", TEXT, PLAIN)
    assert store.list_chats("ann") == []


def test_while_a_text_waits_its_place_is_known_and_nothing_else_begins_in_its_chat() -> None:
    chats, _, _ = chat_with(queue=(2,), hold_after=0)
    chat_id, run = chats.score("ann", None, "Capital?", TEXT, PLAIN)
    wait_until(lambda: run.snapshot().queue_position == 2)
    with pytest.raises(InputError, match="still being written"):
        chats.ask("ann", chat_id, "And Italy?", PLAIN)
    chats.stop("ann", chat_id)
    ended(run)


def test_a_text_whose_scoring_was_stopped_or_failed_is_kept_whole() -> None:
    chats, store, _ = chat_with(hold_after=2)
    chat_id, run = chats.score("ann", None, "Capital?", TEXT, PLAIN)
    chats.stop("ann", chat_id)
    ended(run)
    answer = store.path("ann", chat_id)[1]
    assert (answer.text, answer.status, answer.tokens) == (TEXT, "cancelled", ())
    chats, store, _ = chat_with(fail_after=1, error=ModelError("No memory left."))
    chat_id, run = chats.score("ann", None, "Capital?", TEXT, PLAIN)
    ended(run)
    answer = store.path("ann", chat_id)[1]
    assert (answer.text, answer.status, answer.error) == (TEXT, "error", "No memory left.")
    assert texts(store, import_chat(store, "ann", export_chat(store, "ann", chat_id, "json")[1]).id)[1] == TEXT
