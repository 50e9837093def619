"""A LoRA in training gives what the engine's adapter gives; a forward that starts late gives a whole one's logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.random_adapters import merged
from tests.tiny import tiny_model
from tests.tiny_models import make_tiny_llama
from trainers.lora import LoraConfig, LoraModel, can_start_at, pad_left, run_from, states_at
from uqchat.errors import InputError
from uqchat.models import load_model

ROWS = [torch.randint(0, 200, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 14, 5)]
TARGETS = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn", "c_proj"), "neox": ("query_key_value",)}


def filled(model: object, config: LoraConfig) -> LoraModel:
    """With a change that is not zero."""
    module = LoraModel(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for b in module.b:
        b.data = torch.randn(b.shape, generator=generator) * 0.1
    return module


@pytest.mark.parametrize("kind", TARGETS)
def test_the_change_gives_the_logits_of_merged_weights_in_a_padded_batch(kind: str) -> None:
    model = tiny_model(kind).model
    module = filled(model, LoraConfig(TARGETS[kind], rank=3, alpha=2.0))
    reference = merged(tiny_model(kind).model, module.adapter("x"))
    ids, mask = pad_left(ROWS)
    with torch.no_grad():
        changed = module(ids, mask, torch.tensor([13]))[:, 0]
        plain = module(ids, mask, torch.tensor([13]), is_changed=False)[:, 0]
        for i, row in enumerate(ROWS):
            torch.testing.assert_close(changed[i], reference(row[None]).logits[0, -1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(plain[i], tiny_model(kind).model(row[None]).logits[0, -1], atol=1e-4, rtol=1e-4)
    module.remove()
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_and_dropout_are_those_of_peft() -> None:
    """One step of both from the same start; PEFT's dropout draws the same numbers in the same order."""
    peft = pytest.importorskip("peft")
    module = filled(tiny_model().model, LoraConfig(rank=4, alpha=6.0, dropout=0.3)).train()
    settings = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
    theirs = peft.get_peft_model(tiny_model().model, settings).train()
    named = dict(theirs.named_parameters())
    pairs = [
        (ours, named[f"base_model.model.{layer}.lora_{part}.default.weight"])
        for layer, *factors in zip(module.layers, module.a, module.b, strict=True)
        for part, ours in zip("AB", factors, strict=True)
    ]
    for ours, other in pairs:
        other.data = ours.data.clone()
    ids, mask = pad_left(ROWS[:1])
    for logits in (lambda: module(ids, mask, torch.tensor([8])), lambda: theirs(ids).logits[:, -1:]):
        torch.manual_seed(3)
        torch.nn.functional.log_softmax(logits().float(), -1)[0, 0, 5].backward()
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("kind", "is_same"), [("llama", True), ("gpt2", False), ("neox", True)])
def test_a_late_start_is_used_only_where_it_gives_the_same_logits(kind: str, is_same: bool) -> None:
    """GPT-2 adds its positions to whatever embeddings it is given."""
    model = tiny_model(kind).model
    assert can_start_at(model, 1) is is_same
    assert not can_start_at(model, 0)  # nothing would be skipped
    assert not can_start_at(model, 2)  # it has two blocks
    ids, mask = pad_left(ROWS)
    whole = run_from(model, 0, ids, mask, torch.tensor([12, 13]))
    late = run_from(model, 1, states_at(model, 1, ids, mask), mask, torch.tensor([12, 13]))
    assert torch.allclose(whole, late, atol=1e-4) is is_same


def test_blocks_before_the_first_are_left_alone() -> None:
    module = LoraModel(tiny_model().model, LoraConfig(first_layer=1))
    assert module.layers == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_layers_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"No linear layer named wq from block 0 on .*down_proj, .*q_proj"):
        LoraModel(tiny_model().model, LoraConfig(("wq",)))
    with pytest.raises(InputError, match="from block 7 on"):
        LoraModel(tiny_model().model, LoraConfig(first_layer=7))
    with pytest.raises(InputError, match="rank = 0 is not allowed"):
        LoraConfig(rank=0)


def test_a_4_bit_base_gives_gradients_to_every_layer(tmp_path: Path) -> None:
    """QLoRA: the base in NF4, loaded as any model is; on a CPU too, where its fast kernel would give none."""
    pytest.importorskip("bitsandbytes")
    folder = make_tiny_llama(tmp_path, hidden_size=64)
    base = load_model(str(folder), "cpu", "float32", "bnb-4bit").model
    module = LoraModel(base, LoraConfig(rank=2))
    ids, mask = pad_left([row.remainder(200) for row in ROWS])
    before = module(ids, mask, torch.tensor([13]))
    before[:, 0, 5].sum().backward()
    assert all(b.grad.abs().max() > 0 for b in module.b)
    for b in module.b:
        b.data -= 10 * b.grad
    assert (module(ids, mask, torch.tensor([13]))[:, 0, 5] < before[:, 0, 5]).all()
