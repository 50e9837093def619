"""A trainer of a few weights, for tests of the loop: `python -m tests.trainers.toy --run-dir D`. Knows no data."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file

from trainers.common import LoopConfig, Run, add_run_arguments, read_settings, run_trainer, train_loop
from uqchat.errors import UqchatError

torch.manual_seed(7)
INPUTS = torch.randn(50, 6)
TARGETS = (INPUTS @ torch.tensor([1.0, -2, 0.5, 0, 0, 1]) > 0).float()


@dataclass(frozen=True)
class ToyConfig:
    """Settings of the toy."""

    seconds_a_step: float = 0.0
    nan_at: int = 0
    dropout: float = 0.3
    loop: LoopConfig = field(default_factory=LoopConfig)


def make_module(dropout: float) -> torch.nn.Module:
    """Dropout makes the random state matter."""
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 1)
    )


def train(config: ToyConfig, run: Run) -> Mapping[str, Any] | None:
    """Fit the toy and write its weights."""
    calls = [0]

    def loss(module: torch.nn.Module, indices: Sequence[int]) -> tuple[torch.Tensor, float]:
        time.sleep(config.seconds_a_step)
        calls[0] += 1
        rows = module(INPUTS[indices])[:, 0].float()
        value = torch.nn.functional.binary_cross_entropy_with_logits(rows, TARGETS[indices], reduction="sum")
        return value * (float("nan") if calls[0] == config.nan_at else 1.0), len(indices)

    def evaluate(module: torch.nn.Module) -> dict[str, float]:
        return {"auroc": ((module(INPUTS)[:, 0] > 0) == TARGETS.bool()).float().mean().item()}

    module = make_module(config.dropout)
    result = train_loop(run, module, len(INPUTS), loss, config.loop, evaluate)
    if result.is_stopped:
        return None
    if run.is_main:
        save_file(dict(module.state_dict()), run.path / "model.safetensors")
    return {"steps": result.steps, "metrics": dict(result.metrics)}


def main(argv: Sequence[str]) -> int:
    """Run it as the real ones are run."""
    parser = argparse.ArgumentParser()
    add_run_arguments(parser, ToyConfig)
    args = parser.parse_args(argv)
    try:
        return run_trainer("toy", args, read_settings(ToyConfig, args), train)
    except UqchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main(sys.argv[1:]))
