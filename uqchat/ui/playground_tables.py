"""What a threshold answers of a curve: kind by kind, and question by question. Knows no component."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from uqchat.ui.playground_data import Curve


@dataclass(frozen=True, slots=True)
class Slice:
    """Answers of one category or data set below a threshold; `low` to `high`: 95 % Wilson interval of the accuracy."""

    kind: str
    name: str
    count: int
    answered: int
    accuracy: float
    low: float
    high: float


def slices(curve: Curve, threshold: float, widest: float = 0.15) -> tuple[list[Slice], int]:
    """Slices whose interval reaches at most `widest` to either side, and how many are hidden. Both parts count."""
    found, hidden = [], 0
    rows = np.concatenate([curve.calibration.rows, curve.report.rows])
    risk = np.concatenate([curve.calibration.risk, curve.report.risk])
    errors = np.concatenate([curve.calibration.is_error, curve.report.is_error])
    for kind in ("set", "category"):
        names = curve.run.strings(kind)[rows]
        values = np.unique(names[names != ""].astype(str))
        for value in values if len(values) > 1 else ():
            mine = names == value
            answered = mine & (risk <= threshold)
            right, count = int((~errors[answered]).sum()), int(answered.sum())
            low, high = wilson(right, count)
            share = right / count if count else math.nan
            if count and max(share - low, high - share) <= widest:
                found.append(Slice(kind, str(value), int(mine.sum()), count, share, low, high))
            else:
                hidden += 1
    return sorted(found, key=lambda one: (one.kind, one.accuracy)), hidden


def wilson(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927); (0, 1) without any trial."""
    if not count:
        return 0.0, 1.0
    share, square = hits / count, z * z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def questions(curve: Curve, threshold: float, limit: int) -> tuple[list[int], list[int]]:
    """Rows of the file to show: answered ones and declined ones of the report part, the worst mistakes first.

    Answered: wrong before right, the surest first. Declined: right before wrong, the riskiest first.
    """
    found = curve.report
    passes = found.risk <= threshold
    answered = np.flatnonzero(passes)[np.argsort(~found.is_error[passes], kind="stable")]
    declined = np.flatnonzero(~passes)[::-1]
    declined = declined[np.argsort(found.is_error[declined], kind="stable")]
    return found.rows[answered[:limit]].tolist(), found.rows[declined[:limit]].tolist()
