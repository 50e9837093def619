"""Many requests of every kind at once, some given up, some hit by failures: who is harmed, and what is left over.

500 of them on the embedded model, with memory measured; `tests/engine/test_soak.py` runs 50 on a tiny one and compares
every answer with what it is alone.

What is bounded by design is let grow first: WARM requests fill the store of saved beginnings (16 MiB here), bring the
batch to its widest and the allocator to the arena that this takes. Only then do the 500 begin whose thirds are
compared. No answer is held beyond its end, nor an error, whose traceback holds the frames it came through and their
tensors, so that what grows is the engine's. The kernels of a CPU grow too: they keep code for every number of positions
that they have met. So AGAIN of the 500 then come twice more, each time read when nothing is under way any longer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import uqchat
from benchmarks import memory
from benchmarks.common import random_lora, save
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request
from uqchat.engine.prompt import Prompt
from uqchat.estimators import get_estimators
from uqchat.estimators.entropy import Entropy
from uqchat.language_model import LanguageModel
from uqchat.types import Answer, Message, Risk, Signals

COUNT, WARM, AGAIN, THREADS, CHANCE = 500, 60, 60, 12, 0.02
MAX_PREFIX_BYTES = 16 * 2**20
WORDS = "the lighthouse keeper wrote down what he saw every night in a long book about ships storms birds and stars"
SCORED_BY = ("entropy", "max_prob", "margin")  # whose needs every request meets, whatever signals it asks for
FATES = ("whole", "whole", "whole", "whole", "stop", "close", "drop", "estimator")
ADAPTERS = ("first", "second")
FAILURES = (
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: ValueError("a broken layer"),
)


@dataclass(frozen=True, eq=False)
class Plan:
    """One request and what happens to it after `at` tokens: it is stopped, closed, dropped, or its estimator fails."""

    request: Request
    prompt: Prompt
    fate: str
    at: int


@dataclass
class Outcome:
    """What came of it; `was_hit`: an injected failure struck a forward that it was in."""

    plan: Plan
    ids: list[int] = field(default_factory=list)
    answer: Answer | None = None
    is_whole: bool = False
    error: Exception | None = None
    was_hit: bool = False


class FailingEntropy(Entropy):
    """An estimator with a mistake."""

    def __init__(self, at: int) -> None:
        self.at = at

    def score_token(self, step: Any, state: None) -> dict[int, Risk]:
        """Raises at one token."""
        if step.index >= self.at:
            raise ZeroDivisionError("an estimator's mistake")
        return super().score_token(step, state)


def add_adapters(model: LanguageModel) -> None:
    """Those that the plans name."""
    for seed, name in enumerate(ADAPTERS):
        model.engine.adapters.add(random_lora(model.model, name, 2 + seed, seed))


def make_plans(model: LanguageModel, count: int, rng: random.Random, longest: int = 40) -> list[Plan]:
    """Random lengths, sampling settings, signals, adapters and fates; some share their prompt or its beginning."""
    words, size = WORDS.split(), model.engine.signals
    plans = []
    for i in range(count):
        text = WORDS[: rng.randint(3, 60)] if rng.random() < 0.3 else " ".join(rng.choices(words, k=rng.randint(1, 12)))
        generation = GenerationConfig(
            max_new_tokens=rng.randint(1, longest),
            temperature=rng.choice([0.0, 0.0, 0.7, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 5]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            seed=i,
        )
        forced = (
            () if rng.random() < 0.8 else tuple(model.tokenizer(" so it is", add_special_tokens=False)["input_ids"])
        )
        if forced and rng.random() < 0.5:
            generation = replace(generation, max_new_tokens=0)  # only scored
        request, prompt = model._request([Message("user", text)], generation, forced, get_estimators(SCORED_BY))
        request = replace(request, adapter=rng.choice([None, None, *ADAPTERS]), signals=some_signals(size, rng))
        plans.append(Plan(request, prompt, rng.choice(FATES), rng.randint(0, longest // 2)))
    return plans


def some_signals(available: Signals, rng: random.Random) -> Signals:
    """What an estimator might want."""
    hidden = tuple(sorted(rng.sample(available.hidden_layers, rng.randint(1, 2)))) if rng.random() < 0.4 else ()
    lags = min(available.attention_lags, 3) if rng.random() < 0.4 else 0
    is_all = bool(hidden or lags) and rng.random() < 0.3
    return Signals(rng.choice([0, 2, 12]), True, hidden, lags, None, is_all)


@contextmanager
def sabotage(model: LanguageModel, rng: random.Random, chance: float) -> Iterator[set[int]]:
    """Inside, forwards fail now and then; gives the ids of the `Request`s that were in a failing one."""
    engine, hit = model.engine, set()

    def broken(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if rng.random() >= chance:
                return original(*args)
            batch = engine.lineup.batch
            first = args[0] if name == "prefill" else 0
            rows = [*batch.running, *batch.reading][first : first + len(args[1] if name == "prefill" else args[0])]
            hit.update(id(row.request) for row in rows)
            raise rng.choice(FAILURES)()

        return call

    for name in ("prefill", "decode"):
        setattr(engine.forward, name, broken(name, getattr(engine.forward, name)))
    try:
        yield hit
    finally:
        del engine.forward.prefill, engine.forward.decode


def consume(model: LanguageModel, plan: Plan) -> Outcome:
    """Run one plan to its end."""
    stop, outcome = threading.Event(), Outcome(plan)
    chosen = [FailingEntropy(plan.at)] if plan.fate == "estimator" else get_estimators(SCORED_BY)
    stream = model._stream(plan.request, plan.prompt, chosen, stop, None)
    try:
        while True:
            if len(outcome.ids) == plan.at and plan.fate in ("close", "drop"):
                if plan.fate == "close":
                    stream.close()
                return outcome  # dropped: nobody holds the generator any more
            if len(outcome.ids) == plan.at and plan.fate == "stop":
                stop.set()
            outcome.ids.append(next(stream).token_id)
    except StopIteration as end:
        outcome.answer, outcome.is_whole = end.value, True
    except Exception as error:  # noqa: BLE001  what came of it is the result
        outcome.error = error
    return outcome


def soak(
    model: LanguageModel,
    plans: Sequence[Plan],
    rng: random.Random,
    chance: float,
    threads: int = THREADS,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """All plans, `threads` at a time, while forwards fail with this chance; `on_done` is given each as it ends."""

    def run(plan: Plan) -> Outcome:
        outcome = consume(model, plan)
        on_done(outcome)
        return outcome

    with sabotage(model, rng, chance) as hit, ThreadPoolExecutor(threads) as pool:
        outcomes = list(pool.map(run, plans))
        wait_until_idle(model)
    for outcome in outcomes:
        outcome.was_hit = id(outcome.plan.request) in hit
    return outcomes


def wait_until_idle(model: LanguageModel) -> None:
    """Cancelled rows leave with the next step."""
    deadline = time.monotonic() + 30
    while model.engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)


def left_over(model: LanguageModel) -> list[str]:
    """What is still held though nobody asks for anything; empty when all is well."""
    engine, worker = model.engine, model._get_worker()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    storage = [layer for layer in engine.forward.cache.layers if layer.is_initialized]
    found = {
        "rows": len(engine.lineup.batch) + len(engine.lineup.waiting) + len(engine._rows),
        "jobs": worker.num_open + len(worker._waiting) + len(worker._active) + worker._inbox.qsize(),
        "hooks": hooks,
        "layers with storage": len(storage),
    }
    return [f"{count} {what}" for what, count in found.items() if count]


def harmed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Requests that nothing was done to and that yet are not whole."""
    return [o for o in outcomes if not o.was_hit and o.plan.fate == "whole" and not o.is_whole]


def main(repeats: int) -> None:
    """500 requests behind a warm-up, a part of them twice, and what memory did."""
    model = uqchat.load("embedded")
    model.engine.lineup.prefixes.max_bytes = MAX_PREFIX_BYTES
    add_adapters(model)
    rng, readings = random.Random(0), []
    plans = make_plans(model, WARM + COUNT, rng)

    def note(outcome: Outcome) -> None:
        outcome.answer = outcome.error = None
        readings.append(memory.read())

    def run(some: Sequence[Plan]) -> tuple[list[Outcome], memory.Reading]:
        outcomes = soak(model, some, rng, CHANCE, on_done=note)
        model.engine.lineup.prefixes.clear()
        return outcomes, memory.read_idle()

    outcomes, _ = run(plans)
    second, before = run(plans[WARM : WARM + AGAIN])
    third, after = run(plans[WARM : WARM + AGAIN])
    outcomes += second + third
    problems = [*left_over(model), *(["harmed requests"] if harmed(outcomes) else [])]
    assert not problems, problems
    hit = sum(outcome.was_hit for outcome in outcomes)
    events = f"{hit} requests in forwards made to fail, no other harmed, nothing left over"
    rows = [*memory.thirds(readings[WARM : len(plans)], events), memory.idle(before, after, AGAIN)]
    save("soak", rows, {"seed": 0, "warm-up": WARM, "threads": THREADS})
    model.close()


if __name__ == "__main__":
    main(1)
