"""Voters say what separate models with merged weights say, in whatever company, and leave nothing behind."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.test_decode import drain, generated, greedy, ids_of, make_engine
from tests.random_adapters import dense, low_rank, masks, merged
from uqchat.config import GenerationConfig
from uqchat.engine import decode, lineup
from uqchat.engine.adapters import Adapter, LowRank
from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.broken import broken_voter
from uqchat.engine.decode import Engine
from uqchat.engine.voters import count_votes, mean_logits, mutual_information
from uqchat.errors import InputError, ModelError
from uqchat.types import Ensemble, Signals, StepSignals, TokenStep, Votes

NAMES = ("small", "middle", "whole", "masked")
ALL, PAIR = Ensemble(NAMES), Ensemble(NAMES[:2])
TEXT = "the cat sat on the mat and "
AT = 1e-4


@pytest.fixture
def engine(both_forwards: str) -> Engine:
    """Four voters: two of low rank, one that changes whole matrices, one whose inputs are masked."""
    engine = make_engine()
    for adapter in adapters(engine):
        engine.adapters.add(adapter)
    return engine


def adapters(engine: Engine) -> list:
    ends = ("q_proj", "v_proj")
    return [
        low_rank(engine.model, "small", 2, ends, 0.2),
        low_rank(engine.model, "middle", 5, ends, 0.2),
        dense(engine.model, "whole", ends, 0.05),
        masks(engine.model, "masked", ("o_proj",)),
    ]


def voted(prompt: tuple[int, ...], count: int = 12, ensembles: Sequence[Ensemble] = (ALL,), **more: object) -> Request:
    return greedy(prompt, count, signals=Signals(ensembles=tuple(ensembles)), **more)


def by_definition(engine: Engine, ensemble: Ensemble, prompt: Sequence[int], ids: Sequence[int]) -> list[Votes]:
    """Of each answer token, from one whole forward of a copy of the model for each voter, in float64."""
    known = {adapter.name: adapter for adapter in adapters(engine)}
    rows = []
    for name in ensemble.members:
        with torch.inference_mode():
            logits = merged(engine.model, known[name])(torch.tensor([[*prompt, *ids]])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1].double().softmax(-1))
    probs = torch.stack(rows)  # (n, T, V)
    mean = probs.mean(0)
    information = -(mean * mean.log()).sum(-1) + (probs * probs.log()).sum(-1).mean(0)
    return [
        Votes(
            float(information[t]),
            float((probs[:, t].argmax(-1) == token).double().mean()),
            tuple(probs[:, t, token].tolist()),
        )
        for t, token in enumerate(ids)
    ]


def check(engine: Engine, steps: Sequence[TokenStep], prompt: Sequence[int], ensemble: Ensemble = ALL) -> None:
    expected = by_definition(engine, ensemble, prompt, [step.token_id for step in steps])
    for step, votes in zip(steps, expected, strict=True):
        found = step.signals.votes[ensemble]
        assert found.mutual_information == pytest.approx(votes.mutual_information, abs=AT)
        assert found.vote_share == pytest.approx(votes.vote_share)
        assert found.probabilities == pytest.approx(votes.probabilities, abs=AT)


# ---- the numbers


def one_hot(tokens: Sequence[int], size: int = 7) -> Tensor:
    return torch.full((len(tokens), 1, size), -math.inf).index_put(
        (torch.arange(len(tokens)), torch.tensor(0), torch.tensor(tokens)), torch.tensor(0.0)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_voters_that_are_sure_of_different_tokens_give_ln_n_and_equal_ones_0(count: int) -> None:
    (apart,) = count_votes(one_hot(range(count)), torch.tensor([0]))
    assert apart.mutual_information == pytest.approx(math.log(count), abs=1e-6)
    assert apart.vote_share == pytest.approx(1 / count) and apart.probabilities == (1.0, *[0.0] * (count - 1))
    logits = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0)).expand(count, -1, -1)
    for votes in count_votes(logits, torch.arange(5)):
        assert votes.mutual_information == pytest.approx(0, abs=1e-6)
        assert len(set(votes.probabilities)) == 1 and votes.vote_share in (0, 1)


def test_mutual_information_by_hand() -> None:
    """(1/2, 1/2) and (1, 0) have the mean (3/4, 1/4): H = 0.5623 - (0.6931 + 0) / 2 = 0.2158 nats."""
    probs = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert float(mutual_information(probs)) == pytest.approx(0.21576, abs=1e-5)


def test_the_mean_of_logits_is_that_of_the_distributions() -> None:
    logits = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(1)) * 5
    torch.testing.assert_close(mean_logits(logits).exp(), logits.softmax(-1).mean(0))


# ---- the rows


def test_every_voter_says_what_its_merged_model_says(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT)
    (steps,), _ = drain(engine, voted(prompt))
    assert [step.token_id for step in steps] == generated(engine, prompt, 12)
    check(engine, steps, prompt)
    assert max(step.signals.votes[ALL].mutual_information for step in steps) > 0.01


@pytest.mark.parametrize("chunk", [512, 11])
def test_a_given_answer_is_judged_as_one_that_is_written(
    engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PREFILL_CHUNK", chunk)
    prompt, answer = ids_of(engine, TEXT), ids_of(engine, "sang to the moon")
    (steps,), _ = drain(engine, voted(prompt, 0, forced_ids=answer))
    assert tuple(step.token_id for step in steps) == answer
    check(engine, steps, prompt)


def test_the_mean_of_the_voters_decides_where_that_is_asked_for(engine: Engine) -> None:
    prompt, ensemble = ids_of(engine, TEXT), Ensemble(NAMES, "mean")
    (steps,), _ = drain(engine, voted(prompt, ensembles=(ensemble,)))
    check(engine, steps, prompt, ensemble)
    known = {adapter.name: adapter for adapter in adapters(engine)}
    ids = torch.tensor([[*prompt, *(step.token_id for step in steps)]])
    with torch.inference_mode():
        rows = [merged(engine.model, known[name])(ids).logits[0, len(prompt) - 1 : -1].softmax(-1) for name in NAMES]
    mean = torch.stack(rows).mean(0)
    for t, step in enumerate(steps):
        assert step.token_id == int(mean[t].argmax())
        assert step.logprob == pytest.approx(float(mean[t].max().log()), abs=AT)
        assert step.entropy == pytest.approx(float(torch.special.entr(mean[t]).sum()), abs=AT)


def test_several_ensembles_share_their_rows_and_each_has_its_own_votes(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT)
    request = voted(prompt, ensembles=(ALL, PAIR))
    assert len(request.companions) == 4
    (steps,), _ = drain(engine, request)
    check(engine, steps, prompt, ALL)
    check(engine, steps, prompt, PAIR)


def test_a_voter_may_write_the_answer_itself(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT)
    request = voted(prompt, adapter="small")
    assert request.companions == NAMES[1:]
    (steps,), _ = drain(engine, request)
    check(engine, steps, prompt)


def test_samples_of_one_prompt_share_what_the_voters_read_too(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT)
    requests = [
        Request(prompt, GenerationConfig(10, 1.0, seed=seed), signals=Signals(ensembles=(ALL,))) for seed in range(3)
    ]
    answers, _ = drain(engine, *requests)
    assert len({tuple(step.token_id for step in steps) for steps in answers}) > 1
    for steps in answers:
        check(engine, steps, prompt)


# ---- company


def test_voters_in_a_busy_batch_change_nobodys_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats with and without voters come, are stopped and go at random, in a small batch and in short chunks."""
    monkeypatch.setattr(lineup, "MAX_ROWS", 9)
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 24)
    rng = random.Random(3)
    requests, steps, ends = {}, {}, {}
    for tick in range(400):
        if tick % 4 == 0 and len(requests) < 24:
            prompt = ids_of(engine, rng.choice(["a", TEXT, TEXT * 2, "hello there, "]) + str(rng.randint(0, 5)))
            count = rng.randint(1, 20)
            request = rng.choice([greedy(prompt, count), voted(prompt, count), voted(prompt, count, (PAIR,))])
            requests[key := engine.add(request)] = request
            steps[key] = []
        if tick % 23 == 22:
            running = [key for key in requests if key not in ends]
            for event in engine.remove(rng.choice(running)) if running else ():
                take(event, steps, ends)
        for event in engine.step():
            take(event, steps, ends)
        assert len(engine.lineup.batch) <= 9
    assert len(ends) == len(requests) == 24 and {end.reason for end in ends.values()} >= {"length", "cancelled"}
    assert not engine.has_work and len(engine.lineup.batch) == 0
    for key, request in requests.items():
        expected = generated(engine, request.prompt_ids, 20)
        assert [step.token_id for step in steps[key]] == expected[: len(steps[key])]
        for ensemble in request.signals.ensembles:
            check(engine, steps[key], request.prompt_ids, ensemble)


def take(event: StepEvent | FinishEvent, steps: dict, ends: dict) -> None:
    if isinstance(event, StepEvent):
        steps[event.key].append(event.step)
    else:
        ends[event.key] = event


def test_the_next_turn_reuses_what_each_voter_has_read(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT * 2)
    drain(engine, voted(prompt))
    plain_first = {key[0] for key in engine.lineup.prefixes._rows}
    assert plain_first == {None, *(f"{name} beside None" for name in NAMES)}
    longer = (*prompt, *ids_of(engine, "what then?"))
    read: list[int] = []
    original = engine.forward.prefill

    def prefill(place: int, starts: list, chunks: list, *rest: object) -> list[Tensor]:
        read.extend(map(len, chunks))
        return original(place, starts, chunks, *rest)

    engine.forward.prefill = prefill
    (steps,), _ = drain(engine, voted(longer))
    assert len(read) == 5 and max(read) <= len("what then?") + 1
    check(engine, steps, longer)


def test_an_answer_written_without_voters_is_no_beginning_for_theirs(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT * 2)
    drain(engine, greedy(prompt))
    (steps,), _ = drain(engine, voted((*prompt, *ids_of(engine, "x"))))
    check(engine, steps, (*prompt, *ids_of(engine, "x")))


def test_what_fails_while_voters_read_ends_their_answer_only(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT)
    plain = engine.add(greedy(ids_of(engine, "hello"), 15))
    engine.step()
    broken = engine.add(voted(prompt))
    original = engine.forward.prefill
    engine.forward.prefill = lambda *args: (_ for _ in ()).throw(RuntimeError("a voter broke"))
    events = engine.step()
    engine.forward.prefill = original
    assert [event.key for event in events if isinstance(event, FinishEvent)] == [broken]
    assert len(engine.lineup.batch) == 1
    ids = [event.step.token_id for event in events if isinstance(event, StepEvent) and event.key == plain]
    while engine.has_work:
        ids += [event.step.token_id for event in engine.step() if isinstance(event, StepEvent)]
    assert ids == generated(engine, ids_of(engine, "hello"), 15)[-len(ids) :]


def broken(engine: Engine, value: float, name: str = "broken") -> Ensemble:
    """Three voters, the second of which multiplies by this."""
    factor = low_rank(engine.model, name, 2, ("v_proj",))
    layers = {layer: LowRank(delta.a * value, delta.b) for layer, delta in factor.deltas.items()}
    engine.adapters.add(Adapter(name, layers))
    return Ensemble(("small", name, "middle"))


@pytest.mark.parametrize("prediction", ["base", "mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("forced", ["", "sang to the moon"])
def test_a_voter_whose_logits_are_no_numbers_ends_its_answer_only(
    engine: Engine, value: float, prediction: str, forced: str
) -> None:
    """It says which voter; those beside it and those that take its rows' places later are none the worse."""
    ensemble = replace(broken(engine, value), prediction=prediction)
    request = voted(ids_of(engine, TEXT * 3), 6, (ensemble,), forced_ids=ids_of(engine, forced))
    steps: dict[int, list[TokenStep]] = {}
    ends: dict[int, FinishEvent] = {}
    beside = greedy(ids_of(engine, "hello"), 40), voted(ids_of(engine, "what"), 30)
    keys = [engine.add(one) for one in (beside[0], request, beside[1])]
    later = {}
    while engine.has_work:
        for event in engine.step():
            steps.setdefault(event.key, [])
            take(event, steps, ends)
        if keys[1] in ends and not later:
            asked = [greedy(ids_of(engine, text), 30) for text in ("short", TEXT * 4, "a")]
            later = {engine.add(one): one for one in asked}
    end = ends.pop(keys[1])
    assert end.reason == "error" and isinstance(end.error, ModelError) and steps[keys[1]] == []
    assert "Voter 2 of 3 (broken) gave logits that are NaN or infinite" in str(end.error)
    assert {one.reason for one in ends.values()} == {"length"}
    for key, one in {keys[0]: beside[0], keys[2]: beside[1], **later}.items():
        assert [step.token_id for step in steps[key]] == generated(engine, one.prompt_ids, len(steps[key]))
    check(engine, steps[keys[2]], beside[1].prompt_ids)


def test_an_answer_that_ends_on_its_first_vote_ends_with_the_error_too(engine: Engine) -> None:
    request = voted(ids_of(engine, TEXT), 1, (broken(engine, math.nan),))
    with pytest.raises(ModelError, match="broken"):
        list(engine.stream([request]))
    assert not engine.has_work and not engine._rows
    prompt = ids_of(engine, TEXT)
    check(engine, drain(engine, voted(prompt))[0][0], prompt)


def test_a_voter_may_rule_tokens_out() -> None:
    """-inf is no error as long as something is left."""
    votes = count_votes(one_hot([0, 1]), torch.tensor([0]))
    assert broken_voter(StepSignals(votes={PAIR: votes[0]})) is None
    nothing = torch.full((2, 1, 7), -math.inf).index_fill(0, torch.tensor(0), 0.0)
    found = broken_voter(StepSignals(votes={PAIR: count_votes(nothing, torch.tensor([0]))[0]}))
    assert "Voter 2 of 2 (middle)" in str(found)


def test_stopping_an_answer_stops_its_voters(engine: Engine) -> None:
    key = engine.add(voted(ids_of(engine, TEXT)))
    engine.step()
    engine.step()
    assert len(engine.lineup.batch) == 5
    (*_, end) = engine.remove(key)
    assert end.reason == "cancelled" and len(engine.lineup.batch) == 0 and not engine.has_work


def test_voters_count_in_the_memory_that_an_answer_needs() -> None:
    loaded = make_engine()
    request = voted(ids_of(loaded, TEXT), 100)
    budget = loaded.forward.bytes_for(len(request.prompt_ids) + 100) * 4
    engine = Engine(loaded.model, loaded.vocabulary.tokenizer, memory=budget * 2)
    for adapter in adapters(engine):
        engine.adapters.add(adapter)
    engine.lineup.memory = budget
    engine.add(greedy(request.prompt_ids, 100))
    with pytest.raises(InputError, match="4 voters.*take fewer voters"):
        engine.add(request)


def test_more_voters_than_there_are_rows_and_unknown_ones_are_refused(engine: Engine) -> None:
    prompt = ids_of(engine, TEXT)
    with pytest.raises(InputError, match="no adapter 'stranger'"):
        engine.add(voted(prompt, ensembles=(Ensemble(("small", "stranger")),)))
    for adapter in [low_rank(engine.model, f"v{i}", 1, ("q_proj",)) for i in range(16)]:
        engine.adapters.add(adapter)
    with pytest.raises(InputError, match=r"16 voters.*at most 15"):
        engine.add(voted(prompt, ensembles=(Ensemble(tuple(f"v{i}" for i in range(16))),)))


def test_a_model_that_runs_row_by_row_has_no_voters() -> None:
    engine = make_engine("mamba")
    with pytest.raises(InputError, match="voters"):
        engine.add(voted(ids_of(engine, TEXT)))
