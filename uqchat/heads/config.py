"""What is written down about how a head is built. Knows no weights and no format."""

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
