"""Whole answers in each number format on the CPU against `generate`, and what a head's signals cost in int8."""

from __future__ import annotations

import uqchat
from benchmarks.common import compare, cost, decode_steps, interleave, prompt_of, request_of, save
from benchmarks.stream_vs_generate import arms_for
from uqchat.language_model import LanguageModel
from uqchat.types import Signals

NEW = 64
BARS = {"bf16": 1.4, "int8": 2.3}
CLAIM = "int8: decoding with a UQ head's signals against plain decoding, time"
HEAD = Signals(top_n=5, entropy=True, hidden_layers=(20,), attention_lags=5)


def load(quantization: str | None) -> LanguageModel:
    """The embedded model, whose answers never end by themselves."""
    model = uqchat.load("embedded", dtype="bfloat16", quantization=quantization)
    model.engine.vocabulary.end_ids = frozenset()
    return model


def main(repeats: int) -> None:
    """Both, interleaved."""
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
    save("formats", rows, {"repeats": repeats, "new": NEW, "model": "embedded"})
    for model in models.values():
        model.close()


if __name__ == "__main__":
    main(3)
