"""Labelled answers to what the query's trainer reads: ids, where the answer lies in them, label. Runs no model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainers.answers import AnswerRow
from trainers.training_set import num_content
from uqchat.engine.prompt import build_prompt
from uqchat.estimators.query_format import Query, query_ids
from uqchat.models import LoadedModel
from uqchat.types import as_messages


@dataclass(frozen=True, slots=True)
class Example:
    """One answer with the query after it, and the same prompt with a right answer in its place."""

    ids: tuple[int, ...]
    answer: tuple[int, int]
    """Places [start, end) of the answer in `ids`; empty where truncation left nothing of it to compare."""
    is_error: bool
    group: str
    """Data set and style: scores are compared inside these."""
    gold_ids: tuple[int, ...] = ()
    """Prompt and the first reference, without the query; empty when not asked for."""
    gold_start: int = 0


def make_example(row: AnswerRow, model: LoadedModel, query: Query, with_gold: bool = False) -> Example:
    """The inputs of one answer, cut from the left to the context window, the query whole.

    Args:
        with_gold: whether the prompt with the first reference is wanted too.
    """
    messages, tokenizer = as_messages(row.messages), model.tokenizer
    answer = row.answer_ids[: num_content(row)]
    prompt = build_prompt(messages, tokenizer, model.context_window, len(answer), needed=0).ids
    question = messages[-1].text
    window = model.context_window
    ids = query_ids(query, tokenizer, prompt, answer, window, question)
    asked = len(tokenizer(query.format.text, add_special_tokens=False)["input_ids"])
    end = len(ids) - asked
    length = len(answer) if query.layout == "chat" else _text_length(tokenizer, row.text)
    start = max(1, end - length)
    gold, gold_start = _gold(row, prompt, query, tokenizer, question, window) if with_gold else ((), 0)
    return Example(ids, (start, end), bool(row.is_error), f"{row.set} {row.style}", gold, gold_start)


def _text_length(tokenizer: Any, text: str) -> int:
    """Tokens of an answer inside a text; one more or less than alone does not matter, for it only delimits."""
    return len(tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"])


def _gold(
    row: AnswerRow, prompt: Sequence[int], query: Query, tokenizer: Any, question: str, window: int
) -> tuple[tuple[int, ...], int]:
    if not row.references:
        return (), 0
    if query.layout == "chat":
        before, said = list(prompt), row.references[0]
    else:
        before, said = list(tokenizer(f"Question: {question}\nAnswer:")["input_ids"]), f" {row.references[0]}"
    answer = list(tokenizer(said, add_special_tokens=False)["input_ids"])
    ids = [*before, *answer][-window:]
    return tuple(ids), max(1, len(ids) - len(answer))


def choose(rows: Sequence[AnswerRow], limit: int, max_wrong: float, seed: int) -> list[int]:
    """Which answers are trained on, in their own order.

    Args:
        limit: answers at most, 0 is all of them.
        max_wrong: wrong answers for each right one at most, inside each set and style; 0 is no limit.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    if max_wrong:
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in order:
            groups[rows[i].set, rows[i].style].append(i)
        kept: set[int] = set()
        for members in groups.values():
            right = [i for i in members if not rows[i].is_error]
            wrong = [i for i in members if rows[i].is_error]
            kept |= {*right, *wrong[: round(len(right) * max_wrong)]}
        order = [i for i in order if i in kept]
    return sorted(order[:limit] if limit else order)
