"""Short names of a model's weights and chat template, which trained estimators are bound to. Changes no model."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

SOURCE = "fingerprint_before_int8"  # attribute of a model in our own int8
SAMPLES = 64  # values of each weight matrix that enter the fingerprint


def weights_fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits of names, shapes and evenly spaced values of all weights.

    Values are rounded to bfloat16 first, so that a model has the same fingerprint in float32 and in bfloat16. In our
    own int8 it keeps that of the weights it was made from, since estimators judge it as well, which
    `python -m benchmarks format_quality` measures; a model quantized otherwise has another one.
    """
    known = getattr(model, SOURCE, None)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        index = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLES, len(flat)), dtype=torch.float64).long()
        values = flat[index.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def template_hash(tokenizer: Any) -> str:
    """16 hex digits of the chat template; empty when there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else ""
