"""Folders of trained estimators: where they lie, what they hold, for which model. Opens none and knows no model.

A folder belongs to one model. Those in `AppConfig.estimators_dir/<model>/<name>/` were trained here and come first,
those in `assets/estimators/<model>/<name>/` ship with the source. Everything in a folder is data: nothing of it is
executed or imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uqchat.artifact_files import CARD, CONFIG, WEIGHTS, read_json, require
from uqchat.calibration import FILE as CALIBRATION
from uqchat.config import read_config
from uqchat.errors import UqchatError
from uqchat.estimators import ESTIMATORS, TRAINED, Estimator
from uqchat.estimators.vote_options import split_name
from uqchat.origin import ArtifactError, Origin, read_origin
from uqchat.paths import ASSETS
from uqchat.types import Level

EMBEDDED_SLUG = "smollm2-135m-instruct"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NAME = re.compile(r"\w[\w.-]*")  # of a folder in the roots
UNTRAINED = {kind.name: kind for kind in ESTIMATORS}


@dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """A trained estimator of the loaded model. `card` is Markdown."""

    name: str
    kind: str
    folder: Path
    label: str
    level: Level
    origin: Origin
    card: str | None = None


def slug_of(model: Any) -> str:
    """The folder name of a model's estimators: `smollm2-135m-instruct`."""
    if model.name == "embedded":
        return EMBEDDED_SLUG
    last = str(model.name).rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-.") or "model"


def roots() -> tuple[Path, ...]:
    """Where estimators lie: trained here, then shipped."""
    return read_config().estimators_dir, ASSETS / "estimators"


def require_plausible(names: Iterable[str]) -> None:
    """Refuse what can be no estimator with any model, before one is loaded.

    Raises:
        ArtifactError: neither a known name, nor a folder, nor of the form organisation/name; the text lists the known.
    """
    known = [*UNTRAINED, *(kind.name for kind in TRAINED), *(folder.name for folder in folders())]
    for name, _ in map(split_name, names):
        is_path = bool(name.strip()) and Path(name).expanduser().exists()
        if name not in known and not is_path and not HUB_ID.fullmatch(name):
            raise unknown(name, known)


def every_artifact() -> list[ArtifactInfo]:
    """The trained estimators of all models that lie here; folders that cannot be read are left out."""
    found = []
    for folder in folders():
        try:
            kind, origin = kind_of(folder), origin_in(folder)
        except UqchatError:
            continue
        card = text_of(folder / CARD)
        found.append(ArtifactInfo(folder.name, str(kind.format), folder, kind.label, kind.level, origin, card))
    return found


def kind_of(folder: Path) -> type[Estimator]:
    """Which estimator a folder holds. Raises ArtifactError when it holds none that is known."""
    if (folder / CONFIG).is_file():
        format = read_json(folder / CONFIG).get("format")
        found = next((kind for kind in TRAINED if format is not None and kind.format == format), None)
        if found is not None:
            return found
    for kind in TRAINED:
        if any(all((folder / name).is_file() for name in group) for group in kind.files):
            return kind
    formats = ", ".join(str(kind.format) for kind in TRAINED)
    raise ArtifactError(
        f"{folder} holds no trained estimator: it needs {CONFIG} with a known format ({formats}) + {WEIGHTS}, or a"
        " published head's config.yaml + weights.pth."
    )


def hub_groups() -> list[tuple[str, ...]]:
    """Files of a Hub repository that make up an estimator, the fullest group first."""
    groups = [(CONFIG, WEIGHTS), *(group for kind in TRAINED for group in kind.files)]
    extras = ((CALIBRATION, CARD), (CALIBRATION,), (CARD,), ())
    return [(*group, *extra) for group in dict.fromkeys(groups) for extra in extras]


def unknown(name: str, known: Sequence[str], what: str | None = None) -> ArtifactError:
    """The error for a name that stands for nothing: what is known, and what is near."""
    close = difflib.get_close_matches(name, known, n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    listed = ", ".join(dict.fromkeys(known))
    return ArtifactError(
        f"{what or f'Unknown estimator {name[:80]!r}.'}{hint} Known: {listed}; or the folder or Hub id"
        " (organisation/name) of a trained one."
    )


def folders(name: str | None = None) -> Iterator[Path]:
    """Folders of the roots (of this name) that hold a configuration, those that come first first."""
    if name is not None and not NAME.fullmatch(name):
        return
    for root in roots():
        for config in sorted(root.glob(f"*/{name or '*'}/{CONFIG}")):
            yield config.parent


def origin_in(folder: Path) -> Origin:
    """Where a folder's estimator comes from. Raises ArtifactError: no readable config.json."""
    return read_origin(require(read_json(folder / CONFIG), "info", dict))


def text_of(path: Path) -> str | None:
    """A file's text, or None."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
