"""Which questions train, which calibrate, which evaluate. Knows no model and no file.

Questions about the same thing stay together: all wordings of one question, and in `easy_facts` all questions about
one country, state, element, word or pair of numbers, since "Tirana is the capital of which country?" gives away what
"What is the capital of Albania?" asks.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from trainers.questions import Question
from uqchat.errors import InputError
from uqchat.grading import normalise

CALIBRATION = 0.2
"""Share of the training questions that only calibrate."""

_ENTITY = {
    "capital": ("country", r"What is the capital of (.+)\?"),
    "continent": ("country", r"On which continent is (.+)\?"),
    "demonym": ("country", r"What is a person from (.+) called\?"),
    "us_state_capital": ("state", r"What is the capital of the US state (.+)\?"),
    "element_symbol": ("element", r"What is the chemical symbol of (.+)\?"),
    "atomic_number": ("element", r"What is the atomic number of (.+)\?"),
    "plural": ("noun", r'What is the plural of the word "(.+)"\?'),
}
_ANSWER_IS_ENTITY = {"country_of_capital": "country", "element_of_symbol": "element"}


def entity_of(question: Question) -> tuple[str, str] | None:
    """(kind, name) of what an `easy_facts` question is about; None for other sets and for arithmetic."""
    if question.set != "easy_facts":
        return None
    if question.category in _ANSWER_IS_ENTITY:
        return _ANSWER_IS_ENTITY[question.category], question.references[0]
    kind, pattern = _ENTITY.get(question.category, ("", "$^"))
    found = re.fullmatch(pattern, question.question)
    return (kind, found[1]) if found else None


def group_of(question: Question) -> str:
    """Questions with the same group are never in two splits."""
    entity = entity_of(question)
    if entity:
        return f"{entity[0]}: {normalise(entity[1])}"
    numbers = re.findall(r"\d+", question.question) if question.category.startswith("arithmetic_") else []
    return " ".join(sorted(numbers)) if numbers else normalise(question.question) or question.question


def split(questions: Sequence[Question], calibration: float = CALIBRATION, seed: int = 0) -> dict[str, list[Question]]:
    """Training questions into "train" and "calibration", each in the order given.

    Groups are shuffled with the seed inside their stratum (the categories a group's questions have), laid in a row,
    stratum by stratum, and taken evenly from that row: every category gives its share.

    Raises:
        InputError: the share is not between 0 and 1.
    """
    if not 0 <= calibration < 1:
        raise InputError(f"The share for calibration must be from 0 to below 1; got {calibration}.")
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[group_of(question)].append(question)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, members in groups.items():
        strata[tuple(sorted({member.category for member in members}))].append(name)
    chosen: set[str] = set()
    taken = passed = 0
    for stratum in sorted(strata):
        names = sorted(strata[stratum])
        random.Random(f"{seed} {stratum}").shuffle(names)
        for name in names:
            passed += len(groups[name])
            if taken + len(groups[name]) / 2 < calibration * passed:
                chosen.add(name)
                taken += len(groups[name])
    parts: dict[str, list[Question]] = {"train": [], "calibration": []}
    for question in questions:
        parts["calibration" if group_of(question) in chosen else "train"].append(question)
    return parts


def shuffled(questions: Sequence[Question], limit: int | None = None, seed: int = 0) -> list[Question]:
    """The first `limit` questions of a fixed shuffle of their own order; all of them where there are fewer."""
    rows = list(questions)
    random.Random(seed).shuffle(rows)
    return rows[:limit]


def without_leaks(questions: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    """Those that share no group with the others: a held-out file may ask about what another one trains on."""
    known = {group_of(question) for question in others}
    return [question for question in questions if group_of(question) not in known]


def check_no_leak(questions: Sequence[Question], others: Sequence[Question]) -> None:
    """Refuse two splits that share a group.

    Raises:
        InputError: they do; the text gives the first such question.
    """
    clean = {question.id for question in without_leaks(questions, others)}
    shared = [question for question in questions if question.id not in clean]
    if shared:
        raise InputError(
            f"{len(shared):,} questions are in both splits, the first: {shared[0].question[:120]!r} ({shared[0].id})."
        )
