"""Finds out which layout a published head was trained with, from labelled answers. Changes no head and no model.

The published files do not say it, and a wrong layout loads without an error. So the head scores the claims of known
answers in every convention it could have; the one that ranks false claims highest wins, and `heads.verdict` keeps it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from uqchat.config import GenerationConfig
from uqchat.engine.backend import Backend, Request, StepEvent
from uqchat.errors import InputError
from uqchat.features import HIDDEN_INDEXES, LAYOUTS
from uqchat.heads import HeadScorer, UncertaintyHead, load_head
from uqchat.heads.verdict import Verdict, write_verdict
from uqchat.metrics import average_precision
from uqchat.types import TokenStep

BATCH = 8  # answers that are read together
METRIC = "average precision of false claims"


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """A given answer with claims, each a set of token indices of the answer, and which of them are false."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    claims: tuple[tuple[int, ...], ...]
    is_error: tuple[bool, ...]


def read_answers(path: Path, tokenizer: Any = None) -> list[LabelledAnswer]:
    """Labelled answers from JSON lines.

    A line has `prompt_ids`, `answer_ids`, `claims` (lists of token indices) and `is_error`; or it is a row of the
    published data sets: `input_ids`, `reply`, `claims` with `aligned_token_ids`, and `verified` (1 false, 0 true; NaN
    or null, unknown, is left out). The latter need the tokenizer.

    Raises:
        InputError: the file cannot be read, or a line is not of this form; the text names it.
    """
    answers = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                raw = json.loads(line)
                answers.append(_published(raw, tokenizer) if "input_ids" in raw else _answer(raw))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise InputError(f"{path.name}, line {number}: {error or 'not of the expected form'}") from error
    return answers


def _answer(raw: Mapping[str, Any]) -> LabelledAnswer:
    claims = tuple(tuple(int(i) for i in claim) for claim in raw["claims"])
    labels = tuple(bool(label) for label in raw["is_error"])
    if len(claims) != len(labels):
        raise ValueError(f"{len(claims)} claims but {len(labels)} labels")
    return LabelledAnswer(tuple(raw["prompt_ids"]), tuple(raw["answer_ids"]), claims, labels)


def _published(raw: Mapping[str, Any], tokenizer: Any) -> LabelledAnswer:
    """Claims name the answer's ids with special ones left out."""
    ids = [int(token_id) for token_id in raw["input_ids"]]
    start = answer_start(ids, str(raw["reply"]), tokenizer)
    if start is None:
        raise ValueError("the input ids do not end with the reply: they are of another tokenizer")
    if len(raw["claims"]) != len(raw["verified"]):
        raise ValueError(f"{len(raw['claims'])} claims but {len(raw['verified'])} labels")
    special = set(tokenizer.all_special_ids)
    places = [i for i, token_id in enumerate(ids[start:]) if token_id not in special]
    pairs = [
        (tuple(places[int(i)] for i in claim["aligned_token_ids"]), bool(verdict))
        for claim, verdict in zip(raw["claims"], raw["verified"], strict=True)
        if claim["aligned_token_ids"] and verdict is not None and not math.isnan(verdict)
    ]
    claims, labels = zip(*pairs, strict=True) if pairs else ((), ())
    return LabelledAnswer(tuple(ids[:start]), tuple(ids[start:]), claims, labels)


def answer_start(ids: Sequence[int], reply: str, tokenizer: Any) -> int | None:
    """Where the answer begins in the ids of prompt and answer: the last place from which on they read as the reply."""
    wanted = reply.strip()
    for start in range(len(ids) - 1, -1, -1) if wanted else ():
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        if text.strip() == wanted:
            return start
        if len(text.strip()) > len(wanted) + 16:
            break
    return None


def check_head(source: str | Path, model: Any, answers: Sequence[LabelledAnswer]) -> Verdict:
    """The best convention of a head on labelled answers, stored beside the head.

    Args:
        source: folder or Hub id of a head in the published format.
        model: what `uqchat.load` returns; it must have nothing else to do.
        answers: some fifty are enough for a clear difference.

    Raises:
        InputError: the labels are all alike, so that nothing can be ranked.
        UqchatError: the head cannot be loaded on this model.
    """
    labels = [label for answer in answers for label in answer.is_error]
    if len(set(labels)) < 2:
        raise InputError("The check needs true and false claims; all labels are alike.")
    heads = variants(source, model)
    risks: dict[str, list[float]] = {name: [] for name in heads}
    for steps, answer in _read(model.engine, answers, heads.values()):
        for name, head in heads.items():
            risks[name] += _claim_logits(head, steps, answer)
    scores = {name: average_precision(found, labels) for name, found in risks.items()}
    best = max(scores, key=lambda name: scores[name])  # the first of equals is the default
    layout, hidden_index = heads[best].config.layout, heads[best].config.hidden_index
    verdict = Verdict(layout, hidden_index, METRIC, scores, len(answers))
    write_verdict(verdict, str(source))
    return verdict


def variants(source: str | Path, model: Any) -> dict[str, UncertaintyHead]:
    """The head in every convention that makes a difference to it, by "layout/hidden index"; the default comes first."""
    found: dict[str, UncertaintyHead] = {}
    seen = set()
    default = load_head(source, model, LAYOUTS[0], HIDDEN_INDEXES[0])
    names = [str(entry["name"]).rsplit(".", 1)[-1] for entry in default.config.extractors]
    has_choice = any("head_nums" in entry for entry in default.config.extractors)  # newer than the older layout
    layouts = LAYOUTS if "basic_attention" in names and not has_choice else LAYOUTS[:1]
    for layout in layouts:
        for index in HIDDEN_INDEXES:
            head = load_head(source, model, layout, index)
            key = (layout, head.needs.hidden_layers)
            if key not in seen:
                seen.add(key)
                found[f"{layout}/{index}"] = head
    return found


def _read(
    backend: Backend, answers: Sequence[LabelledAnswer], heads: Iterable[UncertaintyHead]
) -> Iterable[tuple[list[TokenStep], LabelledAnswer]]:
    """Each answer with its steps, which carry what all the heads need."""
    needs = reduce(or_, (head.needs for head in heads))
    given = GenerationConfig(max_new_tokens=0)
    for group in _groups(answers, BATCH):
        steps: list[list[TokenStep]] = [[] for _ in group]
        for event in backend.stream([Request(a.prompt_ids, given, a.answer_ids, needs) for a in group]):
            if isinstance(event, StepEvent):
                steps[event.key].append(event.step)
        yield from zip(steps, group, strict=True)


def _groups(answers: Sequence[LabelledAnswer], size: int) -> Iterable[Sequence[LabelledAnswer]]:
    return (answers[start : start + size] for start in range(0, len(answers), size))


def _claim_logits(head: UncertaintyHead, steps: Sequence[TokenStep], answer: LabelledAnswer) -> list[float]:
    scorer = HeadScorer(head)
    for step in steps:
        scorer.add(step)
    return scorer.claims(answer.claims)
