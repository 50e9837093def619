"""A reader's right / wrong marks as the calibration of an estimator's answer risk. Knows no store and no page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uqchat.errors import InputError

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel

MIN_MARKS = 50
SCOPE = "answers like those marked right or wrong here"


@dataclass(frozen=True, slots=True)
class MarkedAnswer:
    """One answer that a person marked as a whole; `raw` is the estimator's score of it, `num_tokens` its length."""

    raw: float
    is_error: bool
    num_tokens: int


def refit(model: LanguageModel, name: str, marks: Sequence[MarkedAnswer], root: Path) -> Path:
    """Fits the answer-level map of an untrained estimator to marks and writes it below `root`; gives the file.

    The map for tokens, if the estimator has one, stays as it is.

    Raises:
        InputError: too few marks, all of one kind, or a trained estimator, whose calibration belongs to its folder.
        UqchatError: no such estimator.
    """
    from uqchat.artifact_folders import UNTRAINED, slug_of
    from uqchat.calibration import Calibrations, fit_from_marks, write_calibrations
    from uqchat.fingerprint import weights_fingerprint
    from uqchat.scope import Scope

    if name not in UNTRAINED:
        raise InputError(f"{name[:80]} brings a calibration of its own; only untrained estimators are refitted here.")
    require_enough(marks)
    longest = max(mark.num_tokens for mark in marks)
    scope = Scope(
        SCOPE, max_answer_tokens=longest, temperatures=(), weights_fingerprint=weights_fingerprint(model.model)
    )
    fitted = fit_from_marks([mark.raw for mark in marks], [mark.is_error for mark in marks], scope)
    old = model.estimator(name).calibrations or Calibrations()
    folder = root / slug_of(model) / name
    folder.mkdir(parents=True, exist_ok=True)
    return write_calibrations(folder, replace(old, answer=fitted))


def require_enough(marks: Sequence[MarkedAnswer]) -> None:
    """Raises InputError when the marks cannot be fitted to."""
    wrong = sum(mark.is_error for mark in marks)
    if len(marks) < MIN_MARKS or not 0 < wrong < len(marks):
        raise InputError(
            f"A calibration needs at least {MIN_MARKS} marked answers of this model, right ones and wrong ones; "
            f"there are {len(marks) - wrong} right and {wrong} wrong with a score by this estimator."
        )
