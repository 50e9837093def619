"""How a module is trained: sizes, rates, checks. Knows no loop and no module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from uqchat.errors import InputError


@dataclass(frozen=True)
class LoopConfig:
    """How a module is trained."""

    epochs: int = 10
    """Passes over the data, 1 or more."""
    batch_size: int = 64
    """Examples of one step, over all processes and accumulated parts together; 1 or more."""
    accumulation: int = 1
    """Parts in which a process reads its share of a batch, 1 or more; more parts need less memory."""
    learning_rate: float = 1e-3
    """Of AdamW, at its highest; above 0."""
    weight_decay: float = 0.01
    """Of AdamW, on matrices only; 0 or more."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises, in [0, 1]."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls afterwards."""
    max_grad_norm: float = 1.0
    """Longer gradients are cut to this length; 0 is off."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of the forward; "no" is float32."""
    seed: int = 0
    """Of the data's order and everything random, 0 or more."""
    evaluations_per_epoch: int = 1
    """How often the validation split is looked at; 0 is never."""
    patience: int = 0
    """Looks at the validation split without a gain after which training ends; 0 is never."""
    keep: Literal["best", "last"] = "best"
    """Which weights are the result: those of the best look, or the last, so that the split judged chose nothing."""
    checkpoint_every: int = 200
    """Steps between checkpoints, 1 or more."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl, 1 or more."""
    tracker: str = ""
    """"trackio" or "wandb"; empty is off."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        for name, is_allowed, allowed in (
            *((n, getattr(self, n) >= 1, "1 or more") for n in ("epochs", "batch_size", "accumulation")),
            *((n, getattr(self, n) >= 1, "1 or more") for n in ("checkpoint_every", "log_every")),
            *((n, getattr(self, n) >= 0, "0 or more") for n in ("weight_decay", "max_grad_norm", "seed", "patience")),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("warmup", 0 <= self.warmup <= 1, "0 to 1"),
            ("schedule", self.schedule in ("linear", "cosine", "constant"), "linear, cosine or constant"),
            ("precision", self.precision in ("no", "bf16", "fp16"), "no, bf16 or fp16"),
            ("keep", self.keep in ("best", "last"), "best or last"),
            ("tracker", self.tracker in ("", "trackio", "wandb"), "empty, trackio or wandb"),
        ):
            if not is_allowed:
                raise InputError(f"{name} = {getattr(self, name)!r} is not allowed; it must be {allowed}.")
        if self.patience and self.keep == "last":
            raise InputError('patience ends at the best look, so keep must be "best" with it; or set patience to 0.')

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step as a share of its highest, in [0, 1]: up in a line, then down by schedule."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        share = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return 1.0 if self.schedule == "constant" else max(0.0, 1 - share)
