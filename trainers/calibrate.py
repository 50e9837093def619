"""Fits calibrations of estimators to labelled answers in feature caches, and writes their risks for a report.

Untrained estimators get `<out>/<name>/calibration.json`; a trained one's is written into its own folder. Where a cache
lacks what an estimator reads (voters, masks), the model is asked once more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainers.answers import IGNORED, AnswerRow, write_whole
from trainers.ask import Read, reader
from trainers.cache import FeatureCache
from trainers.data import add_model_arguments
from trainers.replay import Opened, replay
from trainers.scope_fit import fit_detector, scope_of
from uqchat.artifact_folders import UNTRAINED, roots, slug_of
from uqchat.calibration import Calibration, Calibrations, fit_calibration, write_calibrations
from uqchat.errors import InputError
from uqchat.estimators import Estimator
from uqchat.models import load_model
from uqchat.scope import Scope

KINDS = ("best", "isotonic", "platt", "temperature")
DEFAULT_NAME = "short factual questions"
REPLAYABLE = "entropy,max_prob,margin,rauq"  # the untrained ones that a cache holds everything for


@dataclass
class Column:
    """One estimator's raw scores with their labels: of answers, and of the tokens that have a label."""

    answers: list[float] = field(default_factory=list)
    """Of answers to one question each: where several facts are asked for, one wrong fact makes the answer wrong while
    its score is a mean over all of them, and the map of single answers would lie above the truth."""
    is_error: list[bool] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    token_is_error: list[bool] = field(default_factory=list)
    token_answer: list[int] = field(default_factory=list)


def collect(
    caches: Sequence[FeatureCache], estimators: Sequence[Estimator], splits: Sequence[str], read: Read = replay
) -> tuple[list[AnswerRow], dict[str, Column]]:
    """Labelled answers and what the estimators say of them.

    Args:
        read: scores a cache's answers.

    Raises:
        InputError: see `replay`; or no answer has a label.
    """
    columns = {one.name: Column() for one in estimators}
    answers: list[AnswerRow] = []
    for cache in caches:
        for scored in read(cache, estimators, splits):
            if scored.answer.is_error is None:
                continue
            for name, column in columns.items():
                if not scored.answer.facts:
                    column.answers.append(scored.risks[name].raw)
                    column.is_error.append(scored.answer.is_error)
                for label, token in zip(scored.answer.token_labels or (), scored.tokens, strict=False):
                    if label != IGNORED and name in token.risks:
                        column.tokens.append(token.risks[name].raw)
                        column.token_is_error.append(bool(label))
                        column.token_answer.append(len(answers))
            answers.append(scored.answer)
    if not answers:
        raise InputError(f"No labelled answer of {', '.join(splits) or 'any split'} in these caches; label them first.")
    return answers, columns


def fit_both(column: Column, kind: str, scope: Scope, has_token_scores: bool) -> Calibrations:
    """The answer map where there are answers to single questions, and the token map where tokens have scores of their
    own and labels of both kinds.

    Raises:
        InputError: see `fit_calibration`.
    """
    answer: Calibration | None = None
    if column.answers:
        answer = fit_calibration(column.answers, column.is_error, kind, level="answer", scope=scope)
    token: Calibration | None = None
    if has_token_scores and len(set(column.token_is_error)) == 2:
        groups = column.token_answer
        token = fit_calibration(column.tokens, column.token_is_error, kind, level="token", scope=scope, groups=groups)
    return Calibrations(token, answer)


def write_risks(
    path: Path,
    caches: Sequence[FeatureCache],
    estimators: Sequence[Estimator],
    fitted: Mapping[str, Calibrations],
    splits: Sequence[str],
    read: Read = replay,
) -> int:
    """One line a labelled answer, as `python -m trainers report` reads them; the number of lines.

    Raises:
        InputError: see `replay`; the disk is full. The file is there as a whole or not at all.
    """
    lines = list(_risk_lines(caches, estimators, fitted, splits, read))
    write_whole(path, lines)
    return len(lines)


def _risk_lines(
    caches: Sequence[FeatureCache],
    estimators: Sequence[Estimator],
    fitted: Mapping[str, Calibrations],
    splits: Sequence[str],
    read: Read,
) -> Iterator[str]:
    for cache in caches:
        for scored in read(cache, estimators, splits):
            if scored.answer.is_error is None:
                continue
            raw = {name: risk.raw for name, risk in scored.risks.items()}
            values = {n: one.answer.apply(raw[n]) for n, one in fitted.items() if one.answer is not None}
            line = {"id": scored.answer.id, "set": scored.answer.set, "style": scored.answer.style}
            yield json.dumps(line | {"is_error": scored.answer.is_error, "risks": raw, "values": values}) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers calibrate`."""
    add_model_arguments(parser)
    parser.add_argument("--caches", nargs="+", required=True, type=Path, help="folders of `data generate`, labelled")
    parser.add_argument("--estimators", default=REPLAYABLE, help="names or folders, comma-separated")
    parser.add_argument("--splits", default="calibration", help="answers that the maps are fitted to")
    parser.add_argument("--kind", choices=KINDS, default="best")
    parser.add_argument("--name", default=DEFAULT_NAME, help="of the scope, as the page shows it")
    parser.add_argument("--layer", type=int, help="hidden layer of the scope's detector; default: in the middle")
    parser.add_argument("--limit", type=int, default=0, help="answers of each cache at most; 0 is all")
    parser.add_argument("--no-detector", action="store_true", help="every prompt is inside the scope")
    parser.add_argument("--out", type=Path, help="folder for the untrained ones; default: beside the trained ones")
    parser.add_argument("--report-caches", nargs="+", type=Path, default=(), help="caches whose risks are written")
    parser.add_argument("--report-splits", default="eval", help="and of which splits")
    parser.add_argument("--risks", type=Path, help="the file for them: JSON Lines for `python -m trainers report`")


def main(args: argparse.Namespace) -> int:
    """Score, fit, write."""
    if bool(args.risks) != bool(args.report_caches):
        raise InputError("--risks and --report-caches go together: the file, and the caches whose risks go into it.")
    model = Opened(load_model(args.model, args.device, args.dtype, args.quantization))
    caches, splits = _open(args.caches, model), _split(args.splits)
    estimators = [model.uncalibrated(name) for name in _split(args.estimators)]
    read = reader(model.info, args.limit)
    answers, columns = collect(caches, estimators, splits, read)
    detector = None if args.no_detector else fit_detector(model.info, caches, splits, args.layer)
    scope = scope_of(args.name, answers, model.shelf.fingerprint, detector)
    fitted = {}
    for one in estimators:
        fitted[one.name] = fit_both(columns[one.name], args.kind, scope, one.level == "token")
        path = write_calibrations(_folder_of(one.name, model, args.out), fitted[one.name])
        print(f"{path}: {_described(fitted[one.name])}", file=sys.stderr)
    if args.risks:
        reported = _open(args.report_caches, model)
        count = write_risks(args.risks, reported, estimators, fitted, _split(args.report_splits), read)
        print(f"{args.risks}: {count:,} answers", file=sys.stderr)
    return 0


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _open(folders: Sequence[Path], model: Opened) -> list[FeatureCache]:
    """Raises InputError: a cache that another model wrote."""
    caches = [FeatureCache.open(folder) for folder in folders]
    for cache in caches:
        written = cache.info["weights_fingerprint"]
        if written != model.shelf.fingerprint:
            raise InputError(f"{cache.folder} holds answers of other weights ({written}) than {model.name}'s.")
    return caches


def _folder_of(name: str, model: Opened, out: Path | None) -> Path:
    if name not in UNTRAINED:
        return model.shelf.locate(name)
    folder = (out or roots()[0] / slug_of(model)) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _described(both: Calibrations) -> str:
    parts = [
        f"{one.level}s: {one.kind}, {one.rows:,} labels, {one.error_share:.0%} wrong"
        for one in (both.answer, both.token)
        if one is not None
    ]
    return "; ".join(parts)
