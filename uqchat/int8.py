"""Weight-only 8-bit linear layers for the CPU. Knows no model beyond its `nn.Linear` layers.

One scale per output row, weights rounded to the nearest of 255 steps, activations untouched: torch's own dynamic
quantisation also rounds activations, which ruins small models whose activations have outliers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEW_ROWS = 16  # above this, unpacking the weights once and multiplying as usual is faster


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
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] <= FEW_ROWS:
            y = torch._weight_int8pack_mm(rows.contiguous(), self.weight_int8, self.scale)
        else:
            y = (rows @ self.weight_int8.to(x.dtype).T) * self.scale
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


def quantize_linear_layers(model: nn.Module) -> None:
    """Replace every `nn.Linear` of `model` in place; an output layer tied to the embedding is untied by this."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
