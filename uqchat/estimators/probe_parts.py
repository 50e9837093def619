"""What a probe computes: readings of hidden states and a few small networks side by side. Knows no file, no estimator.

The streamed way (`Reader`, one step at a time) and the way of training (`prefix_inputs`, whole rows at once) give the
same numbers; both are here so that they cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from uqchat.errors import InputError
from uqchat.types import TokenStep

Position = Literal["last", "mean", "prompt", "last_minus_prompt", "mean_minus_prompt"]
POSITIONS: tuple[Position, ...] = get_args(Position)
MAX_MEMBERS = 64
NUM_CONFIDENCES = 7


@dataclass(frozen=True, slots=True)
class Reading:
    """One hidden state of the answer so far.

    "prompt": of the prompt's last position. "last": that has read the newest token. "mean": mean of those that have
    read the answer's tokens. The other two have the prompt's taken away, so that the topic weighs less.
    """

    layer: int
    position: Position


@dataclass(frozen=True, slots=True)
class PartConfig:
    """What one part of a probe reads, and how its networks are built."""

    readings: tuple[Reading, ...]
    """Joined in this order."""
    use_confidence: bool = False
    """Whether mean, highest and newest -log p and entropy, and the log of the length, are read too."""
    sizes: tuple[int, ...] = (128,)
    """Hidden layers; none is a logistic regression."""
    members: int = 1
    """Networks of the same shape whose logits are averaged, 1 to 64."""

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises InputError."""
        if not self.readings and not self.use_confidence:
            raise InputError("A probe must read something: name at least one layer.")
        for reading in self.readings:
            if reading.position not in POSITIONS:
                raise InputError(f"Unknown position {reading.position!r}. Known: {', '.join(POSITIONS)}.")
            if reading.layer < 0:
                raise InputError(f"A probe's layer must be 0 or more; got {reading.layer}.")
        if not 1 <= self.members <= MAX_MEMBERS or not all(1 <= size <= 65_536 for size in self.sizes):
            raise InputError(
                f"A probe has 1 to {MAX_MEMBERS} members of sizes from 1; got {self.members}, {self.sizes}."
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Entries of the hidden states that must be captured."""
        return tuple(sorted({reading.layer for reading in self.readings}))

    def width(self, hidden_size: int) -> int:
        """F, numbers that the networks read."""
        return hidden_size * len(self.readings) + NUM_CONFIDENCES * self.use_confidence


class StackedMLP(nn.Module):
    """Networks of one shape side by side: standardise, then ReLU layers, float32. Their mean logit is the score."""

    def __init__(self, num_inputs: int, sizes: Sequence[int] = (), members: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [num_inputs, *sizes, 1]
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(num_inputs))
        self.register_buffer("scale", torch.ones(num_inputs))
        self.weights = nn.ParameterList(torch.empty(members, o, i) for i, o in zip(widths, widths[1:], strict=False))
        self.biases = nn.ParameterList(torch.zeros(members, o) for o in widths[1:])
        for weight in self.weights:
            nn.init.uniform_(weight, -1 / math.sqrt(weight.shape[-1]), 1 / math.sqrt(weight.shape[-1]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, F) to logits of each member (B, M)."""
        rows = self.dropout((inputs.float() - self.mean) / self.scale)
        rows = torch.einsum("bi,moi->bmo", rows, self.weights[0]) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            rows = self.dropout(rows.relu())
            rows = torch.einsum("bmi,moi->bmo", rows, weight) + bias
        return rows[..., 0]


class Reader:
    """The hidden states of one answer as its steps come: O(1) per token."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.num_read = 0  # tokens whose states are here
        self._prompt: dict[int, torch.Tensor] = {}
        self._sum: dict[int, torch.Tensor] = {}
        self._last: dict[int, torch.Tensor] = {}
        self._confidence: list[tuple[float, float]] = []  # -log p and entropy of every token of the answer
        self._sums, self._highest = [0.0, 0.0], [0.0, 0.0]

    def read(self, step: TokenStep, has_read_token: bool) -> None:
        """Take the state of a step: that has read the token before it or, at the answer's beginning, the prompt's.

        Raises:
            InputError: the step carries no hidden state of a layer that is read.
        """
        for layer in self.layers:
            if step.signals is None or layer not in step.signals.hidden:
                raise InputError(f"The probe needs hidden states of layer {layer}, which this answer's steps lack.")
            state = step.signals.hidden[layer].detach().float().cpu()
            if not has_read_token:
                self._prompt[layer] = state
                self._sum[layer], self._last[layer] = torch.zeros_like(state), state
            else:
                self._sum[layer] = self._sum[layer] + state
                self._last[layer] = state
        self.num_read = self.num_read + 1 if has_read_token else 0

    def add(self, step: TokenStep) -> None:
        """Take the newest token's own numbers."""
        pair = (-step.logprob, 0.0 if step.entropy is None else step.entropy)
        self._confidence.append(pair)
        self._sums = [a + b for a, b in zip(self._sums, pair, strict=True)]
        self._highest = [max(a, b) for a, b in zip(self._highest, pair, strict=True)]

    def inputs(self, config: PartConfig) -> torch.Tensor:
        """(F,), what a part reads of the answer so far. Before a token has been read, the prompt's state stands in."""
        parts = [self._reading(reading) for reading in config.readings]
        if config.use_confidence:
            count = max(len(self._confidence), 1)
            newest = self._confidence[-1] if self._confidence else (0.0, 0.0)
            means = [value / count for value in self._sums]
            parts.append(torch.tensor([*means, *self._highest, *newest, math.log(count)]))
        return torch.cat(parts)

    def _reading(self, reading: Reading) -> torch.Tensor:
        prompt = self._prompt[reading.layer]
        if reading.position == "prompt":
            return prompt
        if reading.position.startswith("mean"):
            found = self._sum[reading.layer] / self.num_read if self.num_read else prompt
        else:
            found = self._last[reading.layer]
        return found - prompt if reading.position.endswith("_minus_prompt") else found


def prefix_inputs(
    config: PartConfig,
    states: Mapping[int, torch.Tensor],
    confidence: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """What a part reads of several beginnings of one answer, as `Reader` gives it.

    Args:
        states: layer -> (R, D), one row per step; row 0 is the prompt's, row j has read token j - 1.
        confidence: (n, 2), -log p and entropy of the answer's tokens, the end token left out.
        lengths: (P,), how many tokens each beginning has, 1 or more; states beyond the last row are not there yet.

    Returns:
        (P, F), float32.
    """
    parts = []
    for reading in config.readings:
        rows = states[reading.layer].float()
        read = lengths.clamp(max=len(rows) - 1)
        if reading.position == "prompt":
            found = rows[:1].expand(len(lengths), -1)
        elif reading.position.startswith("mean"):
            found = torch.cat([rows[:1], rows[1:].cumsum(0) / torch.arange(1, len(rows))[:, None]])[read]
        else:
            found = rows[read]
        parts.append(found - rows[0] if reading.position.endswith("_minus_prompt") else found)
    if config.use_confidence:
        parts.append(_confidences(confidence.float(), lengths))
    return torch.cat(parts, dim=-1)


def _confidences(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(P, 7): means, highest, newest, log of the length."""
    if not len(values):
        return torch.zeros(len(lengths), NUM_CONFIDENCES)
    count = torch.arange(1, len(values) + 1)[:, None]
    table = torch.cat([values.cumsum(0) / count, values.cummax(0).values.clamp(min=0), values, count.log()], dim=-1)
    return table[lengths.clamp(1, len(values)) - 1]
