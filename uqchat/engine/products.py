"""How a weight is multiplied with few rows and with many, by the kernels that are fastest on this machine.

Which kernel serves how many rows was measured by `python -m benchmarks formats`. Knows weights, no layer's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uqchat.four_bit import Int4Linear, Int4Product, few_rows, find_grid, unpack_first, unpacked
from uqchat.int8 import PACKED_ROWS, Int8Linear, Int8Product

Product = Callable[[Tensor], Tensor]  # (N, in) -> (N, out), a new tensor
FUSED_TENSORS = {  # of the classes of layers that are known here, beside the bias
    nn.Linear: ("weight",),
    Int8Linear: ("weight_int8", "scale"),
    Int4Linear: ("weight_int4", "levels", "scale_and_middle"),
}


class PlainProduct:
    """x @ weight.T + bias.

    Args:
        weight: (out, in). bias: (out,) or None.
        is_packed: keep the weight in the order that the CPU's kernels read fastest.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, is_packed: bool) -> None:
        self.bias, self.is_packed = bias, is_packed
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, in) -> (N, out), a new tensor."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def product_of(fused: Mapping[str, Tensor], is_packed: bool, has_grid: bool) -> Product:
    """How fused tensors, by the names in `FUSED_TENSORS`, are multiplied."""
    bias = fused.get("bias")
    if "weight_int8" in fused:
        return Int8Product(fused["weight_int8"], fused["scale"], bias, is_packed)
    if "weight_int4" in fused:
        levels, scales, kernel_order = (fused[name] for name in ("levels", "scale_and_middle", "weight_int4"))
        if is_packed:
            many: Product = PlainProduct(unpacked(levels, scales), bias, True)
        else:
            many = partial(unpack_first, levels=levels, scale_and_middle=scales, bias=bias)
    else:
        many = PlainProduct(fused["weight"], bias, is_packed)
        # A forward in float32 is one that is to say exactly what the model's own says.
        grid = find_grid(fused["weight"]) if has_grid and fused["weight"].dtype == torch.bfloat16 else None
        if grid is None:
            return many
        scales, kernel_order = grid.scale_and_middle, grid.kernel_order
    return Int4Product(kernel_order, scales, bias, many, few_rows(scales.dtype, is_packed))
