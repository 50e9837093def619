"""`python -m trainers data <stage>`: questions to answers, labels and cached features; every stage runs alone.

Only the shell's side: arguments in, calls of the stages out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainers import long_answers
from trainers.cache import CacheWriter
from trainers.capture import default_layers
from trainers.generate import Task, generate, make_tasks
from trainers.label import AUDIT_ROWS, GRADERS, label_folder, write_audit
from trainers.prompts import STYLES, Messages, make_messages, pick_examples
from trainers.questions import Question, read_questions, shared_file
from trainers.splits import CALIBRATION, shuffled, split, without_leaks
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.types import Signals

MAX_NEW_TOKENS = {"page": 48, "short": 20, "sentence": 48, "several": 72}
"""Defaults: an answer that rambles on has long given what was asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stages and their arguments."""
    stages = parser.add_subparsers(dest="stage", required=True)
    _add_generate(stages.add_parser("generate", help="answer questions, with every signal cached"))
    label = stages.add_parser("label", help="grade answers and label their tokens")
    label.add_argument("folders", type=Path, nargs="+", help="folders that generate wrote")
    label.add_argument("--grader", choices=sorted(GRADERS), default="alias")
    label.add_argument("--audit", type=int, default=AUDIT_ROWS, help="rows of audit.md, for a person to look at")


def main(args: argparse.Namespace) -> int:
    """Run one stage."""
    return {"generate": run_generate, "label": run_label}[args.stage](args)


def run_label(args: argparse.Namespace) -> int:
    """The stage `label`."""
    for folder in args.folders:
        counts = label_folder(folder, GRADERS[args.grader])
        write_audit(folder, args.audit)
        print(f"{folder}: {counts}", file=sys.stderr)
    return 0


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--set", required=True, help="name of a shared set, such as easy_facts")
    parser.add_argument("--file", type=Path, help="a JSONL, CSV or Parquet file in place of the shared one")
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
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument("--layers", help="hidden layers, such as 8,16,30; default: six of them")
    parser.add_argument("--lags", type=int, default=3, help="attention on the so many newest tokens; 0 is none")
    parser.add_argument("--top-n", type=int, default=10, help="largest log-probabilities")
    parser.add_argument("--max-disk", type=float, default=20.0, help="GB that the features may take")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which language model, and how it runs."""
    parser.add_argument("--model", default="embedded", help="embedded, a Hub id, a folder or a GGUF file")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--quantization")


def run_generate(args: argparse.Namespace) -> int:
    """The stage `generate`."""
    from uqchat.fingerprint import template_hash, weights_fingerprint
    from uqchat.models import load_model

    tasks = plan_tasks(args)
    model = load_model(args.model, args.device, args.dtype, args.quantization)
    signals = wanted_signals(args, model.model)
    info = {
        "model": args.model,
        "weights_fingerprint": weights_fingerprint(model.model),
        "chat_template_hash": template_hash(model.tokenizer),
        "dtype": model.dtype,
        **{
            name: getattr(args, name) for name in ("set", "split", "style", "limit", "calibration", "k_shot", "several")
        },
        **{name: getattr(args, name) for name in ("samples", "temperature", "seed")},
        "file": str(args.file) if args.file else None,
        "max_new_tokens": tasks[0].generation.max_new_tokens,
        "hidden_layers": list(signals.hidden_layers),
        "attention_lags": signals.attention_lags,
        "top_n": signals.top_n,
    }
    writer = CacheWriter(args.out, info, int(args.max_disk * 1e9))
    skipped = generate(model, tasks, writer, signals)
    writer.finish()
    print(f"{args.out}: {len(writer.done):,} answers, {writer.num_bytes / 1e9:.2f} GB", file=sys.stderr)
    if skipped:
        print(f"{skipped:,} questions left out: they do not fit the context window", file=sys.stderr)
    return 0


def plan_tasks(args: argparse.Namespace) -> list[Task]:
    """What `generate` is to answer.

    Raises:
        InputError: no such set or split, or no question is left.
    """
    questions, pool = choose_questions(args)
    if args.several:
        if args.split not in ("train", "calibration"):
            questions = without_leaks(questions, read_questions(args.file or shared_file(args.set, "train"), args.set))
        asked = long_answers.compose(questions, pool, args.several, args.split, args.seed)
        return _with_settings(asked, "several", args)
    asked = [
        (question, make_messages(question, args.style, pick_examples(question, pool, args.k_shot, args.seed)))
        for question in questions
    ]
    return _with_settings(asked, args.style, args)


def _with_settings(asked: list[tuple[Question, Messages]], style: str, args: argparse.Namespace) -> list[Task]:
    tokens = MAX_NEW_TOKENS[style] if args.max_new_tokens is None else args.max_new_tokens
    if tokens < 1:
        raise InputError(f"--max-new-tokens must be 1 or more; got {tokens}.")
    config = GenerationConfig(max_new_tokens=tokens, temperature=args.temperature, seed=args.seed)
    return make_tasks(asked, args.split, style, config, args.samples)


def choose_questions(args: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """The questions of the split, and those that may serve as answered examples."""
    is_parted = args.split in ("train", "calibration")
    path = args.file or shared_file(args.set, "train" if is_parted else args.split)
    questions = read_questions(path, args.set)
    parts = split(questions, args.calibration) if is_parted else {args.split: questions}
    chosen = {question.id for question in parts[args.split]}
    taken = [question for question in shuffled(questions, args.limit) if question.id in chosen]
    if not taken:
        raise InputError(f"No question of {path} is left in split {args.split!r} with --limit {args.limit}.")
    return taken, _examples(args) if args.k_shot or args.several else []


def _examples(args: argparse.Namespace) -> list[Question]:
    """Training questions, also for other splits: nobody's answer is shown that is to be judged."""
    path = args.file or shared_file(args.set, "train")
    return split(read_questions(path, args.set), args.calibration)["train"]


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
