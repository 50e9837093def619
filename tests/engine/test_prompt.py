"""Prompts: the template's own ids, oldest turns dropped, clear refusals."""

from __future__ import annotations

import pytest

from tests.tiny import byte_tokenizer
from uqchat.engine.prompt import build_prompt
from uqchat.errors import InputError
from uqchat.types import Message

TOKENIZER = byte_tokenizer()


def turns(count: int, size: int = 20) -> list[Message]:
    roles = ["user", "assistant"]
    return [Message(roles[i % 2], f"{i}" * size) for i in range(count)]


def test_ids_are_those_of_the_chat_template() -> None:
    messages = [Message("system", "be brief"), Message("user", "hi")]
    expected = TOKENIZER.apply_chat_template(
        [m.to_dict() for m in messages], add_generation_prompt=True, return_dict=False
    )
    prompt = build_prompt(messages, TOKENIZER, 256, 16)
    assert list(prompt.ids) == expected and prompt.dropped_messages == 0


def test_oldest_turns_drop_and_the_system_message_stays() -> None:
    messages = [Message("system", "be brief"), *turns(9)]
    prompt = build_prompt(messages, TOKENIZER, 120, 40)
    text = TOKENIZER.decode(prompt.ids)
    assert prompt.dropped_messages == 6
    assert text.startswith("<|system|>be brief<|user|>6666") and "5555" not in text and "8888" in text
    assert len(prompt.ids) + 40 <= 120


def test_a_dropped_question_takes_its_answer_along() -> None:
    prompt = build_prompt(turns(3), TOKENIZER, 64, 16)
    assert prompt.dropped_messages == 2 and TOKENIZER.decode(prompt.ids).startswith("<|user|>2222")


def test_a_short_window_shortens_the_answer_before_it_refuses() -> None:
    prompt = build_prompt(turns(1, 50), TOKENIZER, 80, 256)
    assert 16 <= prompt.room < 80 - 50


def test_a_message_that_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(InputError, match=r"too long.*102 tokens.*holds 64"):
        build_prompt(turns(1, 100), TOKENIZER, 64, 16)


def test_a_template_that_refuses_says_so() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="System role not supported"):
        build_prompt([Message("user", "x")], tokenizer, 64, 16)


@pytest.mark.parametrize("messages", [[], [Message("system", "only")]])
def test_no_user_message_is_an_error(messages: list[Message]) -> None:
    with pytest.raises(InputError, match="user message"):
        build_prompt(messages, TOKENIZER, 64, 16)
