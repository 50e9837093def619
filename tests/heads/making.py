"""Small random heads and folders in the published format. Knows no test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from uqchat.features import make_features
from uqchat.heads import HeadConfig, UncertaintyHead, assemble
from uqchat.heads.modules import make_head

ATTENTION = {"name": "luh.feature_extractors.basic_attention", "layer_nums": "all", "attn_history_sz": 2, "pool": False}
PROBABILITIES = {"name": "luh.feature_extractors.token_probabilities", "top_n": 3}
STATES = {"name": "basic_hidden_states", "layer_nums": [-1]}
SMALL = {"head_dim": 8, "n_layers": 2, "n_heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "luh": {**SMALL, "interim_dim": 4},
    "claim": SMALL,
    "claim_light": SMALL,
    "claim_first_token": SMALL,
}


def random_weights(config: HeadConfig, model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that the head of this configuration has on this model."""
    torch.manual_seed(seed)
    width = make_features(config.extractors, model, config.layout, config.hidden_index).width
    return dict(make_head(config.head_type, width, config.options).state_dict())


def random_head(
    head_type: str, model: Any, extractors: tuple[dict[str, Any], ...] = (ATTENTION, PROBABILITIES), **more: Any
) -> UncertaintyHead:
    """A small head; `more` are settings of the module."""
    config = HeadConfig(head_type, extractors, {**OPTIONS.get(head_type, {}), **more})
    return assemble(config, random_weights(config, model), model)


def write_folder(
    folder: Path,
    model: Any,
    head_type: str = "luh",
    extractors: tuple[dict[str, Any], ...] = (ATTENTION, PROBABILITIES),
) -> Path:
    """A published head's two files, written without the code under test."""
    options = OPTIONS.get(head_type, {})
    config = {"head_type": head_type, "feature_extractor": list(extractors), "uncertainty_head": options or None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(random_weights(HeadConfig(head_type, extractors, options), model), folder / "weights.pth")
    return folder
