"""What a probe reads of a training set, computed once: answers, beginnings, labelled tokens. Knows no training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainers.answers import IGNORED
from trainers.training_set import TrainingSet, num_content
from uqchat.estimators.probe_parts import PartConfig, prefix_inputs

LARGEST = torch.finfo(torch.float16).max
CHUNK = 1024  # rows that exist in float64 at a time


@dataclass(frozen=True)
class Table:
    """Rows that networks read, several for each answer."""

    inputs: torch.Tensor
    """(R, F) float16."""
    owner: torch.Tensor
    """(R,) int64, number of the answer, rising."""
    starts: torch.Tensor
    """(N + 1,) int64: the rows of answer i are starts[i] to starts[i + 1]."""
    place: torch.Tensor
    """(R,) int64: 0 for the whole answer, 1 and up for its beginnings; or the index of the token."""

    def rows_of(self, answers: Sequence[int]) -> torch.Tensor:
        """Row numbers of some answers."""
        spans = [torch.arange(int(self.starts[i]), int(self.starts[i + 1])) for i in answers]
        return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def answer_table(data: TrainingSet, config: PartConfig, prefixes: int = 0, seed: int = 0) -> Table:
    """Each whole answer, and `prefixes` shorter beginnings of it where it has more than one token."""
    plan = []
    for row in data.rows:
        count = num_content(row)
        drawn = random.Random(f"{seed} {row.set} {row.id} {row.style} {row.sample}")
        shorter = sorted(drawn.sample(range(1, count), min(prefixes, count - 1))) if count > 1 else []
        plan.append(torch.tensor([count, *shorter]))
    return _table(data, config, plan, [torch.arange(len(lengths)) for lengths in plan])


def token_table(data: TrainingSet, config: PartConfig) -> Table:
    """Every labelled token: the answer up to it, the token included."""
    places = [(data.token_labels(i) != IGNORED).nonzero()[:, 0] for i in range(len(data))]
    return _table(data, config, [place + 1 for place in places], places)


def _table(
    data: TrainingSet, config: PartConfig, lengths: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
) -> Table:
    counts = torch.tensor([len(of_answer) for of_answer in lengths])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    width = config.width(data.shape.hidden_size)
    inputs = torch.empty(int(starts[-1]), width, dtype=torch.float16)
    for index, wanted in enumerate(lengths):
        if len(wanted):
            states = {layer: data.states(layer, index) for layer in config.layers}
            found = prefix_inputs(config, states, data.confidence(index), wanted)
            inputs[starts[index] : starts[index + 1]] = found.clamp(-LARGEST, LARGEST).half()
    return Table(inputs, torch.repeat_interleave(torch.arange(len(data)), counts), starts, torch.cat(list(places)))


def spread(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each column, float32, summed in float64; a constant column has deviation 1."""
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in inputs.split(CHUNK):
        total += part.double().sum(0)
        squares += part.double().square().sum(0)
    mean = total / max(len(inputs), 1)
    deviation = (squares / max(len(inputs), 1) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)).float()
