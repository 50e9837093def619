"""Interleaved timing of two or more arms in one process, as ratios; results as JSON and as the README's table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` of the arm to its baseline, median over paired repeats."""

    claim: str
    arm: str
    baseline: str
    ratio: float
    low: float
    high: float
    bar: str
    is_met: bool
    detail: str


def interleave(arms: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Work per second of every arm, `repeats` times, order reversed every other time, after one warm-up each.

    Args:
        arms: each runs once and returns how much work it did (tokens, say).
    """
    for run in arms.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats):
        order = list(arms) if repeat % 2 else list(reversed(arms))
        for name in order:
            start = time.perf_counter()
            work = arms[name]()
            rates[name].append(work / (time.perf_counter() - start))
    return rates


def compare(claim: str, rates: dict[str, list[float]], arm: str, baseline: str, bar: float, unit: str) -> Row:
    """The paired ratios of two arms against a bar that they should reach or exceed."""
    ratios = sorted(a / b for a, b in zip(rates[arm], rates[baseline], strict=True))
    median = statistics.median(ratios)
    detail = ", ".join(f"{name} {statistics.median(values):.1f} {unit}" for name, values in rates.items())
    return Row(claim, arm, baseline, median, ratios[0], ratios[-1], f">= {bar:g}", median >= bar, detail)


def save(name: str, rows: list[Row], settings: dict[str, object]) -> None:
    """Write benchmarks/results/<name>.json and print the rows."""
    import torch
    import transformers

    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.machine(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    data = {"rows": [asdict(row) for row in rows], "settings": settings, "machine": machine}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    for row in rows:
        met = "met" if row.is_met else "MISSED"
        print(f"{row.claim}: {row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}] bar {row.bar} {met} ({row.detail})")


def table() -> str:
    """All stored results as a Markdown table."""
    lines = ["| claim | ratio (lowest to highest) | bar | met | medians |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            met = "yes" if row["is_met"] else "no"
            lines.append(f"| {row['claim']} | {spread} | {row['bar']} | {met} | {row['detail']} |")
    return "\n".join(lines)


def update_readme() -> None:
    """Put the table between the README's marks."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        readme.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}")
