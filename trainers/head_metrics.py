"""How well a head ranks answers, tokens, and the tokens inside one answer. Knows no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

import torch
from torch import nn

from trainers.answers import IGNORED
from trainers.head_data import HeadData, make_batch
from trainers.training_set import macro_auroc

BATCH = 256


def head_metrics(data: HeadData) -> Callable[[nn.Module], Mapping[str, float]]:
    """`auroc` of answers (mean over sets and styles), `token_auroc` over all labelled tokens, `within_auroc` of wrong
    against right tokens of the same answer (mean over the answers that have both), and `watched`, the mean of the
    first and the last two's mean, as far as they exist. Claims stand in for tokens where the head judges claims."""

    def evaluate(module: nn.Module) -> Mapping[str, float]:
        answers, tokens = scores(module, data)
        labels = data.data.is_error().tolist()
        found = dict(macro_auroc(answers, labels, data.data.groups()))
        flat = [pair for own in tokens for pair in own]
        parts = []
        if len({label for _, label in flat}) == 2:
            found["token_auroc"] = _auroc(flat)
            parts.append(found["token_auroc"])
        mixed = [own for own in tokens if len({label for _, label in own}) == 2]
        if mixed:
            found["within_auroc"] = fmean(_auroc(own) for own in mixed)
            parts.append(found["within_auroc"])
        has_answers = len({label for label in labels if label == label}) == 2
        sides = ([found["auroc"]] if has_answers else []) + ([fmean(parts)] if parts else [])
        return {**found, "watched": fmean(sides) if sides else 0.5}

    return evaluate


def scores(module: nn.Module, data: HeadData) -> tuple[list[float], list[list[tuple[float, int]]]]:
    """Logits of all answers, and (logit, label) of each answer's labelled tokens or claims."""
    device = next(module.parameters()).device
    answers: list[float] = []
    tokens: list[list[tuple[float, int]]] = []
    for start in range(0, len(data.data), BATCH):
        batch = make_batch(data, range(start, min(start + BATCH, len(data.data))), device)
        logits, whole = module(batch)
        answers += whole.tolist()
        for place, labels in enumerate(batch.labels):
            if isinstance(logits, list):
                own = [int(labels[mask][0]) for mask in batch.claims()[place][:-1]]
                tokens.append(list(zip(logits[place].tolist(), own, strict=True)))
            else:
                known = labels != IGNORED
                tokens.append(list(zip(logits[place][known].tolist(), labels[known].tolist(), strict=True)))
    return answers, tokens


def _auroc(pairs: list[tuple[float, int]]) -> float:
    raws, labels = zip(*pairs, strict=True)
    return macro_auroc(torch.tensor(raws).tolist(), list(labels), [""] * len(raws))["auroc"]
