"""Calibrates a finished query on labelled answers, and writes its risks beside untrained scores for a report.

Other estimators are replayed from cached signals (`python -m trainers calibrate`); the query asks the model once more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from trainers.answers import AnswerRow
from trainers.cache import FeatureCache
from trainers.calibrate import DEFAULT_NAME, KINDS, Column, fit_both
from trainers.data import add_model_arguments
from trainers.query_scores import query_scores
from trainers.replay import Opened, replay
from trainers.scope_fit import fit_detector, scope_of
from trainers.training_set import num_content
from uqchat.calibration import Calibrations, read_calibrations, write_calibrations
from uqchat.errors import InputError
from uqchat.estimators.query import QueryEstimator
from uqchat.models import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers query-calibrate`."""
    add_model_arguments(parser)
    parser.add_argument("--query", default="query", help="name, folder or Hub id of the trained query")
    parser.add_argument("--caches", nargs="+", type=Path, default=(), help="folders of `data generate`, labelled")
    parser.add_argument("--splits", default="calibration", help="answers that the map is fitted to")
    parser.add_argument("--kind", choices=KINDS, default="best")
    parser.add_argument("--name", default=DEFAULT_NAME, help="of the scope, as the page shows it")
    parser.add_argument("--limit", type=int, default=0, help="answers of each cache at most; 0 is all")
    parser.add_argument("--no-detector", action="store_true", help="every prompt is inside the scope")
    parser.add_argument("--report-caches", nargs="+", type=Path, default=(), help="caches whose risks are written")
    parser.add_argument("--report-splits", default="eval", help="and of which splits")
    parser.add_argument("--baselines", default="entropy,max_prob,margin,rauq", help="untrained scores written beside")
    parser.add_argument("--risks", type=Path, help="the file for them: JSON Lines for `python -m trainers report`")


def main(args: argparse.Namespace) -> int:
    """Score, fit, write; without --caches the map that the query has stays."""
    if not args.caches and not args.risks:
        raise InputError("There is nothing to do: give --caches to calibrate, --risks and --report-caches to report.")
    if bool(args.risks) != bool(args.report_caches):
        raise InputError("--risks and --report-caches go together: the file, and the caches whose risks go into it.")
    model = Opened(load_model(args.model, args.device, args.dtype, args.quantization))
    query = model.uncalibrated(args.query)
    if not isinstance(query, QueryEstimator):
        raise InputError(f"{args.query} is a {query.label}; `python -m trainers calibrate` is for it.")
    folder = model.shelf.locate(args.query)
    if args.caches:
        fitted = calibrate(model, query, args)
        print(f"{write_calibrations(folder, fitted)}: {fitted.answer.rows:,} answers", file=sys.stderr)
    if args.risks:
        print(f"{args.risks}: {write_risks(model, query, folder, args):,} answers", file=sys.stderr)
    return 0


def calibrate(model: Opened, query: QueryEstimator, args: argparse.Namespace) -> Calibrations:
    """The answer's map, which is the tokens' too: they carry the score of what was asked about.

    Raises:
        InputError: no labelled answer, or a set that cannot be fitted.
    """
    caches, splits = [FeatureCache.open(folder) for folder in args.caches], _split(args.splits)
    rows = [row for cache in caches for row in labelled(cache, splits, args.limit)]
    if not rows:
        raise InputError(f"No labelled answer of {args.splits} in these caches; label them first.")
    detector = None if args.no_detector else fit_detector(model.info, caches, splits)
    scope = scope_of(args.name, rows, model.shelf.fingerprint, detector)
    scores = query_scores(model.info, query, rows, _progress(len(rows)))
    column = Column(answers=scores, is_error=[bool(row.is_error) for row in rows])
    answer = fit_both(column, args.kind, scope, has_token_scores=False).answer
    return Calibrations(replace(answer, level="token"), answer)


def write_risks(model: Opened, query: QueryEstimator, folder: Path, args: argparse.Namespace) -> int:
    """One line a labelled answer; the number of lines."""
    baselines = [model.uncalibrated(name) for name in _split(args.baselines)]
    found = read_calibrations(folder)
    count, splits = 0, _split(args.report_splits)
    with args.risks.open("w", encoding="utf-8") as file:
        for path in args.report_caches:
            cache = FeatureCache.open(path)
            rows = labelled(cache, splits, args.limit)
            scores = dict(zip((row.key for row in rows), query_scores(model.info, query, rows), strict=True))
            for scored in replay(cache, baselines, splits):
                row = scored.answer
                if row.key not in scores:
                    continue
                raw = {name: risk.raw for name, risk in scored.risks.items()} | {"query": scores[row.key]}
                values = {"query": found.answer.apply(scores[row.key])} if found and found.answer else {}
                line = {"id": row.id, "set": row.set, "style": row.style, "is_error": row.is_error}
                file.write(json.dumps({**line, "risks": raw, "values": values}) + "\n")
                file.flush()
                count += 1
            print(f"{path.name}: {len(rows):,} answers", file=sys.stderr)
    return count


def labelled(cache: FeatureCache, splits: Sequence[str], limit: int) -> list[AnswerRow]:
    """Answers with a label and a word, the first so many."""
    rows = [
        row
        for row in cache.answers
        if row.is_error is not None and num_content(row) and (not splits or row.split in splits)
    ]
    return rows[:limit] if limit else rows


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _progress(total: int) -> Callable[[int], None]:
    return lambda done: print(f"{done:,} of {total:,} answers", file=sys.stderr, flush=True)
