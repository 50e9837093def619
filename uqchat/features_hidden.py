"""Features from hidden states: the states themselves, and what the output layer makes of each layer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from uqchat.errors import InputError
from uqchat.features_base import Context, Part, number, numbers
from uqchat.types import Signals

BLOCK = 64  # rows whose logits exist at a time: a long prompt's would not fit


class OutputLayer:
    """The model's output embeddings, applied to hidden states."""

    def __init__(self, context: Context) -> None:
        self.model = context.model

    @property
    def layer(self) -> torch.nn.Module:
        """The linear layer that gives the logits."""
        found = None if self.model is None else self.model.get_output_embeddings()
        if found is None:
            raise InputError("This model has no output layer that could be applied to hidden states.")
        return found

    def final_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The model's own raw logits from its final state, (n, V), float32."""
        logits = self.layer(states).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap

    def in_blocks(self, states: torch.Tensor, then: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        """`then(logits, rows)` of a few rows at a time, joined."""
        slices = [slice(i, i + BLOCK) for i in range(0, len(states), BLOCK)]
        return torch.cat([then(self.layer(states[rows]).float(), rows) for rows in slices])


class BasicHiddenStates:
    """Hidden states of the chosen entries, one after the other."""

    name: ClassVar[str] = "basic_hidden_states"
    options: ClassVar[tuple[str, ...]] = ("layer_nums",)
    takes_anything: ClassVar[bool] = False

    def __init__(self, layers: tuple[int, ...], hidden_size: int) -> None:
        self.layers = layers
        self.width = hidden_size * len(layers)
        self.needs = _needs(layers)

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> BasicHiddenStates:
        """See `Extractor.make`."""
        return cls(_layers(options.get("layer_nums", -1), context), context.shape.hidden_size)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        return torch.cat([part.signals.hidden[layer].float() for layer in self.layers], dim=-1)


class TokenProbabilitiesFromLayers:
    """The `top_n` largest raw logits of the output layer on each chosen state; no final norm and no softmax, as in the
    reference, whatever its name says. Order [layer, rank]."""

    name: ClassVar[str] = "token_probabilities_from_layers"
    options: ClassVar[tuple[str, ...]] = ("top_n", "layer_nums")
    takes_anything: ClassVar[bool] = False

    def __init__(self, top_n: int, layers: tuple[int, ...], context: Context) -> None:
        self.top_n, self.layers = top_n, layers
        self.output = OutputLayer(context)
        self.width = top_n * len(layers)
        self.needs = _needs(layers)

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> TokenProbabilitiesFromLayers:
        """See `Extractor.make`."""
        top_n = number(options, "top_n", cls.name, largest=context.shape.vocab_size or 10_000)
        return cls(top_n, _layers(options.get("layer_nums", "all"), context), context)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        largest = lambda logits, rows: logits.topk(self.top_n, dim=-1).values  # noqa: E731
        return torch.cat([self.output.in_blocks(part.signals.hidden[i], largest) for i in self.layers], dim=-1)


class TokenSimilaritiesAdjacentLayers:
    """Cosine between the output embeddings of the equally ranked likeliest tokens of neighbouring chosen states.

    Order [pair of layers, rank].
    """

    name: ClassVar[str] = "token_similarities_adjacent_layers"
    options: ClassVar[tuple[str, ...]] = ("top_n", "layer_nums")
    takes_anything: ClassVar[bool] = False

    def __init__(self, top_n: int, layers: tuple[int, ...], context: Context) -> None:
        self.top_n, self.layers = top_n, layers
        self.output = OutputLayer(context)
        self.width = top_n * (len(layers) - 1)
        self.needs = _needs(layers)

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> TokenSimilaritiesAdjacentLayers:
        """See `Extractor.make`."""
        top_n = number(options, "top_n", cls.name, largest=context.shape.vocab_size or 10_000)
        layers = _layers(options.get("layer_nums", "all"), context)
        if len(layers) < 2:
            raise InputError(f"`layer_nums` of {cls.name} must name at least two layers.")
        return cls(top_n, layers, context)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        best = lambda logits, rows: logits.topk(self.top_n, dim=-1).indices  # noqa: E731
        weight = self.output.layer.weight
        found = [weight[self.output.in_blocks(part.signals.hidden[i], best)].float() for i in self.layers]
        pairs = zip(found[1:], found[:-1], strict=True)
        return torch.cat([torch.cosine_similarity(later, earlier, dim=-1) for later, earlier in pairs], dim=-1)


class FinalOutputRanks:
    """1 / rank of a row's own token under the output layer on each state of the row before, entries 0 to L - 1.

    One row later than every other feature; row 0 is 1.
    """

    name: ClassVar[str] = "final_output_ranks"
    options: ClassVar[tuple[str, ...]] = ()
    takes_anything: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        self.width = context.shape.num_layers
        self.output = OutputLayer(context)
        self.needs = Signals(hidden_layers=tuple(range(self.width)), input_ids=True, prompt_rows=True)

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> FinalOutputRanks:
        """See `Extractor.make`."""
        return cls(context)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        ids = part.signals.input_ids if part.before is not None else part.signals.input_ids[1:]
        columns = []
        for layer in range(self.width):
            states = part.signals.hidden[layer][:-1]
            if part.before is not None:
                states = torch.cat([part.before.hidden[layer], states])
            columns.append(self._reciprocal_ranks(states, ids) if len(ids) else states.new_ones(0).float())
        ranks = torch.stack(columns, dim=-1)
        return ranks if part.before is not None else torch.cat([ranks.new_ones(1, self.width), ranks])

    def _reciprocal_ranks(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """1 / (1 + how many logits are larger), (n,)."""

        def of_block(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            own = logits.gather(1, ids[rows, None])
            return 1 / (1 + (logits > own).sum(dim=-1).float())

        return self.output.in_blocks(states, of_block)


def _layers(value: Any, context: Context) -> tuple[int, ...]:
    """Entries of the L + 1 hidden states; "all" are the first L."""
    count = context.shape.num_layers
    if value == "all":
        return tuple(range(count))
    return numbers(value, count + (context.hidden_index == "tuple"), "layer_nums", last=count)


def _needs(layers: tuple[int, ...]) -> Signals:
    return Signals(hidden_layers=tuple(sorted(set(layers))))
