"""Heads in uqchat's own format: `config.json`, `model.safetensors` and a card. Knows no language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from uqchat.features import HIDDEN_INDEXES, LAYOUTS
from uqchat.heads.assemble import HeadError, UncertaintyHead
from uqchat.heads.config import HeadConfig, HeadInfo

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT, VERSION = "uqchat-head", 1
KNOWN = {"format", "version", "head_type", "extractors", "options", "layout", "hidden_index", "info"}


def write_own(head: UncertaintyHead, folder: Path) -> None:
    """Write a head with where it comes from, and a card for people."""
    folder.mkdir(parents=True, exist_ok=True)
    info = asdict(head.info or HeadInfo())
    config = {"format": FORMAT, "version": VERSION, **asdict(head.config), "info": info}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in head.module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card_of(head), encoding="utf-8")


def read_own(folder: Path) -> tuple[HeadConfig, HeadInfo, dict[str, torch.Tensor]]:
    """Configuration, origin and weights of a folder.

    Raises:
        HeadError: a file is missing, cannot be read or is not of this format; the text names file and reason.
    """
    raw = _read_json(folder / CONFIG)
    config = HeadConfig(
        _a(raw, "head_type", str),
        tuple(_a(raw, "extractors", list)),
        _a(raw, "options", dict),
        _one_of(raw, "layout", LAYOUTS),
        _one_of(raw, "hidden_index", HIDDEN_INDEXES),
    )
    return config, _info(_a(raw, "info", dict)), _read_tensors(folder / WEIGHTS)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise HeadError(f"There is no {path.name} in {path.parent}: a head has {CONFIG} and {WEIGHTS}.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HeadError(f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise HeadError(f'{path.name} is not that of a head: it lacks "format": "{FORMAT}".')
    if raw.get("version") != VERSION:
        found = str(raw.get("version"))[:20]
        raise HeadError(f"This head has format version {found}; this uqchat reads {VERSION}. Update uqchat.")
    unknown = sorted(set(raw) - KNOWN)
    if unknown:
        raise HeadError(f"{path.name} has the unknown key {unknown[0][:80]!r}. Known: {', '.join(sorted(KNOWN))}.")
    return raw


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise HeadError(f"There is no {path.name} in {path.parent}: a head has {CONFIG} and {WEIGHTS}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise HeadError(f"{path.name} cannot be read: {error}") from error


def _a(raw: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(raw.get(key), kind):
        raise HeadError(f"{CONFIG}: `{key}` must be of type {kind.__name__}; got {str(raw.get(key))[:80]!r}.")
    return raw[key]


def _one_of(raw: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    if raw.get(key) not in allowed:
        raise HeadError(f"{CONFIG}: `{key}` must be one of {', '.join(allowed)}; got {str(raw.get(key))[:80]!r}.")
    return raw[key]


def _info(raw: Mapping[str, Any]) -> HeadInfo:
    known = {f.name: type(getattr(HeadInfo(), f.name)) for f in fields(HeadInfo)}
    for key, value in raw.items():
        if key not in known:
            raise HeadError(f"{CONFIG}: `info` has the unknown key {key[:80]!r}. Known: {', '.join(known)}.")
        if not isinstance(value, known[key]):
            raise HeadError(f"{CONFIG}: `info.{key}` must be of type {known[key].__name__}; got {str(value)[:80]!r}.")
    return HeadInfo(**raw)


def card_of(head: UncertaintyHead) -> str:
    """A model card: what the head scores, which model it belongs to, what it was trained on, how well it does."""
    info = head.info or HeadInfo()
    rows = {
        "Type": f"`{head.config.head_type}`, one score per {head.level}",
        "Base model": f"{info.base_model} {info.revision}".strip(),
        "Base model's weights": f"`{info.weights_fingerprint}`" if info.weights_fingerprint else "",
        "Features": f"{head.features.describe()} (layout `{head.config.layout}`)",
        "Parameters": f"{head.num_parameters:,}",
        "Number format in training": info.dtype,
        "Training data": info.training_data,
        "Made by": f"`{info.command}`" if info.command else "",
        **{name: f"{value:.4g}" for name, value in info.metrics.items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    front = "---\ntags: [uncertainty-quantification, uqchat]\n---\n"
    use = "Load it with `uqchat.heads.load_head(folder, model)`; its score is a logit, higher is riskier."
    return f"{front}# Uncertainty head\n\n| | |\n|---|---|\n{table}\n\n{use}\n"
