"""The files of a trained estimator's folder: `config.json`, `model.safetensors`, a card. Knows no kind of estimator.

Every config.json has "format" (the kind), "version" and "info" (its `Origin`); what else is in it is up to the kind.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from uqchat.origin import ArtifactError, Origin

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
VERSION = 1
COMMON = ("format", "version", "info")


def read_config_json(folder: Path, format: str, keys: Collection[str]) -> dict[str, Any]:
    """The configuration of a folder, checked as far as all kinds share it.

    Args:
        format: what "format" must say. keys: those of this kind beside the common ones.

    Raises:
        ArtifactError: the file is missing, no JSON, of another kind or version, or has an unknown key.
    """
    raw = read_json(folder / CONFIG)
    if raw.get("format") != format:
        found = str(raw.get("format"))[:40]
        raise ArtifactError(f'{CONFIG} in {folder} lacks "format": "{format}"; its format is {found}.')
    if raw.get("version") != VERSION:
        found = str(raw.get("version"))[:20]
        raise ArtifactError(f"{folder} has format version {found}; this uqchat reads {VERSION}. Update uqchat.")
    known = sorted({*COMMON, *keys})
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise ArtifactError(f"{CONFIG} has the unknown key {unknown[0][:80]!r}. Known: {', '.join(known)}.")
    require(raw, "info", dict)
    return raw


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ArtifactError: no such file, or no JSON object."""
    if not path.is_file():
        raise ArtifactError(f"There is no {path.name} in {path.parent}: a trained estimator has {CONFIG} + {WEIGHTS}.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path.name} must hold an object; got {str(raw)[:80]!r}.")
    return raw


def require(raw: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value of a key. Raises ArtifactError when it is missing or of another type."""
    if not isinstance(raw.get(key), kind):
        raise ArtifactError(f"{CONFIG}: `{key}` must be of type {kind.__name__}; got {str(raw.get(key))[:80]!r}.")
    return raw[key]


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights. Raises ArtifactError: missing, damaged, or not finite; the text names the tensor."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"There is no {WEIGHTS} in {folder}: a trained estimator has {CONFIG} + {WEIGHTS}.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{WEIGHTS} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(f"The weight {name} holds values that are no finite numbers: the file is damaged.")
    return tensors


def write_artifact(
    folder: Path,
    format: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    origin: Origin,
    card: str,
) -> None:
    """Write a folder that the readers above take; the configuration comes last, so that a half folder has none.

    Args:
        settings: what the kind adds to config.json. tensors: by name; moved to the CPU.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    config = {"format": format, "version": VERSION, **settings, "info": asdict(origin)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
        (folder / CARD).write_text(card, encoding="utf-8")
        partial = folder / f"{CONFIG}.part"
        partial.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(folder / CONFIG)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder} cannot be written: {error}") from error


def card_text(title: str, facts: Mapping[str, str], origin: Origin, use: str) -> str:
    """A model card: what it is, which model it belongs to, what it was trained on, how well it does.

    Args:
        facts: rows of the kind's own, in Markdown, above the common ones; empty values are left out.
        use: a sentence on how to use it.
    """
    rows = {
        **facts,
        "Base model": f"{origin.base_model} {origin.revision}".strip(),
        "Base model's weights": f"`{origin.weights_fingerprint}`" if origin.weights_fingerprint else "",
        "Number format in training": origin.dtype,
        "Training data": origin.training_data,
        "Made by": f"`{origin.command}`" if origin.command else "",
        "Seed": str(origin.seed) if origin.command else "",
        "Source": f"commit `{origin.commit}`" if origin.commit else "",
        **{name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in origin.metrics.items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    front = "---\ntags: [uncertainty-quantification, uqchat]\n---\n"
    return f"{front}# {title}\n\n| | |\n|---|---|\n{table}\n\n{use}\n"
