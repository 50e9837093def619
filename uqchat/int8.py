"""Weight-only linear layers of at most 8 bits for the CPU. Knows no model beyond its `nn.Linear` layers.

One scale per output row, weights rounded to the nearest of 255 steps, activations to no less than bfloat16, unlike in
torch's own dynamic quantisation. Weights that lie on a grid of 16 values already, those of a GGUF file say, keep that
grid instead: it loses nothing and is faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uqchat.fingerprint import SOURCE, weights_fingerprint
from uqchat.four_bit import BLOCK, Int4Linear, find_grid

PACKED_ROWS = 8  # rows that the order of a packed copy is chosen for; it serves any number
FEW_ROWS = 4  # up to so many, the int8 kernel is the fastest; its time grows with every four rows
ROUNDED_ROWS = 3  # the same for rows in float32, which are rounded for the kernel: its float32 code is 10 times slower
MANY_ROWS = 16  # above so many, and without a packed copy, unpacking once and multiplying as usual is faster


class Int8Product:
    """x @ (weight * scale).T + bias by the kernel that is fastest for so many rows.

    Args:
        weight: (out, in), int8.
        scale: (out,), in the dtype of x.
        bias: (out,) or None.
        is_packed: keep the same integers in scale's dtype too, in the order of the CPU's kernels, which take many rows
            in the time of few. Exact, since bfloat16 holds all integers up to 256.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, is_packed: bool = False) -> None:
        self.weight, self.scale, self.bias = weight, scale, bias
        self._ones = torch.ones(len(scale), dtype=torch.bfloat16, device=scale.device)
        self.packed: Tensor | None = None
        if is_packed:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(scale.dtype), PACKED_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, in) -> (N, out), a new tensor of x's dtype."""
        y = self._product(x)
        return y if self.bias is None else y.add_(self.bias)

    def _product(self, x: Tensor) -> Tensor:
        is_rounded = x.dtype != torch.bfloat16
        few = MANY_ROWS if self.packed is None else ROUNDED_ROWS if is_rounded else FEW_ROWS
        if len(x) <= few and is_rounded:
            y = torch._weight_int8pack_mm(x.to(torch.bfloat16).contiguous(), self.weight, self._ones)
            return y.to(x.dtype).mul_(self.scale)
        if len(x) <= few:
            return torch._weight_int8pack_mm(x.contiguous(), self.weight, self.scale)
        if self.packed is None:
            return (x @ self.weight.to(x.dtype).T).mul_(self.scale)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "").mul_(self.scale)


class Int8Linear(nn.Module):
    """A linear layer whose weight is kept as int8 rows and their scales."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (out, in)
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight_int8", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out), in x's dtype."""
        product = Int8Product(self.weight_int8, self.scale, self.bias)
        return product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def quantize_linear_layers(model: nn.Module) -> None:
    """Replace every `nn.Linear` of `model` in place; an output layer tied to the embedding is untied by this."""
    setattr(model, SOURCE, weights_fingerprint(model))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _quantized(child))


def _quantized(linear: nn.Linear) -> nn.Module:
    # Layers of other heights could not be fused: the kernel keeps 64 rows together.
    grid = find_grid(linear.weight) if linear.out_features % BLOCK == 0 else None
    return Int8Linear(linear) if grid is None else Int4Linear(linear, grid)
