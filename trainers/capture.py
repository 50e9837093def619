"""The signals of an answer's steps as arrays for the cache. Knows no engine and no disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from uqchat.types import Signals, StepSignals, TokenStep

DEPTHS = (8 / 30, 12 / 30, 16 / 30, 20 / 30, 24 / 30, 1.0)
"""Where hidden states are taken when no layers are named: the middle of a model tells most, its end the wording."""
LARGEST = np.finfo(np.float16).max


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Hidden layers for a model with this many blocks: 8, 12, 16, 20, 24, 30 of 30."""
    return tuple(sorted({round(num_layers * depth) for depth in DEPTHS}))


def to_arrays(steps: Sequence[TokenStep], signals: Signals) -> dict[str, np.ndarray]:
    """One row per step.

    Returns:
        hidden_<layer> (T, D) float16, attention (T, L, H, lags) float16, top_logprobs (T, n), logprob and entropy
        (T,) float32, token_id (T,) int32; only what the signals ask for.
    """
    held = [step.signals or StepSignals() for step in steps]
    arrays = {f"hidden_{layer}": _half([s.hidden[layer] for s in held]) for layer in signals.hidden_layers}
    if signals.attention_lags:
        arrays["attention"] = _half([s.attention for s in held if s.attention is not None])
    if signals.top_n:
        arrays["top_logprobs"] = np.array([_top(step, signals.top_n) for step in steps], np.float32)
    arrays["logprob"] = np.array([step.logprob for step in steps], np.float32)
    arrays["entropy"] = np.array([np.nan if step.entropy is None else step.entropy for step in steps], np.float32)
    arrays["token_id"] = np.array([step.token_id for step in steps], np.int32)
    return arrays


def _half(rows: Sequence[torch.Tensor]) -> np.ndarray:
    """Stacked as float16; the few numbers that are too large for it become its largest."""
    return torch.stack(list(rows)).float().clamp(-LARGEST, LARGEST).to(torch.float16).cpu().numpy()


def _top(step: TokenStep, count: int) -> list[float]:
    more = step.signals.top_logprobs if step.signals else None
    return more[:count].tolist() if more is not None else [a.logprob for a in step.alternatives[:count]]
