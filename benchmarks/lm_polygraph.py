"""Ours against lm-polygraph: answers with their mean token entropy and probability, in speed and in the numbers.

lm-polygraph runs in a process of its own, by a Python that has it, named by `UQCHAT_POLYGRAPH_PYTHON`; the two take
turns, on the same weights, number format and threads. Its documented way is one call, which also computes every
attention map; its lean way has its manager compute the two scores and nothing else, for one question or for eight as
one batch. Whether both say the same is asked in float32.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import uqchat
from benchmarks.common import Row, compare, interleave, save
from benchmarks.peer import Ask, peer, timed
from uqchat.config import GenerationConfig
from uqchat.language_model import LanguageModel

VARIABLE = "UQCHAT_POLYGRAPH_PYTHON"
COUNT, LEVEL, WITHIN = 64, 1.0, 0.001
QUESTIONS = (
    "Tell me about the history of the lighthouse and the people who kept it.",
    "Why is the sky blue in the day and red in the evening?",
    "Describe how bread is made, from the field to the table.",
    "What did people use before there were clocks?",
    "Explain what a computer program is to a child of ten.",
    "Who built the first railways, and what were they for?",
    "How do bees find flowers and tell each other where they are?",
    "Write about a day in the life of a fisherman on the coast of Norway.",
)


@dataclass(frozen=True)
class Scored:
    """One answer's ids, the mean of its tokens' entropies and its negative log-probability, in nats."""

    ids: list[int]
    entropy: float
    surprise: float


def ours(model: LanguageModel, questions: Sequence[str]) -> list[Scored]:
    """Greedy answers, in one batch, with nothing left of an earlier turn."""
    model.engine.lineup.prefixes.clear()
    answers = model.answers(questions, ("entropy",), GenerationConfig(max_new_tokens=COUNT))
    return [
        Scored(
            [token.token_id for token in answer.tokens],
            statistics.fmean(token.entropy for token in answer.tokens),
            -math.fsum(token.logprob for token in answer.tokens),
        )
        for answer in answers
    ]


def our_arm(model: LanguageModel, questions: Sequence[str]) -> Callable[[], float]:
    """How many tokens it wrote."""
    return lambda: sum(len(scored.ids) for scored in ours(model, questions))


def order(way: str, dtype: str, questions: Sequence[str]) -> dict[str, Any]:
    """What the peer is asked."""
    return {"way": way, "dtype": dtype, "questions": list(questions), "count": COUNT}


def speed(model: LanguageModel, ask: Ask, repeats: int) -> list[Row]:
    """One question and eight, in this model's number format on both sides."""
    dtype, one, eight = model.info.dtype, QUESTIONS[:1], QUESTIONS
    arms = {
        "ours": our_arm(model, one),
        "lm-polygraph": timed(ask, order("documented", dtype, one)),
        "lm-polygraph, lean": timed(ask, order("lean", dtype, one)),
        "ours, eight": our_arm(model, eight),
        "lm-polygraph, lean, eight": timed(ask, order("lean", dtype, eight)),
    }
    rates = interleave(arms, repeats)
    pairs = (
        (f"an answer of {COUNT} tokens with its mean entropy, against lm-polygraph's `estimate_uncertainty`", 0, 1),
        ("the same with the answer's probability, against lm-polygraph without attention maps", 0, 2),
        ("the same of eight questions at once, against lm-polygraph's batch of eight", 3, 4),
    )
    names, rows = list(arms), []
    for claim, arm, other in pairs:
        pair = {name: rates[name] for name in (names[arm], names[other])}
        rows.append(compare(f"{claim}, both in {dtype}", pair, *pair, LEVEL, "tokens/s"))
    return rows


def agreement(own: Sequence[Scored], other: Sequence[Scored]) -> Row:
    """Mean token entropies of the same answers, ours less theirs; answers that differ in any id count as missed."""
    gaps = [a.entropy - b.entropy for a, b in zip(own, other, strict=True)]
    same = sum(a.ids == b.ids for a, b in zip(own, other, strict=True))
    surprise = max(abs(a.surprise - b.surprise) for a, b in zip(own, other, strict=True))
    is_met = same == len(own) and max(map(abs, gaps)) <= WITHIN
    detail = (
        f"ours {statistics.fmean(a.entropy for a in own):.4f} nats, lm-polygraph"
        f" {statistics.fmean(b.entropy for b in other):.4f} nats; {same} of {len(own)} answers the same;"
        f" their -log p differs by at most {surprise:.4f}"
    )
    claim = f"mean token entropy of {len(own)} answers in float32, ours less lm-polygraph's, in nats"
    spread = statistics.median(gaps), min(gaps), max(gaps)
    return Row(claim, "ours", "lm-polygraph", *spread, f"within {WITHIN:g}", is_met, detail)


def check(model: LanguageModel, ask: Ask) -> Row:
    """Both sides' answers to every question."""
    found = ask(order("lean", "float32", QUESTIONS))
    other = [Scored(*each) for each in zip(found["ids"], found["entropy"], found["surprise"], strict=True)]
    return agreement(ours(model, QUESTIONS), other)


def main(repeats: int) -> None:
    """The numbers, then every arm in turn; says why and returns where there is no lm-polygraph."""
    python = os.environ.get(VARIABLE)
    if not python:
        print(f"lm_polygraph skipped: it needs {VARIABLE}=/path/to/python that has lm-polygraph")
        return
    exact, model = uqchat.load("embedded", dtype="float32"), uqchat.load("embedded")
    arguments = [model.model.name_or_path, str(torch.get_num_threads())]
    with peer(python, Path(__file__).with_name("lm_polygraph_peer.py"), arguments, "lm-polygraph") as ask:
        rows = [check(exact, ask)]
        exact.close()
        rows += speed(model, ask, repeats)
    save("lm_polygraph", rows, {"repeats": repeats, "questions": len(QUESTIONS), "tokens": COUNT})
    model.close()


if __name__ == "__main__":
    main(3)
