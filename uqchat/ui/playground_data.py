"""What the threshold playground shows, computed: curves for the browser, policies. Knows no component.

The answers of a run are split in two by their question: on the calibration part a threshold is certified, on the other
part everything is shown. The browser gets risks and grades once, sorted; it counts by itself while a threshold moves.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uqchat.errors import InputError
from uqchat.metrics import auroc, prr
from uqchat.paths import ASSETS
from uqchat.policy import Guarantee, Origin, Policy
from uqchat.records import RAW, Labelled, Records, read_records
from uqchat.records_split import calibration_part
from uqchat.selective import accuracy_band, auarc, aurc, e_aurc
from uqchat.selective_guarantee import guaranteed_threshold, more_rows_needed

MAX_CURVES = 8
MIN_SPLIT = 20  # graded answers below which a run is not split: neither part would say anything
ERROR_LEVELS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
OPENING_COVERAGE = 0.1  # the view opens at the strictest level that lets at least this share be answered


@dataclass(frozen=True, slots=True)
class Wish:
    """What a guarantee is to promise: at most `max_error` wrong among the answered, with confidence 1 - `delta`."""

    max_error: float = 0.3
    delta: float = 0.1


@dataclass(frozen=True)
class Curve:
    """One estimator on one run. `calibration` certifies, `report` is shown; both sorted by risk."""

    run: Records
    estimator: str
    calibration: Labelled = field(repr=False)
    report: Labelled = field(repr=False)

    @property
    def key(self) -> str:
        """What it is called in the page."""
        return f"{self.run.name}: {self.estimator}"

    def certified(self, wish: Wish) -> float | None:
        """The largest threshold that the calibration part certifies, or None."""
        if not len(self.calibration.risk):
            return None
        found = guaranteed_threshold(self.calibration.risk, self.calibration.is_error, wish.max_error, wish.delta)
        return None if found is None else float(found)

    def more_rows(self, wish: Wish) -> int | None:
        """About how many more calibration answers a certificate would take; None: more than can be told."""
        found = self.calibration
        if not len(found.risk):
            return None
        return more_rows_needed(found.risk, found.is_error, wish.max_error, wish.delta)

    def threshold_at(self, rank: int) -> float:
        """The exact threshold that answers the `rank` least risky answers of the report part; 0 for none of them."""
        risk = self.report.risk
        return float(risk[min(rank, len(risk)) - 1]) if rank > 0 and len(risk) else 0.0

    def coverage(self, threshold: float) -> float:
        """Share of the report part that is answered."""
        return float((self.report.risk <= threshold).mean()) if len(self.report.risk) else 0.0

    def accuracy(self, threshold: float) -> float | None:
        """Share of right ones among those; None when nothing is answered."""
        answered = self.report.is_error[self.report.risk <= threshold]
        return float(1 - answered.mean()) if len(answered) else None

    @cached_property
    def quality(self) -> dict[str, float] | None:
        """How well the report part's risks rank its errors, by metric; None where all are right or all wrong."""
        risk, is_error = self.report.risk, self.report.is_error
        if not 0 < is_error.sum() < len(is_error):
            return None
        found = {"auroc": auroc(risk, is_error), "prr": prr(risk, ~is_error).normalised, "aurc": aurc(risk, is_error)}
        return found | {"e_aurc": e_aurc(risk, is_error), "auarc": auarc(risk, is_error)}

    @cached_property
    def scope(self) -> str | None:
        """The scope of its calibration, where all rows agree on one."""
        found = {
            json.loads(text or "{}").get("calibrations", {}).get(self.estimator)
            for text in self.run.table["versions"].unique().to_pylist()
        } - {None}
        return found.pop() if len(found) == 1 else None


def make_curve(records: Records, estimator: str) -> Curve:
    """One estimator's answers in both parts; few answers are not split and certify nothing."""
    found = records.labelled(estimator)
    if len(found.rows) < MIN_SPLIT:
        return Curve(records, estimator, _sorted(found, np.zeros(len(found.rows), dtype=bool)), _sorted(found))
    is_calibration = calibration_part(records)[found.rows]
    if is_calibration.all() or not is_calibration.any():  # questions without ids of their own
        is_calibration = np.arange(len(found.rows)) % 2 == 0
    return Curve(records, estimator, _sorted(found, is_calibration), _sorted(found, ~is_calibration))


def _sorted(found: Labelled, keep: np.ndarray | None = None) -> Labelled:
    rows = np.arange(len(found.rows)) if keep is None else np.flatnonzero(keep)
    order = rows[np.argsort(found.risk[rows], kind="stable")]
    return Labelled(found.risk[order], found.is_error[order], found.rows[order])


def opening(curves: Sequence[Curve], delta: float = 0.1) -> tuple[Curve, Wish]:
    """The curve and level to open with: the strictest level that some curve certifies at a useful coverage."""
    best: tuple[float, Curve, Wish] | None = None
    for level in ERROR_LEVELS:
        wish = Wish(level, delta)
        for curve in curves:
            threshold = curve.certified(wish)
            coverage = 0.0 if threshold is None else curve.coverage(threshold)
            if threshold is not None and (best is None or coverage > best[0]):
                best = (coverage, curve, wish)
        if best is not None and best[0] >= OPENING_COVERAGE:
            break
    return (best[1], best[2]) if best else (curves[0], Wish(ERROR_LEVELS[-1], delta))


def payload(curves: Sequence[Curve], chosen: str, wish: Wish) -> str:
    """Everything that the browser needs to follow a threshold, as JSON that is safe as text in HTML."""
    data = {
        "chosen": chosen,
        "wish": {"max_error": wish.max_error, "delta": wish.delta},
        "curves": [_for_browser(curve, wish) for curve in curves],
    }
    return json.dumps(data, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026").replace("$", "\\u0024")


def _for_browser(curve: Curve, wish: Wish) -> dict[str, Any]:
    threshold = curve.certified(wish)
    return {
        "key": curve.key,
        "run": curve.run.name,
        "estimator": curve.estimator,
        "isCalibrated": curve.scope is not None,
        "risk": _packed(curve.report.risk, "<f4"),
        "error": _packed(curve.report.is_error, "u1"),
        "count": len(curve.report.risk),
        "calibrationCount": len(curve.calibration.risk),
        "certifiedRank": None if threshold is None else int((curve.report.risk <= threshold).sum()),
        "certified": threshold,
        "calibrationErrors": int(curve.calibration.is_error.sum()),
        "quality": curve.quality,
        "band": band(curve.report),
    }


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")


def band(found: Labelled, most: int = 4000) -> dict[str, list[float]]:
    """90 % bootstrap band of the accuracy at each coverage.

    Of more than `most` answers, so many, evenly taken, are drawn from and the band is narrowed by the square root of
    the sizes' ratio, by which such a band shrinks.
    """
    count = len(found.risk)
    if count < 10:
        return {"coverage": [], "low": [], "high": []}
    kept = np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
    grid = np.linspace(max(0.02, 2 / len(kept)), 1, 50)
    drawn = accuracy_band(found.risk[kept], found.is_error[kept], grid, samples=200, confidence=0.9)
    shrink = math.sqrt(len(kept) / count)
    low = drawn.accuracy - (drawn.accuracy - drawn.low) * shrink
    high = drawn.accuracy + (drawn.high - drawn.accuracy) * shrink
    return {"coverage": grid.round(4).tolist(), "low": low.round(4).tolist(), "high": high.round(4).tolist()}


def make_policy(curve: Curve, rank: int, wish: Wish, name: str, action: str, **more: Any) -> Policy:
    """The policy of a chosen threshold; it promises something only at the certified threshold.

    Raises:
        InputError: the name or another value cannot be used.
    """
    certified = curve.certified(wish)
    is_certified = certified is not None and rank == int((curve.report.risk <= certified).sum())
    threshold = certified if is_certified and certified is not None else curve.threshold_at(rank)
    run = curve.run
    origin = Origin(
        records=run.name,
        data_sets=_unique(run, "set"),
        styles=_unique(run, "style"),
        num_answers=len(curve.calibration.risk),
        model=(_unique(run, "model") or ("",))[0],
        scope=curve.scope,
        risks=tuple(np.quantile(curve.calibration.risk, np.linspace(0, 1, 101))) if len(curve.calibration.risk) else (),
    )
    try:
        return Policy(
            name=name.strip(),
            estimator=curve.estimator,
            threshold=threshold,
            raw_threshold=raw_at(curve, threshold),
            action=action,
            guarantee=Guarantee(max_error=wish.max_error, delta=wish.delta) if is_certified else None,
            calibrated_on=origin,
            coverage=curve.coverage(threshold),
            accuracy=curve.accuracy(threshold),
            **more,
        )
    except ValueError as error:
        raise InputError(
            f"This policy cannot be kept: {_first(error)} A name has letters, digits, spaces, dots and dashes, "
            "64 at most."
        ) from error


def raw_at(curve: Curve, threshold: float) -> float | None:
    """The largest raw score at or below the threshold; None where no answer has a finite one, or none passes."""
    raw = curve.run.table[RAW + curve.estimator].to_numpy(zero_copy_only=False)
    passing = raw[curve.run.risk(curve.estimator) <= threshold]
    passing = passing[np.isfinite(passing)]
    return float(passing.max()) if len(passing) else None


def _first(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return f"{'.'.join(map(str, errors()[0]['loc']))}: {errors()[0]['msg']}." if errors else f"{error}."


def _unique(records: Records, column: str) -> tuple[str, ...]:
    return tuple(value for value in records.table[column].unique().to_pylist() if value)


def records_files(folder: Path) -> dict[str, Path]:
    """Records that ship with the app and those in the user's folder, by name."""
    found = [*sorted((ASSETS / "records").glob("*.parquet")), *sorted(folder.glob("*.parquet"))]
    return {path.stem: path for path in found}


def open_records(name: str, folder: Path) -> Records:
    """The records of that name. Raises InputError when there are none."""
    files = records_files(folder)
    if name not in files:
        raise InputError(f"There are no records called {name!r}; there are {', '.join(files) or 'none yet'}.")
    return read_records(files[name])
