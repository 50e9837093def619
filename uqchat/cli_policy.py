"""A policy in the shell: found by name, asked in the model's place, its decision told. Knows no gradio."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TextIO

from uqchat.cli_terminal import TokenWriter
from uqchat.config import read_config
from uqchat.render_policy import kept_tokens
from uqchat.types import Answer, ScoredToken

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel
    from uqchat.policy import Policy
    from uqchat.policy_run import PolicyRun

LIVE = ("mark", "stop_early")
"""Actions whose answers may be seen while they are written."""


def policy_of(args: argparse.Namespace) -> Policy | None:
    """The policy of `--policy`, None without. Raises InputError when there is none of that name."""
    from uqchat.policy import PolicyStore

    return PolicyStore(read_config().policies_dir).load(args.policy) if args.policy else None


def obeying(model: LanguageModel, policy: Policy | None) -> LanguageModel | PolicyRun:
    """What to ask: the model, or the policy that asks it."""
    if policy is None:
        return model
    from uqchat.language_model import load
    from uqchat.policy_run import PolicyRun

    return PolicyRun(model, policy, load)


def decided(
    stream: Generator[ScoredToken, None, Answer],
    policy: Policy | None,
    writer: TokenWriter | None,
    drain: Callable[[Any, TokenWriter | None], Answer],
) -> Answer:
    """Drain the stream, writing what the policy lets be seen."""
    if policy is None or policy.action in LIVE or writer is None:
        return drain(stream, writer)
    answer = drain(stream, None)
    write_shown(answer, writer)
    return answer


def write_shown(answer: Answer, writer: TokenWriter) -> None:
    """The tokens that the answer's decision lets be seen."""
    decision = answer.decision
    if decision is not None and decision.is_hidden:
        return
    for token in answer.tokens if decision is None else kept_tokens(answer.tokens, decision):
        writer.write(token)


def end_answer(answer: Answer, writer: TokenWriter) -> None:
    """End the line of an answer, tell its decision, and draw it again if its risks came behind its text.

    Only where there are colours: a file or pipe gets the text once, and the summary tells the risk.
    """
    writer.out.write("\n")
    if writer.is_behind(answer):
        writer.out.flush()
        print(f"The risks by {writer.estimator} came behind the text; here it is with them:", file=sys.stderr)
        write_shown(answer, TokenWriter(writer.out, writer.estimator, writer.depth))
        writer.out.write("\n")
    writer.out.flush()
    _tell(answer, writer.out)


def _tell(answer: Answer, out: TextIO) -> None:
    """The decision: in the answer's place where it was declined, else to standard error."""
    decision = answer.decision
    if decision is None:
        return
    if decision.is_hidden:
        out.write(decision.reason + "\n")
        out.flush()
    head = f"Policy {decision.policy}, version {decision.version}: {decision.outcome}."
    print(f"{head} {'' if decision.is_hidden else decision.reason + ' '}{decision.basis}", file=sys.stderr)
