"""Uncertainty heads: small networks that read feature rows and give logits of being wrong. `load_head` reads one.

Knows the language model by its shape, weights and template only; knows no estimator and no page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from uqchat import artifact_files
from uqchat.features import HIDDEN_INDEXES, LAYOUTS
from uqchat.features_base import HiddenIndex, Layout
from uqchat.heads import luh_format, own_format
from uqchat.heads.assemble import HeadError, UncertaintyHead, assemble
from uqchat.heads.config import HeadConfig
from uqchat.heads.scorer import HeadScorer
from uqchat.heads.verdict import Verdict, read_verdict
from uqchat.hub_files import download_files
from uqchat.origin import check_origin

__all__ = ["HeadConfig", "HeadError", "HeadScorer", "UncertaintyHead", "assemble", "load_head", "save_head"]

OWN_FILES = (artifact_files.CONFIG, artifact_files.WEIGHTS)
LUH_FILES = (luh_format.CONFIG, luh_format.WEIGHTS)


def load_head(
    path_or_id: str | Path,
    model: Any,
    layout: Layout | None = None,
    hidden_index: HiddenIndex | None = None,
    *,
    allow_mismatch: bool = False,
    token: str | None = None,
    source: str | None = None,
) -> UncertaintyHead:
    """A head from a folder or the Hub, bound to a model.

    Args:
        path_or_id: a folder or Hub id with `config.json` + `model.safetensors` (our format) or `config.yaml` +
            `weights.pth` (the published one).
        model: what `uqchat.load` returns, or a transformers model.
        layout: order of attention windows, "current" or "legacy". None: what the head says, what a self-check found,
            else "current", with a note where it matters.
        hidden_index: what negative layer numbers of hidden states count from, "layers" or "tuple"; None likewise, else
            "layers".
        allow_mismatch: load a head of ours though it was trained for another base model of the same dimensions.
        token: of the Hub, for a gated or private head.
        source: what the head is called, and what a stored verdict is found by, when a folder holds a copy from the Hub.

    Raises:
        UqchatError: no such head, a damaged or hostile file, an unknown setting, a base model that does not fit.
    """
    _check_choice("layout", layout, LAYOUTS)
    _check_choice("hidden_index", hidden_index, HIDDEN_INDEXES)
    base = model if isinstance(model, PreTrainedModel) else model.model
    folder, source = Path(path_or_id).expanduser(), source or str(path_or_id)
    if not folder.is_dir():
        if folder.exists():
            raise HeadError(f"{path_or_id} is a file; give the folder of a head, or a Hub id.")
        folder = download_files(str(path_or_id), (OWN_FILES, LUH_FILES), token=token)
    if any((folder / name).is_file() for name in OWN_FILES) and not (folder / luh_format.CONFIG).is_file():
        config, info, weights = own_format.read_own(folder)
        config = replace(config, layout=layout or config.layout, hidden_index=hidden_index or config.hidden_index)
        if not allow_mismatch:
            check_origin(info, model, "head")
        return assemble(config, weights, base, source=source, info=info)
    config, weights = luh_format.read_luh(folder)
    verdict = read_verdict(folder, source)
    config = replace(
        config,
        layout=layout or (verdict.layout if verdict else "current"),
        hidden_index=hidden_index or (verdict.hidden_index if verdict else "layers"),
    )
    notes = _doubts(config, verdict, layout, hidden_index) + _name_doubt(source, base)
    return assemble(config, weights, base, source=source, notes=notes)


def save_head(head: UncertaintyHead, folder: str | Path, format: str = "own") -> None:
    """Write a head: "own" is config.json + model.safetensors + a card, "luh" the published two files.

    Raises:
        HeadError: the published format cannot say what the head is; an unknown format.
    """
    writers = {"own": own_format.write_own, "luh": luh_format.write_luh}
    if format not in writers:
        raise HeadError(f"Unknown format {format!r}. Known: {', '.join(writers)}.")
    writers[format](head, Path(folder))


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise HeadError(f"`{name}` must be one of {', '.join(allowed)}, or None; got {str(value)[:80]!r}.")


def _doubts(
    config: HeadConfig, verdict: Verdict | None, layout: str | None, hidden_index: str | None
) -> tuple[str, ...]:
    """What nobody has said about a published head, where it matters."""
    notes = []
    names = [str(entry.get("name")).rsplit(".", 1)[-1] for entry in config.extractors]
    is_open = any(
        name == "basic_attention" and (entry.get("head_nums") is None)
        for name, entry in zip(names, config.extractors, strict=True)
    )
    if layout is None and verdict is None and is_open:
        notes.append(
            "The head does not say which attention layout it was trained with: `current` is assumed. Older heads need"
            ' layout="legacy"; a check on labelled rows can tell.'
        )
    counts_back = [_has_negative(e) for n, e in zip(names, config.extractors, strict=True) if n != "basic_attention"]
    if hidden_index is None and verdict is None and any(counts_back):
        notes.append(
            "The head names hidden layers by negative numbers: -1 is taken as the input of the last block. Heads from"
            ' before 2026 need hidden_index="tuple".'
        )
    return tuple(notes)


def _has_negative(entry: Mapping[str, Any]) -> bool:
    is_states = str(entry.get("name")).endswith("basic_hidden_states")
    layers = entry.get("layer_nums", [-1] if is_states else "all")
    listed = layers if isinstance(layers, list) else [layers]
    return any(isinstance(item, int) and item < 0 for item in listed)


def _name_doubt(source: str, base: PreTrainedModel) -> tuple[str, ...]:
    """Published heads are named after their base model: `uhead_claim_Llama-3.1-8B-Instruct`."""
    name = str(base.config._name_or_path).rstrip("/").rsplit("/", 1)[-1]
    is_hub_id = "/" in source and not Path(source).exists()
    if not is_hub_id or not name or name.lower() in source.lower():
        return ()
    return (f"The name {source} does not mention this model, {name}: scores of another model's head mean nothing.",)
