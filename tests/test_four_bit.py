"""Weights on 16 levels are found, kept exactly and multiplied as their unpacked selves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uqchat.four_bit import GROUP, MANY_ROWS, Int4Linear, Int4Product, find_grid


def on_grid(rows: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """As a Q4_1 block has them: scale * level + minimum, in half precision, all 16 levels between the extremes."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(16, (rows, size // GROUP, GROUP), generator=generator).float()
    levels[..., 0], levels[..., 1] = 0, 15
    scale, low = (1 + torch.rand(rows, size // GROUP, 1, generator=generator).half().float() for _ in range(2))
    return (scale * levels * 0.01 - low * 0.08).view(rows, size).to(dtype)


def test_a_float32_weight_on_a_grid_is_kept_exactly() -> None:
    weight = on_grid(48, 64)
    torch.testing.assert_close(find_grid(weight).unpacked(), weight, atol=1e-7, rtol=1e-6)


def test_the_grid_is_found_behind_the_rounding_to_bfloat16_and_adds_no_more_than_that() -> None:
    exact = on_grid(64, 64)
    unpacked = find_grid(exact.bfloat16()).unpacked().float()
    error, rounding = (unpacked - exact).abs().mean(), (exact.bfloat16().float() - exact).abs().mean()
    assert error < 2 * rounding


@pytest.mark.parametrize("change", ["random", "one value", "height", "width"])
def test_other_weights_lie_on_no_grid(change: str) -> None:
    weight = on_grid(64, 64)
    if change == "random":
        weight = torch.randn(64, 64)
    elif change == "one value":
        weight[40, 3] += 0.4 * (weight[40, :GROUP].max() - weight[40, :GROUP].min()) / 15
    else:
        weight = weight[:60] if change == "height" else weight[:, :48]
    assert find_grid(weight) is None


def test_blocks_of_one_value_are_kept() -> None:
    weight = torch.full((16, 64), 0.25)
    torch.testing.assert_close(find_grid(weight).unpacked(), weight)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 40])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_equal_those_of_the_unpacked_weight(rows: int, has_bias: bool) -> None:
    """Few rows of float32 are rounded to bfloat16 for the kernel: 8 bits, so 1/256 of the largest of 128 products."""
    linear = nn.Linear(128, 80, has_bias).requires_grad_(False)
    linear.weight.copy_(on_grid(80, 128))
    x = torch.randn(rows, 128)
    allowed = {"atol": 0.05, "rtol": 1 / 128} if rows <= MANY_ROWS else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(Int4Linear(linear, find_grid(linear.weight))(x), linear(x), **allowed)
    grid = find_grid(linear.weight)
    product = Int4Product(grid.kernel_order, grid.scale_and_middle, linear.bias, linear, few=4)
    allowed = {"atol": 0.05, "rtol": 1 / 128} if rows <= 4 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(product(x), linear(x), **allowed)
