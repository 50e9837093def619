"""Which words of an answer say something of their own, and which only restate the question or hold a sentence together.

By words alone, no model: what training labels as never wrong (`trainers/token_labels.py`) is told the same way while
an answer is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from uqchat.claims_rules import is_function_word
from uqchat.grading import Word, words
from uqchat.types import Message

_SAYS_NOTHING = frozenset(
    "be been being has have had will may might must nor than whom whose them more any either neither only same other "
    "such very too just about into over under between among though until up down out off again own "
    "answer answers question called known named names name word following referred often commonly usually simply "
    "located situated actually indeed follows respectively no ok yes".split()
)
_SENTENCE_BEGINS = re.compile(r"(?:^|[.!?:\n]\s*|[\"“]\s*|[-*•]\s+)$")

SENTENCE_ENDS = re.compile(r"[.!?](?=\s|$)|\n")


def newest_question(messages: Sequence[Message]) -> str:
    """The newest of the user's messages; '' where there is none."""
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


def is_quiet(word: Word, text: str) -> bool:
    """Says nothing of its own. With a capital inside a sentence it is a name: Vitamin A, iodine's I, Los Angeles.

    Args:
        word: one of `words(text)`.
    """
    shown = text[word.start : word.end]
    if shown[:1].isupper() and not _SENTENCE_BEGINS.search(text[: word.start]):
        return False
    return word.is_article or word.form in _SAYS_NOTHING or is_function_word(shown)


def question_forms(question: str) -> frozenset[str]:
    """The words of the question, in singular and plural, unless the plural is what it asks for."""
    forms = frozenset(form for word in words(question) for form in word.forms)
    if "plural" in forms:
        return forms
    return forms | {form + "s" for form in forms} | {form[:-1] for form in forms if form[-1:] == "s"}


@dataclass(frozen=True, slots=True)
class AskedWords:
    """A question's words: all that count as equal to them, and of each how often one sentence says it."""

    forms: frozenset[str] = frozenset()
    most: Mapping[str, int] = field(default_factory=dict)


def asked_words(question: str) -> AskedWords:
    """What restates this question."""
    counts = [Counter(_stem(word) for word in words(part)) for part in SENTENCE_ENDS.split(question)]
    return AskedWords(question_forms(question), {stem: max(c[stem] for c in counts) for c in counts for stem in c})


def says_something(text: str, before: str, asked: AskedWords, is_open: bool = False) -> bool:
    """Whether one of the words of `text` is the answer's own.

    A word of the question is too, when a sentence says it more often than the question does: "The capital of Chile is
    Chile."

    Args:
        before: what stands before it in its sentence.
        is_open: its last word may go on, and may become one of the question's.
    """
    whole = before + text
    found = words(whole)
    for at, word in enumerate(found):
        if word.end <= len(before) or is_quiet(word, whole):
            continue
        if not word.forms.isdisjoint(asked.forms):
            said = sum(_stem(one) == _stem(word) for one in found[:at])
            if said < asked.most.get(_stem(word), 1):
                continue
        elif is_open and word.end == len(whole) and any(form.startswith(word.form) for form in asked.forms):
            continue
        return True
    return False


def _stem(word: Word) -> str:
    return word.form.removesuffix("s")
