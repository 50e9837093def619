"""From a raw score to a probability of error, with the scope in which that holds; JSON on disk. Knows no estimator.

`calibration.json` in an estimator's folder holds one map for tokens and one for answers, each with its scope.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from uqchat.calibration_maps import FITS, STRICT, Kind, Map, cross_validated_loss
from uqchat.errors import InputError
from uqchat.metrics import Numbers, as_array, as_labels
from uqchat.metrics_weighted import Array
from uqchat.scope import Scope

FILE: Final = "calibration.json"
FORMAT: Final = "uqchat-calibration"
VERSION: Final = 1
MIN_MARKS: Final = 50
"""Right / wrong marks from which a chat's own calibration is fitted."""
_MAX_BYTES: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map, what it was fitted to, and where it holds."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    level: Literal["token", "answer"]
    scope: Scope
    map: Map
    rows: int
    """Labelled tokens or answers it was fitted to."""
    error_share: float
    """The share of errors among them, in [0, 1]."""

    @property
    def kind(self) -> Kind:
        """Which kind of map it is."""
        return self.map.kind

    def apply(self, raw: Any) -> Any:
        """Probability of error, in (0, 1), of one raw score (a float comes back) or an array of any shape.

        A higher raw score never gets a lower probability; equal ones get equal ones. NaN stays NaN.
        """
        if hasattr(raw, "detach"):
            raw = raw.detach().cpu().double().numpy()
        found = self.map.apply(np.asarray(raw, dtype=np.float64))
        return float(found) if np.ndim(found) == 0 else found

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def from_json(data: Any) -> Calibration:
        """What `to_json` gave. Raises InputError: an unknown or missing key, or a value that cannot be."""
        try:
            return _ADAPTER.validate_python(data)
        except ValidationError as error:
            raise InputError(f"This is no calibration: {_first(error)}") from error


_ADAPTER: Final = TypeAdapter(Calibration)


def fit_calibration(
    raw: Numbers,
    is_error: Numbers,
    kind: Kind | Literal["best"] = "isotonic",
    *,
    level: Literal["token", "answer"],
    scope: Scope,
    weights: Numbers | None = None,
    groups: Sequence[Any] | None = None,
) -> Calibration:
    """Fit a map to labelled answers (or tokens) that neither trained the estimator nor evaluate it.

    Args:
        raw: (N,), raw scores, higher is riskier; logits of an error for "temperature".
        is_error: (N,), 1 or True for an error.
        kind: "isotonic" (free shape, some hundred labels), "platt" (a logistic curve, good from some dozens),
            "temperature" (one number), or "best": the one of least cross-validated log loss.
        weights: (N,), how much each row counts; only their ratios matter.
        groups: (N,), rows of one group (tokens of one answer) stay together in the folds of "best".

    Raises:
        InputError: see `as_array`, `as_labels`; an infinite score; only right answers or only errors; unknown kind.

    Source: the kinds are in `calibration_maps`.
    """
    scores = as_array(raw, "raw")
    labels = as_labels(is_error, "is_error", len(scores))
    mass = _checked(scores, labels, weights)
    folds = np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(folds) != len(scores):
        raise InputError(f"{len(scores)} scores but {len(folds)} groups; give one for each.")
    scores, labels, mass, folds = (column[mass > 0] for column in (scores, labels, mass, folds))
    if kind == "best":
        kind = min(FITS, key=lambda one: cross_validated_loss(one, scores, labels, mass, folds))
    if kind not in FITS:
        raise InputError(f"Unknown kind of calibration {kind!r}; known: {', '.join(FITS)}, best.")
    share = float(np.average(labels, weights=mass))
    return Calibration(level, scope, FITS[kind](scores, labels, mass), len(scores), share)


def _checked(scores: Array, labels: Array, weights: Numbers | None) -> Array:
    """Weights of mean 1, after what a fit cannot take was refused."""
    if np.isinf(scores).any():
        raise InputError(f"{int(np.isinf(scores).sum())} of {len(scores)} raw scores are infinite; leave them out.")
    mass = np.ones(len(scores)) if weights is None else as_array(weights, "weights")
    if len(mass) != len(scores) or mass.min() < 0 or np.isinf(mass).any() or not mass.any():
        raise InputError(f"weights must be {len(scores)} finite numbers of 0 or more, not all 0.")
    kept = labels[mass > 0]
    if kept.min() == kept.max():
        what = "an error" if kept[0] else "right"
        raise InputError(f"A calibration needs errors and right answers; each of the {len(kept)} rows is {what}.")
    return mass * len(mass) / mass.sum()


def fit_from_marks(raw: Numbers, is_error: Numbers, scope: Scope) -> Calibration | None:
    """An answer-level Platt map from a chat's own right / wrong marks.

    Returns:
        None while there are fewer than `MIN_MARKS`, or all of them say the same.

    Raises:
        InputError: see `fit_calibration`.
    """
    scores = as_array(raw, "raw")
    labels = as_labels(is_error, "is_error", len(scores))
    if len(scores) < MIN_MARKS or labels.min() == labels.max():
        return None
    return fit_calibration(scores, labels, "platt", level="answer", scope=scope)


@dataclass(frozen=True, slots=True)
class Calibrations:
    """An estimator's maps for tokens and for answers; either may be missing."""

    token: Calibration | None = None
    answer: Calibration | None = None


def write_calibrations(folder: Path, calibrations: Calibrations) -> Path:
    """Write `calibration.json` into the folder in one piece and return its path."""
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for level, one in (("token", calibrations.token), ("answer", calibrations.answer)):
        data[level] = None if one is None else one.to_json()
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(data, file, allow_nan=False)
    os.chmod(file.name, 0o644)
    return Path(file.name).rename(folder / FILE)


def read_calibrations(folder: Path) -> Calibrations | None:
    """What `write_calibrations` wrote, or None where there is no such file.

    Raises:
        InputError: the file is too large, no JSON, of another format or version, or holds what cannot be.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; a calibration has {_MAX_BYTES:,} at most.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no readable JSON: {error}") from error
    return _calibrations(data, path)


def _calibrations(data: Any, path: Path) -> Calibrations:
    keys = {"format", "version", "token", "answer"}
    if not isinstance(data, dict) or set(data) != keys or (data["format"], data["version"]) != (FORMAT, VERSION):
        raise InputError(f"{path} is no calibration file of version {VERSION}: it must hold {', '.join(sorted(keys))}.")
    found = {}
    for level in ("token", "answer"):
        found[level] = None if data[level] is None else Calibration.from_json(data[level])
        if found[level] is not None and found[level].level != level:
            raise InputError(f"{path}: the map under {level!r} is one for {found[level].level}s.")
    return Calibrations(**found)


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
