"""Claims about tinted tokens: the text is exact, bins and the answer line are right."""

from __future__ import annotations

import html
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import scored_token, scored_tokens
from tests.drawing import ANY_TEXT, NASTY, Mark, sequence, with_risk
from uqchat.render import (
    RiskView,
    answer_line,
    risk_bins,
    tokens_to_html,
)

VIEW = RiskView()


def bare(markup: str) -> str:
    """Tags stripped, references resolved."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


@given(st.lists(ANY_TEXT | NASTY), st.booleans(), st.sampled_from(["absolute", "relative"]), st.integers(0, 3))
def test_tags_stripped_and_unescaped_give_the_exact_text(
    texts: list[str], is_streaming: bool, scale: str, reasoning: int
) -> None:
    tokens = [scored_token(i, text, is_reasoning=i < reasoning) for i, text in enumerate(texts)]
    markup = tokens_to_html(tokens, RiskView(scale=scale), 'a"b', is_streaming=is_streaming)
    assert bare(markup) == "".join(texts)


def test_bins_are_the_fifths_of_the_value() -> None:
    values = (0.0, 0.199, 0.2, 0.4, 0.6, 0.79, 0.8, 1.0)
    tokens = sequence(*(("x", value) for value in values))
    assert risk_bins(tokens, VIEW) == [0, 0, 1, 2, 3, 3, 4, 4]


def test_relative_bins_are_the_answers_own_fifths() -> None:
    """Ten different values: two in each fifth, whatever the values are."""
    tokens = sequence(*(("x", value / 1000) for value in (9, 1, 2, 3, 4, 5, 6, 7, 8, 0)))
    assert risk_bins(tokens, RiskView(scale="relative")) == [4, 0, 1, 1, 2, 2, 3, 3, 4, 0]


def test_equal_values_are_all_in_the_lowest_relative_bin() -> None:
    assert risk_bins(sequence(("a", 0.9), ("b", 0.9)), RiskView(scale="relative")) == [0, 0]


def test_tokens_of_one_character_are_drawn_once_with_the_largest_risk() -> None:
    tokens = sequence(("", 0.9), ("", 0.1), ("🙂", 0.3))
    assert risk_bins(tokens, VIEW) == [4, 4, 4]
    assert re.findall(r'class="(uq-t[^"]*)" data-i="(\d)"', tokens_to_html(tokens, VIEW, "m")) == [("uq-t uq-b4", "2")]


def test_reasoning_end_and_unfinished_tokens_have_no_bin() -> None:
    tokens = [with_risk(0, "hm", 0.9, is_reasoning=True), with_risk(1, "", 0.9, is_end=True), with_risk(2, "", 0.9)]
    assert risk_bins(tokens, VIEW) == [None, None, None]


def test_a_reasoning_token_without_text_does_not_tint_the_answer() -> None:
    tokens = [with_risk(0, "", 0.9, is_reasoning=True), with_risk(1, "Paris", 0.1)]
    assert risk_bins(tokens, VIEW) == [None, 0]


def test_an_estimator_that_did_not_run_and_a_risk_that_is_no_number_leave_the_text_plain() -> None:
    tokens = sequence(("a", 0.5), ("b", math.nan))
    assert risk_bins(tokens, RiskView(estimator="margin")) == [None, None]
    assert risk_bins(tokens, VIEW) == [2, None]


def test_reasoning_is_folded_and_counted() -> None:
    tokens = scored_tokens("let me think. Paris", reasoning=3)
    markup = tokens_to_html(tokens, VIEW, "m")
    assert 'data-label="Reasoning, 3 tokens, not part of the risk"' in markup
    assert "uq-b" not in markup.partition("</details>")[0]


def test_the_space_before_a_word_is_outside_its_tint() -> None:
    assert ' <span class="uq-t uq-b0" data-i="0" tabindex="0">Paris</span>' in tokens_to_html(
        sequence((" Paris", 0.1)), VIEW, "m"
    )


def test_one_token_of_an_answer_can_be_reached_with_tab() -> None:
    assert tokens_to_html(scored_tokens("one two three"), VIEW, "m").count('tabindex="0"') == 1


def test_a_marked_span_is_shown_on_the_tokens_it_touches() -> None:
    tokens = sequence(("one", 0.1), (" two", 0.1), (" three", 0.1))
    markup = tokens_to_html(tokens, VIEW, "m", [Mark(True, 4, 7), Mark(False)])
    assert re.findall(r'data-i="(\d)"', re.sub(r'<span class="[^"]*b0" [^>]*>', "", markup)) == ["1"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((0.1, 0.1, 0.1, 0.1), "None of 4 tokens stands out."),
        ((0.1, 0.9, 0.1, 0.1), "1 of 4 tokens stands out: “is”."),
        ((0.1, 0.1, 0.7, 0.9), "2 of 4 tokens stand out: “Bishkek”."),
        ((0.9, 0.1, 0.1, 0.6), "2 of 4 tokens stand out: “It”, “kek”."),
    ],
)
def test_the_answer_line_says_what_the_colours_say(values: tuple[float, ...], line: str) -> None:
    texts = ("It", " is", " Bish", "kek")
    tokens = [*sequence(*zip(texts, values, strict=True)), with_risk(4, "", 1.0, is_end=True)]
    assert answer_line(tokens, VIEW) == line


def test_of_many_risky_words_the_line_names_the_riskiest_in_reading_order() -> None:
    pairs = [(f" w{i} ", value) for i in range(8) for value in [0.61 + i / 100]]
    tokens = sequence(*(pair for risky in pairs for pair in (risky, (" ok", 0.0))))
    assert answer_line(tokens, VIEW) == "8 of 16 tokens stand out: “w2”, “w3”, “w4”, “w5”, “w6”, “w7” …"


def test_an_answer_without_tokens_has_no_line() -> None:
    assert answer_line((), VIEW) == ""


def test_the_markdown_view_of_an_answer_folds_reasoning_and_tints_nothing() -> None:
    markup = tokens_to_html(scored_tokens("hm so **Paris**", reasoning=2), RiskView(mode="markdown"), "m")
    assert "<strong>Paris</strong>" in markup and "uq-b" not in markup and "<details" in markup
