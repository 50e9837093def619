"""Trains the query: a LoRA with which the model says whether its own answer is correct.

Source: Kapoor et al. 2024 (arXiv 2406.08391), sections 4.2 and 5. Other than there: one adapter for all data, answers
of the model as the reference of the divergence too, classes balanced on request, early stopping, a temperature found
on stored log odds, rows of unlike length masked by their own lengths.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers import checkpoints
from trainers.common import (
    LoopResult,
    Run,
    TrainingError,
    add_run_arguments,
    read_settings,
    run_finishable,
    train_loop,
)
from trainers.lora import LoraModel
from trainers.query_config import TrainConfig
from trainers.query_inputs import Example, choose, make_example
from trainers.query_loss import divergence, fit_temperature, reply_loss
from trainers.query_lower import Inputs, by_length
from trainers.run_folder import ARTIFACT, command_line
from trainers.training_set import TrainingSet, macro_auroc, read_parts
from uqchat.estimators.query import QueryEstimator
from uqchat.estimators.query_files import QueryFiles, QuerySettings
from uqchat.estimators.query_format import make_query
from uqchat.models import LoadedModel, load_model
from uqchat.origin import Origin, origin_of

ROWS = 8  # answers in one forward


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's arguments and one for each setting."""
    add_run_arguments(parser, TrainConfig, can_finish=True)


def main(args: argparse.Namespace) -> int:
    """Run it."""
    return run_finishable("query", args, read_settings(TrainConfig, args), train)


def train(config: TrainConfig, run: Run, is_last: bool = False) -> Mapping[str, Any] | None:
    """Train, fit the temperature, write the artifact; None when the run was asked to stop.

    Args:
        is_last: take the weights of the run's last checkpoint as they are, the best where it knows them.

    Raises:
        UqchatError: the model or the data cannot be used, the loss is no number, or there is no checkpoint to take.
    """
    parts = read_parts(config.data, run.log)
    model = load_model(config.model, config.device or None, config.dtype, config.quantization or None)
    query = make_query(model.tokenizer, config.layout)
    with_gold = config.divergence_on in ("gold", "both") and config.divergence_weight > 0
    limits = ((config.limit, config.max_wrong), (config.validation_limit, 0.0))
    chosen = [
        part.subset(choose(part.rows, *limit, config.data.data_seed)) for part, limit in zip(parts, limits, strict=True)
    ]
    examples = [make_example(row, model, query, with_gold) for row in chosen[0].rows]
    held_out = [make_example(row, model, query) for row in chosen[1].rows]
    run.log(f"{len(examples):,} answers to train on, {len(held_out):,} to choose when to stop")
    module = LoraModel(model.model, config.lora, config.loop.seed)
    task = QueryTask(config, [] if is_last else examples, held_out, query.label_ids, module)
    if task.inputs.starts_at:
        run.log(f"Blocks before {task.inputs.starts_at} are run once for each answer; their states are kept")
    if is_last:
        result = take_checkpoint(run, module)
    else:
        result = train_loop(run, module, len(examples), task.loss, config.loop, task.evaluate if held_out else None)
    if result.is_stopped:
        return None
    module.to(model.model.device)
    log_odds = task.log_odds(module)
    temperature = fit_temperature(log_odds, [example.is_error for example in held_out])
    metrics = {f"validation {name}": value for name, value in task.metrics(log_odds).items()}
    read = min(result.best_step * config.loop.batch_size, len(examples))
    info = _origin(config, model, chosen[0], metrics, f"{read:,} drawn from: " if read < len(examples) else "")
    settings = QuerySettings(query.format.name, config.layout, config.level, temperature)
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    if run.is_main:
        QueryEstimator(QueryFiles(settings, module.adapter("query"), info)).save(folder)
    module.remove()
    return {
        "artifact": str(folder),
        "steps": result.steps,
        "best_step": result.best_step,
        "temperature": temperature,
        "metrics": metrics,
    }


def take_checkpoint(run: Run, module: LoraModel) -> LoopResult:
    """The last checkpoint's weights, the best of its looks at the validation part where there was one.

    Raises:
        TrainingError: there is none.
    """
    found = checkpoints.read_last(run.path, 0)
    if found is None:
        raise TrainingError(f"{run.path} has no complete checkpoint to finish with. Resume it without --finish.")
    module.load_state_dict(found.best or found.module)
    module.eval()
    best = int(found.loop["best_step"]) if found.best else found.step
    run.log(f"Finished early: weights of step {best}, after {found.step} steps")
    return LoopResult(found.step, best, found.loop["metrics"], False)


def _origin(
    config: TrainConfig, model: LoadedModel, data: TrainingSet, metrics: Mapping[str, float], part: str
) -> Origin:
    """The base is the model that was loaded here; a quantised one has a fingerprint of its own.

    Args:
        part: words before the counts, where not all of them were read.
    """
    counted = part + data.origin().training_data
    more = {"training_data": counted, "command": command_line(), "seed": config.loop.seed, "metrics": dict(metrics)}
    return replace(origin_of(model, **more), dtype=config.quantization or model.dtype)


class QueryTask:
    """Loss and validation of one run.

    Args:
        examples, held_out: to train on, and to choose when to stop.
        label_ids: of the replies no and yes.
    """

    def __init__(
        self,
        config: TrainConfig,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        label_ids: tuple[int, int],
        module: LoraModel,
    ) -> None:
        self.config, self.examples, self.held_out, self.label_ids = config, examples, held_out, label_ids
        first, max_bytes = config.lora.first_layer, config.max_states_gb * 1e9
        base = module.base
        self.inputs = Inputs(base, [example.ids for example in examples], first, max_bytes)
        self.gold = Inputs(base, [example.gold_ids or example.ids[:1] for example in examples], first, max_bytes)
        self.held_inputs = Inputs(base, [example.ids for example in held_out], first, max_bytes)

    def loss(self, module: torch.nn.Module, indices: Sequence[int]) -> tuple[Tensor, float]:
        """Sum over these examples, in parts of similar length, and their number."""
        if not indices:
            zero = sum((parameter.sum() for parameter in module.parameters()), torch.zeros(()))
            return zero * 0.0, 0.0
        parts = by_length(self.inputs.lengths(indices), ROWS)
        losses = [self._part_loss(module, [indices[i] for i in part]) for part in parts]
        return torch.stack(losses).sum(), float(len(indices))

    def _part_loss(self, module: torch.nn.Module, rows: list[int]) -> Tensor:
        config, examples = self.config, [self.examples[i] for i in rows]
        is_own = config.divergence_on in ("own", "both") and config.divergence_weight > 0
        inputs, mask = self.inputs.batch(rows)
        width = inputs.shape[1]
        spans = (
            [(e.answer[0] + width - len(e.ids), e.answer[1] + width - len(e.ids)) for e in examples] if is_own else []
        )
        keep, spoken = positions(spans, width, mask.device)
        logits = module(inputs, mask, keep, starts_at=self.inputs.starts_at)
        wrong = torch.tensor([e.is_error for e in examples], device=logits.device)
        total = reply_loss(logits[:, -1], self.label_ids, wrong, torch.ones(len(rows), device=logits.device))
        if is_own and len(keep) > 1:
            with torch.no_grad():
                until = int(keep[-2]) + 1  # what comes after the answer changes nothing in it
                reference = module(inputs[:, :until], mask[:, :until], keep[:-1], False, self.inputs.starts_at)
            apart = divergence(logits[:, :-1], reference, spoken[:, :-1], config.divergence)
            total = total + config.divergence_weight * apart
        if config.divergence_on in ("gold", "both") and config.divergence_weight > 0:
            total = total + config.divergence_weight * self._gold_divergence(module, rows)
        return total

    def _gold_divergence(self, module: torch.nn.Module, rows: list[int]) -> Tensor:
        """On the prompt with the first reference: changed and unchanged model over the reference's tokens."""
        rows = [i for i in rows if self.examples[i].gold_ids]
        if not rows:
            return torch.zeros(())
        inputs, mask = self.gold.batch(rows)
        width = inputs.shape[1]
        shifts = [width - len(self.examples[i].gold_ids) for i in rows]
        spans = [(self.examples[i].gold_start + shift, width) for i, shift in zip(rows, shifts, strict=True)]
        keep, spoken = positions(spans, width, mask.device)
        logits = module(inputs, mask, keep, starts_at=self.gold.starts_at)
        with torch.no_grad():
            reference = module(inputs, mask, keep, False, self.gold.starts_at)
        return divergence(logits[:, :-1], reference[:, :-1], spoken[:, :-1], self.config.divergence)

    @torch.no_grad()
    def log_odds(self, module: torch.nn.Module) -> list[float]:
        """Of "no" against "yes", for every held-out example, at temperature 1."""
        found = [0.0] * len(self.held_out)
        for part in by_length(self.held_inputs.lengths(range(len(found))), ROWS):
            inputs, mask = self.held_inputs.batch(part)
            keep = torch.tensor([inputs.shape[1] - 1], device=mask.device)
            logits = module(inputs, mask, keep, starts_at=self.held_inputs.starts_at)[:, -1]
            for i, value in zip(part, logits[:, self.label_ids[0]] - logits[:, self.label_ids[1]], strict=True):
                found[i] = float(value)
        return found

    def evaluate(self, module: torch.nn.Module) -> dict[str, float]:
        """The validation part's numbers; `auroc` is the mean over sets and styles."""
        return self.metrics(self.log_odds(module))

    def metrics(self, log_odds: Sequence[float]) -> dict[str, float]:
        """AUROC, the mean over sets and styles, and cross entropy of log odds."""
        wrong = [float(example.is_error) for example in self.held_out]
        signs = torch.tensor(wrong, dtype=torch.float64) * 2 - 1
        cross_entropy = torch.nn.functional.softplus(-signs * torch.tensor(log_odds, dtype=torch.float64)).mean()
        groups = [example.group for example in self.held_out]
        return {**macro_auroc(log_odds, wrong, groups), "cross entropy": float(cross_entropy)}


def positions(spans: Sequence[tuple[int, int]], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions whose logits are wanted, and which row wants which of them: (K,) and (B, K).

    The tokens at [start, end) are predicted one position earlier. The last position, which gives the reply, is the last
    of them and wanted by no span.
    """
    wanted = sorted({at - 1 for start, end in spans for at in range(start, end)} - {width - 1})
    spoken = torch.zeros((len(spans), len(wanted) + 1), dtype=torch.bool)
    for row, (start, end) in enumerate(spans):
        for column, at in enumerate(wanted):
            spoken[row, column] = start - 1 <= at < end - 1
    return torch.tensor([*wanted, width - 1], device=device), spoken.to(device)
