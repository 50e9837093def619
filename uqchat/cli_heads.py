"""`uqchat heads`: show an uncertainty head, find out a published one's layout, write it in the other format.

Knows no gradio.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from uqchat.cli_model import load_language_model
from uqchat.errors import InputError

if TYPE_CHECKING:
    from uqchat.heads import UncertaintyHead
    from uqchat.language_model import LanguageModel


def add_arguments(own: argparse.ArgumentParser) -> None:
    """The arguments that only this command has."""
    own.add_argument("action", choices=("show", "check", "export"), help="what to do with the head")
    own.add_argument("head", help="folder or Hub id of a head, ours or a published one")
    group = own.add_argument_group("head")
    group.add_argument(
        "--rows", metavar="FILE.jsonl", help="check: labelled answers, ours or rows of a published data set"
    )
    group.add_argument("--to", metavar="FOLDER", help="export: where to write the head")
    group.add_argument(
        "--format", choices=("own", "luh"), default="own", help="export: ours (default) or the published"
    )
    group.add_argument("--layout", choices=("current", "legacy"), help="order of attention windows; default: as stored")
    group.add_argument("--hidden-index", choices=("layers", "tuple"), help="what negative layers count from")
    group.add_argument("--allow-mismatch", action="store_true", help="take a head of another model of the same size")


def run_heads(args: argparse.Namespace, out: TextIO) -> None:
    """Run one action on the model of the arguments."""
    if args.action == "check" and not args.rows:
        raise InputError("Give the labelled answers: heads check HEAD --rows FILE.jsonl.")
    if args.action == "export" and not args.to:
        raise InputError("Say where to: heads export HEAD --to FOLDER.")
    with closing(load_language_model(args)) as model:
        found, text = {"show": _show, "check": _check, "export": _export}[args.action](args, model)
    out.write(json.dumps(found, ensure_ascii=False) + "\n" if args.json else text + "\n")


def _load(args: argparse.Namespace, model: LanguageModel) -> UncertaintyHead:
    from uqchat.heads import load_head

    return load_head(args.head, model, args.layout, args.hidden_index, allow_mismatch=args.allow_mismatch)


def _show(args: argparse.Namespace, model: LanguageModel) -> tuple[dict[str, Any], str]:
    from uqchat.heads.own_format import card_of

    head = _load(args, model)
    facts = {
        "head": args.head,
        "type": head.config.head_type,
        "level": head.level,
        "layout": head.config.layout,
        "hidden_index": head.config.hidden_index,
        "features": head.features.describe(),
        "parameters": head.num_parameters,
        "is_revising": head.is_revising,
        "info": asdict(head.info) if head.info else None,
        "notes": list(head.notes),
    }
    table = card_of(head).split("---\n", 2)[-1].strip()
    return facts, "\n".join([table, *(f"\nNote: {note}" for note in head.notes)])


def _check(args: argparse.Namespace, model: LanguageModel) -> tuple[dict[str, Any], str]:
    from uqchat.head_check import check_head, read_answers

    path = Path(args.rows).expanduser()
    if not path.is_file():
        raise InputError(f"There is no file {args.rows}.")
    verdict = check_head(args.head, model, read_answers(path, model.tokenizer))
    lines = [f"{name:16} {score:.3f}" for name, score in sorted(verdict.scores.items(), key=lambda one: -one[1])]
    best = f"layout {verdict.layout}, hidden index {verdict.hidden_index}"
    text = f"{verdict.metric}, {verdict.rows} answers\n" + "\n".join(lines) + f"\nStored and used from now on: {best}"
    return {"head": args.head, **asdict(verdict)}, text


def _export(args: argparse.Namespace, model: LanguageModel) -> tuple[dict[str, Any], str]:
    from uqchat.heads import save_head

    folder = Path(args.to).expanduser()
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{args.to} is not empty; name a new folder.")
    save_head(_load(args, model), folder, args.format)
    files = sorted(path.name for path in folder.iterdir())
    return {"head": args.head, "folder": str(folder), "files": files}, f"{folder}: {', '.join(files)}"
