"""The decode loop on tiny random models: equal to `generate`, alone and in company; exact scores; clean leaving."""

from __future__ import annotations

import math
import multiprocessing
import pickle

import pytest
import torch

from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine import decode, lineup
from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.types import TokenStep

pytestmark = pytest.mark.usefixtures("both_forwards")

KINDS = ["llama", "mistral", "gpt2", "mamba"]


def make_engine(kind: str = "llama") -> Engine:
    loaded = tiny_model(kind)
    return Engine(loaded.model, loaded.tokenizer)


def ids_of(engine: Engine, text: str) -> tuple[int, ...]:
    return tuple(engine.vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"])


def drain(engine: Engine, *requests: Request) -> tuple[list[list[TokenStep]], list[FinishEvent]]:
    steps: list[list[TokenStep]] = [[] for _ in requests]
    ends: dict[int, FinishEvent] = {}
    for event in engine.stream(requests):
        if isinstance(event, StepEvent):
            steps[event.key].append(event.step)
        else:
            ends[event.key] = event
    return steps, [ends[i] for i in range(len(requests))]


def generated(engine: Engine, prompt: tuple[int, ...], count: int) -> list[int]:
    with torch.inference_mode():
        out = engine.model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()


def greedy(prompt: tuple[int, ...], count: int = 24, **options: object) -> Request:
    return Request(prompt, GenerationConfig(max_new_tokens=count), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_equal_generate(kind: str) -> None:
    engine = make_engine(kind)
    for text in ("hello", "a", "the cat sat on the mat and looked at the moon"):
        prompt = ids_of(engine, text)
        (steps,), _ = drain(engine, greedy(prompt))
        assert [s.token_id for s in steps] == generated(engine, prompt, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_lengths_equal_each_alone(kind: str) -> None:
    engine = make_engine(kind)
    prompts = [
        ids_of(engine, text) for text in ("x", "hello there", "a much longer prompt than the others, really", "yo")
    ]
    requests = [greedy(p, count) for p, count in zip(prompts, (30, 7, 18, 25), strict=True)]
    together, _ = drain(engine, *requests)
    for request, steps in zip(requests, together, strict=True):
        (alone,), _ = drain(engine, request)
        assert [s.token_id for s in steps] == [s.token_id for s in alone]
        assert max(abs(a.logprob - b.logprob) for a, b in zip(steps, alone, strict=True)) < 1e-4


def test_rows_that_join_late_and_leave_early_disturb_nobody() -> None:
    engine = make_engine()
    prompts = [ids_of(engine, f"row {i} " + "x" * 3 * i) for i in range(6)]
    expected = {i: generated(engine, p, 20) for i, p in enumerate(prompts)}
    got: dict[int, list[int]] = {i: [] for i in range(6)}
    keys: dict[int, int] = {}
    for tick in range(60):
        if tick % 3 == 0 and len(keys) < 6:
            keys[engine.add(greedy(prompts[len(keys)], 20))] = len(keys)
        if tick == 8:
            engine.remove(next(k for k, i in keys.items() if i == 1))
        for event in engine.step():
            if isinstance(event, StepEvent):
                got[keys[event.key]].append(event.step.token_id)
    for i in (0, 2, 3, 4, 5):
        assert got[i] == expected[i]
    assert got[1] == expected[1][: len(got[1])] and len(got[1]) < 20
    assert not engine.has_work and len(engine.lineup.batch) == 0


def test_a_prompt_longer_than_a_chunk_gives_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    prompt = ids_of(engine, "a prompt that is read in many small chunks " * 3)
    (whole,), _ = drain(engine, greedy(prompt))
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 7)
    (chunked,), _ = drain(engine, greedy(prompt))
    assert [s.token_id for s in chunked] == [s.token_id for s in whole]


@pytest.mark.parametrize("chunk", [512, 5])
def test_scores_equal_a_teacher_forced_forward(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row P-1+i of the logits of prompt + answer, by transformers, gives log-probability and entropy of token i."""
    monkeypatch.setattr(decode, "PREFILL_CHUNK", chunk)
    engine = make_engine()
    prompt, answer = ids_of(engine, "question?"), ids_of(engine, "some answer 🐱")
    (steps,), (end,) = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=0), answer))
    logits = engine.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.log_softmax(-1)
    assert [s.token_id for s in steps] == list(answer) and end.reason == "length"
    for step, row, token_id in zip(steps, log_probs, answer, strict=True):
        assert step.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        assert step.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
        top = row.topk(10)
        assert [a.token_id for a in step.alternatives] == top.indices.tolist()
        assert [a.logprob for a in step.alternatives] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_forced_ids_begin_the_answer_and_generation_goes_on_from_them() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    forced = ids_of(engine, "so")
    (steps,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=10), forced))
    assert [s.token_id for s in steps] == [*forced, *generated(engine, prompt + forced, 10)]


def test_an_end_token_that_is_forced_ends_the_answer() -> None:
    engine = make_engine()
    end_id = next(iter(engine.vocabulary.end_ids))
    (steps,), (end,) = drain(engine, Request(ids_of(engine, "x"), GenerationConfig(), (*ids_of(engine, "ok"), end_id)))
    assert end.reason == "stop" and [s.text for s in steps] == ["o", "k", ""] and steps[-1].is_end


def test_the_end_token_is_a_step_without_text() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    first = generated(engine, prompt, 5)[4]
    engine.vocabulary.end_ids = frozenset({first})
    (steps,), (end,) = drain(engine, greedy(prompt))
    assert end.reason == "stop" and steps[-1].token_id == first and steps[-1].is_end


def test_stop_strings_end_the_row_with_their_reason() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    (free,), _ = drain(engine, greedy(prompt))
    text = "".join(s.text for s in free)
    stop = text[6:9]
    (steps,), (end,) = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=24, stop_strings=(stop,))))
    assert end.reason == "stop_string"
    assert "".join(s.text for s in steps) == text[: text.find(stop)]


def test_sampling_settings_do_not_change_a_score() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    hot = GenerationConfig(max_new_tokens=12, temperature=1.7, top_k=50, repetition_penalty=1.2, seed=5)
    (steps,), _ = drain(engine, Request(prompt, hot))
    ids = tuple(s.token_id for s in steps)
    (forced,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=0), ids))
    assert [s.logprob for s in steps] == pytest.approx([s.logprob for s in forced], abs=1e-4)


def test_the_same_seed_gives_the_same_answer_in_any_company() -> None:
    engine = make_engine()
    warm = Request(ids_of(engine, "hello"), GenerationConfig(max_new_tokens=15, temperature=1.0, seed=3))
    (alone,), _ = drain(engine, warm)
    (_, together), _ = drain(engine, greedy(ids_of(engine, "other")), warm)
    assert [s.token_id for s in alone] == [s.token_id for s in together]


def test_more_requests_than_rows_all_get_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineup, "MAX_ROWS", 3)
    engine = make_engine()
    prompts = [ids_of(engine, f"question {i}") for i in range(8)]
    rows, ends = drain(engine, *(greedy(p, 6) for p in prompts))
    assert [[s.token_id for s in row] for row in rows] == [generated(engine, p, 6) for p in prompts]
    assert all(end.timings.queue >= 0 for end in ends)


def test_closing_the_stream_leaves_no_row_and_no_memory() -> None:
    engine = make_engine()
    stream = engine.stream([greedy(ids_of(engine, "hello"), 100)] * 2)
    next(stream)
    stream.close()
    assert not engine.has_work
    assert all(layer.keys is None for layer in engine.forward.cache.layers)


def test_the_model_works_as_before_between_requests() -> None:
    engine = make_engine()
    ids = torch.tensor([ids_of(engine, "hello")])
    before = engine.model(ids).logits
    stream = engine.stream([greedy(ids_of(engine, "hello"), 100)])
    next(stream)
    torch.testing.assert_close(engine.model(ids).logits, before)
    assert engine.model.config._attn_implementation == "sdpa"
    stream.close()


def test_steps_pickle() -> None:
    engine = make_engine()
    (steps,), _ = drain(engine, greedy(ids_of(engine, "hello"), 4))
    assert pickle.loads(pickle.dumps(steps)) == steps


def _in_child(engine: Engine, prompt: tuple[int, ...], out: multiprocessing.SimpleQueue) -> None:
    out.put(drain(engine, greedy(prompt))[0][0])


def test_the_engine_drives_in_a_forked_process_after_the_parent_used_it() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    (expected,), _ = drain(engine, greedy(prompt))
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(engine, prompt, out))
    child.start()
    steps = out.get()
    child.join(30)
    assert [s.token_id for s in steps] == [s.token_id for s in expected]


def test_minus_infinity_logits_give_finite_entropy() -> None:
    from uqchat.engine.scores import score_logits

    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    scores = score_logits(logits, torch.tensor([1]), top_n=2)
    assert scores.entropy[0] == pytest.approx(math.log(2)) and scores.logprob[0] == pytest.approx(-math.log(2))
