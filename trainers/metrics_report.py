"""Risks of labelled answers to tables: how well each estimator ranks errors, set by set, with intervals.

Reads JSON Lines, one answer each, {"set", "style", "is_error", "risks": {name: raw}, "values": {name: P(error)}}
("values" and "style" may be missing; lines with the same "key" are one answer), or the Parquet records of
`uqchat evaluate`. Prompt styles are reported apart.
Knows no model and no estimator: only their numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.answers import write_whole
from trainers.cards import write_cards
from trainers.metrics_tables import markdown
from uqchat.errors import InputError
from uqchat.metrics import ece_floor
from uqchat.metrics_bootstrap import DEFINED_FOR_ONE_CLASS, interval_of, replicates
from uqchat.metrics_weighted import METRICS, OF_PROBABILITIES, Array
from uqchat.records import RAW, RISK
from uqchat.records_files import read_table

DEFAULT_METRICS = ("auroc", "prr_50", "ece", "brier_skill")
_FALLING = ("aurc", "brier", "ece", "ece_adaptive")  # lower is better
Cells = dict[str, Any]
Group = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Graded:
    """Labelled answers as columns; NaN where an estimator has no score for an answer."""

    sets: Array
    styles: Array
    is_error: Array
    raw: dict[str, Array]
    probability: dict[str, Array]

    def scores(self, metric: str) -> dict[str, Array]:
        """What a metric reads, by estimator: probabilities for those about calibration, else raw scores."""
        return self.probability if metric in OF_PROBABILITIES else self.raw

    def where(self, rows: Array) -> Graded:
        """Some of the answers, by mask."""
        raw, probability = ({n: c[rows] for n, c in columns.items()} for columns in (self.raw, self.probability))
        return Graded(self.sets[rows], self.styles[rows], self.is_error[rows], raw, probability)


def read_graded(paths: Sequence[str | Path]) -> Graded:
    """The answers of all files together; those without a label are left out.

    Raises:
        InputError: a file is missing or unreadable, a row lacks a key, or no labelled answer is there.
    """
    rows = _joined(row for path in paths for row in _rows(Path(path)) if row["is_error"] is not None)
    if not rows:
        raise InputError(f"No labelled answer in {', '.join(map(str, paths))}.")
    raw, probability = (_columns(rows, key) for key in ("risks", "values"))
    sets, styles = (np.array([str(row[key]) for row in rows]) for key in ("set", "style"))
    return Graded(sets, styles, np.array([float(row["is_error"]) for row in rows]), raw, probability)


def _joined(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of one answer as one row: files of several runs stand beside each other."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        known = found.setdefault(row.pop("key") or f"row {number}", row)
        known["risks"], known["values"] = known["risks"] | row["risks"], known["values"] | row["values"]
    return list(found.values())


def _columns(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Array]:
    names = dict.fromkeys(name for row in rows for name in row[key])
    return {n: np.array([np.nan if row[key].get(n) is None else row[key][n] for row in rows], float) for n in names}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    if path.suffix == ".parquet":
        yield from _records(path)
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found = {"style": "page", "values": {}, "key": None, **row}
            yield {key: found[key] for key in ("key", "set", "style", "is_error", "risks", "values")}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number}: needs set, is_error and risks; {error!r}.") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The first answer to every question."""
    for row in read_table(path).to_pylist():
        if not row["sample"]:
            raw, risk = ({n.removeprefix(start): row[n] for n in row if n.startswith(start)} for start in (RAW, RISK))
            own = {key: row[key] for key in ("set", "style", "is_error")}
            yield {"key": None, **own, "risks": raw, "values": risk}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is reported. `domains`: name -> sets, averaged with equal weight."""

    domains: Mapping[str, Sequence[str]]
    baselines: Sequence[str] = ()
    """Of these the best one, by the macro mean over the same rows, is what the others are compared with."""
    metrics: Sequence[str] = DEFAULT_METRICS
    samples: int = 1000
    seed: int = 0


def evaluate(graded: Graded, plan: Plan) -> dict[str, Any]:
    """The report as plain dicts: style -> "sets" (rows, error share), metric -> estimator -> place -> figures.

    A place is a set, a domain (macro mean over its sets) or "<domain>, pooled". Figures are {"value", "low", "high"}
    (for ece also "floor", what chance alone gives) and, with baselines, "gain" over the best of them with an interval
    paired by answer, "over" naming it. A set in which a metric is not defined (one class only) has null, and its
    domain's mean is over the others.

    Raises:
        InputError: unknown metric; a set or baseline that is nowhere in the files.
    """
    _check(graded, plan)
    return {str(style): _style(graded.where(graded.styles == style), plan) for style in np.unique(graded.styles)}


def _check(graded: Graded, plan: Plan) -> None:
    for what, wanted, known in (
        ("metric", plan.metrics, METRICS),
        ("set", [name for sets in plan.domains.values() for name in sets], set(graded.sets.tolist())),
        ("baseline", plan.baselines, graded.raw),
    ):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputError(f"Unknown {what} {unknown[0]!r}; known: {', '.join(sorted(known))}.")


def _style(graded: Graded, plan: Plan) -> dict[str, Any]:
    names = [str(name) for name in np.unique(graded.sets)]
    found: dict[str, Any] = {"sets": {}}
    for name in names:
        errors = graded.is_error[graded.sets == name]
        found["sets"][name] = {"rows": len(errors), "error_share": float(errors.mean())}
    for metric in plan.metrics:
        sample = _Sample(graded, metric, plan)
        found[metric] = {one: {} for one in graded.scores(metric)}
        for place, groups in _places(names, plan.domains):
            for one, cell in _cells(sample, groups, plan).items():
                found[metric][one][place] = cell
    return found


def _places(names: Sequence[str], domains: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, list[Group]]]:
    """Every place with the groups of sets that its mean is over."""
    for name in names:
        yield name, [(name,)]
    for domain, members in domains.items():
        present = [name for name in members if name in names]
        if present:
            yield domain, [(name,) for name in present]
        if len(present) > 1:
            yield f"{domain}, pooled", [tuple(present)]


class _Sample:
    """A metric's bootstrap vectors by estimator and group of sets, each computed once."""

    def __init__(self, graded: Graded, metric: str, plan: Plan) -> None:
        self.scores = graded.scores(metric)
        self.metric = metric
        self._graded = graded
        self._plan = plan
        self._kept: dict[tuple[str, Group], Array | None] = {}

    def vector(self, one: str, group: Group) -> Array | None:
        """The estimator's, on the rows where it has a score; None where the metric is not defined."""
        if (one, group) not in self._kept:
            self._kept[one, group] = self._compute([one], group)[0]
        return self._kept[one, group]

    def floor(self, one: str, group: Group) -> float:
        """The ECE of these probabilities, were they all true."""
        scores = self.scores[one][np.isin(self._graded.sets, group)]
        return ece_floor(scores[~np.isnan(scores)])

    def gain(self, one: str, base: str, group: Group) -> Array | None:
        """Paired by answer, on the rows where both have a score."""
        rows = np.isin(self._graded.sets, group)
        if any(np.isnan(self.scores[name][rows]).any() for name in (one, base)):
            ours, theirs = self._compute([one, base], group)
        else:
            ours, theirs = self.vector(one, group), self.vector(base, group)
        return None if ours is None or theirs is None else ours - theirs

    def _compute(self, names: Sequence[str], group: Group) -> list[Array | None]:
        rows = np.isin(self._graded.sets, group)
        rows &= ~np.isnan(np.stack([self.scores[name] for name in names])).any(axis=0)
        errors = self._graded.is_error[rows]
        has_both = len(errors) > 0 and errors.min() < errors.max()
        if not has_both and (not len(errors) or self.metric not in DEFINED_FOR_ONE_CLASS):
            return [None for _ in names]
        seed = self._plan.seed + zlib.crc32("+".join(group).encode()) % 10_000
        return [replicates(self.metric, self.scores[n][rows], errors, self._plan.samples, seed) for n in names]


def _cells(sample: _Sample, groups: Sequence[Group], plan: Plan) -> dict[str, Cells | None]:
    """By estimator, at one place."""
    found = {one: _figures([sample.vector(one, group) for group in groups]) for one in sample.scores}
    if sample.metric == "ece":
        for one, cell in found.items():
            if cell:
                there = [group for group in groups if sample.vector(one, group) is not None]
                cell["floor"] = float(np.mean([sample.floor(one, group) for group in there]))
    known = {name: found[name]["value"] for name in plan.baselines if found.get(name)}
    if not known:
        return found
    sign = -1 if sample.metric in _FALLING else 1
    best = max(known, key=lambda name: sign * known[name])
    for one, cell in found.items():
        gain = _figures([sample.gain(one, best, group) for group in groups]) if cell and one != best else None
        if gain is not None:
            cell |= {"over": best, "gain": gain}
    return found


def _figures(vectors: Sequence[Array | None]) -> Cells | None:
    """Their mean, those left out that are not defined."""
    there = [vector for vector in vectors if vector is not None]
    if not there:
        return None
    interval = interval_of(np.mean(there, axis=0))
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers report`."""
    parser.add_argument("--risks", nargs="+", required=True, metavar="FILE", help="JSON Lines, or Parquet records")
    parser.add_argument("--in-domain", type=_names, default=(), metavar="A,B", help="sets; all when none is named")
    parser.add_argument("--out-of-domain", type=_names, default=(), metavar="C,D", help="sets in no training")
    parser.add_argument("--baseline", type=_names, default=(), metavar="X,Y", help="gains are over the best of these")
    parser.add_argument("--metrics", type=_names, default=DEFAULT_METRICS, metavar="M,N", help=", ".join(METRICS))
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap draws (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--cards", type=Path, help="folder of trained estimators whose cards get these figures")
    parser.add_argument("--out", type=Path, help="folder for report.md and report.json; else Markdown to stdout")


def main(args: argparse.Namespace) -> int:
    """Read, measure, write."""
    graded = read_graded(args.risks)
    domains = {"in domain": args.in_domain or tuple(np.unique(graded.sets).tolist())}
    if args.out_of_domain:
        domains["out of domain"] = args.out_of_domain
    found = evaluate(graded, Plan(domains, args.baseline, args.metrics, args.samples, args.seed))
    text = markdown(found, domains)
    for path in write_cards(found, domains, args.cards) if args.cards else ():
        print(path, file=sys.stderr)
    if args.out is None:
        print(text)
        return 0
    write_whole(args.out / "report.json", [json.dumps(found, indent=1)])
    write_whole(args.out / "report.md", [text])
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
