"""Which tokens of a graded answer are wrong: from references to spans, from spans to one label per token.

By words alone, no model: names, numbers and content words. It finds what carries the answer, not what is false in it.

The rules, for an answer to one question:

1. Words of the question are restating, function words ("the", "is", "called") say nothing: never errors, label 0.
2. A reference stands in the answer: its words are right, 0. All other content words are claims nobody graded: -100.
3. No reference stands in it: the words that carry the answer are wrong, 1: in the first clause that says something of
   its own, the names and numbers when the references are names or numbers, else all content words up to the next
   restating word. What follows is -100.
4. An answer that has only words of the question ("January" to "Which month comes after January?"): its last run of
   content words carries it.
5. Punctuation is 0, the end token -100, a token across two words takes the stronger label: 1, then 0 by rule 2, -100.

An answer that asks for several facts is cut into the stretches that belong to each (from its subject to the next one;
or line by line when no subject is named), and each stretch follows rules 1 to 4 with its own references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from trainers.answers import IGNORED, AnswerRow, Fact
from uqchat.grading import Word, find_alias, letter_of, words
from uqchat.restating import is_quiet, question_forms

RIGHT, WRONG = 0, 1
_MARKER = re.compile(r"\s*(?:\d+[.)]\s|[-*•]\s)?\s*")  # of a list's line
_FULL_STOP = r"(?<!\b[A-Z])(?<!\b(?:St|Mt|Ft|Dr|Mr))\.(?=\s|$|[\"”'])"  # not those of St. Louis and D. C.
_CLAUSE_ENDS = re.compile(rf"[,;:(\n]|[!?](?=\s|$)|{_FULL_STOP}")
_SENTENCE_ENDS = re.compile(rf"\n|[!?](?=\s|$)|{_FULL_STOP}")


@dataclass(frozen=True, slots=True)
class GradedSpan:
    """Characters [start, end) of an answer that carry a fact, and whether the fact is wrong; `fact` counts from 0."""

    start: int
    end: int
    is_error: bool
    fact: int = 0


def label_tokens(row: AnswerRow, is_error: bool | None = None) -> tuple[int, ...]:
    """One label for each id of an answer: 1 wrong, 0 right, -100 ignored; the module says by which rules.

    Args:
        is_error: what a grader found; None finds out by `find_alias`. A grader that calls an answer wrong although a
            reference stands in it, or right although none does, has its word: then only what restates is labelled.
    """
    spans = graded_spans(row)
    labels: list[int | None] = [None] * len(row.text)  # per character; None says nothing
    restating = question_forms(row.question)
    for word in words(row.text):
        is_no_claim = is_quiet(word, row.text) or not word.forms.isdisjoint(restating)
        _paint(labels, word.start, word.end, RIGHT if is_no_claim else IGNORED)
    is_doubted = is_error is not None and not row.facts and bool(spans) and spans[0].is_error != is_error
    for span in spans:
        _paint(labels, span.start, span.end, IGNORED if is_doubted else int(span.is_error))
    return _per_token(row, labels, spans)


def graded_spans(row: AnswerRow) -> list[GradedSpan]:
    """The stretches of an answer that carry its facts, in order, graded by alias (a letter, with choices)."""
    if row.choices:
        return _choice(row)
    if not row.facts:
        return _fact_spans(row.text, 0, len(row.text), row.references, question_forms(row.question), 0)
    restating = question_forms(row.question)
    return [
        span
        for number, (start, end) in sorted(_stretches(row.text, row.facts, restating).items(), key=lambda item: item[1])
        for span in _fact_spans(row.text, start, end, row.facts[number].references, restating, number)
    ]


def fact_errors(row: AnswerRow) -> list[bool | None]:
    """Of each fact that was asked for whether it is wrong; None where the answer says nothing that can be found."""
    found = {span.fact: span.is_error for span in graded_spans(row)}
    return [found.get(number) for number in range(len(row.facts))]


def restating_words(row: AnswerRow) -> list[tuple[int, int]]:
    """Characters of the content words that only say again what was asked, outside of the stretches that are graded."""
    spans, restating = graded_spans(row), question_forms(row.question)
    return [
        (word.start, word.end)
        for word in words(row.text)
        if not (is_quiet(word, row.text) or word.forms.isdisjoint(restating))
        and all(word.end <= span.start or word.start >= span.end for span in spans)
    ]


# ---- one fact


def _fact_spans(
    text: str, start: int, end: int, references: Sequence[str], restating: frozenset[str], fact: int
) -> list[GradedSpan]:
    part = text[start:end]
    alias = find_alias(part, references)
    if alias:
        return [GradedSpan(start + alias[0], start + alias[1], False, fact)]
    return [GradedSpan(start + a, start + b, True, fact) for a, b in _carrying(part, references, restating)]


def _carrying(text: str, references: Sequence[str], restating: frozenset[str]) -> list[tuple[int, int]]:
    """Spans of the words that carry a wrong answer."""
    found = words(text)
    own = [w for w in found if not is_quiet(w, text) and w.forms.isdisjoint(restating)]
    if not own:
        return _spans(text, _last_run(found, text))
    clause_end = next((m.start() for m in _CLAUSE_ENDS.finditer(text) if m.start() >= own[0].end), len(text))
    clause = [word for word in own if word.end <= clause_end]
    named = [word for word in clause if _is_name(text[word.start : word.end])]
    if named and any(_is_name(reference) for reference in references):
        return _spans(text, named)
    at = found.index(clause[0])
    run = list(takewhile(lambda w: w.end <= clause_end and w.forms.isdisjoint(restating), found[at:]))
    return _spans(text, [word for word in run if word in clause])


def _last_run(found: Sequence[Word], text: str) -> list[Word]:
    """The content words that end the answer's first sentence, when all of them are the question's."""
    ended = _SENTENCE_ENDS.search(text, found[0].end) if found else None
    first = [word for word in found if ended is None or word.end <= ended.start()]
    loud = list(reversed(list(takewhile(lambda word: not is_quiet(word, text), reversed(first)))))
    return loud or list(first[-1:])


def _spans(text: str, chosen: Iterable[Word]) -> list[tuple[int, int]]:
    """Words that stand beside each other joined to one span."""
    spans: list[tuple[int, int]] = []
    for word in chosen:
        if spans and not re.search(r"[^\s\-'.]", text[spans[-1][1] : word.start]):
            spans[-1] = (spans[-1][0], word.end)
        else:
            spans.append((word.start, word.end))
    return spans


def _is_name(text: str) -> bool:
    return text[:1].isupper() or any(char.isdigit() for char in text)


# ---- several facts


def _stretches(text: str, facts: Sequence[Fact], restating: frozenset[str]) -> dict[int, tuple[int, int]]:
    """Where the answer speaks of each fact: from its subject to the next subject or the end of the sentence.

    An answer that says something of its own before its first subject ("Paris is the capital of France") has its facts
    before their subjects throughout.
    """
    places = sorted(place for n, fact in enumerate(facts) for place in _places(text, fact.subject, n))
    if not places:
        return _items(text, facts)
    is_before = _says_something(text[_sentence_of(text, places[0][0])[0] : places[0][0]], restating)
    near, far = [], []  # up to the next subject of any fact; up to the next one of another fact
    for at, (start, end, number) in enumerate(places):
        begin, stop = _sentence_of(text, start)
        if is_before:
            near.append((number, max(begin, places[at - 1][1] if at else 0), start))
            continue
        near.append((number, end, min(stop, places[at + 1][0] if at + 1 < len(places) else stop)))
        far.append((number, end, min([stop, *(p[0] for p in places[at + 1 :] if p[2] != number)])))
    stretches: dict[int, tuple[int, int]] = {}
    for options, is_restating_enough in ((near, False), (far, True)):
        for number, start, end in options:
            if number not in stretches and _says_something(text[start:end], restating, is_restating_enough):
                stretches[number] = start, end
    return stretches


def _places(text: str, subject: str, number: int) -> list[tuple[int, int, int]]:
    """Every place where the subject stands."""
    places, at = [], 0
    while found := find_alias(text[at:], [subject]):
        places.append((at + found[0], at + found[1], number))
        at += found[1]
    return places


def _says_something(text: str, restating: frozenset[str], is_restating_enough: bool = False) -> bool:
    text = text[len(_MARKER.match(text)[0]) :]
    loud = [word for word in words(text) if not is_quiet(word, text)]
    return any(is_restating_enough or word.forms.isdisjoint(restating) for word in loud)


def _sentence_of(text: str, place: int) -> tuple[int, int]:
    ends = [match.end() for match in _SENTENCE_ENDS.finditer(text)]
    return max((end for end in ends if end <= place), default=0), min((e for e in ends if e > place), default=len(text))


def _items(text: str, facts: Sequence[Fact]) -> dict[int, tuple[int, int]]:
    """Line by line, or item by item, when there are as many as facts."""
    for mark in (r"[^\n]+", r"[^,\n]+"):
        items = [match for match in re.finditer(mark, text) if words(match.group())]
        found = [(item.start() + len(_MARKER.match(item.group())[0]), item.end()) for item in items]
        if len(found) == len(facts):
            return dict(enumerate(found))
    return {}


def _choice(row: AnswerRow) -> list[GradedSpan]:
    letter = letter_of(row.text, len(row.choices))
    found = re.search(rf"\b{letter}\b", row.text, re.IGNORECASE) if letter else None
    return [GradedSpan(*found.span(), letter != row.references[0])] if found else []


# ---- characters to tokens


def _paint(labels: list[int | None], start: int, end: int, label: int) -> None:
    labels[start:end] = [label] * (end - start)


def _per_token(row: AnswerRow, labels: Sequence[int | None], spans: Sequence[GradedSpan]) -> tuple[int, ...]:
    carried = [False] * len(labels)
    for span in spans:
        carried[span.start : span.end] = [True] * (span.end - span.start)
    result: list[int] = []
    waiting = 0  # ids whose character the next one completes
    for start, end in row.spans:
        waiting += 1
        if start == end:
            continue
        here = [i for i in range(start, end) if labels[i] is not None and not row.text[i].isspace()]
        result += [_strongest([(labels[i], carried[i]) for i in here])] * waiting
        waiting = 0
    return (*result, *[IGNORED] * waiting)


def _strongest(found: Sequence[tuple[int | None, bool]]) -> int:
    if (WRONG, True) in found:
        return WRONG
    if (RIGHT, True) in found:
        return RIGHT
    return IGNORED if any(label == IGNORED for label, _ in found) else RIGHT
