"""Accuracy of the answered by share of questions answered, as a table and as an SVG figure, from risks. Asks no model.

Reads what `python -m trainers score` writes. All sets named are pooled, so that a score that tells hard sets from easy
ones is paid for it, as it would be where questions of all kinds come in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from trainers.metrics_report import Graded, read_graded
from trainers.selective_table import coverage_table, replace_between
from uqchat.errors import InputError
from uqchat.selective import Band, accuracy_band

MARKS = ("<!-- coverage: begin -->", "<!-- coverage: end -->")
COVERAGES = (0.01, 0.05, 0.08, 0.1, 0.2, 0.35, 0.5, 1.0)
GRID = tuple(np.linspace(0.02, 1, 50))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8a6d00", "#7a4fbf", "#222222")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 56, 16, 190, 46
Scores = dict[str, tuple[np.ndarray, np.ndarray]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers coverage`."""
    parser.add_argument("--risks", nargs="+", required=True, type=Path, help="JSON Lines of `score`, or records")
    parser.add_argument("--scores", default="", help="names, comma-separated, NAME=LABEL renames; default: all")
    parser.add_argument("--sets", default="", help="data sets, comma-separated; default: all")
    parser.add_argument("--figure", type=Path, help="the .svg file to write")
    parser.add_argument("--into", type=Path, help=f"file with {MARKS[0]} and {MARKS[1]}; default: standard output")


def main(args: argparse.Namespace) -> int:
    """Compute, draw, write."""
    graded = read_graded(args.risks)
    sets = _names(args.sets) or sorted(set(graded.sets.tolist()))
    scores = chosen(graded, sets, _labels(args.scores) or {name: name for name in graded.raw})
    wrong = next(iter(scores.values()))[1]
    text = (
        f"{len(wrong):,} answers to questions of {', '.join(sets)}, {1 - wrong.mean():.1%} right. Right among the"
        f" answered, by share answered, with 95 % bootstrap intervals:\n\n{coverage_table(scores, COVERAGES)}"
    )
    if args.figure:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        bands = {name: accuracy_band(*score, GRID) for name, score in scores.items()}
        args.figure.write_text(figure(bands, f"{len(wrong):,} answers"), encoding="utf-8")
        print(f"{args.figure}: {len(scores)} curves", file=sys.stderr)
    if args.into:
        replace_between(args.into, text, MARKS)
    else:
        print(text)
    return 0


def chosen(graded: Graded, sets: Sequence[str], labels: Mapping[str, str]) -> Scores:
    """Risk and label of the answers of these sets for which every score is there.

    Raises:
        InputError: an unknown score or set, or no answer that has them all.
    """
    for what, wanted, known in (("score", labels, graded.raw), ("set", sets, set(graded.sets.tolist()))):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputError(f"Unknown {what} {unknown[0]!r}; known: {', '.join(sorted(known))}.")
    rows = np.isin(graded.sets, list(sets)) & ~np.isnan(np.stack([graded.raw[name] for name in labels])).any(axis=0)
    if not rows.any():
        raise InputError(f"No answer of {', '.join(sets)} has all of {', '.join(labels)}.")
    return {label: (graded.raw[name][rows], graded.is_error[rows]) for name, label in labels.items()}


def figure(bands: Mapping[str, Band], caption: str) -> str:
    """An SVG: a line for each score, the interval of the first one shaded. Reads in light and dark, prints in grey."""
    top = max(float(np.max(band.accuracy)) for band in bands.values())
    height = max(0.1, np.ceil(min(1.0, top) * 10) / 10)
    inner = [_axes(height), _shade(next(iter(bands.values())), height)]
    ends = _spread([float(band.accuracy[len(band.accuracy) // 6]) for band in bands.values()], height)
    for number, ((name, band), end) in enumerate(zip(bands.items(), ends, strict=True)):
        inner.append(_line(number, name, band, height, end))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="12" role="img"><title>Accuracy by share of questions answered, {escape(caption)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>{"".join(inner)}</svg>\n'
    )


def _x(coverage: float) -> float:
    return LEFT + coverage * (WIDTH - LEFT - RIGHT)


def _y(accuracy: float, height: float) -> float:
    return HEIGHT - BOTTOM - min(accuracy, height) / height * (HEIGHT - TOP - BOTTOM)


def _axes(height: float) -> str:
    parts = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(f'<text x="{_x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share:.0%}</text>')
    for step in range(round(height * 10) + 1):
        y = _y(step / 10, height)
        parts.append(f'<line x1="{LEFT}" x2="{_x(1)}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{step * 10}%</text>')
    middle = (LEFT + _x(1)) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">questions answered</text>')
    return "".join(parts) + f'<text x="14" y="{HEIGHT / 2}" transform="rotate(-90 14 {HEIGHT / 2})">right</text>'


def _shade(band: Band, height: float) -> str:
    upper = [f"{_x(c):.1f},{_y(a, height):.1f}" for c, a in zip(band.coverage, band.high, strict=True)]
    lower = [f"{_x(c):.1f},{_y(a, height):.1f}" for c, a in zip(band.coverage, band.low, strict=True)]
    return f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{COLOURS[0]}" opacity="0.15"/>'


def _line(number: int, name: str, band: Band, height: float, label_y: float) -> str:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    points = " ".join(f"{_x(c):.1f},{_y(a, height):.1f}" for c, a in zip(band.coverage, band.accuracy, strict=True))
    style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    key = f'<line x1="{_x(1) + 10}" x2="{_x(1) + 38}" y1="{label_y:.1f}" y2="{label_y:.1f}" {style}/>'
    text = f'<text x="{_x(1) + 44}" y="{label_y + 4:.1f}">{escape(name)}</text>'
    return f'<polyline points="{points}" fill="none" {style}/>{key}{text}'


def _spread(values: Sequence[float], height: float) -> list[float]:
    """Where each label stands: in the order of the curves where they are apart, 18 pixels from each other."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    places, free = [0.0] * len(values), float(TOP + 8)
    for index in order:
        places[index] = max(free, _y(values[index], height))
        free = places[index] + 18
    return places


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _labels(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _names(text)]
    return {name: label if sign else name for name, sign, label in pairs}
