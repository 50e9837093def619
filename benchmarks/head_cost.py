"""What a UQ head costs per token: capture, features and the head itself, in one thread with the decoding."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.common import Arm, Row, cost, interleave, load_endless, prompt_of, request_of, save
from uqchat.engine.backend import StepEvent
from uqchat.engine.decode import Engine
from uqchat.estimators.uq_head import GROWTH
from uqchat.features import make_features
from uqchat.heads import HeadConfig, HeadScorer, UncertaintyHead, assemble
from uqchat.heads.modules import make_head
from uqchat.types import Signals

PROMPT, NEW, LONG = 76, 64, 128
BAR = 1.15
ATTENTION = {"name": "basic_attention", "layer_nums": "all", "attn_history_sz": 3, "pool": False}
PROBABILITIES = {"name": "token_probabilities", "top_n": 5}
STATES = {"name": "basic_hidden_states", "layer_nums": [16]}
OWN = ({"name": "token_confidence"}, {"name": "token_position"})
SMALL = {"head_dim": 96, "n_layers": 2, "n_heads": 4, "num_inner": 256}
# As published for Llama-3.1-8B, see specs/uq_head.md 1.3.
PUBLISHED = {"head_dim": 768, "n_layers": 2, "n_heads": 8}


def random_head(
    model: Any, head_type: str, extractors: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> UncertaintyHead:
    """A head of this size with random weights: the cost does not depend on them."""
    torch.manual_seed(0)
    config = HeadConfig(head_type, tuple(extractors), options)
    width = make_features(config.extractors, model, config.layout, config.hidden_index).width
    return assemble(config, make_head(head_type, width, options).state_dict(), model)


def decode(
    engine: Engine, prompt: tuple[int, ...], count: int, head: UncertaintyHead | None = None, growth: float = GROWTH
) -> tuple[float, float]:
    """`count` tokens, scored as they come; the prompt is read, and its rows are embedded, before the clock starts."""
    engine.lineup.prefixes.clear()
    key = engine.add(request_of(prompt, count + 16, signals=head.needs if head else Signals()))
    scorer = HeadScorer(head, growth) if head else None
    taken, start = 0, 0.0
    while taken <= count:
        if taken == 1 and not start:
            start = time.perf_counter()
        for event in engine.step():
            if isinstance(event, StepEvent):
                taken += 1
                if scorer is not None:
                    scorer.push(event.step)
    if scorer is not None:
        scorer.finish()
    seconds = time.perf_counter() - start
    engine.remove(key)
    return count, seconds


def rows_of(claim: str, arms: dict[str, Arm], repeats: int, bar: float | None) -> list[Row]:
    """Every arm's cost against the one named "plain"; without a bar it is only reported."""
    rates = interleave(arms, repeats)
    found = [cost(f"{name}: {claim}", rates, name, "plain", bar or 1.0) for name in arms if name != "plain"]
    return found if bar else [replace(row, bar="reported", is_met=True) for row in found]


def main(repeats: int) -> None:
    """A small causal head against its bar; a head of the published size, which looks both ways or back only."""
    model = load_endless()
    prompt = prompt_of(model, PROMPT)
    run = partial(decode, model.engine, prompt)
    features = (ATTENTION, PROBABILITIES, STATES, *OWN)
    small = [random_head(model.model, "compact", features, {**SMALL, "is_causal": kind}) for kind in (True, False)]
    features = ({**ATTENTION, "attn_history_sz": 5}, {**PROBABILITIES, "top_n": 4})
    large = [random_head(model.model, "luh", features, {**PUBLISHED, "is_causal": kind}) for kind in (True, False)]
    rows = rows_of(
        f"time per token of {NEW} against plain decoding",
        {"plain": lambda: run(NEW), "small causal UQ head": lambda: run(NEW, small[0])},
        repeats,
        BAR,
    )
    rows += rows_of(
        f"time per token of {LONG} against plain decoding",
        {
            "plain": lambda: run(LONG),
            "small UQ head, revising": lambda: run(LONG, small[1]),
            "UQ head of the published size, revising": lambda: run(LONG, large[1]),
            "UQ head of the published size, causal": lambda: run(LONG, large[0]),
        },
        repeats,
        None,
    )
    settings = {"prompt": len(prompt), "growth": GROWTH, "repeats": repeats}
    save("head_cost", rows, settings | {"small": small[0].num_parameters, "published": large[0].num_parameters})


if __name__ == "__main__":
    main(3)
