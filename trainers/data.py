"""`python -m trainers data <stage>`: questions to answers, labels and cached features; every stage runs alone.

`generate` answers questions, `features` reads answers that are there already, `label` grades what either wrote.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainers.answers import read_answers, write_labels
from trainers.cache import CacheWriter, FeatureCache
from trainers.capture import default_layers
from trainers.data_plan import MAX_NEW_TOKENS, plan_tasks
from trainers.generate import generate, reading_tasks
from trainers.graders import Grader, endpoint_grader, model_grader
from trainers.label import AUDIT_ROWS, GRADERS, label_folder, write_audit
from trainers.prompts import STYLES
from trainers.readers import FORMATS, read_calibration_tuning, read_luh, rows_of
from trainers.splits import CALIBRATION
from uqchat.errors import InputError
from uqchat.fingerprint import template_hash, weights_fingerprint
from uqchat.models import LoadedModel, load_model
from uqchat.types import Signals

_SETTINGS = ("set", "split", "style", "limit", "calibration", "k_shot", "several", "samples", "temperature", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stages and their arguments."""
    stages = parser.add_subparsers(dest="stage", required=True)
    _add_generate(stages.add_parser("generate", help="answer questions, with every signal cached"))
    features = stages.add_parser("features", help="cache the signals of answers that are there already")
    features.add_argument("--answers", type=Path, required=True, help="a folder of ours, or files of another format")
    features.add_argument("--format", choices=FORMATS, default="folder", help="calibration-tuning: CSV or Parquet rows")
    features.add_argument("--limit", type=int, help="only the first so many answers")
    _add_capture(features)
    _add_label(stages.add_parser("label", help="grade answers and label their tokens"))


def main(args: argparse.Namespace) -> int:
    """Run one stage."""
    return {"generate": run_generate, "features": run_features, "label": run_label}[args.stage](args)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which language model, and how it runs."""
    parser.add_argument("--model", default="embedded", help="embedded, a Hub id, a folder or a GGUF file")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--quantization")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", required=True, help="name of a shared set, such as easy_facts; else what to call it")
    parser.add_argument("--file", type=Path, help="a JSONL, CSV or Parquet file in place of the shared one")
    parser.add_argument("--recipe", help="a declared set of the Hub, such as mmlu; an unknown name lists them")
    parser.add_argument("--hub", help="any set of the Hub, or a folder that the package datasets reads")
    parser.add_argument("--hub-config", help="its configuration")
    parser.add_argument("--hub-split", help="its split; default: --split")
    parser.add_argument("--columns", help="what the source calls its columns, such as question=prompt,answers=target")
    parser.add_argument("--split", default="train", help="train and calibration part the train file; eval, val, dev")
    parser.add_argument("--calibration", type=float, default=CALIBRATION, help="share of train that only calibrates")
    parser.add_argument("--limit", type=int, help="only the first so many of a fixed shuffle of the file")
    parser.add_argument("--style", choices=STYLES, default="page")
    parser.add_argument("--k-shot", type=int, default=0, help="answered examples before the question")
    parser.add_argument("--several", type=int, help="ask for several facts at once, so many prompts; easy_facts only")
    parser.add_argument("--max-new-tokens", type=int, help=f"default: {MAX_NEW_TOKENS}")
    parser.add_argument("--samples", type=int, default=0, help="drawn answers on top of the greedy one")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the drawn answers")
    parser.add_argument("--seed", type=int, default=0)
    _add_capture(parser)


def _add_capture(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument("--layers", help="hidden layers, such as 8,16,30; default: six of them")
    parser.add_argument("--lags", type=int, default=3, help="attention on the so many newest tokens; 0 is none")
    parser.add_argument("--top-n", type=int, default=10, help="largest log-probabilities")
    parser.add_argument("--max-disk", type=float, default=20.0, help="GB that the features may take")


def _add_label(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that generate or features wrote")
    known = (*sorted(GRADERS), "endpoint", "model")
    parser.add_argument("--grader", choices=known, default="alias", help="endpoint and model ask a language model")
    parser.add_argument("--url", help="of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    parser.add_argument("--judge", default="", help="name of the endpoint's model; its key: OPENAI_API_KEY")
    parser.add_argument("--audit", type=int, default=AUDIT_ROWS, help="rows of audit.md, for a person to look at")


def run_generate(args: argparse.Namespace) -> int:
    """The stage `generate`."""
    tasks = plan_tasks(args)
    model = load_model(args.model, args.device, args.dtype, args.quantization)
    made = {name: getattr(args, name) for name in _SETTINGS}
    made["source"] = str(args.file or args.recipe or args.hub or "shared")
    made["max_new_tokens"] = tasks[0].generation.max_new_tokens
    writer, signals = _open(args, model, made)
    _report(args.out, writer, generate(model, tasks, writer, signals))
    return 0


def run_features(args: argparse.Namespace) -> int:
    """The stage `features`: given answers are read by teacher forcing; their labels come along."""
    model = load_model(args.model, args.device, args.dtype, args.quantization)
    if args.format == "folder":
        rows = read_answers(args.answers)
    else:
        read = {"calibration-tuning": read_calibration_tuning, "luh": read_luh}[args.format]
        rows = read(rows_of(args.answers), model.tokenizer, args.answers.stem)
    rows = rows[: args.limit]
    writer, signals = _open(args, model, {"answers": str(args.answers), "format": args.format, "limit": args.limit})
    _report(args.out, writer, generate(model, reading_tasks(rows), writer, signals))
    labels = {row.key: row for row in rows}
    write_labels(args.out, [labels[row.key] for row in FeatureCache.open(args.out).answers])
    return 0


def run_label(args: argparse.Namespace) -> int:
    """The stage `label`."""
    grader = _grader(args)
    for folder in args.folders:
        counts = label_folder(folder, grader)
        write_audit(folder, args.audit)
        print(f"{folder}: {counts}", file=sys.stderr)
    return 0


def _grader(args: argparse.Namespace) -> Grader:
    if args.grader == "endpoint":
        if not args.url:
            raise InputError("--grader endpoint needs --url, such as http://localhost:8000/v1.")
        return endpoint_grader(args.url, args.judge)
    if args.grader == "model":
        return model_grader(load_model(args.model, args.device, args.dtype, args.quantization))
    return GRADERS[args.grader]


def _open(args: argparse.Namespace, model: LoadedModel, made: dict[str, Any]) -> tuple[CacheWriter, Signals]:
    """The folder to write, which remembers what it is made with."""
    signals = wanted_signals(args, model.model)
    info = {
        "model": args.model,
        "weights_fingerprint": weights_fingerprint(model.model),
        "chat_template_hash": template_hash(model.tokenizer),
        "dtype": model.dtype,
        **made,
        "hidden_layers": list(signals.hidden_layers),
        "attention_lags": signals.attention_lags,
        "top_n": signals.top_n,
    }
    return CacheWriter(args.out, info, int(args.max_disk * 1e9)), signals


def _report(folder: Path, writer: CacheWriter, skipped: int) -> None:
    writer.finish()
    print(f"{folder}: {len(writer.done):,} answers, {writer.num_bytes / 1e9:.2f} GB", file=sys.stderr)
    if skipped:
        print(f"{skipped:,} left out: they do not fit the context window", file=sys.stderr)


def wanted_signals(args: argparse.Namespace, model: Any) -> Signals:
    """What to capture.

    Raises:
        InputError: layers that the model lacks, or no numbers.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    try:
        layers = tuple(int(part) for part in args.layers.split(",")) if args.layers else default_layers(num_layers)
    except ValueError:
        raise InputError(f"--layers must be numbers such as 8,16,30; got {args.layers!r}.") from None
    if not all(0 <= layer <= num_layers for layer in layers):
        raise InputError(f"--layers must be from 0 to {num_layers} for this model; got {args.layers!r}.")
    return Signals(top_n=args.top_n, entropy=True, hidden_layers=layers, attention_lags=args.lags)
