"""Number formats on the CPU: all products of one step for 1 to 16 rows in each, and whole answers against `generate`.

The products are those of the embedded model's real weights, every layer apart, in the shapes that our own forward
fuses. `quantize_dynamic` rounds activations too and is here for comparison only.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import uqchat
from benchmarks.common import Row, compare, cost, decode_steps, interleave, prompt_of, request_of, save
from benchmarks.stream_vs_generate import arms_for
from uqchat.engine.products import PlainProduct
from uqchat.four_bit import Int4Product, find_grid
from uqchat.int8 import Int8Product
from uqchat.language_model import LanguageModel
from uqchat.types import Signals

ROWS, NEW = (1, 2, 5, 10, 16), 64
BARS = {"bf16": 1.4, "int8": 2.3}
HEAD = Signals(top_n=5, entropy=True, hidden_layers=(20,), attention_lags=5)
CLAIM = "int8: decoding with a UQ head's signals against plain decoding, time"
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
        own = Int4Product(grid.in_kernel_order(), grid.scale_and_middle, None, few, few=ROWS[-1])
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


def load(quantization: str | None) -> LanguageModel:
    """The embedded model, whose answers never end by themselves."""
    model = uqchat.load("embedded", dtype="bfloat16", quantization=quantization)
    model.engine.vocabulary.end_ids = frozenset()
    return model


def main(repeats: int) -> None:
    """The products, then whole answers of both formats and `generate`, then a head's signals on int8."""
    models = {"bf16": load(None), "int8": load("int8")}
    arms = {"generate": arms_for(models["bf16"], NEW)["generate"]}
    rates = interleave(arms | {name: arms_for(model, NEW)["stream"] for name, model in models.items()}, repeats)
    rows = [
        compare(
            f"`stream` in {name} against `generate` in bf16, {NEW} new tokens", rates, name, "generate", bar, "tokens/s"
        )
        for name, bar in BARS.items()
    ]
    engine, prompt = models["int8"].engine, prompt_of(models["int8"], 76)
    steps = interleave(
        {
            "plain": lambda: decode_steps(engine, [request_of(prompt, NEW + 16)], NEW),
            "signals": lambda: decode_steps(engine, [request_of(prompt, NEW + 16, signals=HEAD)], NEW),
        },
        repeats,
    )
    rows.append(cost(CLAIM, steps, "signals", "plain", 1.10))
    times = measure_products(fused_weights(models["bf16"]), repeats)
    for count in ROWS:
        rows.append(_row(times, count))
    save("formats", rows, {"products_ms": times, "repeats": repeats, "new": NEW, "model": "embedded"})
    for model in models.values():
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
