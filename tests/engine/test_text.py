"""Pieces of text: joined they are the decoded whole, whatever the ids; cut at stop strings; reasoning marked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer
from uqchat.engine.text import (
    AnswerText,
    Detokenizer,
    Piece,
    ReasoningTags,
    find_reasoning_tags,
    tag_left_open,
)

TOKENIZER = byte_tokenizer()
THINK = ReasoningTags("<think>", "</think>")


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def run(ids: list[int], **options: object) -> tuple[list[Piece], AnswerText]:
    answer = AnswerText(Detokenizer(decode), **options)
    pieces = []
    for token_id in ids:
        pieces += answer.push(token_id)
        if answer.is_stopped:
            break
    return pieces + answer.flush(), answer


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_pieces_of_any_ids_join_to_the_decoded_whole(ids: list[int]) -> None:
    pieces, _ = run(ids)
    assert "".join(p.text for p in pieces) == decode(ids)
    assert [p.token_id for p in pieces] == ids


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40).filter(lambda t: "\ufffd" not in t))
def test_spans_point_at_the_text_and_characters_come_whole(text: str) -> None:
    pieces, _ = run(encode(text))
    whole = "".join(p.text for p in pieces)
    assert whole == decode(encode(text))
    assert all(whole[slice(*p.span)] == p.text for p in pieces)
    assert "\ufffd" not in whole


def test_the_id_that_completes_a_character_carries_it() -> None:
    pieces, _ = run(encode("a🐱b"))
    assert [p.text for p in pieces] == ["a", "", "", "", "🐱", "b"]
    assert [p.span for p in pieces] == [(0, 1), (1, 1), (1, 1), (1, 1), (1, 2), (2, 3)]


def test_bytes_that_never_become_a_character_are_flushed_with_the_last_id() -> None:
    ids = encode("a🐱")[:-1]
    pieces, _ = run(ids)
    assert "".join(p.text for p in pieces) == decode(ids)
    assert [p.text for p in pieces][:3] == ["a", "", ""]


def test_an_end_token_after_unfinished_bytes_has_no_text() -> None:
    ids = [*encode("a🐱")[:-1], TOKENIZER.eos_token_id]
    pieces, _ = run(ids)
    assert "".join(p.text for p in pieces) == decode(ids)
    assert [p.token_id for p in pieces] == ids


def test_a_stop_string_over_several_tokens_is_cut_and_never_shown() -> None:
    pieces, answer = run(encode("Paris.\nUser: hi"), stop_strings=["\nUser:"])
    assert answer.is_stopped
    assert "".join(p.text for p in pieces) == "Paris."
    assert len(pieces) == len("Paris.\nUser:")
    assert [p.text for p in pieces][-6:] == [""] * 6


def test_text_that_might_become_a_stop_string_is_held_then_released() -> None:
    answer = AnswerText(Detokenizer(decode), ["###"])
    seen = [[p.text for p in answer.push(i)] for i in encode("a##b")]
    assert seen == [["a"], [], [], ["#", "#", "b"]]


def test_the_earliest_of_several_stop_strings_wins() -> None:
    pieces, _ = run(encode("one two three"), stop_strings=["three", "two"])
    assert "".join(p.text for p in pieces) == "one "


@settings(max_examples=300, deadline=None)
@given(st.text("ab#", max_size=30), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3))
def test_stopping_equals_cutting_the_text_when_a_stop_string_first_completes(text: str, stops: list[str]) -> None:
    """Brute force: grow the text one character at a time; cut where a stop string first lies in it."""
    expected = text
    for end in range(1, len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    pieces, _ = run(encode(text), stop_strings=stops)
    assert "".join(p.text for p in pieces) == expected


def test_reasoning_between_tags_is_marked_tags_included() -> None:
    text = "<think>so 2+2</think>It is 4."
    pieces, _ = run(encode(text), tags=[THINK])
    assert "".join(p.text for p in pieces if p.is_reasoning) == "<think>so 2+2</think>"
    assert "".join(p.text for p in pieces) == text


def test_leading_whitespace_before_the_tag_belongs_to_the_reasoning() -> None:
    pieces, _ = run(encode("\n <think>a</think>b"), tags=[THINK])
    assert "".join(p.text for p in pieces if not p.is_reasoning) == "b"


def test_a_tag_inside_the_answer_is_plain_text() -> None:
    pieces, _ = run(encode("Use <think> here"), tags=[THINK])
    assert not any(p.is_reasoning for p in pieces)


def test_reasoning_opened_by_the_prompt_ends_at_the_closing_tag() -> None:
    pieces, _ = run(encode("hm</think>ok"), tags=[THINK], open_tag=THINK)
    assert "".join(p.text for p in pieces if p.is_reasoning) == "hm</think>"


def test_tags_that_are_special_tokens_count_by_id() -> None:
    user, assistant = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    tags = [ReasoningTags("[A]", "[B]", user, assistant)]
    pieces, _ = run([user, *encode("hm"), assistant, *encode("ok")], tags=tags)
    assert [p.is_reasoning for p in pieces] == [True] * 4 + [False] * 2


def test_tokens_stream_at_once_when_nothing_can_change_them() -> None:
    answer = AnswerText(Detokenizer(decode), tags=[THINK])
    assert [[p.text for p in answer.push(i)] for i in encode("Hi")] == [["H"], ["i"]]


@pytest.mark.parametrize(
    ("template", "vocabulary", "expected"),
    [
        (None, {}, ["<think>"]),
        ("...[/THINK]...", {}, ["<think>", "[THINK]"]),
        ("", {"<thought>": 7, "</thought>": 8}, ["<think>", "<thought>"]),
    ],
)
def test_the_models_own_tags_are_found(template: str | None, vocabulary: dict, expected: list[str]) -> None:
    assert [t.opening for t in find_reasoning_tags(template, vocabulary)] == expected


def test_a_prompt_that_ends_in_an_open_tag_is_noticed() -> None:
    assert tag_left_open("<|assistant|><think>\n", [THINK]) == THINK
    assert tag_left_open("<|assistant|>", [THINK]) is None
