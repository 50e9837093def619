"""Features from attention weights: local windows in both layouts, and the ratio of looking back at the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from uqchat.errors import InputError
from uqchat.features_base import Context, Part, all_or_numbers, number
from uqchat.types import Signals, StepSignals


class BasicAttention:
    """Weights on the k keys at and before a row's own position, of chosen layers and heads.

    Layout "current": lags 0 to k - 1 (the token itself included), flattened [lag, head, layer]. Layout "legacy", of
    heads from before November 2025: lags 1 to k, flattened [layer, lag, head]. `pool` takes the largest over layers.
    """

    name: ClassVar[str] = "basic_attention"
    options: ClassVar[tuple[str, ...]] = ("layer_nums", "attn_history_sz", "pool", "head_nums")
    takes_anything: ClassVar[bool] = False

    def __init__(
        self, layers: tuple[int, ...], heads: tuple[tuple[int, ...], ...], lags: int, pool: bool, legacy: bool
    ) -> None:
        self.layers, self.heads, self.pool, self.is_legacy = layers, heads, pool, legacy
        self.lags = range(1, lags + 1) if legacy else range(lags)
        self.width = lags * len(heads[0]) * (1 if pool else len(layers))
        self.needs = Signals(attention_lags=self.lags[-1] + 1, attention_layers=tuple(sorted(set(layers))))

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> BasicAttention:
        """See `Extractor.make`."""
        if not context.shape.num_heads:
            raise InputError(f"This model has no attention, which {cls.name} reads.")
        layers = all_or_numbers(options.get("layer_nums", "all"), context.shape.num_layers, "layer_nums")
        lags = number(options, "attn_history_sz", cls.name, largest=63)
        pool = options.get("pool", False)
        if not isinstance(pool, bool):
            raise InputError(f"`pool` of {cls.name} must be true or false; got {str(pool)[:80]!r}.")
        chosen = options.get("head_nums", "all")
        is_legacy = context.layout == "legacy"
        if is_legacy and chosen != "all":
            raise InputError("`head_nums` came with the layout `current`; this head cannot have the layout `legacy`.")
        return cls(layers, _heads_of(chosen, layers, context), lags, pool, is_legacy)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        weights = picked_layers(part.signals.attention, part.signals, self.layers)  # (n, layers, H, lags)
        if any(heads != tuple(range(weights.shape[2])) for heads in set(self.heads)):
            index = torch.tensor(self.heads, device=weights.device)[None, :, :, None]  # (1, layers, heads, 1)
            weights = weights.gather(2, index.expand(len(weights), -1, -1, weights.shape[-1]))
        weights = weights[..., self.lags.start : self.lags.stop]
        if self.pool:
            return weights.amax(dim=1).transpose(1, 2).flatten(1)  # [lag, head]
        order = (0, 1, 3, 2) if self.is_legacy else (0, 3, 2, 1)
        return weights.permute(order).flatten(1)


class LookbackLens:
    """How much each head looks at new text rather than at the prompt: new / (prompt + new), both per key.

    Prompt rows and the answer's first two are 1. The divisor of the new keys is one less than their number, as in the
    reference. Order [layer, head].
    """

    name: ClassVar[str] = "lookback_lens"
    options: ClassVar[tuple[str, ...]] = ()
    takes_anything: ClassVar[bool] = True
    needs: Signals = Signals(prompt_attention=True, prompt_rows=True)

    def __init__(self, num_layers: int, num_heads: int) -> None:
        self.layers = tuple(range(num_layers))
        self.width = num_layers * num_heads

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> LookbackLens:
        """See `Extractor.make`."""
        if not context.shape.num_heads:
            raise InputError(f"This model has no attention, which {cls.name} reads.")
        return cls(context.shape.num_layers, context.shape.num_heads)

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        on_prompt = picked_layers(part.signals.prompt_attention, part.signals, self.layers)  # (n, layers, H)
        position = torch.arange(part.first, part.first + part.count, device=on_prompt.device)
        num_new = (position - part.prompt_length)[:, None, None]
        old = on_prompt / part.prompt_length
        new = (1 - on_prompt).clamp(min=0) / num_new.clamp(min=1)
        return (new / (old + new)).where(num_new > 0, 1.0).flatten(1)


def picked_layers(captured: torch.Tensor, signals: StepSignals, layers: tuple[int, ...]) -> torch.Tensor:
    """(n, layers, ...) of the layers asked for, in that order, out of those captured."""
    at = {layer: i for i, layer in enumerate(signals.attention_layers)}
    index = [at[layer] for layer in layers]
    return captured if index == list(range(captured.shape[1])) else captured[:, index]


def _heads_of(chosen: Any, layers: tuple[int, ...], context: Context) -> tuple[tuple[int, ...], ...]:
    """Head numbers of each layer, of equal count."""
    count = context.shape.num_heads
    if not isinstance(chosen, Mapping):
        return (all_or_numbers(chosen, count, "head_nums"),) * len(layers)
    by_layer: dict[int, tuple[int, ...]] = {}
    for key, value in chosen.items():
        for layer in all_or_numbers(key, context.shape.num_layers, "head_nums"):
            by_layer[layer] = all_or_numbers(value, count, "head_nums")
    absent = sorted(set(layers) - set(by_layer))
    if absent:
        raise InputError(f"`head_nums` names no heads for layer {absent[0]}.")
    if len({len(by_layer[layer]) for layer in layers}) > 1:
        raise InputError("`head_nums` must name equally many heads in every layer.")
    return tuple(by_layer[layer] for layer in layers)
