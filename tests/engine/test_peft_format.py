"""A folder that PEFT wrote gives PEFT's own logits; what a plain low-rank delta cannot say is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tiny import tiny_model
from uqchat.engine.adapters import AdapterSet
from uqchat.engine.peft_format import read_peft_lora
from uqchat.errors import InputError

IDS = torch.randint(0, 200, (2, 7), generator=torch.Generator().manual_seed(3))


def save_with_peft(folder: Path, kind: str = "llama", **settings: Any) -> torch.Tensor:
    """Write a random LoRA with PEFT; returns the logits of PEFT's model."""
    peft = pytest.importorskip("peft")
    targets = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[kind]
    settings = {"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(tiny_model(kind).model, peft.LoraConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(IDS).logits


def logits_with(folder: Path, kind: str = "llama") -> torch.Tensor:
    model = tiny_model(kind).model
    adapters = AdapterSet(model)
    adapters.add(read_peft_lora(folder, model))
    with torch.inference_mode(), adapters.rows([folder.name] * 2):
        return model(IDS).logits


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("llama", {"target_modules": "all-linear", "init_lora_weights": "orthogonal"}),
        (
            "llama",
            {
                "rank_pattern": {"q_proj": 2, r".*\.1\.self_attn\.v_proj": 3},
                "alpha_pattern": {"layers.0.self_attn.v_proj": 11},
            },
        ),
        ("gpt2", {"fan_in_fan_out": True}),
    ],
)
def test_an_adapter_of_peft_gives_the_logits_of_peft(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    expected = save_with_peft(tmp_path / "mine", kind, **settings)
    torch.testing.assert_close(logits_with(tmp_path / "mine", kind), expected, atol=1e-5, rtol=1e-5)


def test_weights_in_the_older_file_are_read(tmp_path: Path) -> None:
    expected = save_with_peft(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(weights, tmp_path / "adapter_model.bin")
    torch.testing.assert_close(logits_with(tmp_path), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"init_lora_weights": "pissa"}, "'pissa', which trains against changed base weights"),
    ],
)
def test_what_a_low_rank_delta_cannot_say_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    save_with_peft(tmp_path, **settings)
    with pytest.raises(InputError, match=message):
        read_peft_lora(tmp_path, tiny_model().model)


# ---- folders made by hand, without PEFT

LAYER = "model.layers.0.self_attn.q_proj"
KEYS = [f"base_model.model.{LAYER}.lora_{part}.weight" for part in "AB"]


def write_folder(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    if tensors is None:
        tensors = {KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_names_and_scale_come_from_the_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    adapter = read_peft_lora(folder, tiny_model().model)
    assert adapter.name == tmp_path.name and read_peft_lora(folder, tiny_model().model, "x").name == "x"
    assert list(adapter.deltas) == [LAYER] and adapter.deltas[LAYER].scale == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"some_later_variant": {"on": 1}}, "some_later_variant"),
        ({"r": 3}, r"says r = 3, lora_A has shape \(2, 32\)"),
        ({"lora_alpha": None}, "lora_alpha of layer .* is None"),
        ({"rank_pattern": {"q_proj": 5}}, "says r = 5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_peft_lora(write_folder(tmp_path, **settings), tiny_model().model)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors"),
        ({KEYS[0]: torch.ones(2, 32)}, "only lora_A of layer"),
        ({KEYS[0]: torch.ones(2, 31), KEYS[1]: torch.ones(32, 2)}, r"a is \(2, 31\)"),
        ({"other.weight": torch.ones(2)}, "'other.weight'"),
        ({key.replace("layers.0", "layers.7"): torch.ones(2, 2) for key in KEYS}, "no such layer"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_peft_lora(write_folder(tmp_path, tensors), tiny_model().model)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", None, "cannot be read"),
        ("adapter_config.json", b"{broken", "not valid JSON"),
        ("adapter_config.json", b"\xff\xfe", "not valid JSON"),
        ("adapter_config.json", b"[]", "holds a list"),
        ("adapter_model.safetensors", None, "has neither"),
        ("adapter_model.safetensors", b"", "cannot be read"),
        ("adapter_model.safetensors", b"\x08" + b"\0" * 20, "cannot be read"),
    ],
)
def test_missing_and_broken_files_are_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_peft_lora(tmp_path, tiny_model().model)


class Payload:
    """Pickles to a call, as a hostile file would."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this must not run",)


@pytest.mark.parametrize("content", [{"x": Payload()}, ["a list"], {"x": 1}])
def test_an_older_file_with_anything_but_tensors_is_refused(tmp_path: Path, capsys: Any, content: Any) -> None:
    write_folder(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(content, tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="cannot be read|other than named tensors"):
        read_peft_lora(tmp_path, tiny_model().model)
    assert "must not run" not in capsys.readouterr().out
