"""What a self-check found out about a published head, stored beside it. Knows no weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from uqchat.config import read_config
from uqchat.features_base import HiddenIndex, Layout

FILE = "uqchat_layout.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Layout and hidden index that scored labelled rows best."""

    layout: Layout
    hidden_index: HiddenIndex
    metric: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By "layout/hidden_index"."""
    rows: int = 0


def read_verdict(folder: Path, source: str) -> Verdict | None:
    """The stored verdict on a head, or None; a file that cannot be read counts as none."""
    for path in (folder / FILE, _cached(source)):
        try:
            found = Verdict(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if found.layout in get_args(Layout) and found.hidden_index in get_args(HiddenIndex):
            return found
    return None


def write_verdict(verdict: Verdict, source: str) -> Path:
    """Store it in the head's own folder, or in the cache for one from the Hub or a folder that may not be written."""
    text = json.dumps(asdict(verdict), indent=2) + "\n"
    folder = Path(source).expanduser()
    path = folder / FILE if folder.is_dir() and os.access(folder, os.W_OK) else _cached(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _cached(source: str) -> Path:
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    return read_config().cache_dir / "heads" / f"{key}.json"
