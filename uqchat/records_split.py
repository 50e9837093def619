"""Which answers of a run certify a threshold, and which are shown. Knows no estimator and no page."""

from __future__ import annotations

import zlib

import numpy as np

from uqchat.records import Records

CALIBRATION_SHARE = 0.6
"""Share of a run's answers that certify; the others report."""
CALIBRATION = "calibration"
"""`split` of answers that only certify."""


def calibration_part(records: Records) -> np.ndarray:
    """(N,) bool: rows that certify; they and the others share no question.

    Rows marked "calibration" in `split` come first; of the others as many join them, by a hash of the question's id, as
    it takes to make about `CALIBRATION_SHARE` of all. Which these are depends on no risk and no grade.
    """
    marked = records.strings("split") == CALIBRATION
    rest = len(records) - int(marked.sum())
    share = max(0.0, CALIBRATION_SHARE * len(records) - int(marked.sum())) / rest if rest else 0.0
    ids = records.strings("question_id")
    return marked | np.array([zlib.crc32(name.encode()) % 1000 < 1000 * share for name in ids], dtype=bool)
