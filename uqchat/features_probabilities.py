"""Features from the next-token distribution: its largest probabilities, from raw logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from uqchat.errors import InputError
from uqchat.features_base import Context, Part, number
from uqchat.features_hidden import OutputLayer
from uqchat.types import Signals


class TokenProbabilities:
    """The `top_n` largest probabilities, descending; 0 on prompt rows.

    Sampling settings have no part in them. A temperature other than 1 needs all logits, which are made again from the
    final hidden state.
    """

    name: ClassVar[str] = "token_probabilities"
    options: ClassVar[tuple[str, ...]] = ("top_n", "temperature")
    takes_anything: ClassVar[bool] = False

    def __init__(self, top_n: int, temperature: float, context: Context) -> None:
        self.width, self.temperature = top_n, temperature
        self.final = context.shape.num_layers
        self.output = OutputLayer(context)
        is_plain = temperature == 1
        self.needs = Signals(top_n=top_n) if is_plain else Signals(hidden_layers=(self.final,))

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> TokenProbabilities:
        """See `Extractor.make`."""
        top_n = number(options, "top_n", cls.name, largest=context.shape.vocab_size or 10_000)
        temperature = options.get("temperature", 1.0)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < 1000:
            raise InputError(f"`temperature` of {cls.name} must be above 0; got {str(temperature)[:80]!r}.")
        return cls(top_n, float(temperature), context)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        if part.is_prompt:
            return torch.zeros(part.count, self.width)
        if self.temperature == 1:
            return part.signals.top_logprobs[:, : self.width].exp()
        logits = self.output.final_logits(part.signals.hidden[self.final])
        return (logits / self.temperature).softmax(dim=-1).topk(self.width, dim=-1).values
