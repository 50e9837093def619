"""Eight staggered requests of the embedded model, among rows of other kinds, against each alone and `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.common import random_lora
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.language_model import LanguageModel
from uqchat.types import Signals, TokenStep

NEW, APART, NEAR = 24, 3, 1e-4


@pytest.mark.model
def test_rows_of_a_staggered_mixed_batch_equal_each_alone_and_generate(
    embedded: LanguageModel, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every third step one more joins; beside them a sampled row, one with an adapter and one that is given up.

    Ids may differ from the first near tie on: the two largest logits within 1e-4; those are counted and printed.
    """
    engine = embedded.engine
    lines = (shared / "data/open_qa/easy_facts_eval.jsonl").read_text().splitlines()
    asked = [json.loads(line)["question"] * (1 + i % 3) for i, line in enumerate(lines[:: len(lines) // 8][:8])]
    requests = [_request(embedded, question, i) for i, question in enumerate(asked)]
    engine.adapters.add(random_lora(embedded.model, "staggered", 4, 0))
    try:
        together = _staggered(engine, requests)
    finally:
        engine.adapters.remove("staggered")
    near_ties = 0
    for request, steps in zip(requests, together, strict=True):
        engine.lineup.prefixes.clear()
        alone = [event.step for event in engine.stream([request]) if isinstance(event, StepEvent)]
        prompt = torch.tensor([request.prompt_ids])
        with torch.inference_mode():
            out = embedded.model.generate(prompt, max_new_tokens=NEW, do_sample=False)[0, prompt.shape[1] :].tolist()
        near_ties += _check(steps, [step.token_id for step in alone], [step.logprob for step in alone])
        near_ties += _check(steps, out, None)
    with capsys.disabled():
        print(f" [8 staggered rows equal each alone and generate; near ties: {near_ties}]", end="")


def _request(model: LanguageModel, question: str, number: int) -> Request:
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    signals = Signals(hidden_layers=(3,), attention_lags=2) if number % 2 else Signals()
    return Request(tuple(ids), GenerationConfig(max_new_tokens=NEW), signals=signals)


def _staggered(engine: Engine, requests: list[Request]) -> list[list[TokenStep]]:
    engine.lineup.prefixes.clear()
    prompt = requests[0].prompt_ids
    engine.add(Request(prompt, GenerationConfig(max_new_tokens=60, temperature=1.0, seed=1)))
    engine.add(Request(prompt, GenerationConfig(max_new_tokens=60), adapter="staggered"))
    given_up = engine.add(Request(prompt[:-2], GenerationConfig(max_new_tokens=60)))
    keys, steps, waiting, count = [], {}, list(requests), 0
    while engine.has_work or waiting:
        if waiting and count % APART == 0:
            keys.append(engine.add(waiting.pop(0)))
        if count == 4 * APART:
            engine.remove(given_up)
        for event in engine.step():
            if isinstance(event, StepEvent):
                steps.setdefault(event.key, []).append(event.step)
        count += 1
    return [steps[key] for key in keys]


def _check(steps: list[TokenStep], ids: list[int], logprobs: list[float] | None) -> int:
    """1 where they part at a near tie, 0 where they are equal; log-probabilities are compared up to there."""
    ours = [step.token_id for step in steps]
    same = next((i for i, (a, b) in enumerate(zip(ours, ids, strict=False)) if a != b), len(ours))
    for step, logprob in zip(steps[:same], (logprobs or [])[:same], strict=False):
        assert abs(step.logprob - logprob) < NEAR
    if same == len(ours):
        assert ours == ids
        return 0
    first, second = steps[same].alternatives[:2]
    assert first.logprob - second.logprob < NEAR, f"token {same} is no near tie"
    return 1
