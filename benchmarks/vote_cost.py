"""Voters beside an answer, against the answer alone: in lockstep, as separate forwards, and behind it (lagging)."""

from __future__ import annotations

import time
from functools import partial

import torch

from benchmarks.common import cost, decode_steps, interleave, load_endless, prompt_of, request_of, save
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request
from uqchat.engine.decode import Engine
from uqchat.language_model import LanguageModel
from uqchat.types import Signals

PROMPT, NEW, LONG = 76, 32, 96
BARS = {3: 1.3, 5: 1.5, 10: 1.8}
DENSE, DENSE_BAR = 5, 1.8
DROPOUT, DROPOUT_BAR = 5, 1.5
LAGGING_BAR = 1.1
QUESTION = "Tell me about the lighthouse, and what its keeper wrote down every night."


def main(repeats: int) -> None:
    """Instant voters on q and v; the prompt is read before the clock starts, but for lagging."""
    model = load_endless()
    prompt = prompt_of(model, PROMPT)
    names = {f"{n} voters": f"vote_instant:n_voters={n}" for n in BARS}
    names["dense"] = f"vote_instant:noise=dense,n_voters={DENSE}"
    names["dropout"] = f"dropout_instant:n_samples={DROPOUT}"
    base = request_of(prompt, NEW + 16)
    requests = {arm: voted(model, name, prompt) for arm, name in names.items()}
    arms = {"alone": partial(decode_steps, model.engine, [base], NEW)}
    arms |= {arm: partial(decode_steps, model.engine, [one], NEW) for arm, one in requests.items()}
    arms["separate"] = partial(separately, model.engine, requests["3 voters"])
    rates = interleave(arms, repeats)
    claim = "a step with {} low-rank voters, time"
    table = [cost(claim.format(n), rates, f"{n} voters", "alone", bar) for n, bar in BARS.items()]
    table.append(cost(f"a step with {DENSE} voters of dense noise, time", rates, "dense", "alone", DENSE_BAR))
    table.append(cost(f"a step with {DROPOUT} dropout rows, time", rates, "dropout", "alone", DROPOUT_BAR))
    table.append(cost("a step with 3 voters against separate forwards, time", rates, "3 voters", "separate", 1.0))
    behind = interleave({arm: partial(until_last, model, arm) for arm in ("entropy", "vote:mode=lagging")}, repeats)
    claim = f"to the last of {LONG} tokens with 3 voters behind it, time"
    table.append(cost(claim, behind, "vote:mode=lagging", "entropy", LAGGING_BAR))
    settings = {"prompt": len(prompt), "new": NEW, "lagging new": LONG, "on": "q, v", "rank": 8, "repeats": repeats}
    save("vote_cost", table, settings | {"bytes per voter": {arm: size_of(model, name) for arm, name in names.items()}})
    model.close()


def voted(model: LanguageModel, name: str, prompt: tuple[int, ...]) -> Request:
    """A request whose voters are in the engine."""
    estimator = model.estimator(name)
    for adapter in estimator.adapters.values():
        if adapter.name not in model.engine.adapters:
            model.engine.adapters.add(adapter)
    return request_of(prompt, NEW + 16, signals=Signals(ensembles=estimator.needs.ensembles))


def separately(engine: Engine, request: Request) -> tuple[float, float]:
    """The answer, then each voter, one after another: what an ensemble of copies costs."""
    rows = [None, *request.companions]
    plain = [request_of(request.prompt_ids, NEW + 16, adapter=name) for name in rows]
    return NEW, sum(decode_steps(engine, [one], NEW)[1] for one in plain)


def until_last(model: LanguageModel, name: str) -> tuple[float, float]:
    """A whole answer, by the model's thread: (tokens, seconds until the last of them was there)."""
    model.engine.lineup.prefixes.clear()
    begun, last, newest = time.perf_counter(), 0.0, -1
    for token in model.stream(QUESTION, [name], GenerationConfig(max_new_tokens=LONG)):
        if token.index > newest:
            newest, last = token.index, time.perf_counter() - begun
    return LONG, last


def size_of(model: LanguageModel, name: str) -> int:
    """Bytes of one voter's changes, as the engine keeps them; keys and values come on top, as of any row."""
    deltas = model.engine.adapters.deltas_of(model.estimator(name).needs.voters[0])
    tensors = [value for delta in deltas.values() for value in vars(delta).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


if __name__ == "__main__":
    main(3)
