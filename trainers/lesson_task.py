"""Loss and validation of changes that learn lessons: each row of a batch teaches one of them. Knows no estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.answers import IGNORED
from trainers.common import LoopConfig, Run, TrainingError, train_loop
from trainers.lesson_sources import LessonConfig
from trainers.lessons import Lesson, described, pad_lessons, read_lessons, response_loss
from trainers.loop import make_accelerator
from trainers.query import take_checkpoint
from trainers.query_lower import Inputs, by_length
from trainers.row_lora import RowLora
from trainers.run_folder import command_line
from uqchat.engine.adapters import LowRank
from uqchat.errors import InputError
from uqchat.models import LoadedModel
from uqchat.origin import Origin, origin_of

ROWS = 4  # lessons in one forward: a long response's logits over a large vocabulary take a hundred megabytes each


@dataclass(frozen=True)
class LessonLoop(LoopConfig):
    """The loop's settings with the defaults of capsa's published fine-tuning of a language model."""

    epochs: int = 5
    batch_size: int = 12
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    evaluations_per_epoch: int = 3
    patience: int = 5
    checkpoint_every: int = 25


def check_divisible(batch_size: int, accumulation: int, processes: int, count: int) -> None:
    """Refuse batches whose parts do not give every voter equally many rows. Raises InputError."""
    parts = accumulation * processes
    if batch_size % (count * parts):
        split = f" in {parts} parts (accumulation and processes)" if parts > 1 else ""
        raise InputError(
            f"A batch of {batch_size} lessons{split} cannot be shared equally by {count} voters:"
            f" batch_size must be a multiple of {count * parts}."
        )


def trimmed(lessons: Sequence[Lesson], multiple: int) -> list[Lesson]:
    """As many lessons as make whole shares in the last batch too. Raises TrainingError when there are too few."""
    count = len(lessons) // multiple * multiple
    if not count:
        raise TrainingError(f"{len(lessons)} lessons are too few: every voter needs one in each part of a batch.")
    return list(lessons[:count])


class LessonTask:
    """Loss and validation of one run; row k of what is given at once teaches change k % n.

    Args:
        learned, held_out: what is learned, and what chooses the checkpoint.
        max_states_gb: memory for states of the blocks below the first changed one, computed once; 0 is off.
    """

    def __init__(
        self, learned: Sequence[Lesson], held_out: Sequence[Lesson], module: RowLora, max_states_gb: float
    ) -> None:
        self.learned, self.held_out = learned, held_out
        self.count = len(module.a[0])
        first, limit = module.first_block, max_states_gb * 1e9
        self.inputs = Inputs(module.base, [lesson.ids for lesson in learned], first, limit)
        self.held_inputs = Inputs(module.base, [lesson.ids for lesson in held_out], first, limit)

    def loss(self, module: torch.nn.Module, indices: Sequence[int]) -> tuple[Tensor, float]:
        """Sum over the targets of these lessons, in parts of similar length, and their number."""
        if not indices:
            return sum((parameter.sum() for parameter in module.parameters()), torch.zeros(())) * 0.0, 0.0
        parts = by_length(self.inputs.lengths(indices), ROWS)
        found = [
            self._part(module, self.learned, self.inputs, [(indices[k], k % self.count) for k in p]) for p in parts
        ]
        return torch.stack([loss for loss, _ in found]).sum(), float(sum(number for _, number in found))

    def _part(
        self, module: torch.nn.Module, lessons: Sequence[Lesson], inputs: Inputs, rows: list[tuple[int, int]]
    ) -> tuple[Tensor, int]:
        """Of lessons, each with the change that it teaches."""
        given, mask = inputs.batch([i for i, _ in rows])
        labels, wrong = (tensor.to(mask.device) for tensor in pad_lessons([lessons[i] for i, _ in rows]))
        members = torch.tensor([member for _, member in rows], device=mask.device)
        width = given.shape[1]
        keep = torch.arange(width - labels.shape[1] - 1, width - 1, device=mask.device)
        logits = module(given, mask, keep, members, starts_at=inputs.starts_at)
        is_target = labels != IGNORED
        log_probs = logits[is_target].log_softmax(dim=-1).gather(1, labels[is_target][:, None])[:, 0]
        return response_loss(log_probs, wrong[is_target]).sum(), int(is_target.sum())

    def evaluate(self, module: torch.nn.Module) -> dict[str, float]:
        """Minus the loss on the held-out lessons, mean over targets: each lesson is read by one change in turn."""
        total, number = 0.0, 0
        for part in by_length(self.held_inputs.lengths(range(len(self.held_out))), ROWS):
            rows = [(i, i % self.count) for i in part]
            loss, count = self._part(module, self.held_out, self.held_inputs, rows)
            total, number = total + float(loss), number + count
        return {"log_likelihood": -total / max(number, 1)}


@dataclass(frozen=True)
class Learned:
    """What training gives: the changes with their best weights, where they come from, and how it went."""

    changes: tuple[dict[str, LowRank], ...]
    info: Origin
    result: Mapping[str, Any]


def learn(
    run: Run,
    model: LoadedModel,
    starts: Sequence[dict[str, LowRank]],
    lessons: LessonConfig,
    loop: LoopConfig,
    scale: float,
    dropout: float,
    max_states_gb: float,
    is_last: bool = False,
) -> Learned | None:
    """Train changes on lessons; None when the run was asked to stop.

    Args:
        starts: what each change begins as. scale, dropout: see `RowLora`. max_states_gb: see `LessonTask`.
        is_last: train no further, take the weights of the run's last checkpoint, the best where it knows them.

    Raises:
        UqchatError: the lessons cannot be used, batches cannot be shared equally, or the loss is no number.
    """
    learned, held_out = read_lessons(lessons, model, run.log)
    accelerator = make_accelerator(loop)
    check_divisible(loop.batch_size, loop.accumulation, accelerator.num_processes, len(starts))
    learned = trimmed(learned, len(starts) * loop.accumulation * accelerator.num_processes)
    torch.manual_seed(loop.seed)
    module = RowLora(model.model, starts, scale, dropout)
    task = LessonTask(learned, held_out, module, max_states_gb)
    if task.inputs.starts_at:
        run.log(f"Blocks before {task.inputs.starts_at} are run once for each lesson; their states are kept")
    evaluate = task.evaluate if held_out else None
    if is_last:
        result = take_checkpoint(run, module)
    else:
        result = train_loop(
            run, module, len(learned), task.loss, loop, evaluate, watch="log_likelihood", accelerator=accelerator
        )
    module.remove()
    if result.is_stopped:
        return None
    metrics = {f"validation {name}": value for name, value in result.metrics.items()}
    read = min(result.best_step * loop.batch_size, len(learned))
    part = f"{read:,} drawn from: " if read < len(learned) else ""
    data = {
        "training_data": part + described(learned),
        "command": command_line(),
        "seed": loop.seed,
        "metrics": metrics,
    }
    steps = {"steps": result.steps, "best_step": result.best_step, "metrics": metrics}
    return Learned(module.changes(), origin_of(model, **data), steps)
