"""Adapters change single rows of a batch by exactly what merged weights would, and leave the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.random_adapters import change_of, count_hooks, dense, low_rank, merged
from tests.tiny import tiny_model
from uqchat.engine.adapters import Adapter, AdapterSet, Dense, LowRank
from uqchat.errors import InputError
from uqchat.language_model import LanguageModel

LAYERS = {"llama": ("q_proj", "v_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_fc")}
MIXED = [None, "rank3", "dense", None, "rank5", "rank3"]


def some_ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, 200, (rows, length), generator=torch.Generator().manual_seed(7))


def adapters_of(model: nn.Module, kind: str) -> list[Adapter]:
    """Three ranks and kinds that do not change the same layers."""
    ends = LAYERS[kind]
    return [low_rank(model, "rank3", 3, ends), low_rank(model, "rank5", 5, ends[:1]), dense(model, "dense", ends[-2:])]


@pytest.fixture
def llama() -> nn.Module:
    return tiny_model("llama").model


# ---- the numbers


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "names",
    [
        MIXED,
        ["rank3"],
        ["dense"],
        [None, "rank3", "rank5"],
        ["rank5", "rank3", None],
        ["dense", None, "dense"],
        ["rank3", "rank3"],
        [None, "rank3", "rank3", "rank5", "rank5"],
    ],
)
def test_rows_equal_separate_models_with_merged_weights(kind: str, length: int, names: list[str | None]) -> None:
    model = tiny_model(kind).model
    known = {adapter.name: adapter for adapter in adapters_of(model, kind)}
    adapters = AdapterSet(model)
    for adapter in known.values():
        adapters.add(adapter)
    ids = some_ids(len(names), length)
    with torch.inference_mode(), adapters.rows(names):
        logits = model(ids).logits
    for row, name in enumerate(names):
        expected = merged(model, known.get(name))(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)


def test_low_rank_delta_by_hand() -> None:
    """x = (1, 2); a = (3, 1) gives 5; b = (2, -1) gives (10, -5); scale 0.5 gives (5, -2.5), added to the output."""
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.eye(2))
    model = nn.Sequential(layer)
    model.device, model.dtype = torch.device("cpu"), torch.float32
    adapters = AdapterSet(model)
    adapters.add(Adapter("hand", {"0": LowRank(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0], [-1.0]]), 0.5)}))
    x = torch.tensor([1.0, 2.0]).expand(2, 1, 2)
    with adapters.rows([None, "hand"]):
        y = model(x)
    torch.testing.assert_close(y, torch.tensor([[[1.0, 2.0]], [[6.0, -0.5]]]))


def test_a_row_without_an_adapter_is_bit_for_bit_the_plain_model(llama: nn.Module) -> None:
    adapters = AdapterSet(llama)
    adapters.add(low_rank(llama, "rank3", 3, LAYERS["llama"]))
    ids = some_ids(3, 5)
    plain = llama(ids).logits
    with adapters.rows(["rank3", None, "rank3"]):
        assert torch.equal(llama(ids).logits[1], plain[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_keep_their_dtype_and_follow_float32(llama: nn.Module, dtype: torch.dtype) -> None:
    known = adapters_of(llama, "llama")
    ids, names = some_ids(4, 6), [None, "rank3", "dense", "rank5"]
    results = []
    for model in (llama, copy.deepcopy(llama).to(dtype)):
        adapters = AdapterSet(model)
        for adapter in known:
            adapters.add(
                Adapter(adapter.name, {key: value for key, value in adapter.deltas.items() if "mlp" not in key})
            )
        layer = model.model.layers[0].self_attn.q_proj
        with torch.inference_mode(), adapters.rows(names):
            results.append(layer(torch.ones(4, 6, 32, dtype=model.dtype)))
            assert model(ids).logits.dtype == model.dtype
    assert results[1].dtype == dtype
    torch.testing.assert_close(results[1].float(), results[0], atol=0.05, rtol=0.03)


def test_gradients_reach_a_trainable_base(llama: nn.Module) -> None:
    adapters = AdapterSet(llama)
    adapters.add(low_rank(llama, "rank3", 3, LAYERS["llama"]))
    llama.requires_grad_(True)
    with adapters.rows(["rank3"]):
        llama(some_ids(1, 4)).logits.sum().backward()
    assert llama.model.layers[0].self_attn.q_proj.weight.grad is not None


# ---- quantised bases


def quantised_dynamically(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def quantised_to_int8_weights(model: nn.Module) -> nn.Module:
    from uqchat.int8 import quantize_linear_layers

    model = copy.deepcopy(model)
    quantize_linear_layers(model)
    return model


def quantised_by_bitsandbytes(model: nn.Module) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(model)
    for block in model.model.layers:
        old = block.self_attn.q_proj
        new = bnb.nn.Linear4bit(32, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        new.load_state_dict({"weight": old.weight})
        block.self_attn.q_proj = new.to("cpu")
    return model


@pytest.mark.parametrize(
    "quantise", [quantised_dynamically, quantised_to_int8_weights, quantised_by_bitsandbytes], ids=lambda f: f.__name__
)
def test_a_quantised_layer_gives_its_own_output_plus_the_delta(llama: nn.Module, quantise: Any) -> None:
    model = quantise(llama)
    adapters = AdapterSet(model)
    known = [low_rank(model, "rank3", 3, ("q_proj",)), dense(model, "dense", ("q_proj",))]
    for adapter in known:
        adapters.add(adapter)
    layer, x = model.model.layers[1].self_attn.q_proj, torch.randn(3, 5, 32)
    assert not isinstance(getattr(layer, "weight", None), nn.Parameter) or layer.weight.dtype == torch.uint8
    base = layer(x)
    with torch.inference_mode(), adapters.rows([None, "rank3", "dense"]):
        changed = layer(x)
        assert model(some_ids(3, 4)).logits.isfinite().all()
    torch.testing.assert_close(changed[0], base[0], atol=1e-5, rtol=1e-5)
    for row, adapter in enumerate(known, start=1):
        expected = base[row] + x[row] @ change_of(adapter.deltas["model.layers.1.self_attn.q_proj"]).T
        torch.testing.assert_close(changed[row], expected, atol=1e-4, rtol=1e-4)


# ---- hooks and bookkeeping


def test_rows_that_are_all_plain_install_nothing(llama: nn.Module) -> None:
    adapters = AdapterSet(llama)
    adapters.add(low_rank(llama, "rank3", 3, LAYERS["llama"]))
    with adapters.rows([None, None]):
        assert count_hooks(llama) == 0
    with adapters.rows([None, "rank3"]):
        assert count_hooks(llama) == 6  # three layers in each of two blocks


def test_the_model_is_as_before_after_the_forward_and_after_an_exception(llama: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    ids = some_ids(2, 4)
    plain = llama(ids).logits
    adapters = AdapterSet(llama)
    adapters.add(low_rank(llama, "rank3", 3, LAYERS["llama"]))
    with pytest.raises(RuntimeError, match="stop"), adapters.rows(["rank3", None]):
        llama(ids)
        raise RuntimeError("stop")
    assert count_hooks(llama) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert torch.equal(llama(ids).logits, plain)


def test_adapters_can_be_removed_and_replaced(llama: nn.Module) -> None:
    """The stacked tensors of an earlier set of rows must not outlive the adapter that they came from."""
    adapters, ids = AdapterSet(llama), some_ids(1, 4)
    outputs = []
    for rank in (3, 5):
        adapters.add(low_rank(llama, "one", rank, LAYERS["llama"]))
        with adapters.rows(["one"]):
            outputs.append(llama(ids).logits)
        assert "one" in adapters and adapters.names == ("one",)
        adapters.remove("one")
        assert "one" not in adapters and adapters.names == ()
    assert not torch.allclose(outputs[0], outputs[1])


def test_unknown_and_repeated_names_are_refused_with_the_known_ones(llama: nn.Module) -> None:
    adapters = AdapterSet(llama)
    adapters.add(low_rank(llama, "first", 3, LAYERS["llama"]))
    with pytest.raises(InputError, match="'first' already"):
        adapters.add(low_rank(llama, "first", 3, LAYERS["llama"]))
    with pytest.raises(InputError, match="no adapter 'second'; there are: first"):
        adapters.remove("second")
    with pytest.raises(InputError, match="no adapter 'second'"), adapters.rows(["second"]):
        pass


@pytest.mark.parametrize(
    ("layer", "delta", "message"),
    [
        ("model.layers.9.q", Dense(torch.zeros(1, 1)), r"no such layer.*'model\.layers\.0\.self_attn\.q_proj'"),
        ("model.embed_tokens", Dense(torch.zeros(1, 1)), "Embedding; only linear layers"),
        ("lm_head", Dense(torch.zeros(3, 32)), r"'lm_head': the weight is \(3, 32\), the layer takes \(\d+, 32\)"),
        (
            "model.layers.0.mlp.up_proj",
            LowRank(torch.zeros(2, 31), torch.zeros(64, 2)),
            r"a is \(2, 31\).*\(r, 32\) and \(64, r\)",
        ),
        ("model.layers.0.mlp.up_proj", LowRank(torch.zeros(2, 32), torch.zeros(64, 3)), r"b is \(64, 3\)"),
        ("model.layers.0.mlp.up_proj", LowRank(torch.zeros(0, 32), torch.zeros(64, 0)), "r at least 1"),
        ("model.layers.0.mlp.up_proj", Dense(torch.zeros(64, 32, dtype=torch.int8)), "int8; floating point"),
    ],
)
def test_a_misfit_names_the_layer_both_shapes_and_what_is_allowed(
    llama: nn.Module, layer: str, delta: LowRank | Dense, message: str
) -> None:
    adapters = AdapterSet(llama)
    with pytest.raises(InputError, match=message):
        adapters.add(Adapter("bad", {layer: delta}))
    assert adapters.names == ()


def test_a_batch_with_another_number_of_rows_is_refused(llama: nn.Module) -> None:
    adapters = AdapterSet(llama)
    adapters.add(low_rank(llama, "rank3", 3, LAYERS["llama"]))
    with pytest.raises(InputError, match=r"\(3, 4, 32\).*2 rows"), adapters.rows(["rank3", None]):
        llama(some_ids(3, 4))
    assert count_hooks(llama) == 0


@pytest.mark.model
def test_rows_of_the_embedded_model_equal_merged_weights(embedded: LanguageModel) -> None:
    model, ends = embedded.model, ("q_proj", "v_proj")
    known = {a.name: a for a in (low_rank(model, "low", 8, ends, 0.02), dense(model, "dense", ends, 0.003))}
    adapters = AdapterSet(model)
    for adapter in known.values():
        adapters.add(adapter)
    ids = torch.tensor([embedded.tokenizer("The capital of France is").input_ids] * 3)
    names = ["dense", None, "low"]
    with torch.inference_mode(), adapters.rows(names):
        logits = model(ids).logits
    with torch.inference_mode():
        for row, name in enumerate(names):
            expected = merged(model, known.get(name))(ids[:1]).logits[0]
            torch.testing.assert_close(logits[row], expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(logits[0], logits[1], atol=0.1)
