"""Trains a LoRA with dropout of what it reads, for the rows of Monte-Carlo dropout: each has one fixed mask.

Source: Gal & Ghahramani 2016 (arXiv 1506.02142), section 4. In training a mask is drawn for every number that a LoRA
reads; the rows' masks, see `uqchat.estimators.dropout_files`, drop whole features.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainers.common import Run, add_run_arguments, read_settings, run_finishable
from trainers.lesson_sources import LessonConfig
from trainers.lesson_task import LessonLoop, learn
from trainers.run_folder import ARTIFACT
from uqchat.engine.adapters import Adapter, LowRank, linear_size
from uqchat.errors import InputError
from uqchat.estimators.dropout_files import DropoutFiles, DropoutSettings, write_dropout
from uqchat.estimators.vote_settings import PARAM_FILTER, matching_layers
from uqchat.models import load_model


@dataclass(frozen=True)
class TrainConfig:
    """How the LoRA is trained, and how many rows it is to have."""

    lessons: LessonConfig
    loop: LessonLoop
    model: str = "embedded"
    """`embedded`, a Hub id, a folder or a GGUF file."""
    device: str = ""
    """Empty chooses."""
    dtype: str = ""
    """Number format of the base; empty takes what is fast on the device. The LoRA is float32."""
    quantization: str = ""
    """`bnb-4bit` is QLoRA: the base in NF4."""
    n_samples: int = 5
    """Rows with a mask of their own, 2 to 15."""
    dropout: float = 0.1
    """Share of a layer's inputs that a mask takes from the LoRA, in training and afterwards; in (0, 1)."""
    param_filter: str = PARAM_FILTER
    """Regular expression, searched for in the names of linear layers: which get a LoRA."""
    rank: int = 64
    """Of the LoRA; 1 or more."""
    lora_alpha: float = 64.0
    """The LoRA is multiplied by lora_alpha / rank; above 0."""
    max_states_gb: float = 2.0
    """Memory for states of the blocks below the first changed one, kept so that they are computed once; 0 is off."""
    output: str = ""
    """Folder of the finished LoRA; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, and what would give no ensemble. Raises InputError."""
        if self.n_samples < 2 or not 0 < self.dropout < 1:
            raise InputError(
                "n_samples must be 2 or more and dropout above 0 and below 1, or no two passes would differ; got"
                f" {self.n_samples} and {self.dropout}."
            )
        if self.lora_alpha <= 0 or self.max_states_gb < 0:
            raise InputError(
                f"lora_alpha must be above 0, max_states_gb 0 or more; got {self.lora_alpha}, {self.max_states_gb}."
            )
        self.settings()

    def settings(self) -> DropoutSettings:
        """Of the finished rows. Raises InputError for a value outside its range."""
        return DropoutSettings(self.n_samples, self.dropout, self.param_filter, self.loop.seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's arguments and one for each setting."""
    add_run_arguments(parser, TrainConfig, can_finish=True)


def main(args: argparse.Namespace) -> int:
    """Run it."""
    return run_finishable("dropout", args, read_settings(TrainConfig, args), train)


def train(config: TrainConfig, run: Run, is_last: bool = False) -> Mapping[str, Any] | None:
    """Train, write the artifact; None when the run was asked to stop.

    Args:
        is_last: take the weights of the run's last checkpoint as they are, the best where it knows them.

    Raises:
        UqchatError: the model or the lessons cannot be used, no layer matches, or the loss is no number.
    """
    model = load_model(config.model, config.device or None, config.dtype or None, config.quantization or None)
    start = plain_start(model.model, matching_layers(model.model, config.param_filter), config.rank, config.loop.seed)
    scale = config.lora_alpha / config.rank
    learned = learn(
        run, model, [start], config.lessons, config.loop, scale, config.dropout, config.max_states_gb, is_last
    )
    if learned is None:
        return None
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    info = replace(learned.info, dtype=config.quantization or model.dtype)
    deltas = {name: LowRank(d.a.half(), d.b.half()) for name, d in learned.changes[0].items()}
    if run.is_main:
        write_dropout(DropoutFiles(config.settings(), Adapter("dropout", dict(deltas)), info), folder)
    return {"artifact": str(folder), **learned.result}


def plain_start(model: torch.nn.Module, layers: tuple[str, ...], rank: int, seed: int) -> dict[str, LowRank]:
    """A LoRA that changes nothing yet: a uniform up to 1 / sqrt(in), as torch begins a linear layer, and b zero."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        size_out, size_in = linear_size(model.get_submodule(layer))
        a = torch.rand(rank, size_in, generator=generator) * 2 - 1
        found[layer] = LowRank(a * size_in**-0.5, torch.zeros(size_out, rank))
    return found
