"""Everything of a run that its steps change, and how it comes into a checkpoint and out of one. Knows no data, no loss.

What is random lies in the checkpoint too, so that a resumed run goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainers import checkpoints
from trainers.loop_config import LoopConfig


@dataclass
class LoopState:
    """Where a run is; plain values, stored with every checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    """Since the last line of metrics, with `loss_weight`."""
    loss_weight: float = 0.0
    best_metric: float = -math.inf
    best_step: int = 0
    bad_looks: int = 0
    is_over: bool = False
    """Whether early stopping has ended the run."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the look at the validation split whose weights are kept."""

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity."""
        return {**vars(self), "best_metric": None if math.isinf(self.best_metric) else self.best_metric}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LoopState:
        """What `to_json` gave."""
        return cls(**{**raw, "best_metric": -math.inf if raw["best_metric"] is None else raw["best_metric"]})


class RunState:
    """Weights, optimiser, learning rate and `LoopState` of a run in this process.

    Args:
        module: changed in place. steps: of the whole run.
    """

    def __init__(self, module: torch.nn.Module, config: LoopConfig, steps: int, accelerator: Accelerator) -> None:
        self.plain, self.accelerator, self.loop = module, accelerator, LoopState()
        self.best: dict[str, torch.Tensor] = {}
        self._rate_at = lambda step: config.rate_at(step, steps)
        torch.manual_seed(config.seed + accelerator.process_index)
        optimizer = make_optimizer(module, config)
        self.module, self.optimizer = accelerator.prepare(module, optimizer)  # wrapped for several processes
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_at)

    def keep_best(self) -> None:
        """The weights as they are now are the best so far."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.plain.state_dict().items()}

    def take_best(self) -> None:
        """Back to the best weights, where there are any."""
        if self.best:
            device = self.accelerator.device
            self.plain.load_state_dict({name: tensor.to(device) for name, tensor in self.best.items()})

    def save(self, path: Path) -> None:
        """Write a checkpoint of the run in this folder, all processes together. Raises TrainingError: a full disk."""
        step = self.loop.step
        if self.accelerator.is_main_process:
            checkpoints.begin(path, step)
        self.accelerator.wait_for_everyone()
        checkpoints.write_random(path, step, self.accelerator.process_index)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            optimizer = {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": {"last_epoch": self.scheduler.last_epoch},
                "scaler": scaler.state_dict() if scaler is not None else {},
            }
            state = checkpoints.Checkpoint(
                step, self.loop.to_json(), self.plain.state_dict(), self.best, optimizer, random={}
            )
            checkpoints.write(path, state)
        self.accelerator.wait_for_everyone()

    def restore(self, found: checkpoints.Checkpoint) -> None:
        """What `save` wrote."""
        self.loop, self.best = LoopState.from_json(found.loop), dict(found.best)
        self.plain.load_state_dict(found.module)
        self.optimizer.load_state_dict(found.optimizer["optimizer"])
        self.scheduler.last_epoch = found.optimizer["scheduler"]["last_epoch"]
        if self.accelerator.scaler is not None and found.optimizer["scaler"]:
            self.accelerator.scaler.load_state_dict(found.optimizer["scaler"])
        factor = self._rate_at(self.scheduler.last_epoch)
        self.scheduler._last_lr = [base * factor for base in self.scheduler.base_lrs]
        torch.set_rng_state(found.random["cpu"])
        if "cuda" in found.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(found.random["cuda"])


def make_optimizer(module: torch.nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, gains of norms) do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)
