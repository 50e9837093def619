"""Rows with adapters of their own decoding beside the base row, against the base row alone."""

from __future__ import annotations

from functools import partial

from benchmarks.common import cost, decode_steps, interleave, load_endless, prompt_of, random_lora, request_of, save

PROMPT, NEW, RANK = 76, 64, 8
BARS = {1: 1.3, 5: 1.5, 10: 1.8}


def main(repeats: int) -> None:
    """1, 5 and 10 LoRA rows on q and v."""
    model = load_endless()
    prompt = prompt_of(model, PROMPT)
    names = [f"lora-{i}" for i in range(max(BARS))]
    for seed, name in enumerate(names):
        model.engine.adapters.add(random_lora(model.model, name, RANK, seed))
    base = request_of(prompt, NEW + 16)
    arms = {"base": partial(decode_steps, model.engine, [base], NEW)}
    for count in BARS:
        rows = [base, *(request_of(prompt, NEW + 16, adapter=name) for name in names[:count])]
        arms[f"{count} beside it"] = partial(decode_steps, model.engine, rows, NEW)
    rates = interleave(arms, repeats)
    table = [
        cost(f"a step with {n} LoRA row{'s' * (n > 1)} beside the base, time", rates, f"{n} beside it", "base", bar)
        for n, bar in BARS.items()
    ]
    save("adapter_cost", table, {"prompt": len(prompt), "new": NEW, "rank": RANK, "on": "q, v", "repeats": repeats})


if __name__ == "__main__":
    main(3)
