"""An answer and ten sampled ones of the same prompt, which is read once, against the answer alone."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.common import cost, interleave, load_endless, prompt_of, request_of, save
from uqchat.engine.backend import Request, StepEvent

PROMPT, NEW, SAMPLES, BAR = 76, 64, 10, 2.2


def main(repeats: int) -> None:
    """The prompt's reading included."""
    model = load_endless()
    answer = request_of(prompt_of(model, PROMPT), NEW)
    settings = [replace(answer.generation, temperature=1.0, seed=seed) for seed in range(SAMPLES)]
    samples = [replace(answer, generation=generation) for generation in settings]

    def run(*requests: Request) -> float:
        model.engine.lineup.prefixes.clear()
        tokens = sum(isinstance(event, StepEvent) for event in model.engine.stream(requests))
        assert tokens == NEW * len(requests)
        return 1

    rates = interleave({"alone": lambda: run(answer), "with samples": lambda: run(answer, *samples)}, repeats)
    claim = f"an answer and {SAMPLES} samples against the answer, {NEW} tokens each, time"
    rows = [cost(claim, rates, "with samples", "alone", BAR)]
    save("samples_cost", rows, {"prompt": len(answer.prompt_ids), "new": NEW, "goal": 1.8, "repeats": repeats})


if __name__ == "__main__":
    main(3)
