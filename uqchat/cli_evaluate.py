"""`uqchat evaluate`: a data set, a model and estimators to one records file. Knows no gradio."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from uqchat.cli_model import generation_of, load_language_model
from uqchat.errors import InputError
from uqchat.render_text import duration

if TYPE_CHECKING:
    from uqchat.evaluation import Progress
    from uqchat.evaluation_data import Question
    from uqchat.language_model import LanguageModel
    from uqchat.records import Records

DEFAULT_TOKENS = {"page": 64, "short": 20, "sentence": 48}
"""`--max-new-tokens` by style, where it is not given."""


def add_arguments(own: argparse.ArgumentParser) -> None:
    """The options that only this command has."""
    group = own.add_argument_group("evaluation")
    group.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="FILE|hub:NAME[:CONFIG[:SPLIT]]",
        help="questions as .jsonl, .csv or .parquet, or a data set of the Hub; repeatable",
    )
    group.add_argument("--out", required=True, metavar="FILE.parquet", help="the records file to write")
    group.add_argument(
        "--kind",
        choices=("open", "choice", "references", "given"),
        help="open questions, letters, right against wrong references, or ready answers; default: seen from the data",
    )
    group.add_argument("--style", default="page", help="page (the question alone), short or sentence; default page")
    group.add_argument(
        "--map", action="append", default=[], metavar="FIELD=COLUMN", help="what a column is called; repeatable"
    )
    group.add_argument("--limit", type=int, metavar="N", help="so many questions of each data set, drawn with seed 0")
    group.add_argument("--samples", type=int, default=0, metavar="N", help="answers drawn besides the greedy one")
    group.add_argument(
        "--likelihood",
        choices=("sum", "mean"),
        default="sum",
        help="of a reference's log-probability over its tokens, for --kind references; default sum",
    )
    group.add_argument("--restart", action="store_true", help="forget what an interrupted run left")


def run_evaluate(args: argparse.Namespace, out: TextIO) -> None:
    """Evaluate; progress goes to standard error, the summary to standard output."""
    from uqchat.evaluation import Plan, evaluate
    from uqchat.evaluation_data import STYLES

    if args.style not in STYLES:
        raise InputError(f"--style must be one of {', '.join(STYLES)}; got {args.style!r}.")
    if not args.out.endswith(".parquet"):
        raise InputError(f"--out must end in .parquet; got {args.out!r}.")
    questions = questions_of(args)
    generation = generation_of(args)
    if args.max_new_tokens is None:
        generation = replace(generation, max_new_tokens=DEFAULT_TOKENS[args.style])
    if args.samples and args.temperature is None:
        generation = replace(generation, temperature=1.0)
    with closing(load_language_model(args)) as model:
        named = estimators_for(model, args.estimators)
        plan = Plan(named, args.kind, args.style, generation, args.samples, args.likelihood)
        records = evaluate(model, questions, plan, args.out, on_progress=_show, restart=args.restart)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    summary = {"file": args.out, **summary_of(records)}
    out.write(json.dumps(summary, ensure_ascii=False) + "\n" if args.json else _as_text(summary))


def questions_of(args: argparse.Namespace) -> list[Question]:
    """The questions of every `--data`. Raises InputError."""
    from uqchat.evaluation_data import read_questions

    if any("=" not in entry for entry in args.map):
        raise InputError("--map needs FIELD=COLUMN, for instance --map references=gold_answer.")
    mapping = dict(entry.split("=", 1) for entry in args.map)
    return [question for source in args.data for question in read_questions(source, mapping, args.limit)]


def estimators_for(model: LanguageModel, named: list[str] | None) -> tuple[str, ...]:
    """The named estimators, or all that this model can serve."""
    if named and named != ["all"]:
        return tuple(dict.fromkeys(name.strip() for entry in named for name in entry.split(",") if name.strip()))
    return tuple(choice.name for choice in model.available if not choice.refusal)


def summary_of(records: Records) -> dict[str, Any]:
    """Counts, accuracy and, per estimator, how well its risks rank the errors."""
    from uqchat.evaluation import accuracy, macro_accuracy
    from uqchat.metrics import auroc

    found: dict[str, Any] = {
        "answers": len(records),
        "graded": int((~_nan(records.is_error)).sum()),
        "accuracy": _number(accuracy(records)),
        "macro_accuracy": _number(macro_accuracy(records)),
        "auroc": {},
        "notes": list(records.notes()),
    }
    for name in records.estimators:
        rows = records.labelled(name)
        has_both = 0 < rows.is_error.sum() < len(rows.is_error)
        found["auroc"][name] = _number(auroc(rows.risk, rows.is_error)) if has_both else None
    return found


def _nan(values: Any) -> Any:
    import numpy as np

    return np.isnan(values)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _as_text(summary: Mapping[str, Any]) -> str:
    share = "unknown" if summary["accuracy"] is None else f"{summary['accuracy']:.1%}"
    lines = [
        f"{summary['answers']:,} answers, {summary['graded']:,} graded, {share} right: {Path(summary['file'])}",
        *(f"{name:24} AUROC {'-' if value is None else f'{value:.3f}'}" for name, value in summary["auroc"].items()),
        *summary["notes"],
    ]
    return "\n".join(lines) + "\n"


def _show(progress: Progress) -> None:
    left = progress.seconds_left
    remaining = "" if left is None or progress.done == progress.total else f", about {duration(left)} left"
    line = f"{progress.done:,} of {progress.total:,} answers{remaining}"
    is_terminal = sys.stderr.isatty()
    print(f"\r\x1b[K{line}" if is_terminal else line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)
