"""The head that reads the answer's rows alone, and the features only ours have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.engine.test_decode import make_engine
from tests.heads.making import random_head
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.features import make_features, rows_of_sequence
from uqchat.features_base import ModelShape
from uqchat.heads import HeadError, HeadScorer, load_head, save_head
from uqchat.heads.modules import make_head
from uqchat.types import StepSignals, TokenStep

OWN = ({"name": "token_confidence"}, {"name": "token_position"})
SMALL = {"head_dim": 8, "num_inner": 12, "n_layers": 2, "n_heads": 2}


def steps_of(engine: object, needs: object) -> list[TokenStep]:
    """Steps of a given answer of nine tokens."""
    request = Request(tuple(range(40, 52)), GenerationConfig(max_new_tokens=0), tuple(range(60, 69)), needs)
    return [event.step for event in engine.stream([request]) if isinstance(event, StepEvent)]


def test_confidence_is_that_of_the_rows_own_token_and_position_counts_from_the_answers_first() -> None:
    shape = ModelShape(2, 2, 4, 3)
    logits = torch.tensor([[5.0, 0, 0], [0, math.log(2), 0], [0, 0, 0], [1, 1, 1]])
    rows = rows_of_sequence(make_features(OWN, shape), 2, torch.tensor([0, 0, 1, 2]), logits=logits)
    assert rows[0].tolist() == [0] * 10  # a prompt's row
    # Row 1 predicts token 1 with 2 / 4; its entropy is 0.5 log 2 + 2 * 0.25 log 4 = 1.5 log 2. Row 2 is uniform.
    torch.testing.assert_close(rows[1:, :2], torch.tensor([[1.0, 1.5], [math.log2(3), math.log2(3)]]) * math.log(2))
    assert rows[1, 2:].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert rows[2, 2].item() == pytest.approx(1.0)  # a quarter of the shortest wave
    assert rows[2, 6].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_streamed_logits_equal_those_of_all_rows_at_once(is_causal: bool) -> None:
    engine = make_engine("llama")
    features = (*OWN, {"name": "basic_hidden_states", "layer_nums": [1]})
    head = random_head("compact", engine.model, features, **SMALL, is_causal=is_causal)
    assert not head.needs.prompt_rows
    assert random_head("compact", engine.model, OWN, reads_prompt=True, **SMALL).needs.prompt_rows
    steps, scorer, found = steps_of(engine, head.needs), HeadScorer(head, growth=0.5), {}
    for step in steps:
        found |= scorer.push(step)
    found |= scorer.finish()
    signals = StepSignals({1: torch.stack([step.signals.hidden[1] for step in steps])})
    confidence = torch.tensor([(-step.logprob, step.entropy) for step in steps])
    rows = head.features.stream().stacked_rows(signals, confidence)
    expected = head.module(rows[None])[0]
    torch.testing.assert_close(torch.tensor([found[i] for i in range(len(steps))]), expected, rtol=1e-4, atol=1e-5)


def test_padding_is_no_next_row() -> None:
    torch.manual_seed(0)
    head = make_head("compact", 4, SMALL)
    rows = torch.randn(1, 6, 4)
    padded = torch.cat([rows[:, :4], 9 * torch.ones(1, 2, 4)], dim=1)
    is_real = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(head(padded, is_real)[:, :4], head(rows[:, :4]), rtol=1e-4, atol=1e-5)


def test_a_token_is_judged_with_the_row_that_has_read_it() -> None:
    torch.manual_seed(0)
    head = make_head("compact", 4, SMALL)
    rows = torch.randn(3, 8)
    weight, bias = head.classifier.weight[0], head.classifier.bias[0]
    expected = [rows[0] @ weight[:8] + rows[1] @ weight[8:] + bias, rows[1] @ weight[:8] + rows[2] @ weight[8:] + bias]
    torch.testing.assert_close(head.classify(rows)[:2], torch.stack(expected))
    torch.testing.assert_close(head.classify(rows)[2], head.classify(rows[2]))


def test_it_is_saved_in_our_format_only(tmp_path: Path) -> None:
    engine = make_engine("llama")
    head = random_head("compact", engine.model, OWN, **SMALL)
    save_head(head, tmp_path / "own")
    again = load_head(tmp_path / "own", engine.model)
    for name, tensor in head.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor)
    with pytest.raises(HeadError, match="do not read the prompt"):
        save_head(head, tmp_path / "luh", "luh")
    with pytest.raises(HeadError, match="no feature token_confidence"):
        save_head(random_head("linear", engine.model, OWN), tmp_path / "luh", "luh")
