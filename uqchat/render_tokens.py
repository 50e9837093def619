"""Scored tokens as coloured HTML and as one sentence. Pure; knows no page, no chat and no store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from uqchat.render_claims import TintedClaim, claim_numbers, claims_in, claims_line
from uqchat.render_text import encode, markdown_to_html, plural, quoted, shortened
from uqchat.render_units import CLAIM_MODES, RiskView, Unit, unit_bins, units
from uqchat.types import ScoredToken

_MAX_QUOTED = 6


class SpanLabel(Protocol):
    """A person's verdict on characters [start, end) of the answer's text, or on all of it when start is None."""

    is_error: bool
    start: int | None
    end: int | None


def tokens_to_html(
    tokens: Sequence[ScoredToken],
    view: RiskView,
    message_id: str,
    labels: Iterable[SpanLabel] = (),
    is_streaming: bool = False,
) -> str:
    """The answer as HTML: tags stripped and references unescaped it is exactly the tokens' text (in mode 'risk').

    Each unit is `<span class="uq-t uq-b3" data-i="12">` with the spaces before its word left outside; reasoning is
    folded. Where claims are tinted, `<span class="uq-c uq-b3" data-c="0">` holds a claim's units, which then have no
    tint. While streaming, a longer answer's HTML begins with the shorter one's (on the absolute scale), which keeps
    updates small: nothing is closed, and tokens are tinted until the claims are known.
    """
    pieces = units(tokens, view.estimator)
    bins = unit_bins(pieces, view)
    claims = [] if is_streaming or view.mode not in CLAIM_MODES else claims_in(tokens, view)
    spans = [label for label in labels if label.start is not None]
    first = next((unit.index for unit in pieces if not unit.is_reasoning and unit.text.strip()), None)
    source = ""
    if view.mode == "markdown" and not is_streaming:  # for "copy": what is drawn has lost its marks
        source = f' data-source="{encode("".join(unit.text for unit in pieces if not unit.is_reasoning).lstrip())}"'
    parts = [f'<div class="uq-text" dir="auto" data-m="{encode(message_id)}"{source}>']
    for is_reasoning, run in groupby(zip(pieces, bins, strict=True), key=lambda pair: pair[0].is_reasoning):
        group = list(run)
        if is_reasoning:
            is_open_end = is_streaming and group[-1][0] is pieces[-1]
            parts += _reasoning(group, is_streaming, is_open_end, message_id)
        elif view.mode == "markdown":
            parts.append(f'<div class="uq-md">{markdown_to_html("".join(unit.text for unit, _ in group))}</div>')
        else:
            parts += _answer_run(group, spans, first, claims, is_gap=len(parts) > 1)
    return "".join(parts) + ("" if is_streaming else "</div>")


def _answer_run(
    group: Sequence[tuple[Unit, int | None]],
    labels: Sequence[SpanLabel],
    first: int | None,
    claims: Sequence[TintedClaim],
    is_gap: bool,
) -> Iterator[str]:
    # A tint that starts with the word, not with the space before it, keeps lines even and words apart. The empty
    # lines that models leave between reasoning and answer stay in the text, but take no room on the page (`is_gap`).
    numbers = claim_numbers([unit for unit, _ in group], claims)
    open_claim: int | None = None
    for (unit, bin_), number in zip(group, numbers, strict=True):
        if open_claim is not None and number != open_claim:
            yield "</span>"
        lead = len(unit.text) - len(unit.text.lstrip(" \n"))
        if lead == len(unit.text) and not is_gap:
            lead = 0
        if lead:
            space = encode(unit.text[:lead])
            yield f'<span class="uq-gap">{space}</span>' if is_gap else space
        if number is not None and number != open_claim:
            yield _claim_start(number, claims[number])
        open_claim = number
        if lead < len(unit.text):
            is_gap = False
            yield _span(unit, unit.text[lead:], None if claims else bin_, labels, unit.index == first)
    yield "" if open_claim is None else "</span>"


def _claim_start(number: int, claim: TintedClaim) -> str:
    return f'<span class="uq-c uq-b{claim.bin}" data-c="{number}">'


def _span(unit: Unit, text: str, number: int | None, labels: Sequence[SpanLabel], is_first: bool) -> str:
    classes = "uq-t" if number is None else f"uq-t uq-b{number}"
    for label in labels:
        if label.start < unit.span[1] and unit.span[0] < (label.end or 0):
            classes += " uq-marked-wrong" if label.is_error else " uq-marked-right"
    return f'<span class="{classes}" data-i="{unit.index}" tabindex="{0 if is_first else -1}">{encode(text)}</span>'


def _reasoning(
    group: Sequence[tuple[Unit, int | None]], is_streaming: bool, is_open_end: bool, message_id: str
) -> Iterator[str]:
    # The label lives in an attribute, drawn by the style sheet, so that the answer's text stays the answer's text.
    count = sum(len(unit.positions) for unit, _ in group)
    label = "Reasoning, not part of the risk"
    if not is_streaming:
        label = f"Reasoning, {plural(count, 'token')}, not part of the risk"
    key = encode(f"{message_id}:{group[0][0].index}")
    summary = f'<summary aria-label="{label}" data-label="{label}"></summary>'
    yield f'<details class="uq-reasoning" data-key="{key}">{summary}'
    yield from (_span(unit, unit.text, None, (), False) for unit, _ in group)
    yield "" if is_open_end else "</details>"


def answer_line(tokens: Sequence[ScoredToken], view: RiskView) -> str:
    """One plain-text sentence that says what the colours say; not HTML, so encode it before drawing."""
    if view.mode in CLAIM_MODES:
        return claims_line(tokens, view)
    pieces = units(tokens, view.estimator)
    bins = unit_bins(pieces, view)
    total = sum(number is not None for number in bins)
    if not total:
        return ""
    least = 3 if view.scale == "absolute" else 4
    risky = [(i, unit) for i, (unit, number) in enumerate(zip(pieces, bins, strict=True)) if (number or 0) >= least]
    if not risky:
        return f"None of {plural(total, 'token')} stands out."
    verb = "stands" if len(risky) == 1 else "stand"
    where = "" if view.scale == "absolute" else " within this answer"
    return f"{len(risky)} of {plural(total, 'token')} {verb} out{where}: {_quote_runs(risky)}"


def _quote_runs(risky: Sequence[tuple[int, Unit]]) -> str:
    # Neighbours are quoted together: “Bishkek” reads better than “Bish”, “kek”. Of many, the riskiest are named.
    grouped = groupby(enumerate(risky), lambda pair: pair[1][0] - pair[0])
    runs = [[unit for _, (_, unit) in run] for _, run in grouped]
    worst = sorted(range(len(runs)), key=lambda i: -max(unit.risk or 0.0 for unit in runs[i]))[:_MAX_QUOTED]
    shown = ", ".join(quoted(shortened("".join(unit.text for unit in runs[i]))) for i in sorted(worst))
    return f"{shown} …" if len(runs) > _MAX_QUOTED else f"{shown}."
