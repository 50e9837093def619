"""Choosing the next token: one pure function of logits, settings and an explicit generator. Never changes a score."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uqchat.config import GenerationConfig
from uqchat.engine.largest import argmax


def sample(
    logits: torch.Tensor,
    settings: Sequence[GenerationConfig],
    generators: Sequence[torch.Generator | None],
    histories: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """The next token of every row.

    The order of the filters is that of transformers' `generate`: penalty, temperature, top-k, top-p, min-p.

    Args:
        logits: (B, V), float32, raw; not modified.
        settings: one per row.
        generators: one per row; None only where the temperature is 0.
        histories: one per row, (T,) ids of prompt and answer; needed only where repetition_penalty is not 1.

    Returns:
        (B,) int64 token ids.
    """
    rows = list(zip(settings, histories, strict=True))
    if any(config.repetition_penalty != 1 for config in settings):
        logits = torch.stack([_penalised(row, *rest) for row, rest in zip(logits, rows, strict=True)])
    if all(config.temperature == 0 for config in settings):
        return argmax(logits)
    warm = torch.stack([_filtered(row, config) for row, config in zip(logits, settings, strict=True)])
    drawn = draw(warm, generators)
    is_greedy = torch.tensor([config.temperature == 0 for config in settings], device=logits.device)
    return torch.where(is_greedy, argmax(logits), drawn)


def draw(logits: torch.Tensor, generators: Sequence[torch.Generator | None]) -> torch.Tensor:
    """One id per row of (B, V): the cumulative distribution inverted at the row's own uniform number."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    options = {"dtype": torch.float64, "device": logits.device}
    uniform = [torch.rand(1, generator=g, **options) if g else torch.zeros(1, **options) for g in generators]
    points = torch.stack(uniform) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _penalised(logits: torch.Tensor, config: GenerationConfig, history: torch.Tensor | None) -> torch.Tensor:
    if config.repetition_penalty == 1 or history is None:
        return logits
    return penalise_repetition(logits, history, config.repetition_penalty)


def _filtered(logits: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
    if config.temperature == 0:
        return logits
    return filter_logits(logits / config.temperature, config.top_k, config.top_p, config.min_p)


def penalise_repetition(logits: torch.Tensor, history: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide positive and multiply negative logits of ids seen before (Keskar et al. 2019, CTRL, section 4.1)."""
    seen = logits[history]
    return logits.index_put((history,), torch.where(seen < 0, seen * penalty, seen / penalty))


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Set to -inf what the filters exclude; at least one token always stays.

    Args:
        logits: (V,), already divided by the temperature.
        top_k: 0 is off. top_p: 1 is off (Holtzman et al. 2020). min_p: 0 is off (Nguyen et al. 2024).
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort()
        is_cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        is_cut[-1] = False
        logits = logits.masked_fill(torch.zeros_like(is_cut).scatter(0, order, is_cut), -torch.inf)
    if min_p > 0:
        probs = logits.softmax(dim=-1)
        logits = logits.masked_fill(probs < min_p * probs.max(), -torch.inf)
    return logits
