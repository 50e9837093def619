"""RAUQ against the reference's values, against a plain re-computation, and streamed with revisions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from uqchat.errors import InputError
from uqchat.estimators.base import ModelFacts
from uqchat.estimators.rauq import Rauq, middle_third, rauq_score
from uqchat.scoring import Scorer
from uqchat.types import StepSignals, TokenStep


def test_scores_equal_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "fixtures/formulas/reference_values.json").read_text())["rauq"]["cases"]
    for case in cases:
        weights = np.array(case["attention"]).reshape(case["n_layers"], case["n_heads"], 7, 7)
        previous = np.stack([weights[:, :, t, t - 1] for t in range(1, 7)], axis=-1)
        score = rauq_score(previous, case["log_likelihoods"], case["alpha"], case["layers"])
        assert score == pytest.approx(case["score"], abs=1e-6)


def test_two_tokens_by_hand() -> None:
    """p = (1/2, 1/4), a = 1/2, alpha = 1/2: c = (1/2, 1/8 + 1/2 * 1/2 * 1/2 = 1/4); mean -log c = 1.5 ln 2; plus 1."""
    score = rauq_score([[[0.5]]], [math.log(0.5), math.log(0.25)], 0.5, [0])
    assert score == pytest.approx(1 + 1.5 * math.log(2))


def test_one_token_has_nothing_to_carry() -> None:
    assert rauq_score(np.zeros((2, 3, 0)), [math.log(0.3)], 0.2, [0, 1]) == pytest.approx(1 - math.log(0.3))


def test_lists_arrays_and_tensors_give_the_same() -> None:
    weights, log_probs = torch.rand(2, 3, 4), -torch.rand(5)
    forms = [(weights, log_probs), (weights.numpy(), log_probs.numpy()), (weights.tolist(), log_probs.tolist())]
    assert len({round(rauq_score(w, p, 0.3, [0, 1]), 6) for w, p in forms}) == 1


@pytest.mark.parametrize(("shape", "count", "layers"), [((1, 1, 3), 3, [0]), ((1, 3), 4, [0]), ((1, 1, 2), 3, [])])
def test_lengths_that_do_not_belong_together_are_refused(shape: tuple, count: int, layers: list[int]) -> None:
    with pytest.raises(InputError, match="RAUQ needs attention"):
        rauq_score(np.zeros(shape), [-1.0] * count, 0.2, layers)


@pytest.mark.parametrize(
    ("num_layers", "expected"), [(30, range(10, 20)), (32, range(10, 22)), (9, range(3, 6)), (1, [0])]
)
def test_middle_third(num_layers: int, expected: object) -> None:
    assert middle_third(num_layers) == tuple(expected)


def random_steps(count: int, seed: int, reasoning: int = 0) -> tuple[list[TokenStep], np.ndarray, list[float]]:
    """Steps as the engine gives them: a token's attention comes with the step after it; the last is the end token."""
    rng = np.random.default_rng(seed)
    own = rng.random((count, 2, 3))  # weight of token t on token t-1, (tokens, L, H)
    log_probs = np.log(rng.uniform(0.05, 1, count)).tolist()
    steps = []
    for i in range(count):
        window = np.zeros((2, 3, 2))
        window[:, :, 1] = own[i - 1] if i else 0.7
        signals = StepSignals(attention=torch.tensor(window), attention_layers=(0, 1))
        is_end = i == count - 1
        steps.append(
            TokenStep(i, 5, "" if is_end else "x", (i, i + 1), log_probs[i], 0.1, (), i < reasoning, is_end, signals)
        )
    return steps, own, log_probs


@pytest.mark.parametrize(("seed", "reasoning"), [(0, 0), (1, 0), (2, 3), (3, 1)])
def test_streamed_to_the_end_equals_the_formula(seed: int, reasoning: int) -> None:
    """The answer is what lies between reasoning and end token; its mean raw score is the reference's score."""
    steps, own, log_probs = random_steps(14, seed, reasoning)
    scorer = Scorer([Rauq(0.3)])
    for step in steps:
        scorer.push(step)
    previous = own[reasoning + 1 : -1].transpose(1, 2, 0)
    expected = rauq_score(previous, log_probs[reasoning:-1], 0.3, [0, 1])
    risks, summaries = scorer.answer_scores()
    assert summaries["rauq"].mean == pytest.approx(expected, abs=1e-9)
    assert all(0 <= token.risks["rauq"].value <= 1 for token in scorer.tokens)


def test_every_prefix_is_right_for_the_tokens_whose_attention_is_known() -> None:
    steps, own, log_probs = random_steps(10, 5)
    scorer = Scorer([Rauq(0.4)])
    for count, step in enumerate(steps[:-1], start=1):
        scorer.push(step)
        known = max(count - 1, 1)  # the newest token's attention is still to come
        if count > 2:
            expected = rauq_score(own[1:known].transpose(1, 2, 0), log_probs[:known], 0.4, [0, 1])
            raws = [token.risks["rauq"].raw for token in scorer.tokens[:known]]
            assert np.mean(raws) == pytest.approx(expected, abs=1e-9)
        assert scorer.tokens[-1].risks["rauq"].raw == pytest.approx(1 - log_probs[count - 1])


def test_an_answer_of_a_stored_token_keeps_its_risk_without_a_model() -> None:
    steps, _, _ = random_steps(6, 7)
    scorer = Scorer([Rauq(0.3)])
    for step in steps:
        scorer.push(step)
    again = Scorer([Rauq(0.3)])
    for token in scorer.tokens:
        again.push(token)
    assert [t.risks for t in again.tokens] == [t.risks for t in scorer.tokens]


def test_the_kind_of_model_sets_alpha_and_layers() -> None:
    base, instruct = (Rauq().for_model(ModelFacts(12, kind)) for kind in (False, True))
    assert (base.alpha, instruct.alpha) == (0.2, 0.5)
    assert base.needs.attention_layers == (4, 5, 6, 7)
