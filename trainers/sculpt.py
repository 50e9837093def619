"""Trains the head that predicts the variance of logits, by the likelihood of sampled logits; the base is frozen.

Source: Kendall & Gal 2017 (arXiv 1703.04977), equation 12; see `uqchat.heads.logit_variance`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.common import LoopConfig, Run, add_run_arguments, read_settings, run_trainer, train_loop
from trainers.lesson_sources import LessonConfig
from trainers.lessons import described, read_lessons
from trainers.response_states import ResponseStates, read_states
from trainers.run_folder import ARTIFACT, command_line
from uqchat.errors import InputError
from uqchat.estimators.sculpt import Measure, Sculpt, SculptConfig, output_layer
from uqchat.heads.logit_variance import LogitVariance, draw, log_likelihood, shortlist
from uqchat.models import load_model
from uqchat.origin import origin_of


@dataclass(frozen=True)
class SculptLoop(LoopConfig):
    """The loop's settings; an example is one token."""

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 1e-3
    evaluations_per_epoch: int = 4
    patience: int = 6


@dataclass(frozen=True)
class TrainConfig:
    """How the head is trained."""

    lessons: LessonConfig
    loop: SculptLoop
    model: str = "embedded"
    """`embedded`, a Hub id, a folder or a GGUF file."""
    device: str = ""
    """Empty chooses."""
    dtype: str = ""
    """Number format of the base; empty takes what is fast on the device."""
    quantization: str = ""
    """`bnb-4bit` reads a base in NF4."""
    n_layers: int = 2
    """Last hidden states that the head reads, the final one among them; 1 or more."""
    layers: tuple[int, ...] = ()
    """Hidden states that it reads in their place, ascending, the final one last: those that caches hold, say."""
    width: int = 64
    """Hidden units of the head, 1 or more."""
    rank: int = 16
    """Numbers in which state and token meet, 1 or more."""
    shortlist: int = 256
    """Likeliest tokens whose logits have a variance, 1 or more."""
    samples: int = 8
    """Draws of the logits for one loss, 1 or more."""
    measure: Measure = "expected_entropy"
    """A token's risk: expected_entropy or sigma."""
    output: str = ""
    """Folder of the finished head; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        for name in ("n_layers", "width", "rank", "shortlist", "samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)!r} is not allowed; it must be 1 or more.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's arguments and one for each setting."""
    add_run_arguments(parser, TrainConfig)


def main(args: argparse.Namespace) -> int:
    """Run it."""
    return run_trainer("sculpt", args, read_settings(TrainConfig, args), train)


def train(config: TrainConfig, run: Run) -> Mapping[str, Any] | None:
    """Read the states once, train, write the artifact; None when the run was asked to stop.

    Raises:
        UqchatError: the model or the lessons cannot be used, or the loss is no number.
    """
    model = load_model(config.model, config.device or None, config.dtype or None, config.quantization or None)
    lessons, held_out = read_lessons(config.lessons, model, run.log)
    base = model.model
    layers = _layers(config, base.config.get_text_config().num_hidden_layers)
    settings = SculptConfig(layers, config.width, config.rank, config.shortlist, measure=config.measure)
    parts = [_read(run, base, part, layers, name) for part, name in ((lessons, "to learn"), (held_out, "held out"))]
    torch.manual_seed(config.loop.seed)
    head = LogitVariance(base.config.get_text_config().hidden_size, len(layers), config.width, config.rank)
    task = SculptTask(output_layer(base), *parts, config.shortlist, config.samples)
    evaluate = task.evaluate if held_out else None
    result = train_loop(run, head, len(parts[0]), task.loss, config.loop, evaluate, watch="log_likelihood")
    if result.is_stopped:
        return None
    metrics = {f"validation {name}": value for name, value in result.metrics.items()}
    info = replace(
        origin_of(model, training_data=described(lessons), command=command_line(), seed=config.loop.seed),
        metrics=metrics,
    )
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    if run.is_main:
        Sculpt(settings, head.cpu(), base, info).save(folder)
    return {"artifact": str(folder), "steps": result.steps, "best_step": result.best_step, "metrics": metrics}


def _layers(config: TrainConfig, num_layers: int) -> tuple[int, ...]:
    if config.n_layers > num_layers:
        raise InputError(f"n_layers = {config.n_layers} is not allowed: this model has {num_layers} layers.")
    layers = config.layers or tuple(range(num_layers - config.n_layers + 1, num_layers + 1))
    if list(layers) != sorted({*layers}) or layers[0] < 0 or layers[-1] != num_layers:
        raise InputError(
            f"layers = {layers} is not allowed: ascending, from 0, and {num_layers} last, as logits come from it."
        )
    return layers


def _read(run: Run, base: Any, lessons: Sequence[Any], layers: Sequence[int], name: str) -> ResponseStates | None:
    if not lessons:
        return None
    found = read_states(base, lessons, layers, lambda done: run.progress(0, 1, f"reading {done:,} of {len(lessons):,}"))
    run.log(f"{len(found):,} tokens {name}")
    return found


class SculptTask:
    """Loss and validation of one run.

    Args:
        output: the model's output layer, frozen. learned, held_out: what is learned, and what chooses the checkpoint.
        size: of the shortlist. samples: draws for one loss.
    """

    def __init__(
        self,
        output: torch.nn.Module,
        learned: ResponseStates,
        held_out: ResponseStates | None,
        size: int,
        samples: int,
    ) -> None:
        self.output, self.learned, self.held_out, self.size, self.samples = output, learned, held_out, size, samples

    def loss(self, module: torch.nn.Module, indices: Sequence[int]) -> tuple[Tensor, float]:
        """Negative log-likelihood of these tokens, summed, and their number."""
        if not indices:
            return sum((parameter.sum() for parameter in module.parameters()), torch.zeros(())) * 0.0, 0.0
        found, _ = self._log_likelihood(module, self.learned, list(indices), None)
        return -found.sum(), float(len(indices))

    def _log_likelihood(
        self, module: torch.nn.Module, data: ResponseStates, rows: list[int], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """With the head's variances, and of the plain softmax."""
        device = self.output.weight.device
        states, targets = data.states[rows].to(device), data.targets[rows].to(device)
        with torch.no_grad():
            best = shortlist(self.output(states[:, -1].to(self.output.weight.dtype)), self.size)
        log_variance = module(states, self.output.weight[best.ids].detach())
        noise = torch.randn(self.samples, *best.ids.shape, generator=generator).to(device)
        place = best.place_of(targets)
        plain = best.logits.log_softmax(dim=-1).gather(1, place[:, None])[:, 0]
        return log_likelihood(draw(best.logits, log_variance, noise), place), plain

    def evaluate(self, module: torch.nn.Module) -> dict[str, float]:
        """Mean log-likelihood of the held-out tokens, with the same draws every time, beside the plain softmax's."""
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(0)
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(self.held_out), 256):
            rows = list(range(start, min(start + 256, len(self.held_out))))
            for place, values in enumerate(self._log_likelihood(module, self.held_out, rows, generator)):
                sums[place] += values.double().sum().cpu()
        ours, plain = (sums / len(self.held_out)).tolist()
        return {"log_likelihood": ours, "plain log_likelihood": plain}
