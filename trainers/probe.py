"""Trains a probe on hidden states that were cached: `python -m trainers probe --run-dir D --caches '["a", "b"]'`.

Where no layer is named, the best one is found by cross-validation on the training split. The language model is not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from trainers.answers import IGNORED
from trainers.common import LoopConfig, Run, add_run_arguments, read_settings, run_trainer, train_loop
from trainers.probe_data import Table, answer_table, spread, token_table
from trainers.probe_sweep import sweep_layers
from trainers.run_folder import ARTIFACT, command_line
from trainers.training_set import (
    DataConfig,
    TrainingSet,
    balanced_weights,
    macro_auroc,
    read_parts,
    token_weights,
)
from uqchat.errors import InputError
from uqchat.estimators.probe_files import Part, ProbeFiles, make_part, write_probe
from uqchat.estimators.probe_parts import PartConfig, Reading

BALANCES = ("none", "class", "group")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a probe and its training."""

    data: DataConfig
    loop: LoopConfig
    layers: tuple[int, ...] = ()
    """Hidden layers that are read side by side; none named: the best single one."""
    positions: tuple[str, ...] = ("mean_minus_prompt",)
    """What is read of each layer: last, mean, prompt, last_minus_prompt, mean_minus_prompt."""
    use_confidence: bool = False
    """Whether -log p, entropy and length are read too."""
    sizes: tuple[int, ...] = (128,)
    """Hidden layers of each network; [] is a logistic regression."""
    members: int = 4
    """Networks whose logits are averaged, 1 to 64."""
    dropout: float = 0.3
    """Of inputs and hidden layers, in [0, 1)."""
    prefixes: int = 1
    """Beginnings of each answer that carry its label too, 0 or more: a risk is shown before the answer is whole."""
    prefix_weight: float = 0.25
    """Weight of such a beginning; a whole answer has 1."""
    balance: str = "class"
    """"class": right and wrong answers weigh the same together; "group": inside each set and style; "none"."""
    use_tokens: bool = True
    """Whether tokens get networks of their own, where they have labels."""
    token_positions: tuple[str, ...] = ("last_minus_prompt",)
    """What these read of the same layers."""
    output: str = ""
    """Folder of the finished probe; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        if self.balance not in BALANCES:
            raise InputError(f"balance must be one of {', '.join(BALANCES)}; got {self.balance!r}.")
        if not 0 <= self.dropout < 1 or self.prefixes < 0 or self.prefix_weight < 0:
            raise InputError("dropout must lie in [0, 1), prefixes and prefix_weight must be 0 or more.")
        self.part(self.layers or (0,), self.positions)

    def part(self, layers: Sequence[int], positions: Sequence[str]) -> PartConfig:
        """The answer's part on these layers. Raises InputError where it cannot be."""
        readings = tuple(Reading(layer, position) for layer in layers for position in positions)
        return PartConfig(readings, self.use_confidence, self.sizes, self.members)


class ProbeModule(nn.Module):
    """The networks of both parts; what trains is one module."""

    def __init__(self, answer: Part, tokens: Part | None) -> None:
        super().__init__()
        self.answer = answer.module
        self.tokens = tokens.module if tokens else None

    def forward(self, answers: torch.Tensor, tokens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Inputs (R, F) and (S, G) to logits (R, members) and (S, members)."""
        return self.answer(answers), None if tokens is None or self.tokens is None else self.tokens(tokens)


@dataclass(frozen=True)
class Material:
    """Tables of one split, with a label and a weight for every row."""

    data: TrainingSet
    answers: Table
    answer_labels: torch.Tensor
    answer_weights: torch.Tensor
    tokens: Table | None = None
    token_labels: torch.Tensor | None = None
    token_weights: torch.Tensor | None = None


def make_material(data: TrainingSet, parts: tuple[PartConfig, PartConfig | None], config: TrainConfig) -> Material:
    """All rows of a split. Answers that only have labelled tokens have weight 0 themselves."""
    answers = answer_table(data, parts[0], config.prefixes, config.loop.seed)
    labels = data.is_error()
    groups = {"none": None, "class": None, "group": data.groups()}[config.balance]
    known = labels.isfinite().float()
    weights = known if config.balance == "none" else balanced_weights(labels, groups)
    by_row = weights[answers.owner] * torch.where(answers.place == 0, 1.0, config.prefix_weight)
    material = Material(data, answers, labels.nan_to_num(0.0)[answers.owner], by_row)
    if parts[1] is None:
        return material
    tokens = token_table(data, parts[1])
    every = [data.token_labels(i) for i in range(len(data))]
    is_fact = torch.cat([data.is_fact(i)[labels != IGNORED] for i, labels in enumerate(every)])
    token_labels = torch.cat([labels[labels != IGNORED] for labels in every])
    # The tokens of an answer weigh about as much as one answer.
    share = 1 / (tokens.starts[1:] - tokens.starts[:-1]).clamp(min=1)[tokens.owner]
    weights = token_weights(token_labels, is_fact) * share
    return replace(material, tokens=tokens, token_labels=token_labels.float(), token_weights=weights)


def probe_loss(material: Material) -> Callable[[nn.Module, Sequence[int]], tuple[torch.Tensor, float]]:
    """Binary cross-entropy of every member, summed over the rows of some answers, and the sum of the weights."""

    def loss(module: nn.Module, indices: Sequence[int]) -> tuple[torch.Tensor, float]:
        device = next(module.parameters()).device
        rows = material.answers.rows_of(indices)
        token_rows = material.tokens.rows_of(indices) if material.tokens else None
        tokens = None if token_rows is None else material.tokens.inputs[token_rows].to(device)
        logits, token_logits = module(material.answers.inputs[rows].to(device), tokens)
        total, weight = _weighted(logits, material.answer_labels[rows], material.answer_weights[rows])
        if token_logits is not None:
            more = _weighted(token_logits, material.token_labels[token_rows], material.token_weights[token_rows])
            total, weight = total + more[0], weight + more[1]
        return total, weight

    return loss


def _weighted(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
    wanted = labels.to(logits.device)[:, None].expand_as(logits)
    each = binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(-1)
    return (each * weights.to(logits.device)).sum(), weights.sum().item()


def evaluate_probe(material: Material) -> Callable[[nn.Module], Mapping[str, float]]:
    """AUROC of whole answers, mean over sets and styles, that of labelled tokens, and "watched", their mean."""
    whole = (material.answers.place == 0).nonzero()[:, 0]
    labels, groups = material.data.is_error().tolist(), material.data.groups()

    def evaluate(module: nn.Module) -> Mapping[str, float]:
        device = next(module.parameters()).device
        raw = module.answer(material.answers.inputs[whole].to(device)).mean(-1).tolist()
        found = macro_auroc(raw, labels, groups)
        if material.tokens is not None and material.token_labels is not None and len(material.token_labels):
            raw = module.tokens(material.tokens.inputs.to(device)).mean(-1).tolist()
            tokens = macro_auroc(raw, material.token_labels.tolist(), [""] * len(raw))["auroc"]
            return {**found, "token_auroc": tokens, "watched": (found["auroc"] + tokens) / 2}
        return {**found, "watched": found["auroc"]}

    return evaluate


def train(config: TrainConfig, run: Run) -> Mapping[str, Any] | None:
    """Train, and write the probe's folder; the result, or None when the run was asked to stop.

    Raises:
        UqchatError: no usable data, a full disk, a loss that is no number.
    """
    data, validation = read_parts(config.data, run.log)
    layers = config.layers or sweep_layers(data, config.positions, run, config.loop.seed)
    if layers is None:
        return None
    parts = _parts(config, layers, data)
    configs = (parts[0].config, parts[1].config if parts[1] else None)
    material = make_material(data, configs, config)
    torch.manual_seed(config.loop.seed)
    answer = make_part(parts[0].config, data.shape.hidden_size, config.dropout)
    tokens = make_part(parts[1].config, data.shape.hidden_size, config.dropout) if parts[1] else None
    for part, table in ((answer, material.answers), (tokens, material.tokens)):
        if part is not None and table is not None:
            part.module.mean, part.module.scale = spread(table.inputs)
    module = ProbeModule(answer, tokens)
    evaluate = evaluate_probe(make_material(validation, configs, config)) if len(validation) else None
    result = train_loop(run, module, len(data), probe_loss(material), config.loop, evaluate, "watched")
    if result.is_stopped:
        return None
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    metrics = {f"validation {name}": value for name, value in result.metrics.items() if name != "watched"}
    if run.is_main:
        info = data.origin(metrics=metrics, command=command_line(), seed=config.loop.seed)
        write_probe(ProbeFiles(answer, tokens, info), folder)
    return {"artifact": str(folder), "layers": list(layers), "steps": result.steps, "metrics": metrics}


def _parts(config: TrainConfig, layers: Sequence[int], data: TrainingSet) -> tuple[Part, Part | None]:
    size = data.shape.hidden_size
    answer = make_part(config.part(layers, config.positions), size)
    has_labels = config.use_tokens and any(row.token_labels for row in data.rows)
    tokens = make_part(config.part(layers, config.token_positions), size) if has_labels else None
    return answer, tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m trainers probe`."""
    add_run_arguments(parser, TrainConfig)


def main(args: argparse.Namespace) -> int:
    """Begin or resume a run. Raises what `train` raises."""
    return run_trainer("probe", args, read_settings(TrainConfig, args), train)
