"""Our own forward says what the model's code says, shares its weights, and steps aside where it does not fit."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.engine.test_decode import drain, generated, greedy, ids_of
from tests.random_adapters import dense, low_rank, merged
from tests.tiny import SCALINGS, tiny_model
from uqchat.engine import fast_forward, fast_weights
from uqchat.engine.adapters import Adapter, AdapterSet, InputScale
from uqchat.engine.capture import Capture
from uqchat.engine.choose_forward import choose_forward
from uqchat.engine.decode import Engine
from uqchat.engine.fast_attention import attend, fold_mask
from uqchat.engine.fast_forward import FastForward
from uqchat.engine.fast_weights import FastWeights
from uqchat.four_bit import Int4Linear, Int4Product
from uqchat.int8 import Int8Product, quantize_linear_layers
from uqchat.types import Signals

FAMILY = ["llama", "multi-head", "llama3", "mistral", "qwen2", "qwen3", "mixed", *SCALINGS]
PROMPTS = [[5, 9, 2, 44, 17, 8, 3, 3, 90, 14, 6], [7, 1, 60]]


def logits_of(forward: FastForward, prompts: list[list[int]] = PROMPTS) -> list[torch.Tensor]:
    """Of every position of every prompt, read together."""
    forward.release()
    with torch.inference_mode():
        return forward.prefill(0, [0] * len(prompts), prompts, [len(prompt) for prompt in prompts])


def expected(model: nn.Module, prompts: list[list[int]] = PROMPTS) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0] for prompt in prompts]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", FAMILY)
def test_logits_equal_those_of_the_models_own_code(kind: str, is_packed: bool) -> None:
    model = tiny_model(kind).model
    for got, want in zip(logits_of(FastForward(model, is_packed)), expected(model), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILY)
def test_it_is_chosen_for_the_family_and_its_greedy_ids_equal_generate(kind: str) -> None:
    loaded = tiny_model(kind)
    engine = Engine(loaded.model, loaded.tokenizer)
    assert engine.forward_note.startswith("Our own forward") and isinstance(engine.forward, FastForward)
    prompts = [ids_of(engine, text) for text in ("hello", "a longer prompt than the window", "b")]
    rows, _ = drain(engine, *(greedy(prompt, 20) for prompt in prompts))
    assert [[s.token_id for s in row] for row in rows] == [generated(engine, p, 20) for p in prompts]


def test_every_way_to_scale_rotary_positions_is_among_the_tiny_models() -> None:
    """ "proportional" is for rotary positions of a part of each head, which no model of the family has."""
    assert {*SCALINGS, "llama3"} == set(ROPE_INIT_FUNCTIONS) - {"proportional"}


@pytest.mark.parametrize("kind", FAMILY)
def test_signals_of_both_forwards_agree(kind: str) -> None:
    """Hidden states of all layers, windows of attention and scores, of a prompt and of what follows it."""
    loaded = tiny_model(kind)
    wanted = Signals(top_n=5, entropy=True, hidden_layers=(0, 1, 2), attention_lags=4, prompt_rows=True)
    rows = []
    for is_fast in (True, False):
        engine = Engine(loaded.model, loaded.tokenizer, choose_forward(loaded.model, is_fast).forward)
        requests = [replace(greedy(ids_of(engine, text), 8), signals=wanted) for text in ("a few words", "b")]
        rows.append(drain(engine, *requests)[0])
    for ours, theirs in zip(*rows, strict=True):
        assert [step.token_id for step in ours] == [step.token_id for step in theirs]
        for own, other in zip(ours, theirs, strict=True):
            assert own.entropy == pytest.approx(other.entropy, abs=1e-5)
            torch.testing.assert_close(own.signals.attention, other.signals.attention, atol=1e-5, rtol=0)
            for layer, states in own.signals.hidden.items():
                torch.testing.assert_close(states, other.signals.hidden[layer], atol=1e-5, rtol=1e-5)
        before, expected_before = ours[0].signals.prompt, theirs[0].signals.prompt
        assert (before is None) == (expected_before is None)
        if before is not None:
            torch.testing.assert_close(before.attention, expected_before.attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "reason"), [("gpt2", "GPT2LMHeadModel is not one of"), ("mamba", "One row at a")])
def test_other_models_run_by_their_own_code_and_the_note_says_why(kind: str, reason: str) -> None:
    choice = choose_forward(tiny_model(kind).model)
    assert not isinstance(choice.forward, FastForward) and reason in choice.note


def test_a_forward_that_differs_is_not_used_and_the_note_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fast_weights.Norm.__call__
    monkeypatch.setattr(fast_weights.Norm, "__call__", lambda self, x: right(self, x) * 1.01)
    choice = choose_forward(tiny_model().model)
    assert not isinstance(choice.forward, FastForward)
    assert "our own differs by" in choice.note and "more than 1e-04" in choice.note


def test_a_forward_that_fails_or_gives_no_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (float("nan"), None):
        monkeypatch.setattr(fast_weights.Norm, "__call__", lambda self, x, value=value: x * value)
        assert choose_forward(tiny_model().model).note.startswith("The model's own forward: ")


# ---- the weights


def test_fused_weights_are_the_models_own_storage() -> None:
    model = tiny_model("llama3").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = expected(model)
    weights = FastForward(model, is_packed=False).weights
    block, layer = weights.blocks[0], model.model.layers[0]
    for projection, first in ((block.qkv, layer.self_attn.q_proj), (block.gate_up, layer.mlp.gate_proj)):
        assert projection.product.weight.data_ptr() == first.weight.data_ptr()
        assert projection.product.weight.nbytes == sum(part.weight.nbytes for part in projection.layers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(expected(model), logits, strict=True))
    assert (
        FastForward(model, is_packed=False).weights.blocks[0].qkv.product.weight.data_ptr()
        == block.qkv.product.weight.data_ptr()
    )


def test_the_model_can_still_be_saved_copied_and_trained(tmp_path: Path) -> None:
    model = tiny_model("qwen2").model
    FastForward(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for other in (again, copy.deepcopy(model)):
        for got, want in zip(expected(other), expected(model), strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    model.requires_grad_(True)
    model(torch.tensor(PROMPTS[:1])).logits.sum().backward()
    assert all(layer.self_attn.k_proj.weight.grad is not None for layer in model.model.layers)


@pytest.mark.parametrize("is_packed", [False, True])
def test_changed_and_moved_weights_are_followed(is_packed: bool) -> None:
    model = tiny_model().model
    forward = FastForward(model, is_packed)
    first = logits_of(forward)[0]
    layer = model.model.layers[0]
    layer.self_attn.k_proj.weight.mul_(1.5)
    layer.input_layernorm.weight.mul_(0.7)
    layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data * 1.2
    second = logits_of(forward)[0]
    assert not torch.allclose(first, second, atol=1e-2)
    torch.testing.assert_close(second, expected(model)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "llama3", "qwen3"])
def test_int8_layers_are_fused_and_say_what_they_say_alone(kind: str, is_packed: bool) -> None:
    model = tiny_model(kind).model
    quantize_linear_layers(model)
    want = expected(model)
    rounding = {"atol": 0.1, "rtol": 0.05}  # few rows are rounded to bfloat16, fewer where a packed copy is at hand
    forward = FastForward(model, is_packed)
    assert all(isinstance(projection.product, Int8Product) for projection in forward.weights.projections)
    attention = model.model.layers[0].self_attn
    assert forward.weights.blocks[0].qkv.product.weight.data_ptr() == attention.q_proj.weight_int8.data_ptr()
    for got, alone, behind in zip(logits_of(forward), want, expected(model), strict=True):
        torch.testing.assert_close(got, alone, **rounding)
        torch.testing.assert_close(behind, alone, atol=1e-5, rtol=1e-5)
    attention.v_proj.scale.mul_(1.5)
    assert not torch.allclose(logits_of(forward)[0], want[0], **rounding)
    torch.testing.assert_close(logits_of(forward)[0], expected(model)[0], **rounding)
    assert choose_forward(model).note.startswith("Our own forward")


def put_on_grid(model: nn.Module) -> None:
    """Round every block's weights to 16 levels, as reading a GGUF file's Q4_1 leaves them."""
    for layer in model.modules():
        if type(layer) is nn.Linear and layer is not model.lm_head:
            blocks = layer.weight.view(len(layer.weight), -1, 32)
            low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
            step = (high - low) / 15
            layer.weight.copy_((((blocks - low) / step).round() * step + low).view_as(layer.weight))


@pytest.mark.parametrize("kind", ["llama", "llama3"])
def test_weights_on_a_grid_of_16_values_are_multiplied_in_4_bits(kind: str) -> None:
    """In float32 a model says the same to the rounding of sums; in bfloat16 it differs no more than the rounding."""
    model = tiny_model(kind).model
    put_on_grid(model)
    want = expected(model)
    rounded = copy.deepcopy(model).bfloat16()
    usual = expected(copy.deepcopy(rounded))
    is_packed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    forward = FastForward(rounded, is_packed)
    forward.weights = FastWeights(rounded, is_packed, has_grid=True)
    products = [projection.product for projection in forward.weights.projections]
    assert all(isinstance(product, Int4Product) for product in products[:-1])
    assert not isinstance(products[-1], Int4Product)
    for product in products[:-1]:
        product.few = 100
    for got, other, exact in zip(logits_of(forward), usual, want, strict=True):
        ours, its_own = (got.float() - exact).square().mean(), (other.float() - exact).square().mean()
        assert ours < 4 * its_own
    assert not any(isinstance(p.product, Int4Product) for p in FastForward(model, True).weights.projections)


def test_with_little_memory_to_spare_only_the_4_bits_are_kept_and_changed_weights_leave_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model().model
    put_on_grid(model)
    model.bfloat16()
    monkeypatch.setattr(fast_forward, "can_copy", lambda model, bytes_each: bytes_each < 1)
    forward = FastForward(model)
    down = forward.weights.blocks[0].down
    assert not forward.is_packed and isinstance(down.product, Int4Product)
    model.model.layers[0].mlp.down_proj.weight.copy_(torch.randn(32, 64))
    got, want = logits_of(forward)[0], expected(model)[0]
    assert not isinstance(down.product, Int4Product)
    torch.testing.assert_close(got.float(), want.float(), atol=0.5, rtol=0.1)


@pytest.mark.parametrize("is_packed", [False, True])
def test_int8_keeps_a_grid_of_16_values(is_packed: bool) -> None:
    model = wide_model()
    put_on_grid(model)
    want = expected(model)
    quantize_linear_layers(model)
    assert type(model.model.layers[0].mlp.up_proj) is Int4Linear
    forward = FastForward(model, is_packed)
    assert all(isinstance(p.product, Int4Product) for p in forward.weights.projections[:-1])
    for got, alone, exact in zip(logits_of(forward), expected(model), want, strict=True):
        torch.testing.assert_close(got, alone, atol=0.05, rtol=0.05)
        torch.testing.assert_close(got, exact, atol=0.1, rtol=0.1)  # only the output layer's weight has been rounded


def wide_model() -> nn.Module:
    """Heights of all layers are multiples of 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_layers_of_an_unknown_class_are_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model = tiny_model("qwen2").model
    for block in model.model.layers:
        block.mlp.up_proj.__class__ = Doubled
    forward = FastForward(model)
    assert not forward.weights.blocks[0].gate_up.fused and forward.weights.blocks[0].qkv.fused
    for got, want in zip(logits_of(forward), expected(model), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# ---- adapters


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["qv", None, "all", "dense"],
        ["qv"],
        ["dense", "mix"],
        ["k", "qv", "qv", "up"],
        [None, "dense", "dense 2", "dense 3"],
        ["dense 2", "qv", "dense", None, "dense 3"],
        ["dense", "dense 2", "dense"],
    ],
)
def test_rows_equal_merged_weights_in_fused_products(names: list[str | None], is_packed: bool) -> None:
    """Low-rank and dense changes of one, some or all of the layers behind a product, side by side."""
    model = tiny_model("qwen2").model
    known = [
        low_rank(model, "qv", 3, ("q_proj", "v_proj"), 0.2),
        low_rank(model, "k", 2, ("k_proj",), 0.2),
        low_rank(model, "up", 4, ("up_proj", "layers.1.mlp.gate_proj"), 0.2),
        low_rank(model, "all", 5, ("_proj", "lm_head"), 0.1),
        dense(model, "dense", ("v_proj", "down_proj", "gate_proj"), 0.1),
    ]
    known += [dense(model, f"dense {i}", ("v_proj", "down_proj", "gate_proj"), 0.1 * i) for i in (2, 3)]
    mix = Adapter("mix", known[0].deltas | dense(model, "", ("k_proj", "up_proj"), 0.1).deltas)
    adapters = AdapterSet(model)
    for adapter in (*known, mix):
        adapters.add(adapter)
    by_name = {adapter.name: adapter for adapter in (*known, mix)}
    forward = FastForward(model, is_packed)
    prompts = [PROMPTS[0][: 11 - i] for i in range(len(names))]
    lengths = [len(prompt) for prompt in prompts]
    with torch.inference_mode(), forward.adapted(adapters, names):
        read = forward.prefill(0, [0] * len(prompts), prompts, lengths)
        step = forward.decode(lengths, torch.tensor([9] * len(prompts)))
    for row, name in enumerate(names):
        whole = merged(model, by_name.get(name))(torch.tensor([[*prompts[row], 9]])).logits[0]
        torch.testing.assert_close(torch.cat([read[row], step[row : row + 1]]), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(forward)[0], expected(model)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "leaders"),
    [
        ([None, "late", "late 2", "late"], [0, 0, 0, 0]),
        ([None, "late", "early", "head", "late 2"], [0, 0, 0, 0, 0]),
        (["early", "late", None, "late 2", "dense"], [0, 0, 2, 2, 2]),  # an answer with an adapter of its own
        (["late", None, "late 2", None, "head", None], [0, 1, 1, 3, 3, 5]),  # one plain and one late row between
        ([None, "late", None, "late 2", None, "late"], [0, 0, 2, 2, 4, 4]),  # evenly spaced answers
        ([None, None], [0, 1]),
        ([None, None, "scaled"], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("kind", ["qwen2", "mixed"])
def test_voters_enter_where_they_differ_and_equal_merged_weights(
    kind: str, names: list[str | None], leaders: list[int]
) -> None:
    """Four blocks; each answer has its own length, and its voters are given its ids; signals are those of answers."""
    model = deep_model(kind)
    known = [
        low_rank(model, "early", 3, ("layers.0.self_attn.q_proj", "layers.2.self_attn.v_proj"), 0.2),
        low_rank(model, "late", 2, ("layers.2.self_attn.k_proj", "layers.3.mlp.down_proj"), 0.2),
        low_rank(model, "late 2", 4, ("layers.3.self_attn.v_proj",), 0.3),
        low_rank(model, "head", 2, ("lm_head",), 0.2),
        dense(model, "dense", ("layers.1.mlp.up_proj",), 0.1),
        Adapter("scaled", {"model.layers.1.self_attn.o_proj": InputScale(torch.rand(32) + 0.5)}),
    ]
    adapters = AdapterSet(model)
    for adapter in known:
        adapters.add(adapter)
    by_name = {adapter.name: adapter for adapter in known}
    forward = FastForward(model)
    answers = sorted(set(leaders))
    prompts = [PROMPTS[0][: 11 - 2 * leader] or [3] for leader in leaders]
    lengths = [len(prompt) for prompt in prompts]
    wanted = Signals(hidden_layers=(0, 2, 3, 4), attention_lags=3)
    captures = [Capture(wanted, max(lengths)), Capture(wanted, 1)]
    forward.prefill(0, [0] * len(prompts), [[1] * 12] * len(prompts), lengths)  # what lies there before is not read
    with torch.inference_mode(), forward.adapted(adapters, names, leaders):
        read = forward.prefill(0, [0] * len(prompts), prompts, lengths, captures[0])
        step = forward.decode(lengths, torch.tensor([9] * len(prompts)), captures[1])
    for row, name in enumerate(names):
        whole = merged(model, by_name.get(name))(torch.tensor([[*prompts[row], 9]])).logits[0]
        torch.testing.assert_close(torch.cat([read[row], step[row : row + 1]]), whole, atol=1e-4, rtol=1e-4)
    for row in answers:  # alone, in a forward of its own
        alone, single = FastForward(model), [Capture(wanted, lengths[row]), Capture(wanted, 1)]
        with torch.inference_mode(), alone.adapted(adapters, [names[row]]):
            alone.prefill(0, [0], [prompts[row]], [lengths[row]], single[0])
            alone.decode([lengths[row]], torch.tensor([9]), single[1])
        for many, one, at in zip(captures, single, (lengths[row] - max(lengths) - 1, -1), strict=True):
            got, want = many.at(row, at, wanted), one.at(0, -1, wanted)
            torch.testing.assert_close(got.attention, want.attention, atol=1e-5, rtol=0)
            for layer in wanted.hidden_layers:
                torch.testing.assert_close(got.hidden[layer], want.hidden[layer], atol=1e-4, rtol=1e-4)


def deep_model(kind: str) -> nn.Module:
    """`tiny_model` with four blocks."""
    config = copy.deepcopy(tiny_model(kind).model.config)
    config.num_hidden_layers = 4
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types * 2
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name and parameter.dim() > 1:
            parameter.mul_(4)
    return model


# ---- attention


@pytest.mark.parametrize("batch", [1, 2])
def test_a_few_half_precision_queries_get_the_attention_of_a_plain_masked_softmax(batch: int) -> None:
    """Five queries behind 40 keys, two heads to a key head; the second row is four keys shorter."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch, *shape, generator=generator).bfloat16() for shape in ((5, 4, 8), (2, 45, 8), (2, 45, 8))
    )
    last = torch.tensor([44, 40])[:batch, None] - torch.arange(4, -1, -1)  # (B, 5) the key that each query is
    allowed = (torch.arange(45) <= last[..., None])[:, None]  # (B, 1, 5, 45)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf).bfloat16()
    out, lse = attend(query, key, value, fold_mask(mask, 2), 0.4, needs_lse=False)
    keys, values = (states.float().repeat_interleave(2, dim=1) for states in (key, value))
    scores = query.float().transpose(1, 2) @ keys.mT * 0.4
    want = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ values
    assert lse is None
    torch.testing.assert_close(out.float(), want.transpose(1, 2).flatten(2), atol=0.03, rtol=0.03)
