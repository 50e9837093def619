"""Grading against cases decided by hand; the references are what public data sets really list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uqchat.errors import InputError
from uqchat.grading import alias_match, exact_match, find_alias, letter_of, normalise, substring_match, token_f1

MATCHES = [
    ("The capital is Bishkek.", ["Bishkek"]),
    ("It was Gabriel Garcia Marquez", ["Gabriel García Márquez"]),
    ("E\u0301cole normale", ["École Normale"]),
    ("in Łódź, Poland", ["Lodz"]),
    ("Reykjavík", ["reykjavik"]),
    ("About 1,234,567 people", ["1234567"]),
    ("1234567", ["1,234,567"]),
    ("It boils at 100 degrees", ["100°"]),
    ("\u2212273.15 degrees", ["-273.15"]),
    ("There are seven of them", ["7"]),
    ("There are 7 of them", ["Seven"]),
    ("by J.R.R. Tolkien", ["J. R. R. Tolkien"]),
    ("It is in the USA", ["U.S.A."]),
    ("France's flag", ["France"]),
    ("McDonald’s", ["McDonalds"]),
    ("Simon and Garfunkel", ["Simon & Garfunkel"]),
    ("Beatles", ["The Beatles"]),
    ("the  Beatles", ["Beatles"]),
    ("the University of the South", ["University of South"]),
    ("It needs Vitamin A", ["vitamin A"]),
    ("Written in C++, mostly", ["C++"]),
    ("答えは東京です", ["東京"]),
    ("정답은 서울입니다", ["서울"]),
    ("**Jean\u2011Luc Picard**", ["Jean-Luc Picard"]),
    ("ＰＡＲＩＳ", ["paris"]),
    ("A", ["A"]),
    ("Pa\u00adris", ["Paris"]),
]
MISSES = [
    ("Somalia", ["Mali"]),
    ("Vitamin C", ["Vitamin A"]),
    ("A dog", ["A"]),
    ("12345", ["1234"]),
    ("12,345", ["12"]),
    ("3.14", ["14"]),
    ("5 degrees", ["-5"]),
    ("the letter C", ["C++"]),
    ("York, New", ["New York"]),
    ("", ["Paris"]),
    ("...", ["?"]),
    ("The band", ["The The"]),
    ("19th century", ["19"]),
]


@pytest.mark.parametrize(("answer", "references"), MATCHES)
def test_a_reference_is_found_through_typography(answer: str, references: list[str]) -> None:
    assert alias_match(answer, references)


@pytest.mark.parametrize(("answer", "references"), MISSES)
def test_a_reference_is_not_found_in_other_words(answer: str, references: list[str]) -> None:
    assert not alias_match(answer, references)


@pytest.mark.parametrize(
    ("answer", "references", "part"),
    [
        ("The capital is E\u0301cole, yes", ["ecole"], "E\u0301cole"),
        ("It's the «United Arab Emirates».", ["Emirates", "United Arab Emirates"], "United Arab Emirates"),
        ("France's flag, France", ["France"], "France's"),
        ("made by J. R. R. Tolkien himself", ["JRR Tolkien"], "J. R. R. Tolkien"),
        ("Straße 5 in Köln", ["strasse 5"], "Straße 5"),
        ("University of the South", ["university of south"], "University of the South"),
        ("答えは東京です", ["東京"], "東京"),
        ("Bangkok, then Bangkok", ["Bangkok"], "Bangkok"),
    ],
)
def test_the_span_is_the_alias_in_the_original_text(answer: str, references: list[str], part: str) -> None:
    span = find_alias(answer, references)
    assert span is not None
    assert answer[span[0] : span[1]] == part
    assert span[0] == answer.index(part)


@given(
    st.text(max_size=12), st.lists(st.sampled_from(["Ünï", "1,000", "U.S.", "O'Neill", "x"]), min_size=1, max_size=4)
)
def test_a_text_contains_each_of_its_own_words_and_the_span_reads_the_same(noise: str, parts: list[str]) -> None:
    answer = f"{noise} / {' / '.join(parts)}"
    span = find_alias(answer, parts[-1])
    assert span is not None
    assert normalise(answer[span[0] : span[1]]) == normalise(parts[-1])


@given(
    st.lists(st.sampled_from(["Ünï", "1,000", "mp3", "O'Neill", "東京"]), min_size=1), st.sampled_from(' -/,;:!\n*"')
)
def test_case_and_punctuation_between_words_change_nothing(parts: list[str], mark: str) -> None:
    assert normalise(f"{mark} {mark} ".join(parts).upper() + mark) == normalise(" ".join(parts))


def test_exact_match_and_f1_follow_squad() -> None:
    """F1 of "the cat sat" against "a cat": 1 of 2 words right, 1 of 1 found: 2/3."""
    assert exact_match("The Cat!", ["dog", "cat"]) and not exact_match("cats", ["cat"])
    assert token_f1("the cat sat", ["a cat"]) == pytest.approx(2 / 3)
    assert token_f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert token_f1("dog", ["cat", "the dog"]) == 1.0
    assert token_f1("", ["cat"]) == 0.0
    assert not exact_match("?", ["!"])


def test_substring_ignores_word_boundaries_and_empty_references() -> None:
    assert substring_match("Somalia", ["mali"])
    assert not substring_match("Somalia", ["", "?"])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(b).", "B"),
        ("**B**", "B"),
        ("B) Lyon", "B"),
        ("B. Lyon", "B"),
        ("Answer: C", "C"),
        ("ANSWER: (c)", "C"),
        ("The answer is A because", "A"),
        ("I think (D) is right", "D"),
        ("the correct choice is option b", "B"),
        ("The answer is a dog", None),
        ("A dog", None),
        ("The answer is A or B", None),
        ("A. Paris B. Lyon", None),
        ("E", None),
        ("Lyon", None),
        ("", None),
    ],
)
def test_a_letter_is_read_only_where_one_was_chosen(answer: str, letter: str | None) -> None:
    assert letter_of(answer, 4) == letter


@pytest.mark.parametrize("grade", [alias_match, exact_match, substring_match, token_f1, find_alias])
def test_no_reference_is_an_error_and_not_a_wrong_answer(grade: object) -> None:
    with pytest.raises(InputError, match="reference"):
        grade("Paris", [])  # type: ignore[operator]


def test_a_question_has_as_many_choices_as_there_are_letters() -> None:
    with pytest.raises(InputError, match="27"):
        letter_of("A", 27)
