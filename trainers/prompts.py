"""A question as messages: the prompt styles. Knows no model."""

from __future__ import annotations

import random
from collections.abc import Sequence

from trainers.questions import LETTERS, Question
from uqchat.errors import InputError
from uqchat.grading import normalise

SYSTEM = {
    "page": "",
    "short": "Answer the question in a few words.",
    "sentence": "Answer the question in one full sentence.",
}
"""What each style says first; `page` is what the app sends: the question alone."""
STYLES = tuple(SYSTEM)
Messages = tuple[dict[str, str], ...]


def make_messages(question: Question, style: str, examples: Sequence[Question] = ()) -> Messages:
    """The conversation that asks a question.

    Args:
        examples: questions asked and answered before it (k-shot), each as a turn of its own.

    Raises:
        InputError: no such style.
    """
    if style not in SYSTEM:
        raise InputError(f"Unknown prompt style {style!r}. Known: {', '.join(STYLES)}.")
    system = [{"role": "system", "content": SYSTEM[style]}] if SYSTEM[style] else []
    shown = [
        turn
        for example in examples
        for turn in (
            {"role": "user", "content": _asked(example)},
            {"role": "assistant", "content": example.references[0]},
        )
    ]
    return (*system, *shown, {"role": "user", "content": _asked(question)})


def _asked(question: Question) -> str:
    if not question.choices:
        return question.question
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{question.question}\n{listed}\nAnswer with the letter only."


def pick_examples(question: Question, pool: Sequence[Question], count: int, seed: int = 0) -> list[Question]:
    """`count` other questions of the pool, drawn anew for every question, the same ones every time.

    Raises:
        InputError: the pool holds too few.
    """
    others = [other for other in pool if normalise(other.question) != normalise(question.question)]
    if len(others) < count:
        raise InputError(f"{count} examples are wanted, but there are only {len(others)} other questions.")
    return random.Random(f"{seed} {question.id}").sample(others, count)
