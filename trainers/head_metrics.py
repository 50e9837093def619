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
    against right tokens that carry a fact inside one answer (mean over the answers that have both), and `watched`, the
    mean of the first and the last two's mean, as far as they exist. Where the head judges claims, they stand in for
    tokens."""

    def evaluate(module: nn.Module) -> Mapping[str, float]:
        answers, tokens = scores(module, data)
        labels = data.data.is_error().tolist()
        found = dict(macro_auroc(answers, labels, data.data.groups()))
        flat = [(raw, label) for own in tokens for raw, label, _ in own]
        parts = []
        if len({label for _, label in flat}) == 2:
            found["token_auroc"] = _auroc(flat)
            parts.append(found["token_auroc"])
        facts = [[(raw, label) for raw, label, is_fact in own if is_fact] for own in tokens]
        mixed = [own for own in facts if len({label for _, label in own}) == 2]
        if mixed:
            found["within_auroc"] = fmean(_auroc(own) for own in mixed)
            parts.append(found["within_auroc"])
        has_answers = len({label for label in labels if label == label}) == 2
        sides = ([found["auroc"]] if has_answers else []) + ([fmean(parts)] if parts else [])
        return {**found, "watched": fmean(sides) if sides else 0.5}

    return evaluate


def scores(module: nn.Module, data: HeadData) -> tuple[list[float], list[list[tuple[float, int, bool]]]]:
    """Logits of all answers, and (logit, label, is a fact) of each answer's labelled tokens or claims."""
    device = next(module.parameters()).device
    answers: list[float] = []
    tokens: list[list[tuple[float, int, bool]]] = []
    for start in range(0, len(data.data), BATCH):
        batch = make_batch(data, range(start, min(start + BATCH, len(data.data))), device)
        logits, whole = module(batch)
        answers += whole.tolist()
        for place, (labels, is_fact) in enumerate(zip(batch.labels, batch.is_fact, strict=True)):
            if isinstance(logits, list):
                claims = batch.claims()[place][:-1]
                own = [(int(labels[mask][0]), bool(is_fact[mask].any())) for mask in claims]
            else:
                known = labels != IGNORED
                own = list(zip(labels[known].tolist(), is_fact[known].tolist(), strict=True))
            raws = logits[place] if isinstance(logits, list) else logits[place][known]
            tokens.append([(raw, *pair) for raw, pair in zip(raws.tolist(), own, strict=True)])
    return answers, tokens


def _auroc(pairs: list[tuple[float, int]]) -> float:
    raws, labels = zip(*pairs, strict=True)
    return macro_auroc(torch.tensor(raws).tolist(), list(labels), [""] * len(raws))["auroc"]
