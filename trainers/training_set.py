"""Labelled answers of several feature caches as one set to train on: which count, how much, which validate.

Knows no trainer and no module. A question's answers (styles, samples) never lie on both sides of the validation split.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.answers import IGNORED, AnswerRow
from trainers.cache import FeatureCache
from trainers.run_folder import TrainingError
from trainers.token_labels import graded_spans
from uqchat.errors import InputError
from uqchat.features_base import ModelShape
from uqchat.metrics import auroc
from uqchat.origin import Origin

KIND_SHARES = (0.4, 0.4, 0.2)
SAME = ("model", "weights_fingerprint", "chat_template_hash", "dtype")  # of all caches of one set


@dataclass(frozen=True)
class DataConfig:
    """Which answers are trained on."""

    caches: tuple[str, ...] = ()
    """Folders of cached features, as `python -m trainers data generate` writes them."""
    splits: tuple[str, ...] = ("train",)
    """Splits that are read; answers of others are passed over."""
    sets: tuple[str, ...] = ()
    """Only these data sets; none named is all of them."""
    leave_out: tuple[str, ...] = ()
    """Without these data sets, and those made of them ("easy_facts_several" of "easy_facts"), to see how an estimator
    does on sets it has never seen."""
    styles: tuple[str, ...] = ()
    """Only these prompt styles; none named is all of them."""
    validation: float = 0.1
    """Share of the questions that choose when to stop, in [0, 1)."""
    data_seed: int = 0
    """Of that choice."""
    judged: tuple[str, ...] = ()
    """Data sets that train nothing and are what the metrics are of, in place of that share: sets never seen."""
    judge_splits: tuple[str, ...] = ("calibration",)
    """Of these, answers of these splits."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        if not self.caches:
            raise InputError("`caches` is empty: name folders of cached features, such as --caches '[\"runs/a\"]'.")
        if not 0 <= self.validation < 1:
            raise InputError(f"validation = {self.validation} is not allowed; it must be 0 to below 1.")


class TrainingSet:
    """Answers with a label, and where their features lie. Answers are numbered from 0."""

    def __init__(self, caches: Sequence[FeatureCache], chosen: Sequence[tuple[int, int]]) -> None:
        self.caches = tuple(caches)
        self._chosen = list(chosen)  # (cache, answer in it)
        self.rows: list[AnswerRow] = [caches[c].answers[a] for c, a in chosen]
        self._arrays: dict[tuple[int, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Iterable[int]) -> TrainingSet:
        """The answers of these numbers."""
        return TrainingSet(self.caches, [self._chosen[i] for i in indices])

    def array(self, name: str, index: int) -> np.ndarray:
        """Rows of one answer, (tokens, ...), mapped. Raises InputError when they were not captured."""
        cache, answer = self._chosen[index]
        if (cache, name) not in self._arrays:
            self._arrays[cache, name] = self.caches[cache].array(name)
        return self._arrays[cache, name][self.caches[cache].span(answer)]

    def states(self, layer: int, index: int) -> torch.Tensor:
        """(tokens, D) float32: row 0 is the prompt's last, row j has read token j - 1."""
        return torch.from_numpy(np.array(self.array(f"hidden_{layer}", index))).float()

    def confidence(self, index: int) -> torch.Tensor:
        """(content tokens, 2) float32: -log p and entropy, the end token left out."""
        count = num_content(self.rows[index])
        columns = [-self.array("logprob", index)[:count], np.nan_to_num(self.array("entropy", index)[:count])]
        return torch.from_numpy(np.stack(columns, axis=-1)).float()

    def is_error(self) -> torch.Tensor:
        """(N,) float32: 1 wrong, 0 right, NaN where only tokens are labelled or several facts were asked for."""
        return torch.tensor([float(row.is_error) if has_answer_label(row) else math.nan for row in self.rows])

    def token_labels(self, index: int) -> torch.Tensor:
        """(content tokens,) int64: 1 wrong, 0 right, -100 ignored; all ignored where tokens have no labels."""
        row = self.rows[index]
        count = num_content(row)
        return torch.tensor(row.token_labels[:count] if row.token_labels else [IGNORED] * count, dtype=torch.int64)

    def is_fact(self, index: int) -> torch.Tensor:
        """(content tokens,) bool: the token belongs to what was asked for, not to words that restate the question."""
        row = self.rows[index]
        spans = graded_spans(row)
        places = row.spans[: num_content(row)]
        return torch.tensor([any(a < s.end and b > s.start for s in spans) for a, b in places], dtype=torch.bool)

    def groups(self) -> list[str]:
        """Data set and style of each answer: scores are compared inside these."""
        return [f"{row.set} {row.style}" for row in self.rows]

    @property
    def shape(self) -> ModelShape:
        """Layers, heads and hidden size of the model, as far as the features show them."""
        cache = self.caches[0]
        hidden = cache.array(f"hidden_{cache.hidden_layers[0]}").shape[1] if cache.hidden_layers else 0
        layers, heads = cache.array("attention").shape[1:3] if "attention" in cache.names else (0, 0)
        return ModelShape(layers or max(cache.hidden_layers, default=0), heads, hidden)

    def origin(self, **more: Any) -> Origin:
        """What an estimator trained on this set says of where it comes from."""
        info, shape = self.caches[0].info, self.shape
        counts = Counter(f"{row.set} ({row.split}, {row.style})" for row in self.rows)
        return Origin(
            base_model=str(info.get("model", "")),
            weights_fingerprint=str(info.get("weights_fingerprint", "")),
            num_layers=shape.num_layers if shape.num_heads else 0,
            hidden_size=shape.hidden_size,
            chat_template_hash=str(info.get("chat_template_hash", "")),
            dtype=str(info.get("dtype", "")),
            training_data=", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())),
            **more,
        )


def has_answer_label(row: AnswerRow) -> bool:
    """Whether the answer as a whole is right or wrong; one to several questions is neither."""
    return row.is_error is not None and not row.facts


def num_content(row: AnswerRow) -> int:
    """Tokens of an answer, the end token left out."""
    return len(row.answer_ids) - (row.finish_reason == "stop")


def read_training_set(config: DataConfig, log: Callable[[str], None], needs_both: bool = True) -> TrainingSet:
    """The labelled answers that the settings name; what is left out is counted in the log.

    Args:
        needs_both: whether right and wrong answers must be there.

    Raises:
        InputError: a folder that is no complete cache; caches of different models.
        TrainingError: no answer is left, or all of them have the same label.
    """
    caches = [FeatureCache.open(Path(folder)) for folder in config.caches]
    for cache in caches[1:]:
        differ = [key for key in SAME if cache.info.get(key) != caches[0].info.get(key)]
        if differ:
            raise InputError(
                f"{cache.folder} and {caches[0].folder} differ in {differ[0]}: train on one model's alone."
            )
    chosen: list[tuple[int, int]] = []
    skipped: Counter[str] = Counter()
    for number, cache in enumerate(caches):
        for index, row in enumerate(cache.answers):
            reason = _reason_against(row, config)
            if reason is None:
                chosen.append((number, index))
            elif reason:
                skipped[reason] += 1
    for reason, count in skipped.items():
        log(f"{count:,} answers left out: {reason}")
    found = TrainingSet(caches, chosen)
    _check_labels(found, config, needs_both)
    wrong = int(found.is_error().nansum().item())
    log(f"{len(found):,} answers, {wrong:,} of them wrong, from {len(caches)} caches")
    return found


def _reason_against(row: AnswerRow, config: DataConfig) -> str | None:
    """Why an answer does not count; "" where it was not asked for."""
    is_wanted = (
        row.split in config.splits
        and (not config.sets or row.set in config.sets)
        and not any(row.set == name or row.set.startswith(f"{name}_") for name in config.leave_out)
        and (not config.styles or row.style in config.styles)
    )
    if not is_wanted:
        return ""
    if row.is_error is None and not row.token_labels:
        return "without a label"
    return "empty" if num_content(row) < 1 else None


def _check_labels(found: TrainingSet, config: DataConfig, needs_both: bool) -> None:
    labels = {row.is_error for row in found.rows if has_answer_label(row)}
    if not len(found):
        raise TrainingError(
            f"No labelled answer is left in {', '.join(config.caches)} with these settings."
            " Label them with: python -m trainers data label"
        )
    if needs_both and len(labels) < 2:
        word = {True: "wrong", False: "right"}.get(next(iter(labels), None), "without an answer's label")
        raise TrainingError(
            f"All {len(found):,} answers are {word}: right and wrong ones are needed to tell them apart."
        )


def read_parts(
    config: DataConfig, log: Callable[[str], None], needs_both: bool = True
) -> tuple[TrainingSet, TrainingSet]:
    """What trains and what the metrics are of. Raises as `read_training_set`."""
    if not config.judged:
        return part_validation(read_training_set(config, log, needs_both), config.validation, config.data_seed)
    train = read_training_set(replace(config, leave_out=(*config.leave_out, *config.judged)), log, needs_both)
    judged = replace(config, splits=config.judge_splits, sets=config.judged)
    return train, read_training_set(judged, log, needs_both)


def part_validation(data: TrainingSet, share: float, seed: int) -> tuple[TrainingSet, TrainingSet]:
    """Training and validation part, by question: which side one lies on follows from its id and the seed alone."""
    is_validation = [share_of(f"{seed} {row.set} {row.id}") < share for row in data.rows]
    parts = [[i for i, flag in enumerate(is_validation) if flag is wanted] for wanted in (False, True)]
    return data.subset(parts[0]), data.subset(parts[1])


def fold_of(row: AnswerRow, count: int, seed: int) -> int:
    """Which of `count` folds a question belongs to."""
    return min(int(share_of(f"fold {seed} {row.set} {row.id}") * count), count - 1)


def share_of(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def balanced_weights(labels: torch.Tensor, groups: Sequence[str] | None = None) -> torch.Tensor:
    """(N,), mean 1: right and wrong have the same weight together, inside each group where groups are given.

    NaN labels get weight 0. A group that has only one kind keeps the weight it has by its size.
    """
    names = groups if groups is not None else [""] * len(labels)
    members: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        members[name].append(index)
    weights = torch.zeros(len(labels))
    for indices in members.values():
        place = torch.tensor(indices)
        own = labels[place]
        counts = [(own == label).sum().item() for label in (0, 1)]
        for label, count in enumerate(counts):
            share = sum(counts) / 2 if all(counts) else count
            weights[place[own == label]] = share / max(count, 1)
    return weights / weights.mean().clamp(min=1e-12)


def token_weights(labels: torch.Tensor, is_fact: torch.Tensor) -> torch.Tensor:
    """(n,), mean 1: wrong tokens, right ones that carry a fact and all other right ones weigh 2 : 2 : 1 together.

    Without the middle kind the easy part, that words of the question are right, would be all that is learned. Ignored
    tokens have weight 0; a kind that is missing leaves its share to the others.
    """
    kinds = torch.where(labels == 1, 0, torch.where(is_fact, 1, 2))
    weights = torch.zeros(len(labels))
    for kind, share in enumerate(KIND_SHARES):
        own = (kinds == kind) & (labels != IGNORED)
        weights[own] = share / max(int(own.sum()), 1)
    return weights / weights.mean().clamp(min=1e-12)


def macro_auroc(raw: Sequence[float], labels: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """AUROC in every group that has right and wrong answers, and "auroc", their mean; 0.5 where no group has both."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, (name, label) in enumerate(zip(groups, labels, strict=True)):
        if label == label:
            members[name].append(index)
    found = {}
    for name, indices in sorted(members.items()):
        own = [labels[i] for i in indices]
        if min(own) != max(own):
            found[name] = auroc([raw[i] for i in indices], own)
    mean = sum(found.values()) / len(found) if found else 0.5
    return {"auroc": mean, **{f"auroc {name}": value for name, value in found.items()}}
