"""Weights whose every block of 32 lies on 16 evenly spaced values, as in a GGUF file's Q4_1: found again, kept so.

A model read from such a file is unpacked to full precision first. Its 4 bits, and the CPU's kernel for them, give the
same products up to the rounding of a scale, which is no more than that of a bfloat16 weight, from a quarter of the
bytes. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 32  # weights that share a scale and an offset
BLOCK = 64  # rows that torch's kernel keeps together
STEPS = 15  # from the lowest to the highest value of a block
OFF_GRID = 0.1  # of a step, that a value may lie beside the grid; bfloat16 moves it by up to 0.04, chance by 0.5
BYTES_ON_GRID = 5 / 8  # of a weight in the kernel's order with its share of two half-precision numbers
FEW_ROWS = 8  # up to so many, the 4-bit kernel is the fastest; its time grows with every four rows
ROUNDED_ROWS = 3  # the same for rows in float32, which are rounded for the kernel: its float32 code is 20 times slower
MANY_ROWS = 16  # above so many, unpacking once and multiplying as usual is faster


@dataclass(frozen=True, slots=True)
class Grid:
    """A weight, (out, in), as levels from 0 to 15 of its blocks of 32."""

    levels: Tensor  # (out, in / 2), uint8: the first half of the columns in the lower half of the bytes
    scale_and_middle: Tensor  # (out, in / 32, 2), a block's step, and its value at level 8
    kernel_order: Tensor  # (out, in / 2), uint8: the levels as torch's kernel reads them

    def unpacked(self) -> Tensor:
        """(out, in), in the dtype of the scales."""
        return unpacked(self.levels, self.scale_and_middle)


def unpacked(levels: Tensor, scale_and_middle: Tensor) -> Tensor:
    """(out, in) of what a `Grid` holds by these names."""
    all_levels = torch.cat((levels & 15, levels >> 4), dim=-1).view(len(levels), -1, GROUP)
    scale, middle = scale_and_middle.float().split(1, dim=-1)
    weight = torch.addcmul(middle, all_levels.float().sub_(8), scale)
    return weight.view(len(levels), -1).to(scale_and_middle.dtype)


def unpack_first(x: Tensor, levels: Tensor, scale_and_middle: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias: (N, in) -> (N, out)."""
    return F.linear(x, unpacked(levels, scale_and_middle), bias)


def find_grid(weight: Tensor) -> Grid | None:
    """The grid that a weight lies on, or None.

    Args:
        weight: (out, in), of any floating-point dtype.
    """
    if weight.device.type != "cpu" or weight.shape[0] % 16 or weight.shape[1] % GROUP:
        return None
    parts = []
    for part in weight.detach().split(4 * BLOCK):  # small enough to stay in the processor's cache
        found = _grid_of(part)
        if found is None:
            return None
        parts.append(found)
    return Grid(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _grid_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The three tensors of a `Grid`, of some rows."""
    rows, size = weight.shape
    blocks = weight.float().view(rows, -1, GROUP)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)  # (out, in / 32, 1); not aminmax: slow
    step = (high - low) / STEPS
    exact = (blocks - low).mul_(step.clamp_min(torch.finfo(torch.float32).tiny).reciprocal_())
    levels = exact.round()
    if exact.sub_(levels).abs_().max() > OFF_GRID:
        return None
    whole = levels.view(rows, size).to(torch.int32)
    kernel_order = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
    first, second = whole.to(torch.uint8).chunk(2, dim=-1)
    return first | second << 4, torch.cat((step, low + 8 * step), dim=-1).to(weight.dtype), kernel_order


def few_rows(dtype: torch.dtype, is_packed: bool) -> int:
    """Rows up to which the kernel is used.

    Args:
        is_packed: whether more rows have a packed copy of the weight.
    """
    if not is_packed:
        return MANY_ROWS
    return FEW_ROWS if dtype == torch.bfloat16 else ROUNDED_ROWS


class Int4Product:
    """x @ weight.T + bias: few rows by the 4-bit kernel, more of them by `many`.

    Args:
        weight: (out, in / 2), uint8, in the order of torch's kernel.
        scale_and_middle: as a `Grid` has them.
        bias: (out,) or None.
        many: the same product by other means, bias included.
        few: rows up to which the kernel is used. It computes in bfloat16: other rows are rounded for it.
    """

    def __init__(
        self, weight: Tensor, scale_and_middle: Tensor, bias: Tensor | None, many: Callable[[Tensor], Tensor], few: int
    ) -> None:
        self.weight, self.bias, self.many, self.few = weight, bias, many, few
        self._scales = scale_and_middle.transpose(0, 1).to(torch.bfloat16).contiguous()  # (in / 32, out, 2)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, in) -> (N, out), a new tensor of x's dtype."""
        if len(x) > self.few:
            return self.many(x)
        rounded = x.to(torch.bfloat16).contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rounded, self.weight, GROUP, self._scales).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)


class Int4Linear(nn.Module):
    """A linear layer on a grid, in one byte a weight: half of it for the kernel, half by columns."""

    def __init__(self, linear: nn.Linear, grid: Grid) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight_int4", grid.kernel_order)
        self.register_buffer("levels", grid.levels)
        self.register_buffer("scale_and_middle", grid.scale_and_middle)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out), in x's dtype."""
        many = partial(unpack_first, levels=self.levels, scale_and_middle=self.scale_and_middle, bias=self.bias)
        product = Int4Product(self.weight_int4, self.scale_and_middle, self.bias, many, MANY_ROWS)
        return product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
