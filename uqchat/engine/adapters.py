"""Per-row adapters: each row of a batch adds its own change of the weights, and the base weights are read once.

A delta is added to a linear layer's output, computed from the layer's input, so the base may be of any class and
quantised in any way. Knows no engine and no file format.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from uqchat.engine.row_deltas import RowDeltas, group_rows
from uqchat.errors import InputError

KEPT_PLANS = 2  # stacked tensors that are kept: those of the decoding rows, and of the prompt read between two steps
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of rank r: delta W = scale * b @ a.

    Args:
        a: (r, in).
        b: (out, r).
        scale: usually alpha / r.

    Source: LoRA, Hu et al. 2022, equation 3.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Dense:
    """A change of every weight: weight is (out, in), also for layers that store theirs transposed (GPT-2)."""

    weight: Tensor


@dataclass(frozen=True, eq=False)
class InputScale:
    """A factor for every input feature, (in,): delta W = W (diag(factor) - 1), without a product of its own."""

    factor: Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """Deltas of some linear layers, keyed by their names in `model.named_modules()`."""

    name: str
    deltas: dict[str, LowRank | Dense | InputScale]


class AdapterSet:
    """The adapters of one model, and the hooks that apply them to the rows of a batch. Not thread-safe."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self._adapters: dict[str, dict[str, LowRank | Dense]] = {}
        self._scales: dict[str, dict[str, InputScale]] = {}
        self._stacked: OrderedDict[tuple[object, ...], dict[str, Tensor]] = OrderedDict()  # of the rows that came last
        self.version = 0  # another one whenever adapters come or go
        self._plans: OrderedDict[tuple[str | None, ...], dict[str, RowDeltas]] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they were added."""
        return tuple(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def add(self, adapter: Adapter) -> None:
        """Check an adapter against the model and put it on the layers' devices, in the dtype it is computed in.

        Raises:
            InputError: the name is taken, a layer is unknown or not linear, or a shape does not fit.
        """
        if adapter.name in self._adapters:
            raise InputError(f"There is an adapter {adapter.name!r} already; remove it first or choose another name.")
        check_adapter(adapter, self.model)
        scales = {layer: delta for layer, delta in adapter.deltas.items() if isinstance(delta, InputScale)}
        places = {layer: _place_of(self._modules[layer], self.model) for layer in scales}
        self._scales[adapter.name] = {
            layer: InputScale(one.factor.detach().to(*places[layer])) for layer, one in scales.items()
        }
        self._adapters[adapter.name] = {
            name: self._prepare(self._modules[name], delta)
            for name, delta in adapter.deltas.items()
            if not isinstance(delta, InputScale)
        }
        self.version += 1

    def remove(self, name: str) -> None:
        """Forget an adapter and the memory it takes.

        Raises:
            InputError: there is none of this name.
        """
        self._require(name)
        del self._adapters[name], self._scales[name]
        self.version += 1
        for names in [names for names in self._plans if name in names]:
            del self._plans[names]

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """During a forward inside, row i of the batch uses the adapter names[i]; None is the plain model.

        Raises:
            InputError: an unknown name. In the forward: the batch has another number of rows, or the model merges
                rows and positions before a layer, where rows can no longer be told apart.
        """
        handles = []
        try:
            for name, deltas in self.deltas(names).items():
                handles.append(self._modules[name].register_forward_hook(deltas))
            for name, factors in self.scales(names).items():
                handles.append(self._modules[name].register_forward_pre_hook(scaling(name, factors)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def deltas_of(self, name: str) -> dict[str, LowRank | Dense]:
        """An adapter's changes of weights by layer, ready to be computed with: any scale is part of `b`.

        Its input scales are none of them, see `scales`.

        Raises:
            InputError: there is none of this name.
        """
        self._require(name)
        return self._adapters[name]

    def layers_of(self, name: str) -> set[str]:
        """Names of the layers that an adapter changes in any way.

        Raises:
            InputError: there is none of this name.
        """
        self._require(name)
        return {*self._adapters[name], *self._scales[name]}

    def scales(self, names: Sequence[str | None]) -> dict[str, Tensor]:
        """Factors of the inputs of each layer that any row scales, (rows, 1, in); 1 for the others.

        Raises:
            InputError: an unknown name.
        """
        key = (self.version, *names)
        if key not in self._stacked:
            for name in names:
                if name is not None:
                    self._require(name)
            self._stacked[key] = stack_scales([self._scales[name] if name is not None else {} for name in names])
            while len(self._stacked) > KEPT_PLANS:
                self._stacked.popitem(last=False)
        self._stacked.move_to_end(key)
        return self._stacked[key]

    def deltas(self, names: Sequence[str | None]) -> dict[str, RowDeltas]:
        """What the rows add to each layer that any of them changes."""
        key = tuple(names)
        if not any(name is not None for name in key):
            return {}
        if key not in self._plans:
            self._plans[key] = self._plan(key)
            while len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _plan(self, names: tuple[str | None, ...]) -> dict[str, RowDeltas]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                rows.setdefault(name, []).append(row)
        layers: dict[str, list[tuple[LowRank | Dense, list[int]]]] = {}
        for name, its_rows in rows.items():
            for layer, delta in self.deltas_of(name).items():
                layers.setdefault(layer, []).append((delta, its_rows))
        return {layer: row_deltas_of(layer, len(names), users) for layer, users in layers.items()}

    def _prepare(self, layer: nn.Module, delta: LowRank | Dense) -> LowRank | Dense:
        device, dtype = _place_of(layer, self.model)
        if isinstance(delta, Dense):
            return Dense(delta.weight.detach().to(device, dtype))
        if device.type == "cpu":
            dtype = torch.float32  # thin half-precision products cost four times as much there
        b = delta.b.detach().float() * delta.scale
        return LowRank(delta.a.detach().to(device, dtype), b.to(device, dtype))

    def _require(self, name: str) -> None:
        if name not in self._adapters:
            raise InputError(f"There is no adapter {name!r}; there are: {', '.join(self._adapters) or 'none'}.")


def check_adapter(adapter: Adapter, model: nn.Module) -> None:
    """Raise an InputError that names the first layer of the adapter that the model lacks or that has other sizes."""
    modules = dict(model.named_modules())
    for name, delta in adapter.deltas.items():
        where = f"Adapter {adapter.name!r}, layer {name!r}"
        if name not in modules:
            known = next((known for known, module in modules.items() if linear_size(module)), "none")
            raise InputError(f"{where}: the model has no such layer. A name it has is, for example, {known!r}.")
        size = linear_size(modules[name])
        if size is None:
            raise InputError(f"{where}: it is a {type(modules[name]).__name__}; only linear layers can be adapted.")
        _check_delta(where, delta, *size)


def linear_size(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer of any class, None for other modules."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    size = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    return size if all(isinstance(number, int) for number in size) else None


def _check_delta(where: str, delta: LowRank | Dense | InputScale, size_out: int, size_in: int) -> None:
    tensors = [getattr(delta, name) for name in ("weight", "factor", "a", "b") if hasattr(delta, name)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if isinstance(delta, InputScale):
        fits = shapes == [(size_in,)]
        text = f"the factors are {shapes[0]}, the layer reads ({size_in},)"
    elif isinstance(delta, Dense):
        fits = shapes == [(size_out, size_in)]
        text = f"the weight is {shapes[0]}, the layer takes ({size_out}, {size_in})"
    else:
        rank = shapes[0][0] if len(shapes[0]) == 2 else 0
        fits = rank > 0 and shapes == [(rank, size_in), (size_out, rank)]
        text = (
            f"a is {shapes[0]} and b is {shapes[1]}, the layer takes (r, {size_in}) and ({size_out}, r), r at least 1"
        )
    if not fits:
        raise InputError(f"{where}: {text}.")
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise InputError(f"{where}: the tensors are {tensors[0].dtype}; floating point is needed.")


def _place_of(layer: nn.Module, model: PreTrainedModel) -> tuple[torch.device, torch.dtype]:
    """Where a layer computes and in which dtype; a quantised one computes in the model's."""
    weight = getattr(layer, "weight", None)
    tensor = weight if isinstance(weight, Tensor) else next(layer.buffers(), None)
    device = model.device if tensor is None else tensor.device
    is_plain = isinstance(weight, Tensor) and weight.dtype in FLOATS
    return device, weight.dtype if is_plain else model.dtype


def stack_scales(rows: Sequence[Mapping[str, InputScale]]) -> dict[str, Tensor]:
    """(rows, 1, in) by layer, from what each row scales."""
    first = {layer: one for row in rows for layer, one in row.items()}
    plain = {layer: torch.ones_like(one.factor) for layer, one in first.items()}
    return {
        layer: torch.stack([row[layer].factor if layer in row else plain[layer] for row in rows])[:, None]
        for layer in first
    }


def scaling(layer: str, factors: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A pre-hook of a layer that multiplies each row's input by its factors, (rows, 1, in)."""

    def scale(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (scaled(layer, args[0], factors), *args[1:])

    return scale


def scaled(layer: str, x: Tensor, factors: Tensor) -> Tensor:
    """x, (rows, T, in), times its rows' factors, (rows, 1, in). Raises InputError when rows cannot be told apart."""
    if x.dim() != 3 or len(x) != len(factors):
        raise InputError(
            f"Layer {layer!r} got an input of shape {tuple(x.shape)}, but input scales are set for {len(factors)} rows."
        )
    return x * factors


def row_deltas_of(layer: str, num_rows: int, users: list[tuple[LowRank | Dense, list[int]]]) -> RowDeltas:
    """Group what can be multiplied in one go: deltas of one kind that are used by equally many rows.

    Args:
        users: prepared deltas, and the rows of the batch that use each.
    """
    groups: dict[tuple[type, int], list[tuple[LowRank | Dense, list[int]]]] = {}
    for delta, rows in users:
        groups.setdefault((type(delta), len(rows)), []).append((delta, rows))
    parts = []
    for (kind, _), members in groups.items():
        rows = [its_rows for _, its_rows in members]
        deltas = [delta for delta, _ in members]
        if kind is Dense:
            parts.append(group_rows(rows, None, [delta.weight for delta in deltas]))
        else:
            parts.append(group_rows(rows, [delta.a for delta in deltas], [delta.b for delta in deltas]))
    return RowDeltas(layer, num_rows, parts)
