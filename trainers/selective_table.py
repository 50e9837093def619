"""What thresholds buy, as tables for the README, from records files. Asks no model.

Accuracy at fixed shares of questions answered, with bootstrap intervals; the share that a guarantee lets be answered,
over random splits; and, where several answers were drawn to each question, what trying again buys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uqchat.errors import InputError
from uqchat.metrics import auroc
from uqchat.records import Records, read_records
from uqchat.records_split import CALIBRATION, CALIBRATION_SHARE, calibration_part
from uqchat.selective import accuracy_band, coverage_at_accuracy
from uqchat.selective_guarantee import guaranteed_threshold

BEGIN, END = "<!-- selective: begin -->", "<!-- selective: end -->"
COVERAGES = (0.01, 0.08, 0.09, 0.35, 1.0)
LEVELS = (0.1, 0.2, 0.3, 0.5)
DELTA = 0.1
PUBLISHED = {"truthfulqa": ("1 %: 100 %", "8 %: above 90 %", "9 %: above 80 %", "35 %: above 70 %")}
"""Share answered and accuracy of the selective-answering tutorial (capsa, arXiv 2311.15451), Llama-2-Chat-7B, whose
thresholds were chosen on the questions that are reported."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers selective`."""
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="records files, .parquet")
    parser.add_argument("--splits", type=int, default=200, help="random splits for the certified share")
    parser.add_argument(
        "--into", type=Path, help=f"file with {BEGIN} and {END} to write between; default: standard output"
    )


def main(args: argparse.Namespace) -> int:
    """Compute and write."""
    text = "\n\n".join(section(read_records(path), args.splits) for path in args.records)
    if args.into is None:
        print(text)
        return 0
    replace_between(args.into, text)
    print(f"{args.into}: written between the marks", file=sys.stderr)
    return 0


def replace_between(path: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Puts the text between the marks. Raises InputError where a mark is missing."""
    whole = path.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise InputError(f"{path} has no marks {marks[0]} and {marks[1]} to write between.")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def section(records: Records, splits: int) -> str:
    """All that one file says: tries where several answers were drawn, else curves and, where they ship, guarantees."""
    first = records.table["sample"].to_numpy() == 0
    graded = first & ~np.isnan(records.is_error)
    shown = graded & (records.strings("split") != CALIBRATION)
    base = 1 - records.is_error[shown].mean()
    head = f"`{records.name}`: {int(shown.sum()):,} questions, {base:.1%} right."
    if not first.all():
        return f"{head}\n\n{tries_table(records)}"
    parts = [head + published(records), accuracy_table(records, shown), doubling(records, shown, base)]
    if shown.sum() < graded.sum():
        parts += [certified_table(records, first, splits), shipped_table(records)]
    return "\n\n".join(part for part in parts if part)


def published(records: Records) -> str:
    """What others report for this set; '' where that is not known."""
    found = next((PUBLISHED[name] for name in PUBLISHED if records.name.startswith(name)), None)
    return "" if found is None else f" Published for Llama-2-Chat-7B, answered and right: {', '.join(found)}."


def accuracy_table(records: Records, only: np.ndarray) -> str:
    """Accuracy of the answered at each share, with 95 % bootstrap intervals."""
    found = {name: records.labelled(name, only=only) for name in records.estimators}
    table = coverage_table({name: (one.risk, one.is_error) for name, one in found.items()}, COVERAGES)
    return f"Right among the answered, by share of questions answered:\n\n{table}"


def coverage_table(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], coverages: Sequence[float]) -> str:
    """A row for each score: accuracy at each coverage with a 95 % bootstrap interval, and its AUROC.

    Args:
        scores: name to risk and is_error, (N,) each.
    """
    rows = []
    for name, (risk, is_error) in scores.items():
        drawn = accuracy_band(risk, is_error, coverages)
        cells = [
            f"{a:.0%} ({low:.0%}-{high:.0%})"
            for a, low, high in zip(drawn.accuracy, drawn.low, drawn.high, strict=True)
        ]
        has_both = 0 < is_error.sum() < len(is_error)
        rows.append([name, *cells, f"{auroc(risk, is_error):.3f}" if has_both else "-"])
    return _table(["score", *(f"{coverage:.0%}" for coverage in coverages), "AUROC of wrong"], rows)


def certified_table(records: Records, only: np.ndarray, splits: int, seed: int = 0) -> str:
    """Mean share answered at the threshold certified on one random part, on the other part; 0 where none is."""
    rows = [[name, *_certified(records, name, only, splits, seed)] for name in records.estimators]
    return (
        f"Mean share of questions answered under a guarantee with confidence {1 - DELTA:.0%}, over {splits} random "
        f"splits of all graded answers, certified on {CALIBRATION_SHARE:.0%} of them and counted on the others; in "
        "brackets, in how many splits more than r of the answered others were wrong (small parts exceed it by chance "
        "too):\n\n" + _table(["score", *(f"r = {level}" for level in LEVELS)], rows)
    )


def _certified(records: Records, name: str, only: np.ndarray, splits: int, seed: int) -> list[str]:
    found = records.labelled(name, only=only)
    generator, count = np.random.default_rng(seed), len(found.risk)
    shares, broken = np.zeros((splits, len(LEVELS))), np.zeros(len(LEVELS))
    for split in range(splits):
        order = generator.permutation(count)
        cut = round(CALIBRATION_SHARE * count)
        mine, other = order[:cut], order[cut:]
        for column, level in enumerate(LEVELS):
            threshold = guaranteed_threshold(found.risk[mine], found.is_error[mine], level, DELTA)
            if threshold is None:
                continue
            passes = found.risk[other] <= threshold
            shares[split, column] = passes.mean()
            broken[column] += passes.any() and found.is_error[other][passes].mean() > level
    return [f"{share:.1%} ({b / splits:.0%})" for share, b in zip(shares.mean(axis=0), broken, strict=True)]


def shipped_table(records: Records) -> str:
    """What the file's own calibration part certifies, counted on its other part, as the playground opens it."""
    mine, rows = calibration_part(records), []
    for name in records.estimators:
        calibration, report = (records.labelled(name, only=part) for part in (mine, ~mine))
        cells = []
        for level in LEVELS:
            threshold = guaranteed_threshold(calibration.risk, calibration.is_error, level, DELTA)
            passes = np.zeros(len(report.risk), bool) if threshold is None else report.risk <= threshold
            wrong = f", {report.is_error[passes].mean():.0%} wrong" if passes.any() else ""
            cells.append(f"{passes.mean():.1%}{wrong}")
        rows.append([name, *cells])
    return (
        f"The same with the {int(mine.sum())} answers that certify in this file, counted on the other "
        f"{int((~mine).sum())}:\n\n" + _table(["score", *(f"r = {level}" for level in LEVELS)], rows)
    )


def doubling(records: Records, only: np.ndarray, base: float) -> str:
    """The largest share that can be answered at twice the accuracy of answering all; '' where that is above 100 %."""
    if base <= 0 or 2 * base > 1:
        return ""
    found = {name: records.labelled(name, only=only) for name in records.estimators}
    shares = {name: coverage_at_accuracy(one.risk, one.is_error, 2 * base) for name, one in found.items()}
    best = max(shares, key=shares.__getitem__)
    if not shares[best]:
        return f"No score reaches twice the accuracy of answering everything ({2 * base:.0%})."
    return f"At twice the accuracy of answering everything ({2 * base:.0%}), `{best}` answers {shares[best]:.1%}."


def tries_table(records: Records) -> str:
    """Of several answers to a question: are the riskiest wrong more often, and what does trying until sure buy?"""
    rows = [[name, *cells] for name in records.estimators if (cells := _tries(records, name))]
    head = ["score", "first", "surest", "riskiest", "riskiest wrong more often", "tried until sure", "gain", "answers"]
    return (
        "Several answers to each question. Share right of the first (greedy) one, of the surest and of the riskiest; "
        "how much more often the riskiest is wrong than the surest (points, 95 % interval over questions); share right "
        "of the first answer below the median risk of first answers (the least risky where none is), how that differs "
        "from the first answer, and how many answers it took:\n\n" + _table(head, rows)
    )


def _tries(records: Records, name: str) -> list[str]:
    """The cells of one estimator; none where no question has several answers with a risk."""
    risk, wrong = records.risk(name), records.is_error
    ids, samples = records.strings("question_id"), records.table["sample"].to_numpy()
    groups: dict[str, list[int]] = {}
    for row in np.flatnonzero(~(np.isnan(risk) | np.isnan(wrong))):
        groups.setdefault(ids[row], []).append(int(row))
    several = [np.array(sorted(rows, key=lambda r: samples[r])) for rows in groups.values() if len(rows) > 1]
    if not several:
        return []
    threshold = float(np.median([risk[g[0]] for g in several]))
    ends = [_until(g, risk, threshold) for g in several]
    first, surest, riskiest, retried = (
        wrong[rows]
        for rows in (
            [g[0] for g in several],
            [g[np.argmin(risk[g])] for g in several],
            [g[np.argmax(risk[g])] for g in several],
            [row for row, _ in ends],
        )
    )
    shares = [f"{1 - one.mean():.1%}" for one in (first, surest, riskiest)]
    tries = float(np.mean([count for _, count in ends]))
    return [*shares, _gain(riskiest - surest), f"{1 - retried.mean():.1%}", _gain(first - retried), f"{tries:.2f}"]


def _gain(differences: np.ndarray, draws: int = 2000) -> str:
    """A mean of paired differences in points, with a percentile interval over drawn questions."""
    rows = np.random.default_rng(0).integers(0, len(differences), (draws, len(differences)))
    low, high = np.quantile(differences[rows].mean(axis=1), [0.025, 0.975])
    return f"{100 * differences.mean():+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


def _until(rows: np.ndarray, risk: np.ndarray, threshold: float) -> tuple[int, int]:
    for tries, row in enumerate(rows, 1):
        if risk[row] <= threshold:
            return int(row), tries
    return int(rows[np.argmin(risk[rows])]), len(rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
