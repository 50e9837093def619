"""Prompts that ask for several facts at once, made of `easy_facts`, so that right and wrong stand in one answer.

Facts of one prompt are about different things, and all of one split: train, calibration or held out, which in
`easy_facts` share no entity. Some prompts show one answered example first, made of training facts: small models
answer part by part only when they have seen it done.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from trainers.answers import Fact
from trainers.prompts import Messages
from trainers.questions import Question
from trainers.splits import entity_of
from uqchat.errors import InputError

SET = "easy_facts_several"
STYLES = ("shown_mixed", "shown_same", "shown_mixed", "plain_same", "shown_mixed", "shown_same", "plain_list")
"""In turn: an example first and facts of several kinds, or of one; no example and one question each, or one in all."""
COUNTS = (3, 4)

# category -> how an example answers it
_SENTENCES = {
    "capital": "The capital of {subject} is {answer}.",
    "country_of_capital": "{subject} is the capital of {answer}.",
    "continent": "{subject} is on the continent of {answer}.",
    "demonym": "A person from {subject} is called {answer}.",
    "us_state_capital": "The capital of {subject} is {answer}.",
    "element_symbol": "The chemical symbol of {subject} is {answer}.",
    "element_of_symbol": "The symbol {subject} stands for {answer}.",
    "atomic_number": "The atomic number of {subject} is {answer}.",
    "plural": 'The plural of "{subject}" is "{answer}".',
    "arithmetic_plus": "{subject} is {answer}.",
    "arithmetic_minus": "{subject} is {answer}.",
}
_LISTS = {
    "capital": "What are the capitals of {subjects}?",
    "continent": "On which continents are {subjects}?",
    "element_symbol": "What are the chemical symbols of {subjects}?",
    "us_state_capital": "What are the capitals of the US states {subjects}?",
}


def subject_of(question: Question) -> str | None:
    """What a question of `easy_facts` is about, in its own words; None for kinds that are not asked together."""
    if question.category not in _SENTENCES:
        return None
    if question.category == "country_of_capital":
        return question.question.removesuffix(" is the capital of which country?")
    if question.category == "element_of_symbol":
        return question.question.removeprefix("Which chemical element has the symbol ").removesuffix("?")
    if question.category.startswith("arithmetic_"):
        return question.question.removeprefix("What is ").removesuffix("?")
    entity = entity_of(question)
    return entity[1] if entity else None


def compose(
    questions: Sequence[Question], examples: Sequence[Question], count: int, split: str, seed: int = 0
) -> list[tuple[Question, Messages]]:
    """`count` prompts about these questions, each with its conversation.

    Args:
        questions: of one split of `easy_facts`. examples: training questions, for the answered examples.

    Raises:
        InputError: too few of them, or not questions of `easy_facts`.
    """
    pools, shown = _by_category(questions), _by_category(examples)
    listed = [name for name in _LISTS if len(pools.get(name, ())) >= max(COUNTS)]
    if not listed or len(pools) < max(COUNTS):
        raise InputError("Several facts are asked of the set easy_facts only, with some questions of every kind.")
    made = []
    for number in range(count):
        draw = random.Random(f"{seed} {split} {number}")
        style, size = STYLES[number % len(STYLES)], draw.choice(COUNTS)
        kinds = _kinds(style, size, pools, shown, listed, draw)
        chosen = _draw(pools, kinds, draw)
        messages: Messages = ()
        if style.startswith("shown"):
            example = _draw(shown, kinds, draw)
            answer = " ".join(_sentence(question) for question in example)
            messages = ({"role": "user", "content": _asked(example)}, {"role": "assistant", "content": answer})
        text = _list(chosen) if style == "plain_list" else _asked(chosen)
        facts = tuple(Fact(subject_of(q) or "", q.references, q.id) for q in chosen)
        question = Question(f"several-{split}-{number:04d}", SET, text, (), style, facts=facts)
        made.append((question, (*messages, {"role": "user", "content": text})))
    return made


def _by_category(questions: Sequence[Question]) -> dict[str, list[Question]]:
    pools: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if subject_of(question):
            pools[question.category].append(question)
    return dict(pools)


def _kinds(
    style: str,
    size: int,
    pools: dict[str, list[Question]],
    shown: dict[str, list[Question]],
    listed: Sequence[str],
    draw: random.Random,
) -> list[str]:
    """Categories of the facts of one prompt."""
    if style == "plain_list":
        return [draw.choice(listed)] * size
    if style == "shown_mixed":
        return draw.sample(sorted({*pools} & {*shown}), size)
    copied = ("plural",)  # small models repeat the example's words here
    enough = [
        name
        for name, pool in pools.items()
        if name not in copied and len(pool) >= 2 * size and len(shown.get(name, ())) >= size
    ]
    return [draw.choice(sorted(enough))] * size


def _draw(pools: dict[str, list[Question]], kinds: Sequence[str], draw: random.Random) -> list[Question]:
    """One question of each kind, about different things."""
    chosen: list[Question] = []
    for kind in kinds:
        taken = {entity_of(question) or subject_of(question) for question in chosen}
        free = [q for q in pools[kind] if (entity_of(q) or subject_of(q)) not in taken]
        chosen.append(draw.choice(free))
    return chosen


def _asked(questions: Sequence[Question]) -> str:
    return " ".join(question.question for question in questions)


def _list(questions: Sequence[Question]) -> str:
    subjects = [subject_of(question) or "" for question in questions]
    return _LISTS[questions[0].category].format(subjects=f"{', '.join(subjects[:-1])} and {subjects[-1]}")


def _sentence(question: Question) -> str:
    return _SENTENCES[question.category].format(subject=subject_of(question), answer=question.references[0])
