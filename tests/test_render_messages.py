"""Claims about a conversation as HTML: every button, state and notice."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import scored_token, scored_tokens
from tests.drawing import Mark, Running, Stored
from uqchat.render import (
    RiskView,
    conversation_html,
    live_answer_html,
    welcome_html,
)

VIEW = RiskView()


@given(st.lists(st.sampled_from([" Bish", "kek", "\n", "", "<b>"])), st.integers(0, 2))
def test_a_longer_stream_begins_with_the_shorter_one(texts: list[str], reasoning: int) -> None:
    tokens = tuple(scored_token(i, text, is_reasoning=i < reasoning) for i, text in enumerate(texts))
    drawn = [live_answer_html(Running(tokens[:n]), VIEW, "m") for n in range(1, len(tokens) + 1)]
    assert all(after.startswith(before) for before, after in zip(drawn, drawn[1:], strict=False))


def test_every_message_has_its_buttons() -> None:
    question = Stored("user", "Why?", "u1")
    answer = Stored(
        "assistant", "So", "a1", tokens=scored_tokens("So"), version=2, version_count=3, labels=(Mark(True),)
    )
    markup = conversation_html([Stored("system", "secret"), question, answer], VIEW)
    found = re.findall(r'data-action="(\w+)" data-message="(\w+)"', markup)
    assert [action for action, message in found if message == "u1"] == ["copy", "edit"]
    assert [action for action, message in found if message == "a1"] == [
        *("versions_prev", "versions_next", "copy", "retry", "mark_right", "mark_wrong")
    ]
    assert "2 / 3" in markup and "secret" not in markup
    assert re.search(r'"mark_wrong"[^>]*aria-pressed="true"', markup)


def test_while_an_answer_is_under_way_nothing_offers_to_start_another() -> None:
    markup = conversation_html([Stored("user", "Why?"), Stored(tokens=scored_tokens("So"))], VIEW, is_busy=True)
    assert all("disabled" in tag for tag in re.findall(r'<button[^>]*data-action="(?:retry|edit)"[^>]*>', markup))


def test_the_example_is_marked_and_can_only_be_copied() -> None:
    markup = conversation_html(
        [Stored(text="So", tokens=scored_tokens("So"), is_example=True, finish_reason="length")], VIEW
    )
    assert "Stored example" in markup
    assert re.findall(r'data-action="(\w+)"', markup) == ["copy"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "cancelled"}, "Stopped"),
        ({"finish_reason": "length"}, "Length limit reached"),
        ({"finish_reason": "given"}, "Scored, not generated"),
        ({"status": "error", "error": "No <memory>"}, "No &lt;memory&gt;"),
        ({"dropped_messages": 4}, "Oldest 4 messages left out: the window is full"),
        ({"labels": (Mark(True, 0, 2),)}, "Marked wrong: <q>So</q>"),
    ],
)
def test_each_state_of_an_answer_is_said_in_words(changes: dict[str, Any], words: str) -> None:
    assert words in conversation_html([Stored(text="So", tokens=scored_tokens("So"), **changes)], VIEW)


def test_the_sentence_about_the_whole_answer_stands_before_the_line_about_its_tokens() -> None:
    message = Stored(text="So", tokens=scored_tokens("So"))
    markup = conversation_html([message], VIEW, verdicts={message.id: "66% likely <wrong>."})
    assert (
        '<p class="uq-line">66% likely &lt;wrong&gt;. None of' in markup or "66% likely &lt;wrong&gt;. 1 of" in markup
    )


def test_continue_goes_on_from_the_last_token() -> None:
    tokens = scored_tokens("one two", has_end=False)
    markup = conversation_html([Stored(tokens=tokens, finish_reason="length")], VIEW)
    assert f'data-action="continue" data-message="m1" data-index="1" data-token-id="{tokens[1].token_id}"' in markup


def test_a_live_answer_says_that_it_is_busy_and_who_is_before_it() -> None:
    assert live_answer_html(None, VIEW, "m") == ""
    assert 'aria-busy="true"' in live_answer_html(Running(), VIEW, "m")
    assert "2 requests are ahead of yours" in live_answer_html(Running(status="waiting", queue_position=2), VIEW, "m")
    assert 'aria-busy="false"' in live_answer_html(Running(scored_tokens("So"), "done"), VIEW, "m")
    assert "out of memory" in live_answer_html(Running(status="error", error="out of memory"), VIEW, "m")


def test_the_first_minute_offers_questions_by_group() -> None:
    markup = welcome_html({"Often wrong": ['Who said "<b>"?']})
    assert 'data-action="ask" data-text="Who said &#34;&lt;b&gt;&#34;?"' in markup
