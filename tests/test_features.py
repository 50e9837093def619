"""Feature rows against values derived by hand and against whole tensors of an eager forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.test_decode import drain, ids_of, make_engine
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request
from uqchat.engine.decode import Engine
from uqchat.errors import InputError
from uqchat.features import FeatureSet, make_features, rows_of_sequence
from uqchat.features_base import ModelShape
from uqchat.types import StepSignals

SHAPE = ModelShape(num_layers=2, num_heads=2, hidden_size=4, vocab_size=10)
ALL = [
    {"name": "luh.feature_extractors.basic_attention", "layer_nums": "all", "attn_history_sz": 3, "pool": False},
    {"name": "luq.feature_extractors.token_probabilities", "top_n": 4},
    {"name": "basic_hidden_states", "layer_nums": [-1, 0]},
    {"name": "lookback_lens"},
    {"name": "token_probabilities_from_layers", "top_n": 3, "layer_nums": "all"},
    {"name": "token_similarities_adjacent_layers", "top_n": 2, "layer_nums": [0, 1, 2]},
    {"name": "final_output_ranks"},
]


def attention(**options: Any) -> list[dict[str, Any]]:
    return [{"name": "basic_attention", "layer_nums": "all", "attn_history_sz": 2, "pool": False, **options}]


def oracle(length: int = 4) -> list[torch.Tensor]:
    """A[l, h, q, k] = 1000 l + 100 h + 10 q + k, as L tensors (H, S, S)."""
    h, q, k = torch.meshgrid(torch.arange(2), torch.arange(length), torch.arange(length), indexing="ij")
    return [(1000 * layer + 100 * h + 10 * q + k).float() for layer in range(2)]


def oracle_row(features: FeatureSet, row: int = 3) -> list[float]:
    rows = rows_of_sequence(features, 2, torch.zeros(6, dtype=torch.long), attentions=oracle(6))
    return rows[row].tolist()


def test_current_layout_gives_own_key_first_and_layers_last() -> None:
    assert oracle_row(make_features(attention(), SHAPE)) == [33, 1033, 133, 1133, 32, 1032, 132, 1132]


def test_legacy_layout_leaves_the_own_key_out_and_gives_layers_first() -> None:
    features = make_features(attention(), SHAPE, layout="legacy")
    assert oracle_row(features) == [32, 132, 31, 131, 1032, 1132, 1031, 1131]


def test_keys_before_the_text_are_zero() -> None:
    assert oracle_row(make_features(attention(), SHAPE), 0) == [0, 1000, 100, 1100, 0, 0, 0, 0]
    assert oracle_row(make_features(attention(), SHAPE, layout="legacy"), 0) == [0] * 8


def test_pooling_takes_the_largest_over_layers() -> None:
    assert oracle_row(make_features(attention(pool=True), SHAPE)) == [1033, 1133, 1032, 1132]
    assert oracle_row(make_features(attention(pool=True), SHAPE, layout="legacy")) == [1032, 1132, 1031, 1131]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layer_nums": [-1]}, [1033, 1133, 1032, 1132]),
        ({"layer_nums": [1, 0]}, [1033, 33, 1133, 133, 1032, 32, 1132, 132]),
        ({"head_nums": [1]}, [133, 1133, 132, 1132]),
        ({"head_nums": 0}, [33, 1033, 32, 1032]),
        ({"head_nums": {0: [1], -1: [0]}}, [133, 1033, 132, 1032]),
        ({"head_nums": {"all": [-1]}}, [133, 1133, 132, 1132]),
    ],
)
def test_layers_and_heads_can_be_chosen(options: dict[str, Any], expected: list[float]) -> None:
    features = make_features(attention(**options), SHAPE)
    assert oracle_row(features) == expected and features.width == len(expected)


def test_probabilities_are_zero_on_prompt_rows_and_softmax_values_after() -> None:
    """Logits (log 1, log 2, log 3, log 4): the two largest probabilities are 0.4 and 0.3."""
    logits = torch.tensor([1.0, 3.0, 2.0, 4.0]).log().repeat(5, 1)
    features = make_features([{"name": "token_probabilities", "top_n": 2}], SHAPE)
    rows = rows_of_sequence(features, 3, torch.zeros(5, dtype=torch.long), logits=logits)
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.4, 0.3], [0.4, 0.3]]))


@pytest.mark.parametrize(
    ("hidden_index", "entries"), [("layers", [1, 0, 2]), ("tuple", [2, 1, 2])], ids=["layers", "tuple"]
)
def test_negative_hidden_layers_count_from_the_named_end(hidden_index: str, entries: list[int]) -> None:
    """L = 2: -1 is the input of the last block (entry 1), or the final state (entry 2); 2 is always the final state."""
    states = [torch.full((3, 4), float(entry)) for entry in range(3)]
    features = make_features(
        [{"name": "basic_hidden_states", "layer_nums": [-1, -2, 2]}], SHAPE, hidden_index=hidden_index
    )
    rows = rows_of_sequence(features, 2, torch.zeros(3, dtype=torch.long), hidden_states=states)
    assert rows[0].reshape(3, 4)[:, 0].tolist() == entries and features.width == 12


def test_lookback_compares_attention_per_key_of_prompt_and_new_text() -> None:
    """P = 2. Row 3 (the third new token's): weights .1 .2 on the prompt, .3 .4 after it; 3 - 2 = 1 is the divisor.

    Prompt .3 / 2 = .15, new .7 / 1: ratio .7 / .85. Row 4 divides by 2: prompt .2 / 2 = .1, new .8 / 2 = .4.
    """
    weights = torch.zeros(6, 6)
    weights[3, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    weights[4, :5] = torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])
    features = make_features([{"name": "lookback_lens", "whatever": 1}], SHAPE)
    attentions = [weights.repeat(2, 1, 1)] * 2
    rows = rows_of_sequence(features, 2, torch.zeros(6, dtype=torch.long), attentions=attentions)
    torch.testing.assert_close(rows, torch.tensor([1, 1, 1, 0.7 / 0.85, 0.8])[:, None].expand(5, 4))


def logits_of_layers(engine: Engine, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
    return [engine.model.lm_head(states) for states in hidden]


def reference_rows(engine: Engine, ids: list[int], prompt: int) -> torch.Tensor:
    """Everything of `ALL` written down a second time, row by row, from one eager forward."""
    engine.model.set_attn_implementation("eager")
    try:
        out = engine.model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    finally:
        engine.model.set_attn_implementation("sdpa")
    hidden = [states[0] for states in out.hidden_states]
    maps = torch.stack(out.attentions)[:, 0]  # (L, H, S, S)
    per_layer = logits_of_layers(engine, hidden)
    rows = []
    for q in range(len(ids) - 1):
        row = []
        for lag in range(3):
            row += [maps[:, :, q, q - lag].T.flatten() if q >= lag else torch.zeros(8)]  # [head, layer]
        probabilities = out.logits[0, q].softmax(-1).sort(descending=True).values[:4]
        row += [probabilities if q >= prompt - 1 else torch.zeros(4), hidden[1][q], hidden[0][q]]
        on_prompt = maps[:, :, q, :prompt].sum(-1) / prompt
        new = maps[:, :, q, prompt:].sum(-1) / max(q - prompt, 1)
        row += [(new / (on_prompt + new)).flatten() if q > prompt else torch.ones(8)]
        row += [per_layer[layer][q].sort(descending=True).values[:3] for layer in (0, 1)]
        best = [engine.model.lm_head.weight[per_layer[layer][q].argsort(descending=True)[:2]] for layer in (0, 1, 2)]
        row += [torch.cosine_similarity(a, b, dim=-1) for a, b in zip(best[1:], best[:-1], strict=True)]
        ranks = [1.0 if q == 0 else 1 / (1 + int((s[q - 1] > s[q - 1, ids[q]]).sum())) for s in per_layer[:2]]
        row += [torch.tensor(ranks)]
        rows.append(torch.cat(row))
    return torch.stack(rows)


@pytest.mark.parametrize("text", ["a prompt of some words", "x"])
def test_streamed_given_and_whole_rows_are_the_same(text: str) -> None:
    """All extractors at once: decoded through the engine, scored as a given answer, and from whole tensors."""
    engine = make_engine()
    features = make_features(ALL, engine.model)
    prompt = ids_of(engine, text)
    generate = Request(prompt, GenerationConfig(max_new_tokens=9), signals=features.needs)
    (steps,), _ = drain(engine, generate)
    answer = tuple(s.token_id for s in steps)
    given = Request(prompt, GenerationConfig(max_new_tokens=0), answer, features.needs)
    (scored,), _ = drain(engine, given)
    expected = reference_rows(engine, [*prompt, *answer], len(prompt))
    for path in (steps, scored):
        stream = features.stream()
        rows = torch.cat([stream.push(step) for step in path])
        assert rows.shape == expected.shape == (len(prompt) + len(answer) - 1, features.width)
        torch.testing.assert_close(rows, expected, atol=2e-4, rtol=1e-3)


def test_a_temperature_is_applied_to_the_raw_logits() -> None:
    engine = make_engine()
    entries = [{"name": "token_probabilities", "top_n": 3, "temperature": 2.5}]
    features = make_features(entries, engine.model)
    prompt = ids_of(engine, "hello")
    sampled = GenerationConfig(max_new_tokens=3, temperature=0.7, top_k=2)
    (steps,), _ = drain(engine, Request(prompt, sampled, signals=features.needs))
    logits = engine.model(torch.tensor([[*prompt, *(s.token_id for s in steps)]])).logits[0]
    expected = (logits / 2.5).softmax(-1).topk(3).values[len(prompt) - 1 : -1]
    stream = features.stream()
    torch.testing.assert_close(torch.cat([stream.push(s) for s in steps]), expected, atol=1e-5, rtol=1e-4)


def test_more_probabilities_than_alternatives_come_from_the_signals() -> None:
    engine = make_engine()
    features = make_features([{"name": "token_probabilities", "top_n": 20}], engine.model)
    (steps,), _ = drain(
        engine, Request(ids_of(engine, "hi"), GenerationConfig(max_new_tokens=2), signals=features.needs)
    )
    row = features.stream().push(steps[0])
    assert row.shape == (1, 20) and 0 < row.sum() <= 1


def test_a_stored_token_without_signals_is_refused() -> None:
    engine = make_engine()
    (steps,), _ = drain(engine, Request(ids_of(engine, "hi"), GenerationConfig(max_new_tokens=1)))
    with pytest.raises(InputError, match="no signals"):
        make_features(attention(), engine.model).stream().push(steps[0])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "os.system"}], "Unknown feature extractor 'system'"),
        ([{"layer_nums": "all"}], "must have a `name`"),
        ([], "at least one entry"),
        ("basic_attention", "must be a list"),
        ([{"name": "basic_attention", "layer_nums": "all"}], "no `attn_history_sz`.*older than this format"),
        (attention(attn_history_sz=0), "whole number from 1"),
        (attention(attn_history_sz="2"), "whole number"),
        (attention(layer_nums=[2]), "names 2, but this model has -2 to 1"),
        (attention(layer_nums="some"), "must be `all`"),
        (attention(head_nums={0: [0], 1: [0, 1]}), "equally many"),
        (attention(head_nums={0: [0]}), "no heads for layer 1"),
        (attention(pool="yes"), "true or false"),
        ([{"name": "token_probabilities"}], "no `top_n`"),
        ([{"name": "token_probabilities", "top_n": 11}], "from 1 to 10"),
        ([{"name": "token_probabilities", "top_n": 2, "temperature": 0}], "above 0"),
        ([{"name": "basic_hidden_states", "layer_nums": [-4]}], "names -4"),
        ([{"name": "token_similarities_adjacent_layers", "top_n": 2, "layer_nums": [0]}], "at least two"),
    ],
)
def test_an_impossible_configuration_is_refused_with_the_reason(entries: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_features(entries, SHAPE)


def test_unknown_settings_are_left_out_with_a_note() -> None:
    features = make_features(attention(some_flag=1), SHAPE)
    assert features.notes == ("basic_attention does not know some_flag: left out",)


def test_heads_cannot_be_chosen_in_the_legacy_layout() -> None:
    with pytest.raises(InputError, match="head_nums"):
        make_features(attention(head_nums=[0]), SHAPE, layout="legacy")


def test_needs_name_just_what_is_read() -> None:
    needs = make_features([*attention(layer_nums=[1]), {"name": "token_probabilities", "top_n": 3}], SHAPE).needs
    assert (needs.attention_lags, needs.attention_layers, needs.top_n) == (2, (1,), 3)
    assert not (needs.hidden_layers or needs.prompt_rows or needs.entropy or needs.input_ids)
    assert make_features(attention(), SHAPE, layout="legacy").needs.attention_lags == 3


def test_rows_of_a_prompt_alone_need_no_answer() -> None:
    features = make_features([{"name": "token_probabilities", "top_n": 2}, {"name": "basic_hidden_states"}], SHAPE)
    stream = features.stream()
    rows = stream.prompt_rows(StepSignals({1: torch.ones(5, 4)}))
    assert rows.shape == (5, 6) and stream.prompt_length == 6 and rows[:, :2].sum() == 0
