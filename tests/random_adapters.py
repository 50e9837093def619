"""Random adapters of any model, and the same model with an adapter merged into its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from uqchat.engine.adapters import Adapter, Dense, InputScale, LowRank, linear_size


def named_layers(model: nn.Module, ends: tuple[str, ...]) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith(ends)]


def low_rank(model: nn.Module, name: str, rank: int, ends: tuple[str, ...], size: float = 0.3) -> Adapter:
    generator = torch.Generator().manual_seed(rank)
    deltas: dict[str, Any] = {}
    for layer in named_layers(model, ends):
        size_out, size_in = linear_size(model.get_submodule(layer))
        a = torch.randn(rank, size_in, generator=generator) * size
        deltas[layer] = LowRank(a, torch.randn(size_out, rank, generator=generator) * size, 0.5)
    return Adapter(name, deltas)


def dense(model: nn.Module, name: str, ends: tuple[str, ...], size: float = 0.3) -> Adapter:
    generator = torch.Generator().manual_seed(99)
    sizes = {layer: linear_size(model.get_submodule(layer)) for layer in named_layers(model, ends)}
    return Adapter(name, {key: Dense(torch.randn(*shape, generator=generator) * size) for key, shape in sizes.items()})


def masks(model: nn.Module, name: str, ends: tuple[str, ...], rate: float = 0.2) -> Adapter:
    generator = torch.Generator().manual_seed(5)
    sizes = {layer: linear_size(model.get_submodule(layer))[1] for layer in named_layers(model, ends)}
    kept = {layer: (torch.rand(size, generator=generator) >= rate).float() for layer, size in sizes.items()}
    return Adapter(name, {layer: InputScale(one / (1 - rate)) for layer, one in kept.items()})


def change_of(delta: LowRank | Dense) -> Tensor:
    """(out, in), by the definition."""
    return delta.weight if isinstance(delta, Dense) else delta.scale * delta.b @ delta.a


def merged(model: nn.Module, adapter: Adapter | None) -> nn.Module:
    """A copy of the model whose weights hold the adapter."""
    model = copy.deepcopy(model)
    for name, delta in (adapter.deltas if adapter else {}).items():
        layer = model.get_submodule(name)
        if isinstance(delta, InputScale):
            layer.weight *= delta.factor
            continue
        change = change_of(delta)
        layer.weight += change.T if isinstance(layer, Conv1D) else change
    return model


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
