"""Trains an ensemble of low-rank voters: started from weight noise, each on its own part of every batch.

Voters share the frozen base and differ in the layers that a regular expression chooses, as in capsa's vote wrapper with
fine-tuning; unlike there, the prompt is no target, targets are class indices, and the best checkpoint counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.common import Run, add_run_arguments, read_settings, run_finishable
from trainers.lesson_sources import LessonConfig
from trainers.lesson_task import LessonLoop, check_divisible, learn
from trainers.run_folder import ARTIFACT
from uqchat.engine.adapters import LowRank
from uqchat.errors import InputError
from uqchat.estimators.vote_files import VoteFiles, write_vote
from uqchat.estimators.vote_noise import Voter, noise_voters
from uqchat.estimators.vote_settings import PARAM_FILTER, VoteSettings
from uqchat.models import load_model


@dataclass(frozen=True)
class TrainConfig:
    """How the voters are trained."""

    lessons: LessonConfig
    loop: LessonLoop
    model: str = "embedded"
    """`embedded`, a Hub id, a folder or a GGUF file."""
    device: str = ""
    """Empty chooses."""
    dtype: str = ""
    """Number format of the base; empty takes what is fast on the device. The voters are float32."""
    quantization: str = ""
    """`bnb-4bit` is QLoRA: the base in NF4."""
    n_voters: int = 3
    """2 to 15."""
    param_filter: str = PARAM_FILTER
    """Regular expression, searched for in the names of linear layers: where voters differ from the base."""
    top: float = 1.0
    """Share of the blocks, from the last one down, in which they differ; a voter costs that share of a row."""
    weight_noise: float = 0.2
    """Of what a voter begins as, over the deviation of the weight that it changes; above 0."""
    alpha: float = 1.0
    """0 to 1, how independent the voters begin."""
    rank: int = 64
    """Of each voter's change; 1 or more."""
    lora_alpha: float = 64.0
    """The change is multiplied by lora_alpha / rank, so that it learns so much faster; above 0."""
    dropout: float = 0.0
    """Share of a layer's inputs that a change does not see in training, in [0, 1)."""
    max_states_gb: float = 2.0
    """Memory for states of the blocks below the first changed one, kept so that they are computed once; 0 is off."""
    output: str = ""
    """Folder of the finished ensemble; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, and what would train no ensemble. Raises InputError."""
        if self.n_voters < 2:
            raise InputError(
                f"n_voters = {self.n_voters} is not enough: a single voter never disagrees; take 2 or more."
            )
        if self.weight_noise <= 0:
            raise InputError(
                f"weight_noise = {self.weight_noise} is not allowed: voters that begin equal and read the same kind of"
                " data stay nearly equal. It must be above 0; the default is 0.2."
            )
        if self.lora_alpha <= 0 or not 0 <= self.dropout < 1 or self.max_states_gb < 0:
            raise InputError(
                "lora_alpha must be above 0, dropout 0 to below 1, max_states_gb 0 or more; got"
                f" {self.lora_alpha}, {self.dropout}, {self.max_states_gb}."
            )
        check_divisible(self.loop.batch_size, self.loop.accumulation, 1, self.n_voters)
        self.settings()

    def settings(self) -> VoteSettings:
        """Of the finished ensemble. Raises InputError for a value outside its range."""
        return VoteSettings(
            self.n_voters,
            self.param_filter,
            self.weight_noise,
            self.alpha,
            self.rank,
            seed=self.loop.seed,
            top=self.top,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's arguments and one for each setting."""
    add_run_arguments(parser, TrainConfig, can_finish=True)


def main(args: argparse.Namespace) -> int:
    """Run it."""
    return run_finishable("vote", args, read_settings(TrainConfig, args), train)


def train(config: TrainConfig, run: Run, is_last: bool = False) -> Mapping[str, Any] | None:
    """Train, write the artifact; None when the run was asked to stop.

    Args:
        is_last: take the weights of the run's last checkpoint as they are, the best where it knows them.

    Raises:
        UqchatError: the model or the lessons cannot be used, no layer matches, or the loss is no number.
    """
    model = load_model(config.model, config.device or None, config.dtype or None, config.quantization or None)
    starts = [balanced(voter) for voter in noise_voters(model.model, config.settings())]
    scale = config.lora_alpha / config.rank
    learned = learn(
        run, model, starts, config.lessons, config.loop, scale, config.dropout, config.max_states_gb, is_last
    )
    if learned is None:
        return None
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    info = replace(learned.info, dtype=config.quantization or model.dtype)
    voters = tuple(
        {name: LowRank(delta.a.half(), delta.b.half()) for name, delta in change.items()} for change in learned.changes
    )
    if run.is_main:
        write_vote(VoteFiles(config.settings(), voters, info), folder)
    return {"artifact": str(folder), **learned.result}


def balanced(voter: Voter) -> dict[str, LowRank]:
    """The same change with the factors' sizes of LoRA: entries of a near 1 / sqrt(in), as its learning rates expect."""
    return {
        name: LowRank(delta.a * delta.a.shape[1] ** -0.5, delta.b * delta.a.shape[1] ** 0.5, delta.scale)
        for name, delta in voter.items()
        if isinstance(delta, LowRank)
    }
