"""What is tinted and how strongly: visible pieces of an answer, their risks, five bins. Pure; knows no HTML.

A unit is what the reader sees as one piece: a token, or the tokens whose bytes make up one character. A unit has
the largest risk of its tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uqchat.types import ScoredToken

BIN_EDGES = (0.2, 0.4, 0.6, 0.8)
Mode = Literal["risk", "sentence", "entity", "markdown"]
CLAIM_MODES = ("sentence", "entity")


@dataclass(frozen=True, slots=True)
class RiskView:
    """How answers are drawn: by which estimator, on which scale, and what is tinted.

    `mode` "risk" tints tokens, "sentence" and "entity" whole claims, "markdown" draws Markdown without a tint.
    """

    estimator: str = "entropy"
    scale: Literal["absolute", "relative"] = "absolute"
    mode: Mode = "risk"


@dataclass(frozen=True, slots=True)
class Unit:
    """One visible piece. `positions` index the token sequence, the last one carries the text."""

    text: str
    index: int
    positions: tuple[int, ...]
    span: tuple[int, int]
    is_reasoning: bool
    risk: float | None


def units(tokens: Sequence[ScoredToken], estimator: str) -> list[Unit]:
    """The visible pieces in order. Tokens of a character that is never completed, and the end token, give none."""
    found: list[Unit] = []
    waiting: list[int] = []
    for position, token in enumerate(tokens):
        if token.is_end or (waiting and tokens[waiting[-1]].is_reasoning != token.is_reasoning):
            waiting = []
        if token.is_end:
            continue
        waiting.append(position)
        if token.text:
            found.append(_unit(tokens, tuple(waiting), estimator))
            waiting = []
    return found


def _unit(tokens: Sequence[ScoredToken], positions: tuple[int, ...], estimator: str) -> Unit:
    last = tokens[positions[-1]]
    values = [tokens[i].risks[estimator].value for i in positions if estimator in tokens[i].risks]
    known = [value for value in values if not math.isnan(value)]
    risk = max(known) if known and not last.is_reasoning else None
    return Unit(last.text, last.index, positions, last.span, last.is_reasoning, risk)


def unit_bins(pieces: Sequence[Unit], view: RiskView) -> list[int | None]:
    """Bin 0 to 4 of each unit, None where there is no risk to show.

    Absolute: the value's fifth of [0, 1]. Relative: the fifth of this answer's units that it belongs to, by the
    share of units with a smaller value, so that equal values share the lower bin.
    """
    return bins_of([unit.risk for unit in pieces], view)


def bins_of(values: Sequence[float | None], view: RiskView) -> list[int | None]:
    """The same of any pieces' risks."""
    if view.scale == "absolute":
        return [None if value is None else bisect_right(BIN_EDGES, value) for value in values]
    ordered = sorted(value for value in values if value is not None)
    return [None if value is None else 5 * bisect_left(ordered, value) // len(ordered) for value in values]


def risk_bins(tokens: Sequence[ScoredToken], view: RiskView) -> list[int | None]:
    """Bin 0 to 4 of each token, that of its unit; None for reasoning, end and other invisible tokens."""
    bins: list[int | None] = [None] * len(tokens)
    pieces = units(tokens, view.estimator)
    for unit, number in zip(pieces, unit_bins(pieces, view), strict=True):
        for position in unit.positions:
            bins[position] = number
    return bins
