"""`uqchat answer` and `uqchat score`: one answer to standard output. Knows no gradio."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import TextIO

from uqchat.cli_model import estimators_of, generation_of, load_language_model, messages_of, read_text
from uqchat.cli_policy import decided, end_answer, obeying, policy_of, write_shown
from uqchat.cli_terminal import TokenWriter, summary_line
from uqchat.policy_judge import judge
from uqchat.types import Answer, ScoredToken


def run_answer(args: argparse.Namespace, out: TextIO) -> None:
    """Answer one conversation; tokens stream unless --json is given."""
    messages, generation, estimators = messages_of(args), generation_of(args), estimators_of(args)
    policy = policy_of(args)
    with closing(load_language_model(args)) as model:  # its thread must not outlive the interpreter
        stream = obeying(model, policy).stream(messages, estimators, generation)
        writer = None if args.json else TokenWriter(out, estimators[0])
        answer = decided(stream, policy, writer, drain)
    _finish(answer, writer, out)


def run_score(args: argparse.Namespace, out: TextIO) -> None:
    """Score the given answer; one newline at the end of a file is left out, since editors add it."""
    text = read_text(args.answer[1:]).removesuffix("\n") if args.answer.startswith("@") else args.answer
    messages, estimators, policy = messages_of(args), estimators_of(args), policy_of(args)
    names = tuple(dict.fromkeys((*estimators, *((policy.estimator,) if policy else ()))))
    with closing(load_language_model(args)) as model:
        answer = model.score(messages, text, names)
    if policy is not None:
        answer = replace(answer, decision=judge(policy, answer))
    writer = None if args.json else TokenWriter(out, estimators[0])
    if writer:
        write_shown(answer, writer)
    _finish(answer, writer, out)


def drain(stream: Generator[ScoredToken, None, Answer], writer: TokenWriter | None) -> Answer:
    """Write every token of a stream; returns its answer. The stream is closed however this ends."""
    try:
        while True:
            token = next(stream)
            if writer:
                writer.write(token)
    except StopIteration as end:
        return end.value
    finally:
        stream.close()


def _finish(answer: Answer, writer: TokenWriter | None, out: TextIO) -> None:
    if writer is None:
        out.write(json.dumps(answer.to_json(), ensure_ascii=False) + "\n")
        return
    end_answer(answer, writer)
    print(summary_line(answer), file=sys.stderr)
