"""Claims: where they begin and end, which tokens they hold, and how risky they are."""

from __future__ import annotations

import math

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from tests.doubles import scored_tokens
from tests.drawing import NASTY
from uqchat.claims import answer_spans, claim_risks, given_spans, segment, token_indices
from uqchat.errors import InputError
from uqchat.types import Risk, ScoredToken

TEXTS = st.one_of(st.text(), NASTY, st.text(alphabet="aB1.,!?\"“” \n\t\r\u0301\u200d😀👨‍👩‍👧é中。 नि%$'-", max_size=60))
FACTS = (
    ("Dr. Smith was born in St. Louis on Jan. 5, 1985.", ["Dr. Smith", "St. Louis", "Jan. 5, 1985"]),
    (
        "The Bank of England paid $3.50 and 12 % to the U.S. in COVID-19 times.",
        "Bank of England|$3.50|12 %|U.S.|COVID-19",
    ),
    ('Paris is old. "Eugene Onegin" is by A. S. Pushkin, 1,833 pages.', "Paris|Eugene Onegin|A. S. Pushkin|1,833"),
    ("However, it is Bishkek's square.", ["Bishkek"]),
    ("Er kam am 3. Mai 1985 nach Berlin.", ["3. Mai 1985", "Berlin"]),
    ("北京有2,000万人口，1985年3月5日。", ["2,000", "1985年3月5日"]),
    ("it rains and nothing happens", []),
)
SENTENCES = (
    ("Dr. Smith lives in St. Louis. He paid $3.50! Why?", 3),
    ("Herr Dr. Müller wohnt z.B. in Köln. Er kam am 3. Mai 1985 an. Ja!", 3),
    ("El Sr. García vive en Madrid. ¿Dónde está? ¡Aquí!", 3),
    ("А. С. Пушкин родился в 1799 г. в Москве. Он был поэтом.", 2),
    ("北京是中国的首都。它有两千万人口！你去过吗？", 3),
    ("दिल्ली भारत की राजधानी है। यह बड़ा है।", 2),
    ("It has:\n\n- parks\n- trees", 3),
)


def split(text: str, *words: str) -> list[ScoredToken]:
    """Tokens of the given pieces, which joined must be the text."""
    assert "".join(words) == text
    tokens, start = [], 0
    for index, word in enumerate(words):
        span = (start, start + len(word))
        tokens.append(ScoredToken(index, index, word, span, -0.1, 0.1, risks={"x": Risk(index / 10, float(index))}))
        start = span[1]
    return tokens


@pytest.mark.parametrize(("text", "count"), SENTENCES)
def test_sentences_are_found_in_several_languages_past_abbreviations_and_dates(text: str, count: int) -> None:
    assert len(segment(text)) == count


@pytest.mark.parametrize(("text", "facts"), FACTS)
def test_names_numbers_dates_and_quotations_are_facts(text: str, facts: list[str] | str) -> None:
    wanted = facts.split("|") if isinstance(facts, str) else facts
    assert [text[start:end] for start, end in segment(text, "entity")] == wanted


@given(TEXTS)
@example("\n\n")
@example("...\u0301!")
@example("half \ud800. A pair")
def test_sentences_cover_the_text_without_overlap(text: str) -> None:
    assert "".join(text[start:end] for start, end in segment(text)) == text
    spans = segment(text)
    assert all(start < end for start, end in spans)
    assert len(spans) == 1 or all(text[start:end].strip() for start, end in spans)


@given(TEXTS, st.sampled_from(["sentence", "entity"]))
@example("A\u0301\u0301 B", "entity")
def test_spans_hold_whole_visible_characters_and_never_overlap(text: str, kind: str) -> None:
    boundaries = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    spans = segment(text, kind)
    assert all(start in boundaries and end in boundaries for start, end in spans)
    assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))
    assert given_spans(spans, text) == spans


@given(NASTY)
def test_nasty_texts_are_split_without_an_error(text: str) -> None:
    tokens = scored_tokens(text)
    for kind in ("sentence", "entity"):
        assert len(token_indices(answer_spans(tokens, kind), tokens)) == len(answer_spans(tokens, kind))


@given(st.lists(st.sampled_from([" a", "b.", " C. D", "\n\n", "", " ", "e! F", "😀"]), max_size=12))
def test_a_token_belongs_to_the_spans_that_hold_one_of_its_visible_characters(words: list[str]) -> None:
    text = "".join(words)
    tokens = split(text, *words)
    spans = segment(text)
    visible = {(i, at) for i, token in enumerate(tokens) for at in range(*token.span) if not text[at].isspace()}
    for span, indices in zip(spans, token_indices(spans, tokens), strict=True):
        with_text = [i for i in indices if words[i]]
        assert with_text == sorted({i for i, at in visible if span[0] <= at < span[1]})


def test_the_parts_of_a_character_belong_where_it_is_completed_and_the_end_token_nowhere() -> None:
    tokens = [*split("Hi. 😀", "Hi", ".", "", "", " 😀")]
    end = ScoredToken(5, 2, "", (5, 5), -0.1, 0.1, risks={"x": Risk(1.0, 9.0)}, is_end=True)
    assert token_indices([(0, 4), (4, 5)], [*tokens, end]) == [(0, 1), (2, 3, 4)]


def test_reasoning_is_no_claim() -> None:
    tokens = scored_tokens("I think so. Paris is large. It is old.", reasoning=3)
    text = "".join(token.text for token in tokens)
    spans = answer_spans(tokens)
    assert [text[slice(*span)] for span in spans] == ["Paris is large.", "It is old."]
    assert token_indices([(0, len(text))], tokens) == [tuple(range(3, 9))]


def test_mean_and_max_of_a_claim_are_those_of_its_tokens() -> None:
    tokens = split("It is. We go.", "It", " is", ".", " We", " go", ".")
    spans = segment("It is. We go.")
    first, second = claim_risks(tokens, "x", spans)
    assert (first.text, first.value, first.raw) == ("It is.", pytest.approx(0.1), pytest.approx(1.0))
    assert (second.value, second.worst, second.indices) == (pytest.approx(0.4), 5, (3, 4, 5))
    assert [claim.value for claim in claim_risks(tokens, "x", spans, "max")] == [0.2, 0.5]


def test_an_average_of_calibrated_tokens_is_not_called_calibrated_but_a_score_of_the_whole_claim_is() -> None:
    tokens = [*split("It is. We go.", "It", " is", ".", " We", " go", ".")]
    for i, token in enumerate(tokens):
        token.risks["x"] = Risk(0.3 if i < 3 else i / 10, 1.0, "facts")
    first, second = claim_risks(tokens, "x", segment("It is. We go."))
    assert (first.value, first.calibration) == (0.3, "facts")
    assert second.calibration is None


def test_a_claim_without_a_scored_token_is_left_out() -> None:
    tokens = split("A b", "A", " b")
    tokens[0].risks["x"] = Risk(math.nan, math.nan)
    assert [claim.text for claim in claim_risks(tokens, "x", [(0, 1), (2, 3)])] == ["b"]
    assert claim_risks(tokens, "another", [(0, 3)]) == []


@pytest.mark.parametrize("spans", [[(0, 0)], [(0, 9)], [(0, 2), (1, 3)], [(-1, 2)]])
def test_given_spans_that_do_not_fit_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="Claim"):
        given_spans(spans, "abcd")


def test_another_kind_or_aggregation_is_refused() -> None:
    with pytest.raises(InputError, match="sentence or entity"):
        segment("a", "word")
    with pytest.raises(InputError, match="mean or max"):
        claim_risks((), "x", (), "sum")
