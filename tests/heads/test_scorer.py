"""Scores of an answer as it grows: final ones equal those of the whole text, revised or not, alone or in company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.engine.test_decode import drain, ids_of, make_engine
from tests.heads.making import ATTENTION, PROBABILITIES, STATES, random_head
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request
from uqchat.engine.decode import Engine
from uqchat.errors import InputError
from uqchat.heads import HeadScorer, UncertaintyHead
from uqchat.heads.scorer import mean_logit
from uqchat.types import Signals, TokenStep

TEXT = "a question of some length"
CASES = [("luh", {}), ("luh", {"is_causal": True}), ("luh", {"use_transformer_encoder": False}), ("saplma", {})]
IDS = ["both ways", "causal", "without encoder", "per token"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def answer(engine: Engine, head: UncertaintyHead, count: int = 12) -> list[TokenStep]:
    request = Request(ids_of(engine, TEXT), GenerationConfig(max_new_tokens=count), signals=head.needs)
    (steps,), _ = drain(engine, request)
    return steps


def logits_at_once(head: UncertaintyHead, steps: Sequence[TokenStep]) -> torch.Tensor:
    """Of all answer tokens, by the module's own pass over all rows."""
    stream = head.features.stream()
    rows = torch.cat([stream.push(step) for step in steps])
    with torch.no_grad():
        return head.module(rows[None])[0, -len(steps) :]


@pytest.mark.parametrize(("head_type", "options"), CASES, ids=IDS)
def test_logits_after_each_step_are_those_of_the_answer_so_far(
    engine: Engine, head_type: str, options: dict[str, bool]
) -> None:
    head = random_head(head_type, engine.model, **options)
    steps = answer(engine, head)
    scorer, known = HeadScorer(head), {}
    for n, step in enumerate(steps, 1):
        changed = scorer.push(step)
        assert set(changed) == (set(range(n)) if head.is_revising else {n - 1})
        known |= changed
        expected = logits_at_once(head, steps[:n])
        torch.testing.assert_close(torch.tensor([known[i] for i in range(n)]), expected, atol=1e-5, rtol=1e-4)
    assert scorer.finish() == {}


def test_looking_again_less_often_gives_the_newest_token_at_once_and_the_same_end(engine: Engine) -> None:
    head = random_head("luh", engine.model)
    steps = answer(engine, head, 20)
    scorer, known, looks = HeadScorer(head, growth=0.5), {}, 0
    for n, step in enumerate(steps, 1):
        changed = scorer.push(step)
        assert n - 1 in changed
        looks += len(changed) == n
        known |= changed
    assert looks < 10
    known |= scorer.finish()
    found = torch.tensor([known[i] for i in range(20)])
    torch.testing.assert_close(found, logits_at_once(head, steps), atol=1e-5, rtol=1e-4)
    assert scorer.finish() == {}


@pytest.mark.parametrize("head_type", ["claim", "claim_light", "claim_first_token", "linear_claim", "mlp_claim"])
def test_claims_get_one_logit_each_as_of_the_answer_so_far(engine: Engine, head_type: str) -> None:
    head = random_head(head_type, engine.model)
    steps = answer(engine, head)
    scorer, stream = HeadScorer(head), head.features.stream()
    assert all(scorer.push(step) == {} for step in steps) and scorer.finish() == {}
    rows = torch.cat([stream.push(step) for step in steps])
    mask = torch.zeros(2, len(rows))
    first = len(rows) - len(steps)
    mask[0, first : first + 3] = mask[1, [first + 5, first + 7]] = 1
    with torch.no_grad():
        expected = head.module(rows[None], [mask])[0]
    found = torch.tensor(scorer.claims([range(3), [7, 5]]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert scorer.claims([]) == []


@pytest.mark.parametrize("claim", [[], [12], [-1]])
def test_a_claim_must_name_tokens_of_the_answer(engine: Engine, claim: list[int]) -> None:
    head = random_head("claim", engine.model)
    scorer = HeadScorer(head)
    for step in answer(engine, head):
        scorer.push(step)
    with pytest.raises(InputError, match="must name tokens from 0 to 11"):
        scorer.claims([claim])


@pytest.mark.parametrize(("head_type", "options"), CASES, ids=IDS)
def test_a_token_heads_claim_is_the_mean_of_its_tokens_probabilities(
    engine: Engine, head_type: str, options: dict[str, bool]
) -> None:
    head = random_head(head_type, engine.model, **options)
    steps = answer(engine, head)
    scorer = HeadScorer(head)
    for step in steps:
        scorer.push(step)
    expected = logits_at_once(head, steps)[2:6].sigmoid().mean().logit().item()
    assert scorer.claims([range(2, 6)]) == [pytest.approx(expected, abs=1e-4)]


def test_the_mean_probability_of_extreme_logits_stays_finite() -> None:
    """sigmoid(200) is 1 in floating point; the mean of two such is still 200. One of 200 and -200: one half."""
    assert mean_logit(torch.tensor([200.0, 200.0])) == pytest.approx(200)
    assert mean_logit(torch.tensor([200.0, -200.0])) == pytest.approx(0)


def test_rows_of_one_batch_get_what_they_get_alone(engine: Engine) -> None:
    """Eight chats, half with heads of different kinds, half without."""
    heads = [
        random_head("luh", engine.model),
        random_head("luh", engine.model, (ATTENTION, STATES), is_causal=True),
        random_head("saplma", engine.model, (STATES,)),
        random_head("linear", engine.model, (PROBABILITIES, {"name": "lookback_lens"}, {"name": "final_output_ranks"})),
    ]
    texts = ["one", "two words", "three words here", "and a longer prompt than that", "e", "ff", "g g", "hh hh"]
    wants = [signals for head in heads for signals in (head.needs, Signals())]
    requests = [
        Request(ids_of(engine, text), GenerationConfig(max_new_tokens=8 + i), signals=want)
        for i, (text, want) in enumerate(zip(texts, wants, strict=True))
    ]
    together, _ = drain(engine, *requests)
    for i, request in enumerate(requests):
        (alone,), _ = drain(engine, request)
        assert [s.token_id for s in alone] == [s.token_id for s in together[i]]
        if i % 2:
            assert all(s.signals is None for s in together[i])
            continue
        expected = logits_at_once(heads[i // 2], alone)
        scorer, known = HeadScorer(heads[i // 2]), {}
        for step in together[i]:
            known |= scorer.push(step)
        found = torch.tensor([known[n] for n in range(len(alone))])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
