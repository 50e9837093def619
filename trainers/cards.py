"""Held-out figures of a report into the cards of trained estimators, beside entropy and RAUQ. Knows only layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.answers import write_whole
from trainers.metrics_tables import TITLES
from uqchat.errors import InputError

CARD = "README.md"
BEGIN, END = "<!-- held out: begin -->", "<!-- held out: end -->"
BESIDE = ("entropy", "rauq")


def write_cards(report: Mapping[str, Any], domains: Mapping[str, Sequence[str]], folder: Path) -> list[Path]:
    """Put a section into the card of every trained estimator of the report that lies in the folder.

    Args:
        report: what `metrics_report.evaluate` gives. folder: holds `<estimator>/README.md`.

    Raises:
        InputError: no such estimator lies there, or a card cannot be written.
    """
    names = sorted({name for found in report.values() for cells in _metrics(found).values() for name in cells})
    cards = {name: folder / name / CARD for name in names if (folder / name / CARD).is_file()}
    if not cards:
        raise InputError(f"{folder} has no card of {', '.join(names)}.")
    for name, path in cards.items():
        text = re.sub(rf"\n*{BEGIN}.*?{END}\n*", "\n", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        write_whole(path, [f"{text.rstrip()}\n\n{BEGIN}\n{section(report, domains, name)}\n{END}\n"])
    return list(cards.values())


def section(report: Mapping[str, Any], domains: Mapping[str, Sequence[str]], name: str) -> str:
    """A table: a row for each prompt style, metric and domain, this estimator beside the untrained ones."""
    beside = [one for one in BESIDE if one != name]
    lines = [
        "## On held-out questions",
        "",
        "Means over sets, 95 % bootstrap intervals over questions. "
        + "; ".join(f"{domain}: {', '.join(sets)}" for domain, sets in domains.items())
        + ".",
        "",
        f"| prompt style | metric | | {' | '.join([name, *beside])} | gain |",
        "| --- " * (5 + len(beside)) + "|",
    ]
    for style, found in report.items():
        for metric, cells in _metrics(found).items():
            for domain in domains:
                figures = [cells.get(one, {}).get(domain) for one in (name, *beside)]
                if figures[0]:
                    told = [_figure(one) for one in figures]
                    row = [style, TITLES.get(metric, metric), domain, *told, _gain(figures[0])]
                    lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: cells for metric, cells in found.items() if metric != "sets"}


def _figure(cell: Mapping[str, Any] | None) -> str:
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" if cell else "–"


def _gain(cell: Mapping[str, Any]) -> str:
    if "gain" not in cell:
        return "–"
    gain = cell["gain"]
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] over {cell['over']}"
