"""What is written down about a head: how it is built, and where it comes from. Knows no weights and no format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uqchat.features_base import HiddenIndex, Layout


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """How a head and its features are built."""

    head_type: str
    extractors: tuple[Mapping[str, Any], ...]
    """One mapping each, with `name` and settings; their rows are joined in this order."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the module; those left out have their defaults."""
    layout: Layout = "current"
    hidden_index: HiddenIndex = "layers"


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """Where a head comes from. Published heads name nothing of it; one of ours refuses another base model."""

    base_model: str = ""
    revision: str = ""
    weights_fingerprint: str = ""
    """Of the base model's weights, see `uqchat.fingerprint`."""
    num_layers: int = 0
    hidden_size: int = 0
    chat_template_hash: str = ""
    dtype: str = ""
    """Number format that the base model had in training."""
    training_data: str = ""
    """Data set, its version and split."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    """What made it."""
