"""Heads in uqchat's own format: `config.json`, `model.safetensors` and a card. Knows no language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from uqchat.artifact_files import CONFIG, card_text, read_config_json, read_tensors, require, write_artifact
from uqchat.features import HIDDEN_INDEXES, LAYOUTS
from uqchat.heads.assemble import HeadError, UncertaintyHead
from uqchat.heads.config import HeadConfig
from uqchat.origin import Origin, read_origin

FORMAT = "uqchat-head"
KEYS = ("head_type", "extractors", "options", "layout", "hidden_index")


def write_own(head: UncertaintyHead, folder: Path) -> None:
    """Write a head with where it comes from, and a card for people."""
    origin = head.info or Origin()
    write_artifact(folder, FORMAT, asdict(head.config), head.module.state_dict(), origin, card_of(head))


def read_own(folder: Path) -> tuple[HeadConfig, Origin, dict[str, torch.Tensor]]:
    """Configuration, origin and weights of a folder.

    Raises:
        ArtifactError: a file is missing, cannot be read or is not of this format; the text names file and reason.
    """
    raw = read_config_json(folder, FORMAT, KEYS)
    config = HeadConfig(
        require(raw, "head_type", str),
        tuple(require(raw, "extractors", list)),
        require(raw, "options", dict),
        _one_of(raw, "layout", LAYOUTS),
        _one_of(raw, "hidden_index", HIDDEN_INDEXES),
    )
    return config, read_origin(raw["info"]), read_tensors(folder)


def _one_of(raw: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    if raw.get(key) not in allowed:
        raise HeadError(f"{CONFIG}: `{key}` must be one of {', '.join(allowed)}; got {str(raw.get(key))[:80]!r}.")
    return raw[key]


def card_of(head: UncertaintyHead) -> str:
    """A model card: what the head scores, which model it belongs to, what it was trained on, how well it does."""
    facts = {
        "Type": f"`{head.config.head_type}`, one score per {head.level}",
        "Features": f"{head.features.describe()} (layout `{head.config.layout}`)",
        "Parameters": f"{head.num_parameters:,}",
    }
    use = "Load it with `uqchat.heads.load_head(folder, model)`; its score is a logit, higher is riskier."
    return card_text("Uncertainty head", facts, head.info or Origin(), use)
