"""Claims about a finished answer that is read again by an estimator which was not asked before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.doubles import scored_tokens
from tests.test_conversation import PLAIN, asked, chat_with, ended
from uqchat.conversation import AskSettings
from uqchat.errors import InputError, ModelError
from uqchat.types import Answer, Risk, Summary


def read_by_vote(host: Any, error: Exception | None = None, finish_reason: str = "given") -> list[tuple]:
    """Let the scripted host score by `vote`; what it is asked is kept."""
    calls: list[tuple] = []

    def score(messages: Any, ids: Any, estimators: Any, **options: Any) -> Answer:
        calls.append((messages, tuple(ids), estimators))
        if error is not None:
            raise error
        tokens = [
            replace(token, token_id=token_id, risks={"vote": Risk(0.5, 0.4, voters=(0.9, 0.1))})
            for token, token_id in zip(scored_tokens("x " * len(ids), has_end=False), ids, strict=False)
        ]
        return Answer("", tuple(tokens), {"vote": Risk(0.5, 0.4)}, {"vote": Summary(0.4, 0.4, 1)}, finish_reason)

    host.language_model.score = score
    return calls


def test_the_estimators_risks_are_added_and_all_else_stays() -> None:
    chats, store, host = chat_with("Osh is south.")
    chat_id = asked(chats, "Where?")
    before = store.path("ann", chat_id)[1]
    calls = read_by_vote(host)
    ended(chats.rescore("ann", before.id, "vote", AskSettings("Be brief.")))
    after = store.path("ann", chat_id)[1]
    messages, ids, estimators = calls[0]
    assert [m.role for m in messages] == ["system", "user"] and estimators == ("vote",)
    assert ids == tuple(token.token_id for token in before.tokens)
    assert (after.text, after.status, after.finish_reason) == (before.text, "done", before.finish_reason)
    assert [replace(t, risks={}) for t in after.tokens] == [replace(t, risks={}) for t in before.tokens]
    for old, new in zip(before.tokens, after.tokens, strict=True):
        assert new.risks == {**old.risks, "vote": Risk(0.5, 0.4, voters=(0.9, 0.1))}
    assert after.scores.risks == {**before.scores.risks, "vote": Risk(0.5, 0.4)}
    assert store.path("ann", chat_id)[1].version_count == 1 and len(host.requests) == 1
    with pytest.raises(InputError, match="already"):
        chats.rescore("ann", before.id, "vote", PLAIN)


@pytest.mark.parametrize(("error", "reason"), [(ModelError("no room"), "given"), (None, "cancelled")])
def test_what_fails_or_is_stopped_leaves_the_answer_as_it_was(error: Exception | None, reason: str) -> None:
    chats, store, host = chat_with("Osh is south.")
    chat_id = asked(chats, "Where?")
    before = store.path("ann", chat_id)[1]
    read_by_vote(host, error, reason)
    ended(chats.rescore("ann", before.id, "vote", PLAIN))
    after = store.path("ann", chat_id)[1]
    assert (after.tokens, after.status, after.scores.risks) == (before.tokens, "done", before.scores.risks)
    assert after.scores.failures == ({"vote": "no room"} if error else {})


def test_only_a_finished_answer_of_the_loaded_model_is_read_again() -> None:
    chats, store, host = chat_with("Osh is south.")
    chat_id = asked(chats, "Where?")
    question, answer = store.path("ann", chat_id)
    with pytest.raises(InputError, match="Only an answer"):
        chats.rescore("ann", question.id, "vote", PLAIN)
    host.switch("another")
    host.set_state("ready")
    with pytest.raises(InputError, match="another is loaded"):
        chats.rescore("ann", answer.id, "vote", PLAIN)
