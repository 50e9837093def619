"""Hidden states and attention windows equal what transformers' eager attention gives, for every kind of model."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_decode import drain, ids_of, make_engine
from uqchat.config import GenerationConfig
from uqchat.engine import decode
from uqchat.engine.backend import Request
from uqchat.engine.decode import Engine
from uqchat.engine.window import log_sum_exp, near_keys, window_weights
from uqchat.errors import InputError
from uqchat.language_model import LanguageModel
from uqchat.types import Signals

pytestmark = pytest.mark.usefixtures("both_forwards")

# Grouped-query, sliding, sliding and full, query and key norms with heads of another size, multi-head with bias.
KINDS = ["llama", "mistral", "mixed", "qwen3", "neox"]
LAGS = 4
WANTED = Signals(hidden_layers=(0, 1, 2), attention_lags=LAGS, prompt_rows=True)
TEXT = "a prompt that is longer than the sliding window"


def reference(engine: Engine, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (L+1, T, D) and attention weights (L, H, T, T) of one eager forward."""
    engine.model.set_attn_implementation("eager")
    try:
        out = engine.model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    finally:
        engine.model.set_attn_implementation("sdpa")
    return torch.stack(out.hidden_states)[:, 0], torch.stack(out.attentions)[:, 0]


def windows(attentions: torch.Tensor, lags: int) -> torch.Tensor:
    """(T, L, H, lags) by indexing: lag j of row q is key q - j, 0 where there is none."""
    layers, heads, length, _ = attentions.shape
    out = torch.zeros(length, layers, heads, lags)
    for q in range(length):
        for lag in range(min(lags, q + 1)):
            out[q, :, :, lag] = attentions[:, :, q, q - lag]
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [512, 7])
def test_signals_of_prompt_and_answer_equal_eager(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL_CHUNK", chunk)
    engine = make_engine(kind)
    prompt = ids_of(engine, TEXT)
    (steps,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=12), signals=WANTED))
    ids = [*prompt, *(s.token_id for s in steps)]
    hidden, attentions = reference(engine, ids)
    expected = windows(attentions, LAGS)
    first = len(prompt) - 1  # the position that predicts the first token
    before = steps[0].signals.prompt
    torch.testing.assert_close(before.attention, expected[:first], atol=1e-5, rtol=0)
    for layer in (0, 1, 2):
        torch.testing.assert_close(before.hidden[layer], hidden[layer, :first], atol=1e-4, rtol=1e-4)
    for i, step in enumerate(steps):
        torch.testing.assert_close(step.signals.attention, expected[first + i], atol=1e-5, rtol=0)
        for layer in (0, 1, 2):
            torch.testing.assert_close(step.signals.hidden[layer], hidden[layer, first + i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_mixed_batch_get_their_own_signals(kind: str) -> None:
    engine = make_engine(kind)
    wants = [WANTED, Signals(), Signals(attention_lags=2, attention_layers=(1,)), Signals(hidden_layers=(2,))]
    prompts = [ids_of(engine, text) for text in (TEXT, "b", "some other words here", "hello")]
    requests = [
        Request(p, GenerationConfig(max_new_tokens=9 + i), signals=w)
        for i, (p, w) in enumerate(zip(prompts, wants, strict=True))
    ]
    rows, _ = drain(engine, *requests)
    assert all(step.signals is None for step in rows[1])
    for prompt, want, steps in zip(prompts, wants, rows, strict=True):
        hidden, attentions = reference(engine, [*prompt, *(s.token_id for s in steps)])
        for i, step in enumerate(steps):
            at = len(prompt) - 1 + i
            if want.attention_lags:
                layers = want.attention_layers or (0, 1)
                expected = windows(attentions, want.attention_lags)[at][list(layers)]
                torch.testing.assert_close(step.signals.attention, expected, atol=1e-5, rtol=0)
                assert step.signals.attention_layers == layers
            for layer in want.hidden_layers:
                torch.testing.assert_close(step.signals.hidden[layer], hidden[layer, at], atol=1e-4, rtol=1e-4)


def masses(attentions: torch.Tensor, prompt: int) -> torch.Tensor:
    """(T, L, H): weights on the first `prompt` keys, summed."""
    return attentions[..., :prompt].sum(-1).permute(2, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [512, 7])
def test_attention_on_the_prompt_and_ids_read_equal_eager(
    kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different prompts in one batch, generated and given; the second asks for one layer only."""
    monkeypatch.setattr(decode, "PREFILL_CHUNK", chunk)
    engine = make_engine(kind)
    prompts = [ids_of(engine, text) for text in (TEXT, "some words", "b")]
    wants = [
        Signals(prompt_attention=True, input_ids=True, prompt_rows=True),
        Signals(prompt_attention=True, attention_layers=(1,)),
        Signals(attention_lags=2),
    ]
    requests = [
        Request(p, GenerationConfig(max_new_tokens=8), ids_of(engine, "given"), signals=w)
        for p, w in zip(prompts, wants, strict=True)
    ]
    rows, _ = drain(engine, *requests)
    for prompt, want, steps in zip(prompts, wants, rows, strict=True):
        ids = [*prompt, *(s.token_id for s in steps)]
        expected = masses(reference(engine, ids)[1], len(prompt))
        for i, step in enumerate(steps):
            at = len(prompt) - 1 + i
            if want.prompt_attention:
                layers = list(want.attention_layers or (0, 1))
                torch.testing.assert_close(step.signals.prompt_attention, expected[at][layers], atol=1e-5, rtol=0)
            else:
                assert step.signals.prompt_attention is None and step.signals.attention is not None
            if want.input_ids:
                assert step.signals.input_ids.item() == ids[at]
    before = rows[0][0].signals.prompt
    assert before.input_ids.tolist() == list(prompts[0][:-1])
    torch.testing.assert_close(before.prompt_attention, torch.ones_like(before.prompt_attention), atol=1e-5, rtol=0)


def test_a_recurrent_model_gives_the_ids_that_each_row_read() -> None:
    engine = make_engine("mamba")
    prompts = [ids_of(engine, text) for text in ("hello", "a b")]
    want = Signals(input_ids=True)
    rows, _ = drain(engine, *(Request(p, GenerationConfig(max_new_tokens=5), signals=want) for p in prompts))
    for prompt, steps in zip(prompts, rows, strict=True):
        read = [prompt[-1], *(s.token_id for s in steps[:-1])]
        assert [s.signals.input_ids.item() for s in steps] == read


def test_given_tokens_get_the_same_signals_as_generated_ones() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    want = Signals(hidden_layers=(1,), attention_lags=3)
    (steps,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=10), signals=want))
    ids = tuple(s.token_id for s in steps)
    (given,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=0), ids, want))
    for a, b in zip(steps, given, strict=True):
        torch.testing.assert_close(a.signals.attention, b.signals.attention, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.signals.hidden[1], b.signals.hidden[1], atol=1e-4, rtol=1e-4)


def test_signals_do_not_change_the_answer_and_leave_nothing_installed() -> None:
    engine = make_engine()
    prompt = ids_of(engine, "hello")
    (plain,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=20)))
    (watched,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=20), signals=WANTED))
    assert [s.token_id for s in plain] == [s.token_id for s in watched]
    assert engine.model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in engine.model.modules())


def test_more_top_log_probabilities_than_alternatives_come_as_a_tensor() -> None:
    engine = make_engine()
    (steps,), _ = drain(
        engine, Request(ids_of(engine, "x"), GenerationConfig(max_new_tokens=2), signals=Signals(top_n=30))
    )
    top = steps[0].signals.top_logprobs
    assert top.shape == (30,) and top[:10].tolist() == pytest.approx([a.logprob for a in steps[0].alternatives])
    assert len(steps[0].alternatives) == 10


def test_a_recurrent_model_offers_no_attention_and_refuses_what_needs_it() -> None:
    from uqchat.estimators import get_estimators
    from uqchat.scoring import signals_for

    engine = make_engine("mamba")
    assert engine.signals.attention_lags == 0
    estimator = get_estimators("entropy")[0]
    estimator.needs = Signals(attention_lags=2)
    with pytest.raises(InputError, match="attention weights"):
        signals_for([estimator], engine.signals)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_window_weights_respect_left_padding(kind: str) -> None:
    """Two rows, the second with 3 padded keys on the left: compare with a plain masked softmax."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    allowed[1, :, :, :3] = False
    allowed[1, :, :3] |= torch.eye(6, dtype=torch.bool)[:3]  # padded queries see themselves, as transformers does
    mask = (
        allowed if kind == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    )
    scores = (query.reshape(2, 2, 2, 6, 8) @ key.transpose(-1, -2)[:, :, None]).reshape(2, 4, 6, 6) * 0.3
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    lse = log_sum_exp(query, key, mask, 0.3)
    out = window_weights(query, key, lse, near_keys(query, key, 3, mask=mask), 0.3)
    for q in range(6):
        for lag in range(3):
            expected = weights[:, :, q, q - lag] if q >= lag else torch.zeros(2, 4)
            torch.testing.assert_close(out[:, :, q, lag], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.model
def test_signals_of_the_embedded_model_equal_eager(embedded: LanguageModel) -> None:
    engine = Engine(embedded.model, embedded.tokenizer)
    prompt = ids_of(engine, "The lighthouse stood on a rock. " * 4)
    want = Signals(hidden_layers=(20, 30), attention_lags=5)
    (steps,), _ = drain(engine, Request(prompt, GenerationConfig(max_new_tokens=8), signals=want))
    hidden, attentions = reference(engine, [*prompt, *(s.token_id for s in steps)])
    expected = windows(attentions, 5)
    for i, step in enumerate(steps):
        at = len(prompt) - 1 + i
        torch.testing.assert_close(step.signals.attention, expected[at], atol=1e-5, rtol=0)
        torch.testing.assert_close(step.signals.hidden[20], hidden[20, at], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(step.signals.hidden[30], hidden[30, at], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_watched_ids_get_the_log_probabilities_of_a_teacher_forced_forward(kind: str) -> None:
    """Each row its own ids in its own order, prompt shared or not, generated and given."""
    engine = make_engine(kind)
    prompt, other = ids_of(engine, "hello"), ids_of(engine, "a b")
    hot = GenerationConfig(max_new_tokens=4, temperature=1.5, repetition_penalty=1.3)
    requests = [
        Request(prompt, hot, signals=Signals(watched_ids=(70, 3, 200))),
        Request(prompt, hot, signals=Signals(watched_ids=(5,), hidden_layers=(1,))),
        Request(prompt, hot),
        Request(other, GenerationConfig(max_new_tokens=0), ids_of(engine, "given"), Signals(watched_ids=(9, 8))),
    ]
    rows, _ = drain(engine, *requests)
    for request, steps in zip(requests, rows, strict=True):
        watched = list(request.signals.watched_ids)
        ids = [*request.prompt_ids, *(s.token_id for s in steps)]
        log_probs = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for i, step in enumerate(steps):
            if not watched:
                assert step.signals is None
                continue
            assert step.signals.watched_ids == tuple(watched) and step.signals.watched.dtype == torch.float32
            expected = log_probs[len(request.prompt_ids) - 1 + i, watched]
            torch.testing.assert_close(step.signals.watched, expected, atol=1e-4, rtol=0)


def test_watched_ids_of_several_askers_are_joined_and_foreign_ones_refused() -> None:
    both = Signals(watched_ids=(7, 3)) | Signals(watched_ids=(3, 1))
    assert both.watched_ids == (7, 3, 1)
    engine = make_engine()
    with pytest.raises(InputError, match="log-probabilities of given tokens"):
        engine.add(Request(ids_of(engine, "x"), signals=Signals(watched_ids=(10**6,))))
    assert both.missing(Signals(top_n=5)) == ["log-probabilities of given tokens"] and not engine.has_work
