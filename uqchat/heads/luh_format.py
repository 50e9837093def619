"""Heads in the published two-file format, `config.yaml` and `weights.pth`: read and write. Knows no language model.

Nothing in a file is run: YAML is read as plain data, weights as tensors only, and the module names in it are looked up
by their last part in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from uqchat.features_base import numbers
from uqchat.heads.assemble import HeadError, UncertaintyHead
from uqchat.heads.config import HeadConfig

CONFIG, WEIGHTS = "config.yaml", "weights.pth"
DEFAULT_TYPE = "luh"
MAX_CONFIG_BYTES = 1_000_000
KNOWN = {"head_type", "feature_extractor", "uncertainty_head", "sanitize"}
OWN_OPTIONS = ("is_causal", "reads_prompt")
OWN_FEATURES = ("token_confidence", "token_position")
MODULE = "luh.feature_extractors."  # in front of an extractor's name in such files


def read_luh(folder: Path) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of a folder.

    Raises:
        HeadError: a file is missing or cannot be read, or is not of this format; the text names file and reason.
    """
    return read_config(folder / CONFIG), read_weights(folder / WEIGHTS)


def read_config(path: Path) -> HeadConfig:
    """A `config.yaml`; layout and hidden index, which it does not tell, are the defaults."""
    raw = _read_yaml(path)
    unknown = sorted(str(key)[:80] for key in raw if key not in KNOWN)
    if unknown:
        raise HeadError(f"{path.name} has the unknown key {unknown[0]!r}. Known: {', '.join(sorted(KNOWN))}.")
    entries, options = raw.get("feature_extractor"), raw.get("uncertainty_head")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise HeadError(f"{path.name}: `feature_extractor` must be a list of mappings with a `name` each.")
    if options is not None and not isinstance(options, dict):
        raise HeadError(f"{path.name}: `uncertainty_head` must be a mapping or empty; got {str(options)[:80]!r}.")
    head_type = str(raw.get("head_type") or DEFAULT_TYPE).lower()
    return HeadConfig(head_type, tuple(entries), options or {})


def _read_yaml(path: Path) -> dict[str, Any]:
    _require(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise HeadError(f"{path.name} is larger than {MAX_CONFIG_BYTES:,} bytes: that is no head's configuration.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HeadError(f"{path.name} is not readable YAML of plain values: {reason}") from error
    if not isinstance(raw, dict):
        raise HeadError(f"{path.name} must be a mapping with `feature_extractor`; got {type(raw).__name__}.")
    return raw


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `weights.pth`, on the CPU."""
    _require(path)
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken file can make the reader fail in any way
        raise HeadError(
            f"{path.name} cannot be read as plain tensors: it is damaged, or holds code, which is never run."
        ) from error
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(t, torch.Tensor) for t in raw.values()):
        raise HeadError(f"{path.name} must hold a mapping from names to tensors; got {type(raw).__name__}.")
    return {str(name): tensor for name, tensor in raw.items()}


def write_luh(head: UncertaintyHead, folder: Path) -> None:
    """Write a head in this format; what the format cannot say (layout, where it comes from) is lost.

    Raises:
        HeadError: the head is causal, reads the answer's rows alone or a feature of ours: the format knows none of it.
    """
    if head.module.is_causal or not head.module.reads_prompt:
        kind = "causal heads" if head.module.is_causal else "heads that do not read the prompt"
        raise HeadError(f"The published format knows no {kind}; save this one in uqchat's own format.")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "head_type": head.config.head_type,
        "feature_extractor": [_published(entry, head) for entry in head.config.extractors],
        "uncertainty_head": {k: v for k, v in head.config.options.items() if k not in OWN_OPTIONS} or None,
    }
    torch.save({name: tensor.cpu() for name, tensor in head.module.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _published(entry: Mapping[str, Any], head: UncertaintyHead) -> dict[str, Any]:
    """An extractor's entry under its full name; negative layers of the index "tuple", unknown there, made positive."""
    last = str(entry["name"]).rsplit(".", 1)[-1]
    if last in OWN_FEATURES:
        raise HeadError(f"The published format knows no feature {last}; save this head in uqchat's own format.")
    out = {"name": MODULE + last, **{k: v for k, v in entry.items() if k != "name"}}
    layers = out.get("layer_nums", -1 if last == "basic_hidden_states" else "all")
    if head.config.hidden_index == "tuple" and layers != "all" and last != "basic_attention":
        out["layer_nums"] = list(numbers(layers, head.shape.num_layers + 1, "layer_nums"))
    return out


def _require(path: Path) -> None:
    if not path.is_file():
        raise HeadError(f"There is no {path.name} in {path.parent}: a head has {CONFIG} and {WEIGHTS}.")
