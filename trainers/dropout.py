"""Trains a LoRA with dropout, and draws an ensemble from it: each voter is the LoRA under one fixed mask.

Monte-Carlo dropout (Gal & Ghahramani 2016, arXiv 1506.02142, section 4) with the mask of a LoRA's inputs; a mask is
drawn once for a voter and stays the same at every token, so that a voter is one function (Gal & Ghahramani 2016b,
arXiv 1512.05287). A masked LoRA is a LoRA, so the folder is that of an ensemble of voters.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainers.common import LoopConfig, Run, add_run_arguments, read_settings, run_trainer
from trainers.lesson_sources import LessonConfig
from trainers.lesson_task import learn
from trainers.run_folder import ARTIFACT
from uqchat.engine.adapters import LowRank, linear_size
from uqchat.errors import InputError
from uqchat.estimators.vote_files import VoteFiles, write_vote
from uqchat.estimators.vote_settings import PARAM_FILTER, VoteSettings, matching_layers
from uqchat.models import load_model


@dataclass(frozen=True)
class DropoutLoop(LoopConfig):
    """The loop's settings with defaults for a language model."""

    epochs: int = 5
    batch_size: int = 12
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    evaluations_per_epoch: int = 3
    patience: int = 5
    checkpoint_every: int = 25


@dataclass(frozen=True)
class TrainConfig:
    """How the LoRA is trained and how many masks are drawn."""

    lessons: LessonConfig
    loop: DropoutLoop
    model: str = "embedded"
    """`embedded`, a Hub id, a folder or a GGUF file."""
    device: str = ""
    """Empty chooses."""
    dtype: str = ""
    """Number format of the base; empty takes what is fast on the device. The LoRA is float32."""
    quantization: str = ""
    """`bnb-4bit` is QLoRA: the base in NF4."""
    n_samples: int = 5
    """Masks, 2 to 15."""
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
    """Folder of the finished ensemble; empty is `artifact` in the run's folder."""

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

    def settings(self) -> VoteSettings:
        """Of the finished ensemble. Raises InputError for a value outside its range."""
        return VoteSettings(self.n_samples, self.param_filter, 0.0, rank=self.rank, seed=self.loop.seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's arguments and one for each setting."""
    add_run_arguments(parser, TrainConfig)
    parser.add_argument("--finish", action="store_true", help="train no further: finish with what --resume would load")


def main(args: argparse.Namespace) -> int:
    """Run it."""
    args.resume |= args.finish
    return run_trainer("dropout", args, read_settings(TrainConfig, args), partial(train, is_last=args.finish))


def train(config: TrainConfig, run: Run, is_last: bool = False) -> Mapping[str, Any] | None:
    """Train, draw the masks, write the artifact; None when the run was asked to stop.

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
    how = f"one LoRA, trained with dropout {config.dropout:g}, under {config.n_samples} fixed masks: "
    info = replace(
        learned.info, dtype=config.quantization or model.dtype, training_data=how + learned.info.training_data
    )
    voters = tuple(masked(learned.changes[0], config.dropout, config.loop.seed, i) for i in range(config.n_samples))
    if run.is_main:
        write_vote(VoteFiles(config.settings(), voters, info), folder)
    return {"artifact": str(folder), **learned.result}


def plain_start(model: torch.nn.Module, layers: tuple[str, ...], rank: int, seed: int) -> dict[str, LowRank]:
    """A LoRA that changes nothing yet: a uniform up to 1 / sqrt(in), as torch begins a linear layer, and b zero."""
    found = {}
    for layer in layers:
        size_out, size_in = linear_size(model.get_submodule(layer))
        a = torch.rand(rank, size_in, generator=_generator(seed, layer, "a")) * 2 - 1
        found[layer] = LowRank(a * size_in**-0.5, torch.zeros(size_out, rank))
    return found


def masked(change: Mapping[str, LowRank], dropout: float, seed: int, number: int) -> dict[str, LowRank]:
    """The change as it is while a mask, one for each layer, keeps inputs from it; the others count for those."""
    found = {}
    for layer, delta in change.items():
        kept = torch.rand(delta.a.shape[1], generator=_generator(seed, layer, f"mask {number}")) >= dropout
        found[layer] = LowRank((delta.a * kept / (1 - dropout)).half(), delta.b.half(), delta.scale)
    return found


def _generator(seed: int, layer: str, what: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {layer} {what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
