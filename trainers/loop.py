"""The one training loop: batches in a fixed order, gradients, checkpoints, early stopping. Knows no estimator.

The order of the data follows from seed and step alone, everything else lies in the checkpoint (`loop_state`), so a run
that was killed and resumed ends with the same weights as one that was not. Several processes (`accelerate launch`)
split every batch; gradients are sums over the batch divided by the batch's whole weight, so that neither the number of
processes nor gradient accumulation changes what is computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from accelerate import Accelerator

from trainers import checkpoints
from trainers.loop_config import LoopConfig
from trainers.loop_state import LoopState, RunState
from trainers.run_folder import Run, TrainingError

Loss = Callable[[torch.nn.Module, Sequence[int]], tuple[torch.Tensor, float]]
"""Module and indices of examples to the sum of their losses and the sum of their weights; indices may be empty."""
Evaluate = Callable[[torch.nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended; the module then has its best weights."""

    steps: int
    best_step: int
    metrics: Mapping[str, float]
    is_stopped: bool
    """Whether somebody asked it to end before it was complete."""


def make_accelerator(config: LoopConfig) -> Accelerator:
    """The device, the processes and the number format. Raises TrainingError for a tracker that is not installed."""
    try:
        return Accelerator(
            mixed_precision=config.precision, cpu=not torch.cuda.is_available(), log_with=config.tracker or None
        )
    except (ImportError, ValueError) as error:
        raise TrainingError(f"Training cannot start with these settings: {error}") from error


def train_loop(
    run: Run,
    module: torch.nn.Module,
    num_examples: int,
    loss: Loss,
    config: LoopConfig,
    evaluate: Evaluate | None = None,
    watch: str = "auroc",
    accelerator: Accelerator | None = None,
) -> LoopResult:
    """Train a module, or go on with what the run's last checkpoint holds.

    Args:
        module: changed in place; at the end on its device with the best weights, in eval mode.
        num_examples: examples are numbered from 0.
        loss: see `Loss`. It must take the module that it is given, which may be wrapped for several processes.
        evaluate: metrics of the module in eval mode, the same in every process; `watch` names the one that counts,
            higher is better. None: the last weights are the best.

    Raises:
        TrainingError: no examples; a loss that is no number; a full disk. The last complete checkpoint is kept.
    """
    if num_examples < 1:
        raise TrainingError("There is nothing to train on: no example is left. Look at the counts in log.txt.")
    return _Loop(run, module, num_examples, loss, config, evaluate, watch, accelerator).go()


class _Loop:
    """One call of `train_loop`."""

    def __init__(
        self,
        run: Run,
        module: torch.nn.Module,
        num_examples: int,
        loss: Loss,
        config: LoopConfig,
        evaluate: Evaluate | None,
        watch: str,
        accelerator: Accelerator | None,
    ) -> None:
        self.run, self.loss, self.config = run, loss, config
        self.evaluate, self.watch, self.num_examples = evaluate, watch, num_examples
        self.accelerator = accelerator or make_accelerator(config)
        self.per_epoch = math.ceil(num_examples / config.batch_size)
        self.steps = self.per_epoch * config.epochs
        self.look_every = max(1, self.per_epoch // config.evaluations_per_epoch) if config.evaluations_per_epoch else 0
        self.now = RunState(module, config, self.steps, self.accelerator)

    @property
    def state(self) -> LoopState:
        """Where the run is."""
        return self.now.loop

    def go(self) -> LoopResult:
        self._resume()
        if self.config.tracker:
            self.accelerator.init_trackers("uqchat", config={k: str(v) for k, v in self.run.config.items()})
        self.now.module.train()
        is_stopped = False
        while self.state.step < self.steps and not self.state.is_over:
            self._step()
            is_stopped = self._agree(self.run.must_stop)
            is_last = self.state.step == self.steps or self.state.is_over
            if is_stopped or is_last or self.state.step % self.config.checkpoint_every == 0:
                self.now.save(self.run.path)
            if is_stopped:
                break
        return self._finish(is_stopped)

    # ---- one step

    def _step(self) -> None:
        """Forward and backward of this process' parts, the gradient of the whole batch, clip, step, report."""
        parts = self._parts()
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)  # losses, weights
        for number, indices in enumerate(parts):
            waits = number + 1 < len(parts)
            with self.accelerator.no_sync(self.now.module) if waits else contextlib.nullcontext():
                with self.accelerator.autocast():
                    value, weight = self.loss(self.now.module, indices)
                self.accelerator.backward(value)
            total += torch.tensor([value.item(), weight], dtype=torch.float64, device=total.device)
        total = self.accelerator.reduce(total, "sum")
        loss_sum, weight = total.tolist()
        if not math.isfinite(loss_sum):
            raise self._no_number(loss_sum)
        self._scale_gradients(weight)
        self.now.optimizer.step()
        self.now.scheduler.step()
        self.now.optimizer.zero_grad()
        self.state.step += 1
        self.state.loss_sum += loss_sum
        self.state.loss_weight += weight
        self._report()

    def _parts(self) -> list[list[int]]:
        """The examples of this step that this process reads, a list for each accumulated part."""
        epoch, place = divmod(self.state.step, self.per_epoch)
        order = epoch_order(self.num_examples, self.config.seed, epoch)
        batch = order[place * self.config.batch_size : (place + 1) * self.config.batch_size]
        count = self.accelerator.num_processes * self.config.accumulation
        own = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        return [batch[part::count] for part in own]

    def _scale_gradients(self, weight: float) -> None:
        """From sums of losses to the mean over the batch; several processes have averaged their sums already."""
        self.accelerator.unscale_gradients(self.now.optimizer)
        factor = self.accelerator.num_processes / max(weight, 1e-12)
        gradients = [p.grad for p in self.now.plain.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.now.plain.parameters(), self.config.max_grad_norm)

    def _no_number(self, value: float) -> TrainingError:
        kept = checkpoints.complete(self.run.path)
        where = f"The last good checkpoint, {kept[-1].name}, is kept." if kept else "There is no checkpoint yet."
        return TrainingError(
            f"The loss is {value} at step {self.state.step + 1}. {where} Look for features that are no numbers, or try"
            f" a learning rate below {self.config.learning_rate:g}."
        )

    def _report(self) -> None:
        step, state = self.state.step, self.state
        if step % self.config.log_every == 0 or step == self.steps:
            values = {
                "loss": state.loss_sum / max(state.loss_weight, 1e-12),
                "learning_rate": self.now.scheduler.get_last_lr()[0],
            }
            state.loss_sum = state.loss_weight = 0.0
            self._tell(epoch=step / self.per_epoch, **values)
        if self.evaluate and self.look_every and (step % self.look_every == 0 or step == self.steps):
            self._look()
        self.run.progress(step, self.steps, f"epoch {step / self.per_epoch:.1f} of {self.config.epochs}")

    def _tell(self, **values: float) -> None:
        self.run.metric(step=self.state.step, **values)
        if self.config.tracker:
            self.accelerator.log(values, step=self.state.step)

    # ---- the validation split

    def _look(self) -> None:
        assert self.evaluate is not None
        self.now.module.eval()
        with torch.inference_mode():
            found = {name: float(value) for name, value in self.evaluate(self.now.plain).items()}
        self.now.module.train()
        self._tell(**{f"validation_{name}": value for name, value in found.items()})
        state = self.state
        if self.config.keep == "last":
            state.metrics = found
            return
        if found[self.watch] > state.best_metric:
            state.best_metric, state.best_step, state.bad_looks, state.metrics = found[self.watch], state.step, 0, found
            self.now.keep_best()
        else:
            state.bad_looks += 1
        state.is_over = bool(self.config.patience and state.bad_looks >= self.config.patience)

    # ---- checkpoints, and several processes

    def _agree(self, flag: bool) -> bool:
        """Whether any process says so: all must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        value = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(value, "sum").item())

    def _resume(self) -> None:
        found = checkpoints.read_last(self.run.path, self.accelerator.process_index)
        self.run.forget_metrics_after(found.step if found else -1)
        if found is not None:
            self.now.restore(found)
            self.run.log(f"Resumed from step {found.step} of {self.steps}")

    def _finish(self, is_stopped: bool) -> LoopResult:
        if not is_stopped:
            self.now.take_best()
        if self.config.tracker:
            self.accelerator.end_training()
        self.now.plain.eval()
        best_step = self.state.best_step if self.now.best else self.state.step
        return LoopResult(self.state.step, best_step, dict(self.state.metrics), is_stopped)


@lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    """All examples in the order of one epoch; the same for the same seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_examples, generator=generator).tolist()
