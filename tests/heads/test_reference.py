"""Heads on the embedded model against logits that the published code gave: given answers and streamed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.heads import HeadScorer, load_head
from uqchat.language_model import LanguageModel

TOLERANCE = 1e-3  # of the range of the expected logits


@pytest.mark.model
@pytest.mark.parametrize("name", ["token_attention", "saplma", "claim"])
@pytest.mark.parametrize("growth", [0.0, 0.3], ids=["every token", "now and then"])
@pytest.mark.parametrize("is_given", [True, False], ids=["given", "streamed"])
def test_logits_equal_the_reference(
    name: str, growth: float, is_given: bool, embedded: LanguageModel, shared: Path
) -> None:
    folder = shared / "fixtures" / "uhead" / name
    head = load_head(folder, embedded)
    for case in json.loads((folder / "expected.json").read_text()):
        ids = tuple(case["generated_ids"])
        generation = GenerationConfig(max_new_tokens=0 if is_given else len(ids))
        request = Request(tuple(case["prompt_ids"]), generation, ids if is_given else (), head.needs)
        scorer, known, seen = HeadScorer(head, growth), {}, []
        for event in embedded.engine.stream([request]):
            if isinstance(event, StepEvent):
                seen.append(event.step.token_id)
                known |= scorer.push(event.step)
        known |= scorer.finish()
        assert tuple(seen) == ids
        if "claims" in case:
            expected = torch.tensor(case["claim_logits"])
            claims = [[i for i, is_inside in enumerate(mask) if is_inside] for mask in case["claims"]]
            found = torch.tensor(scorer.claims(claims))
        else:
            expected = torch.tensor(case["token_logits"])
            found = torch.tensor([known[i] for i in range(len(ids))])
        assert (found - expected).abs().max() < TOLERANCE * (expected.max() - expected.min())
