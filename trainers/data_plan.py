"""From the shell's arguments to the questions of a split and the answers that are to be generated. Runs no model."""

from __future__ import annotations

import argparse
from dataclasses import fields

from trainers import long_answers
from trainers.generate import Task, make_tasks
from trainers.prompts import Messages, make_messages, pick_examples
from trainers.questions import Columns, Question, read_questions, shared_file
from trainers.recipes import read_hub, read_recipe
from trainers.splits import shuffled, split, without_leaks
from uqchat.config import GenerationConfig
from uqchat.errors import InputError

MAX_NEW_TOKENS = {"page": 48, "short": 20, "sentence": 48, "several": 72}
"""Defaults: an answer that rambles on has long given what was asked."""
PARTED = ("train", "calibration")
"""Splits that a training file is parted into."""


def plan_tasks(args: argparse.Namespace) -> list[Task]:
    """What `generate` is to answer.

    Raises:
        InputError: no such set or split, or no question is left.
    """
    questions, pool = choose_questions(args)
    if args.several:
        if args.split not in PARTED:
            questions = without_leaks(questions, read_source(args, "train"))
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
    is_parted = args.split in PARTED
    questions = read_source(args, "train" if is_parted else args.split)
    parts = split(questions, args.calibration) if is_parted else {args.split: questions}
    chosen = {question.id for question in parts[args.split]}
    taken = [question for question in shuffled(questions, args.limit) if question.id in chosen]
    if not taken:
        raise InputError(f"No question of {args.set} is left in split {args.split!r} with --limit {args.limit}.")
    if not (args.k_shot or args.several):
        return taken, []
    return taken, split(read_source(args, "train"), args.calibration)["train"]  # shown answers are training ones


def read_source(args: argparse.Namespace, part: str) -> list[Question]:
    """All questions of the named source; `part` is "train", "eval", "val" or "dev"."""
    if args.recipe:
        return read_recipe(args.recipe, part, args.limit, args.seed)
    columns = as_columns(args.columns)
    if args.hub:
        return read_hub(args.hub, args.hub_split or part, columns, args.hub_config)
    return read_questions(args.file or shared_file(args.set, part), args.set, columns)


def as_columns(text: str | None) -> Columns:
    """`question=prompt,answers=target` as `Columns`.

    Raises:
        InputError: a name that is none of ours, or no pair.
    """
    known = [field.name for field in fields(Columns)]
    pairs = [entry.partition("=") for entry in (text or "").split(",") if entry.strip()]
    if any(name.strip() not in known or not value.strip() for name, _, value in pairs):
        raise InputError(f"--columns must look like question=prompt,answers=target; names are {', '.join(known)}.")
    return Columns(**{name.strip(): value.strip() for name, _, value in pairs})
