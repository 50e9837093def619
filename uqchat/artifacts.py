"""Estimators by name, folder or Hub id: found, checked against the model, opened once. Knows no answers.

A trained estimator's name stands for the folder whose weights' fingerprint is the model's, see `artifact_folders`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uqchat.artifact_files import CARD
from uqchat.artifact_folders import (
    CALIBRATION,
    HUB_ID,
    UNTRAINED,
    ArtifactInfo,
    every_artifact,
    folders,
    hub_groups,
    kind_of,
    origin_in,
    roots,
    slug_of,
    text_of,
    unknown,
)
from uqchat.calibration import Calibrations, read_calibrations
from uqchat.errors import UqchatError
from uqchat.estimators import ESTIMATORS, TRAINED, Estimator
from uqchat.estimators.base import ModelFacts
from uqchat.estimators.vote_options import split_name
from uqchat.fingerprint import weights_fingerprint
from uqchat.hub_files import download_files
from uqchat.origin import ArtifactError, Origin, check_origin
from uqchat.teams import alone
from uqchat.types import Level

MAX_OPEN = 64  # estimators that are kept open; more names than that are folders and Hub ids that somebody tries
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class EstimatorChoice:
    """What may be asked for, and what a picker shows of it. `refusal`: why this model cannot serve it."""

    name: str
    label: str
    level: Level
    unit: str
    value_map: str
    refusal: str | None = None
    card: str | None = None
    notes: tuple[str, ...] = ()
    calibration: str | None = None
    """Name of the scope in which its values are probabilities of error; None: it is not calibrated."""


def facts_of(model: Any) -> ModelFacts:
    """What estimators may ask about a model; no layers where a backend computes elsewhere."""
    layers = model.model.config.get_text_config().num_hidden_layers if model.model is not None else 0
    return ModelFacts(layers, model.info.is_instruct, model.info.context_window, model.model)


def list_artifacts(model: Any) -> list[ArtifactInfo]:
    """The trained estimators that belong to this model, each name once."""
    return Shelf(model).artifacts()


def open_estimator(name: str, model: Any, *, allow_mismatch: bool = False) -> Estimator:
    """An estimator, ready for this model.

    Args:
        name: an untrained estimator's, a trained one's, a folder, or a Hub id like organisation/name.
        model: what `uqchat.load` returns.
        allow_mismatch: take a folder's though it was trained for another model, where the dimensions fit.

    Raises:
        UqchatError: no such estimator (the text lists those there are), one for another model, or a damaged file.
    """
    return Shelf(model).open(name, allow_mismatch=allow_mismatch)


class Shelf:
    """The estimators of one model, opened once; a folder whose files change is opened again. Safe in many threads."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._lock = threading.Lock()  # of the two tables below
        self._locks: dict[str, threading.RLock] = {}  # by name: a slow download holds up nobody who asks for another
        self._open: dict[str, tuple[Stamp, Estimator]] = {}
        self._fetched: dict[str, Path] = {}  # of Hub ids, which are looked up once

    @cached_property
    def fingerprint(self) -> str | None:
        """Of the model's weights; None where they are not on this machine."""
        return None if self._model.model is None else weights_fingerprint(self._model.model)

    def get(self, name: str) -> Estimator:
        """The estimator of this name, kept open. Raises what `open_estimator` raises."""
        with self._lock:
            own = self._locks.setdefault(name, threading.RLock())
        with own:
            stamp, kept = self._stamp(name), self._open.get(name)
            if kept is None or kept[0] != stamp:
                kept = (stamp, self.open(name))
                self._keep(name, kept)
            return kept[1]

    def _keep(self, name: str, opened: tuple[Stamp, Estimator]) -> None:
        with self._lock:
            self._open.pop(name, None)
            self._open[name] = opened
            for oldest in list(self._open)[:-MAX_OPEN]:
                del self._open[oldest], self._locks[oldest]

    def open(self, name: str, *, allow_mismatch: bool = False) -> Estimator:
        """A fresh one, see `open_estimator`."""
        base, options = self._parts(name)
        stamp = self._stamp(name)  # before the files are read: if they change meanwhile, it is taken for an older one
        with alone():
            made = self._opened(name, base, options, allow_mismatch)
        made.source = (type(made), tuple(sorted(options.items())), stamp)
        return made

    def _opened(self, name: str, base: str, options: Mapping[str, str], allow_mismatch: bool) -> Estimator:
        if base in UNTRAINED:
            made = UNTRAINED[base]()
            made = made.configured(name, options) if options else made
            made = made.for_model(facts_of(self._model))
            made.name = name
            return made if options else self._calibrated(made, self._calibration_files(base))
        folder = self.locate(base)
        if self._model.model is None:
            raise ArtifactError(f"{name} reads the model's inside, and {self._model.name} is not on this machine.")
        made = kind_of(folder).from_folder(folder, self._model, base, allow_mismatch=allow_mismatch)
        return made.configured(name, options) if options else self._calibrated(made, [folder / CALIBRATION])

    def _parts(self, name: str) -> tuple[str, dict[str, str]]:
        """What a name stands for, and the options behind it: an untrained stand-in where nothing was trained."""
        base, options = split_name(name)
        kind = next((kind for kind in TRAINED if kind.name == base and kind.untrained), None)
        if kind is not None and not Path(base).is_dir():
            is_trained = any(self._is_mine(origin_in(folder)) for folder in folders(base))
            base = base if is_trained else kind.untrained
        return base, options

    def locate(self, name: str) -> Path:
        """The folder that a trained estimator's name stands for; a Hub id is fetched. Raises as `open_estimator`."""
        registered = [(folder, origin_in(folder)) for folder in folders(name)]
        mine = next((folder for folder, origin in registered if self._is_mine(origin)), None)
        if mine is not None:
            return mine
        path = Path(name).expanduser()
        if name.strip() and path.is_dir():
            return path
        if path.exists():
            raise ArtifactError(f"{name} is a file; give the folder of a trained estimator, a name or a Hub id.")
        if HUB_ID.fullmatch(name):
            return self._fetch(name)
        if self._model.model is not None:
            for folder, origin in registered:
                if folder.parent.name == slug_of(self._model):  # meant for this model, but of other weights
                    check_origin(origin, self._model, f"estimator ({folder})")
        raise self._unknown(name)

    def artifacts(self) -> list[ArtifactInfo]:
        """See `list_artifacts`."""
        found: dict[str, ArtifactInfo] = {}
        for info in every_artifact():
            if self._is_mine(info.origin):
                found.setdefault(info.name, info)
        return list(found.values())

    def choices(self) -> list[EstimatorChoice]:
        """Everything that has a name here; what cannot be opened says why."""
        kinds = {kind.format: kind for kind in TRAINED}
        trained = [self.describe(info.name, kinds[info.kind], info.card) for info in self.artifacts()]
        return [self.describe(kind.name, kind) for kind in ESTIMATORS] + trained

    def describe(self, name: str, kind: type[Estimator] | None = None, card: str | None = None) -> EstimatorChoice:
        """What a picker shows of an estimator.

        Args:
            kind: stands in for one that cannot be opened; without it the error is raised.
        """
        try:
            one = self.get(name)
        except UqchatError as error:
            if kind is None:
                raise
            return EstimatorChoice(name, kind.label, kind.level, kind.unit, kind.value_map, str(error), card)
        base, _ = self._parts(name)
        card = card if card or base in UNTRAINED else text_of(self.locate(base) / CARD) or one.card
        return EstimatorChoice(
            name, one.label, one.level, one.unit, one.value_map, None, card, one.notes, _scope_name(one.calibrations)
        )

    def _calibration_files(self, name: str) -> list[Path]:
        """Where an untrained estimator's calibration may lie, whatever the model."""
        return [path for root in roots() for path in sorted(root.glob(f"*/{name}/{CALIBRATION}"))]

    def _calibrated(self, estimator: Estimator, files: Sequence[Path]) -> Estimator:
        """The estimator with the first calibration that was fitted on this model; a damaged one becomes a note."""
        for path in files:
            try:
                found = read_calibrations(path.parent)
            except UqchatError as error:
                estimator.notes = (*estimator.notes, f"It is not calibrated: {error}")
                continue
            if found is not None and self._fits(found):
                estimator.calibrations = found
                break
        return estimator

    def _fits(self, calibrations: Calibrations) -> bool:
        named = [one.scope.weights_fingerprint for one in (calibrations.token, calibrations.answer) if one is not None]
        return all(name in (None, self.fingerprint) for name in named)

    def _is_mine(self, origin: Origin) -> bool:
        return self.fingerprint is not None and origin.weights_fingerprint == self.fingerprint

    def _fetch(self, hub_id: str) -> Path:
        if hub_id not in self._fetched:
            self._fetched[hub_id] = download_files(hub_id, hub_groups())
        return self._fetched[hub_id]

    def _stamp(self, name: str) -> Stamp:
        """Names, times and sizes of the files behind a name; empty for what has none."""
        base, _ = self._parts(name)
        if base in UNTRAINED:
            files = self._calibration_files(base)
        else:
            files = [path for path in sorted(self.locate(base).resolve().iterdir()) if path.is_file()]
        return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)

    def _unknown(self, name: str) -> ArtifactError:
        known = [*UNTRAINED, *(info.name for info in self.artifacts())]
        if any(kind.name == name for kind in TRAINED):
            what = f"No {name} has been trained for {self._model.name} yet; `python -m trainers prepare` makes one."
            return unknown(name, known, what)
        return unknown(name, known)


def _scope_name(calibrations: Calibrations | None) -> str | None:
    both = (calibrations.answer, calibrations.token) if calibrations else ()
    return next((one.scope.name for one in both if one is not None), None)
