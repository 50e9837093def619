"""All products of one step in every number format on the CPU, for 1 to 16 rows.

The embedded model's real weights, every layer apart, in the shapes that our own forward fuses. `quantize_dynamic`
rounds activations too and is here for comparison only.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import uqchat
from benchmarks.common import Row, save
from uqchat.engine.products import PlainProduct
from uqchat.four_bit import Int4Product, find_grid
from uqchat.int8 import Int8Product
from uqchat.language_model import LanguageModel

ROWS = (1, 2, 5, 10, 16)
Product = Callable[[Tensor], Tensor]


def fused_weights(model: LanguageModel) -> list[Tensor]:
    """The bfloat16 weight of every product of a step, (out, in)."""
    weights = []
    for projection in model.engine.forward.weights.projections:
        weights.append(torch.cat([layer.weight.detach() for layer in projection.layers]))
    return weights


def formats_of(weight: Tensor) -> dict[str, Product]:
    """A weight's product in every format; 4 bits only where they lose nothing, else 8."""
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127
    rounded = (weight.float() / scale[:, None]).round().to(torch.int8)
    few, grid = Int8Product(rounded, scale.to(weight.dtype)), find_grid(weight)
    formats: dict[str, Product] = {
        "bf16 as loaded": PlainProduct(weight, None, is_packed=False),
        "bf16 packed": PlainProduct(weight, None, is_packed=True),
        "int8": lambda x: torch._weight_int8pack_mm(x, few.weight, few.scale),
        "quantize_dynamic": dynamic(weight),
    }
    own = formats["int8"]
    if grid is not None:
        own = Int4Product(grid.kernel_order, grid.scale_and_middle, None, few, few=ROWS[-1])
    return formats | {"own 4-bit blocks": own}


def dynamic(weight: Tensor) -> Product:
    """torch's dynamic int8: weights by output row, activations by tensor."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear})
    return lambda x: layer(x.float()).to(x.dtype)


def measure_products(weights: list[Tensor], repeats: int) -> dict[str, dict[int, float]]:
    """Median milliseconds of all products of one step, by format and rows."""
    layers = [formats_of(weight) for weight in weights]
    sizes = [weight.shape[1] for weight in weights]
    times: dict[str, dict[int, float]] = {name: {} for name in layers[0]}
    for rows in ROWS:
        inputs = {size: torch.randn(rows, size).bfloat16() for size in set(sizes)}
        taken: dict[str, list[float]] = {name: [] for name in times}
        for repeat in range(2 * repeats + 1):  # the first warms up
            for name in times:
                start = time.perf_counter()
                for layer, size in zip(layers, sizes, strict=True):
                    layer[name](inputs[size])
                if repeat:
                    taken[name].append(1000 * (time.perf_counter() - start))
        for name, values in taken.items():
            times[name][rows] = statistics.median(values)
    return times


def main(repeats: int) -> None:
    """One row of the table for each number of rows."""
    model = uqchat.load("embedded", dtype="bfloat16")
    weights = fused_weights(model)
    times = measure_products(weights, repeats)
    save("format_products", [_row(times, rows) for rows in ROWS], {"products_ms": times, "repeats": 2 * repeats})
    model.close()


def _row(times: dict[str, dict[int, float]], count: int) -> Row:
    """What our own forward uses for so many rows against bfloat16 as it is loaded."""
    used = "own 4-bit blocks" if count <= 4 else "bf16 packed"
    ratio = times[used][count] / times["bf16 as loaded"][count]
    detail = ", ".join(f"{name} {values[count]:.1f} ms" for name, values in times.items())
    claim = (
        f"all products of a step, {count} row{'s' if count > 1 else ''}: {used} (as used) against bf16 as loaded, time"
    )
    return Row(claim, used, "bf16 as loaded", ratio, ratio, ratio, "<= 1", ratio <= 1, detail)


if __name__ == "__main__":
    main(3)
