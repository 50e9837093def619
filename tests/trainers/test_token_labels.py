"""The right words carry the label: hand-written answers, marked by hand.

In the cases [wrong], {right} and ~ignored~ stretches stand in marks; everything else says nothing and is label 0.
"""

from __future__ import annotations

import re

import pytest

from tests.trainers.made_answers import make_row
from trainers.answers import IGNORED, AnswerRow, Fact
from trainers.token_labels import fact_errors, graded_spans, label_tokens

MARKS = re.compile(r"\[[^\]]*\]|\{[^}]*\}|~[^~]*~")


def worded(marked: str, **changes: object) -> tuple[AnswerRow, list[int]]:
    """An answer of one token per word and mark of punctuation, each with the space before it; the labels marked."""
    text, labels = "", []
    at = 0
    for match in [*MARKS.finditer(marked), None]:
        plain = marked[at : match.start() if match else len(marked)]
        text, labels = text + plain, labels + [0] * len(plain)
        if match:
            inner = match.group()[1:-1]
            label = {"[": 1, "{": 0, "~": IGNORED}[match.group()[0]]
            text, labels, at = text + inner, labels + [label] * len(inner), match.end()
    spans = [m.span() for m in re.finditer(r"\s*(?:\w+|[^\w\s])", text)]
    wanted = [labels[end - 1] for _, end in spans] + [IGNORED]
    spans.append((len(text), len(text)))  # the end token
    row = make_row(text=text, spans=tuple(spans), answer_ids=tuple(range(len(spans))), **changes)
    return row, wanted


@pytest.mark.parametrize(
    ("question", "references", "marked"),
    [
        ("What is the capital of Kyrgyzstan?", ["Bishkek"], "The capital of Kyrgyzstan is [Bishkeq]."),
        ("What is the capital of Kyrgyzstan?", ["Bishkek"], "The capital of Kyrgyzstan is {Bishkek}."),
        ("What is the capital of Ethiopia?", ["Addis Ababa"], "{Addis Ababa}, ~founded 1886~."),
        ("What is the capital of Malaysia?", ["Kuala Lumpur"], "It is called [Port Dickson], ~on the coast~."),
        ("What is the capital of the US state Utah?", ["Salt Lake City"], "[Ogden City]"),
        ("What is the capital of the US state Utah?", ["Salt Lake City"], "It is [St. Louis]. ~Really~."),
        ("What is 14 minus 3?", ["11", "eleven"], "14 minus 3 is [1]."),
        ("Which month comes right after January?", ["February"], "[January]"),
        ('What is the plural of the word "calf"?', ["calves"], 'The plural of the word "calf" is "[calf]".'),
        ('What is the plural of the word "bench"?', ["benches"], 'The plural of the word "bench" is "{benches}".'),
        ("Which chemical element has the symbol H?", ["hydrogen"], "The symbol H is [iron], ~a metal~."),
        ("Who wrote Macbeth?", ["Shakespeare"], "Macbeth was ~written~ by ~the poet William~ {Shakespeare}."),
        ("Who wrote Macbeth?", ["Shakespeare"], "Macbeth was ~written~ by [Ben Jonson] in [1606]. ~Died~ in ~1637~."),
        ("Who wrote Macbeth?", ["Shakespeare"], "~Christopher Marlowe or~ {Shakespeare}."),
    ],
)  # fmt: skip
def test_the_words_that_carry_the_answer_carry_its_label(question: str, references: list[str], marked: str) -> None:
    row, wanted = worded(marked, question=question, references=tuple(references))
    shown = [row.text[a:b] for a, b in row.spans]
    got = list(label_tokens(row))
    quiet = {i for i, piece in enumerate(shown) if piece.strip() in ("or", "the", "on", "in", "a", "")}
    assert [x for i, x in enumerate(zip(shown, got, strict=True)) if i not in quiet] == [
        x for i, x in enumerate(zip(shown, wanted, strict=True)) if i not in quiet
    ]


def test_function_words_and_punctuation_are_never_errors_and_the_end_token_is_ignored() -> None:
    row, _ = worded("It is the [Volga], in [Asia].", question="What is the longest river?", references=("Nile",))
    labels = dict(zip([row.text[a:b].strip() for a, b in row.spans], label_tokens(row), strict=True))
    assert labels == {"It": 0, "is": 0, "the": 0, "Volga": 1, ",": 0, "in": 0, "Asia": IGNORED, ".": 0, "": IGNORED}


def test_every_piece_of_a_word_and_every_byte_of_a_character_carries_its_label() -> None:
    text = "It is Zürich."
    spans = ((0, 2), (2, 5), (5, 7), (7, 7), (7, 8), (8, 12), (12, 13), (13, 13))  # Z, two bytes of ü, rich
    row = make_row(
        text=text, spans=spans, answer_ids=tuple(range(8)), question="Capital of Switzerland?", references=("Bern",)
    )
    assert label_tokens(row) == (0, 0, 1, 1, 1, 1, 0, IGNORED)


def test_a_graders_word_is_kept_where_it_differs_from_the_aliases() -> None:
    row, _ = worded("{Paris} is wrong.", question="Capital of France?", references=("Paris",))
    assert 1 not in label_tokens(row, is_error=True) and label_tokens(row, is_error=True)[0] == IGNORED
    synonym, _ = worded("[Leningrad]", question="Where was Putin born?", references=("Saint Petersburg",))
    assert label_tokens(synonym, is_error=False)[0] == IGNORED and label_tokens(synonym, is_error=True)[0] == 1


FACTS = (Fact("France", ("Paris",)), Fact("Peru", ("Lima",)), Fact("Chad", ("N'Djamena",)))
ASKED = "What are the capitals of France, Peru and Chad?"


@pytest.mark.parametrize(
    ("marked", "errors"),
    [
        ("France: {Paris}\nPeru: [Cusco]\nChad: {N'Djamena}", [False, True, False]),
        ("The capital of France is {Paris}, of Peru [Cusco Alto] and of Chad {N'Djamena}.", [False, True, False]),
        ("{Paris} is the capital of France. [Quito] is the capital of Peru.", [False, True, None]),
        ("{Paris} is the capital of France, and [Quito] is the capital of Peru.", [False, True, None]),
        ("The capitals of France, Peru and Chad are:\n\nFrance: it is {Paris}.\nPeru: [Peru].", [False, True, None]),
        ("1. {Paris}\n2. {Lima}\n3. [Bamako]", [False, False, True]),
        ("[Lyon], {Lima}, [Bamako]", [True, False, True]),
        ("~I do not know them all~.", [None, None, None]),
    ],
)
def test_right_and_wrong_facts_stand_in_one_answer(marked: str, errors: list[bool | None]) -> None:
    row, wanted = worded(marked, question=ASKED, references=(), facts=FACTS)
    assert fact_errors(row) == errors
    shown = [row.text[a:b].strip() for a, b in row.spans]
    assert [(t, x) for t, x in zip(shown, label_tokens(row), strict=True) if t.isalpha() and x == 1] == [
        (t, x) for t, x in zip(shown, wanted, strict=True) if x == 1
    ]


def test_the_letter_of_a_choice_is_what_is_graded() -> None:
    row = make_row(text="B) Lima", references=("A", "Paris"), choices=("Paris", "Lima"), spans=((0, 1), (1, 2), (2, 7)))
    assert label_tokens(row) == (1, 0, IGNORED)
    assert [(s.start, s.end, s.is_error) for s in graded_spans(row)] == [(0, 1, True)]
    assert graded_spans(make_row(text="neither", references=("A", "x"), choices=("x", "y"))) == []
