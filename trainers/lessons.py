"""Prompts with the response that a model is to learn, as ids: which are targets, which only context. Runs no model.

The prompt goes through the model's chat template and is never a target; targets are class indices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.answers import IGNORED, AnswerRow
from trainers.lesson_sources import LessonConfig, RawLesson, raw_lessons
from trainers.run_folder import TrainingError
from trainers.training_set import share_of
from uqchat.engine.prompt import build_prompt
from uqchat.engine.scores import end_ids_of
from uqchat.models import LoadedModel
from uqchat.types import as_messages


@dataclass(frozen=True, slots=True)
class Lesson:
    """One prompt with its response, in ids."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """Of the response, which ends `ids`: the id to be predicted, or -100."""
    is_wrong: tuple[bool, ...]
    """Of the response: whether its probability is to fall instead."""
    group: str
    key: str
    """Names the question, so that one is never on both sides of the validation split."""


def read_lessons(
    config: LessonConfig, model: LoadedModel, log: Callable[[str], None]
) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn from, and those that choose the best checkpoint; what is left out is counted in the log.

    Raises:
        InputError: a source that cannot be read.
        TrainingError: no lesson is left.
    """
    learned: list[Lesson] = []
    held_out: list[Lesson] = []
    counts: Counter[str] = Counter()
    for raw in raw_lessons(config):
        lesson = _encode(raw, model, config.max_length)
        if lesson is None:
            counts[f"left out, no room for a response: {raw.group}"] += 1
            continue
        counts[raw.group] += 1
        is_held_out = share_of(f"{config.data_seed} {raw.key}") < config.validation
        (held_out if is_held_out else learned).append(lesson)
    for name, count in counts.items():
        log(f"{count:,} lessons {name}")
    if not learned:
        raise TrainingError("No lesson is left with these settings: raise max_length, or name other sources.")
    log(f"{len(learned):,} to learn, {len(held_out):,} to choose the best checkpoint")
    return learned, held_out


def described(lessons: Sequence[Lesson]) -> str:
    """Sources and counts, for a card."""
    counts = Counter(lesson.group for lesson in lessons)
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _encode(raw: RawLesson, model: LoadedModel, max_length: int) -> Lesson | None:
    """None where the prompt leaves no room for a response."""
    longest = min(max_length, model.context_window)
    prompt = build_prompt(as_messages(raw.messages), model.tokenizer, model.context_window, 1, needed=0).ids
    labels, is_wrong = _own_response(raw.answer) if raw.answer else _taught_response(raw.response, model)
    room = longest - len(prompt)
    if room < 1:
        return None
    said = raw.answer.answer_ids if raw.answer else labels
    ids = (*prompt, *said[:room])
    return Lesson(ids, labels[:room], is_wrong[:room], raw.group, raw.key)


def _taught_response(text: str, model: LoadedModel) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    ids = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    ends = end_ids_of(model.model, model.tokenizer)
    own = model.tokenizer.eos_token_id
    end = own if own in ends else min(ends, default=None)
    ids = ids if end is None else (*ids, end)
    return ids, (False,) * len(ids)


def _own_response(row: AnswerRow) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """A right answer is learned whole; of a wrong one, wrong tokens are unlearned and right ones learned."""
    if not row.is_error:
        return row.answer_ids, (False,) * len(row.answer_ids)
    labels = tuple(
        IGNORED if label == IGNORED else token_id
        for label, token_id in zip(row.token_labels or (), row.answer_ids, strict=True)
    )
    return labels, tuple(label == 1 for label in row.token_labels or ())


def pad_lessons(lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Labels and marks of wrong tokens, (B, R), aligned at the right; -100 and False on the padding."""
    width = max(len(lesson.labels) for lesson in lessons)
    labels = torch.full((len(lessons), width), IGNORED)
    wrong = torch.zeros((len(lessons), width), dtype=torch.bool)
    for row, lesson in enumerate(lessons):
        labels[row, width - len(lesson.labels) :] = torch.tensor(lesson.labels)
        wrong[row, width - len(lesson.is_wrong) :] = torch.tensor(lesson.is_wrong)
    return labels, wrong


def response_loss(log_probs: Tensor, is_wrong: Tensor) -> Tensor:
    """Negative log-likelihood of tokens, and of not saying the wrong ones.

    Args:
        log_probs: (N,), of each token, natural. is_wrong: (N,) bool.

    Returns:
        (N,): -log p, and for wrong tokens -log(1 - p).

    Source: unlikelihood training, Welleck et al. 2020 (arXiv 1908.04319), equation 3.
    """
    unsaid = -torch.log(-torch.expm1(log_probs.clamp(max=-1e-6)))
    return torch.where(is_wrong, unsaid, -log_probs)
