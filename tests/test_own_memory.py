"""Weights move into memory of their own: same values, ties kept, and what is fused later lies in a row already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tiny import tiny_model
from uqchat.engine.fast_weights import fuse
from uqchat.own_memory import own_memory


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_values_and_ties_stay(kind: str) -> None:
    model = tiny_model(kind).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    own_memory(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == is_tied


def test_nothing_is_moved_when_layers_are_fused() -> None:
    model = tiny_model("qwen2").model
    own_memory(model)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    for layers in ([attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]):
        for name in ("weight", "bias") if layers[0].bias is not None else ("weight",):
            tensors = [getattr(layer, name) for layer in layers]
            fused = fuse(tensors)
            assert fused.data_ptr() == tensors[0].data_ptr()
            assert torch.equal(fused, torch.cat([t.detach() for t in tensors]))


def test_a_file_that_changes_does_not_reach_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(4, 8)}, path)
    linear = nn.Linear(8, 4, bias=False)
    linear.weight.data = load_file(path)["weight"]  # a view of the file
    is_view_of = linear.weight.untyped_storage().data_ptr()
    own_memory(linear)
    assert linear.weight.untyped_storage().data_ptr() != is_view_of
    assert torch.equal(linear.weight, torch.ones(4, 8))
