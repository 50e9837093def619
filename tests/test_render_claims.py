"""Whole claims tinted and listed: the text stays what it is, and the list says what the colours say."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import scored_tokens
from tests.drawing import ANY_TEXT, NASTY, sequence
from uqchat.render import RiskView, answer_line, claims_html, legend_html, tokens_to_html
from uqchat.render_names import BUILT_IN
from uqchat.types import Risk

SENTENCES, FACTS = RiskView(mode="sentence"), RiskView(mode="entity")
TWO = sequence(("It", 0.1), (" rains", 0.1), (".", 0.1), (" Osh", 0.9), (" is", 0.7), (" wet", 0.8), (".", 0.8))


def plain(markup: str) -> str:
    """The text that a reader sees."""
    return html.unescape(re.sub(r"<summary.*?</summary>|<[^>]*>", "", markup, flags=re.DOTALL))


@given(st.one_of(ANY_TEXT, NASTY, st.lists(NASTY, max_size=5).map(". ".join)), st.sampled_from([SENTENCES, FACTS]))
def test_the_text_of_tinted_claims_is_the_answers_text(text: str, view: RiskView) -> None:
    markup = tokens_to_html(scored_tokens(text), view, "m")
    assert plain(markup) == text
    assert markup.count("<span") + markup.count("<div") == markup.count("</span>") + markup.count("</div>")


def test_a_sentence_has_one_tint_of_its_mean_risk_and_its_tokens_have_none() -> None:
    markup = tokens_to_html(TWO, SENTENCES, "m")
    assert re.findall(r'class="uq-c uq-b(\d)" data-c="(\d)"', markup) == [("0", "0"), ("4", "1")]
    assert not re.search(r'class="uq-t uq-b', markup)
    assert plain(re.findall(r'<span class="uq-c.*?</span></span>', markup)[1]) == "Osh is wet."


def test_only_names_and_numbers_are_tinted_as_facts() -> None:
    markup = tokens_to_html(TWO, FACTS, "m")
    assert [plain(one) for one in re.findall(r'<span class="uq-c.*?</span></span>', markup)] == ["Osh"]
    assert markup.count('class="uq-t"') == len(TWO)


def test_a_streaming_answer_is_tinted_by_token_until_its_claims_are_known() -> None:
    markup = tokens_to_html(TWO, SENTENCES, "m", is_streaming=True)
    assert "uq-c " not in markup and "uq-t uq-b4" in markup


def test_claims_are_listed_worst_first_with_their_risk_and_riskiest_word() -> None:
    markup = claims_html(TWO, SENTENCES, "m<1>")
    assert re.findall(r'data-claim="(\d)"', markup) == ["1", "0"]
    assert re.findall(r'uq-share">([\d.]+)', markup) == ["0.80", "0.10"]
    assert "highest at “Osh”" in markup and 'data-message="m&lt;1&gt;"' in markup
    assert "no probability" in markup


def test_a_score_of_whole_claims_within_its_scope_is_called_a_probability() -> None:
    tokens = sequence(("Osh", 0.5), (".", 0.5))
    for token in tokens:
        token.risks["entropy"] = Risk(0.5, 1.0, "facts & figures")
    assert "probability of error, within facts &amp; figures" in claims_html(tokens, SENTENCES, "m")


def test_the_sentence_below_an_answer_counts_claims() -> None:
    assert answer_line(TWO, SENTENCES) == "1 of 2 sentences stands out: “Osh is wet”."
    assert answer_line(TWO, FACTS) == "1 of 1 fact stands out: “Osh”."
    assert answer_line(TWO[:3], SENTENCES) == "None of 1 sentence stands out."
    assert answer_line(TWO, RiskView("other", mode="sentence")) == ""


def test_an_estimator_that_has_not_judged_the_answer_tints_nothing_and_says_so() -> None:
    view = RiskView("uq_head", mode="sentence")
    assert "uq-b" not in tokens_to_html(TWO, view, "m")
    assert "No sentence of the newest answer has a risk by UQ head" in claims_html(TWO, view, "m")


def test_what_is_known_of_estimators_without_a_model_is_what_they_say_of_themselves() -> None:
    from uqchat.estimators import ESTIMATORS, TRAINED

    for kind in (*ESTIMATORS, *TRAINED):
        mine = BUILT_IN[kind.name]
        assert (mine.label, mine.unit, mine.value_map) == (kind.label, kind.unit, kind.value_map)


def test_an_estimator_from_the_hub_is_named_by_its_last_part() -> None:
    assert "uhead_x" in legend_html("someone/uhead_x", RiskView("someone/uhead_x"))
