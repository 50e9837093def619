"""Between the rows of a batch and one forward's capture: what they want together, and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

from uqchat.engine.capture import Capture, join
from uqchat.engine.rows import Row
from uqchat.types import StepSignals


def capture_for(rows: Sequence[Row], num_rows: int) -> Capture | None:
    """The union of what the rows want of their last `num_rows` positions; None when nobody wants anything."""
    signals = reduce(or_, (row.request.signals for row in rows))
    if not (signals.has_tensors and num_rows):
        return None
    return Capture(signals, num_rows, prompt_lengths=tuple(len(row.request.prompt_ids) for row in rows))


def signals_of(row: Row, capture: Capture | None, sequence: int, at: int) -> StepSignals | None:
    """What one row asked for, of the position that predicts its next token; its prompt's with the first of them."""
    if capture is None or not row.request.signals.has_tensors:
        return None
    signals = capture.at(sequence, at, row.request.signals)
    if row.prompt_parts:
        signals, row.prompt_parts = replace(signals, prompt=join(row.prompt_parts)), []
    return signals


def keep_prompt(row: Row, capture: Capture | None, sequence: int, count: int) -> None:
    """Put aside the signals of `count` prompt positions, if the row wants them."""
    if capture is not None and row.request.signals.prompt_rows and count:
        row.prompt_parts.append(capture.at(sequence, slice(0, count), row.request.signals))
