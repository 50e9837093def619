"""Reads a LoRA adapter that the PEFT library saved, without needing PEFT. Refuses what it could only half express."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from uqchat.engine.adapters import Adapter, LowRank, check_adapter
from uqchat.errors import InputError

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
# Settings that choose layers, describe training or are read below. Any other that is switched on changes the formula.
# `fan_in_fan_out` is about how the base stores its weight; a and b are stored alike for every layer.
UNDERSTOOD = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias eva_config exclude_modules fan_in_fan_out inference_mode "
    "init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core peft_type peft_version "
    "qalora_group_size r rank_pattern revision runtime_config target_modules task_type use_rslora".split()
)
# What the released calibration-tuning adapters say beyond that: another class of the same LoRA, and the embeddings that
# PEFT saved because a padding token had been added. Nothing attends to that token, so they change no score.
CALIBRATED = "CALIBRATED_LORA"
CALIBRATED_KEYS = frozenset(("query_format", "use_temperature", "modules_to_save"))
# Starting points that leave the base weights alone; the others (pissa, olora, loftq...) need a changed base.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def read_peft_lora(
    folder: str | Path, model: PreTrainedModel, name: str | None = None, *, is_calibrated: bool = False
) -> Adapter:
    """Read `adapter_config.json` and `adapter_model.safetensors` (or `.bin`, weights only) as an adapter of `model`.

    Args:
        folder: what `PeftModel.save_pretrained` wrote.
        model: the base; layers and sizes are checked against it.
        name: the adapter's name, by default the folder's.
        is_calibrated: a released calibration-tuning adapter, in either spelling: of its tensors only those of the LoRA
            are read, its copy of the embeddings is not.

    Raises:
        InputError: a file is missing or broken, the adapter is not a plain LoRA, or it does not fit the model.

    Source: scale is lora_alpha / r (LoRA, Hu et al. 2022, section 4.1) or, with `use_rslora`, lora_alpha / sqrt(r)
    (Kalajdzievski 2023, "A rank stabilization scaling factor", equation 4).
    """
    folder = Path(folder)
    config = _read_config(folder)
    if is_calibrated:
        config = {key: value for key, value in config.items() if key not in CALIBRATED_KEYS}
        if config.get("peft_type") == CALIBRATED:
            config["peft_type"] = "LORA"
    weights = _read_weights(folder, "lora_" if is_calibrated else "")
    return lora_of(config, weights, model, name or folder.resolve().name, folder)


def lora_of(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], model: PreTrainedModel, name: str, folder: Path
) -> Adapter:
    """An adapter from PEFT's settings and tensors, wherever they were read. `folder` is for messages.

    Raises:
        InputError: it is not a plain LoRA, or it does not fit the model.
    """
    _refuse(folder, config)
    deltas = {layer: _delta(folder, config, layer, pair) for layer, pair in _pair(folder, weights).items()}
    adapter = Adapter(name, deltas)
    check_adapter(adapter, model)
    return adapter


def peft_of(adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's settings and tensors of an adapter of low rank: what `lora_of` reads, and PEFT itself.

    Raises:
        InputError: it changes a layer by a whole matrix.
    """
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for layer, delta in adapter.deltas.items():
        if not isinstance(delta, LowRank):
            raise InputError(f"Adapter {adapter.name!r} changes {layer!r} by a whole matrix; PEFT keeps low rank only.")
        tensors[f"base_model.model.{layer}.lora_A.weight"] = delta.a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = delta.b
        ranks[layer], alphas[layer] = len(delta.a), delta.scale * len(delta.a)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(adapter.deltas)}
    if set(ranks.values()) != {rank} or set(alphas.values()) != {alpha}:
        settings["rank_pattern"] = {re.escape(layer): rank for layer, rank in ranks.items()}
        settings["alpha_pattern"] = {re.escape(layer): alpha for layer, alpha in alphas.items()}
    return {"peft_type": "LORA", "task_type": "CAUSAL_LM", **settings}, tensors


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. A PEFT adapter's folder has it.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a {type(config).__name__}; an object with the adapter's settings is needed.")
    return config


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise an InputError for everything that `scale * b @ a` does not say."""
    reasons = [f"{key} = {value!r}" for key, value in config.items() if key not in UNDERSTOOD and value]
    if config.get("peft_type") != "LORA":
        reasons = [f"peft_type = {config.get('peft_type')!r}"]
    if config.get("bias", "none") != "none":
        reasons.append(f"bias = {config['bias']!r}")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        reasons.append(f"init_lora_weights = {start!r}, which trains against changed base weights")
    if reasons:
        raise InputError(
            f"The adapter in {folder} cannot be used: {'; '.join(reasons)}. "
            "Only plain LoRA on linear layers, without biases or other saved modules, can be added to single rows."
        )


def _read_weights(folder: Path, part: str) -> Mapping[str, Tensor]:
    """The tensors whose names hold `part`; of a safetensors file no others are read."""
    path, old = folder / WEIGHTS, folder / OLD_WEIGHTS
    if not path.is_file() and not old.is_file():
        raise InputError(f"{folder} has neither {WEIGHTS} nor {OLD_WEIGHTS}.")
    try:
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys() if part in key}
        found = torch.load(old, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"The adapter's weights in {folder} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{old} holds something other than named tensors.")
    return {key: value for key, value in found.items() if part in str(key)}


def _pair(folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer -> {"A": (r, in), "B": (out, r)}."""
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        match = KEY.fullmatch(str(key))
        if match is None:
            raise InputError(
                f"The adapter in {folder} holds a tensor {key!r}; only lora_A and lora_B of linear layers are allowed."
            )
        factors.setdefault(match["layer"], {})[match["part"]] = tensor
    if not factors:
        raise InputError(f"The adapter in {folder} holds no tensors.")
    for layer, pair in factors.items():
        if len(pair) < 2:
            raise InputError(f"The adapter in {folder} has only lora_{next(iter(pair))} of layer {layer!r}.")
    return factors


def _delta(folder: Path, config: Mapping[str, Any], layer: str, pair: Mapping[str, Tensor]) -> LowRank:
    rank = _setting(folder, config, layer, "rank_pattern", "r")
    alpha = _setting(folder, config, layer, "alpha_pattern", "lora_alpha")
    if rank != pair["A"].shape[0]:
        raise InputError(
            f"The adapter in {folder}, layer {layer!r}: {CONFIG} says r = {rank}, "
            f"lora_A has shape {tuple(pair['A'].shape)}."
        )
    return LowRank(pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _setting(folder: Path, config: Mapping[str, Any], layer: str, patterns: str, default: str) -> float:
    """The layer's own value when a pattern names it, as PEFT matches: the end of the name, a regular expression."""
    chosen = config.get(default)
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            chosen = value
            break
    if not isinstance(chosen, int | float) or isinstance(chosen, bool) or chosen <= 0:
        raise InputError(f"The adapter in {folder}: {default} of layer {layer!r} is {chosen!r}; a number is needed.")
    return chosen
