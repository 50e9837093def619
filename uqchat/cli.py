"""The shell: `python -m uqchat [app] | chat | answer | score | evaluate | heads | models | estimators`.

Reads the arguments and turns errors into exit codes. Knows neither torch nor gradio until a command needs them.

With `--json` a command writes exactly one object to stdout, `{"error": {"kind", "message"}}` when it fails.
Exit codes: 0 done, 1 a bug (with its traceback), 2 something the user can mend, 130 Ctrl-C, 141 the reader left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, TextIO

from uqchat import __version__, cli_heads
from uqchat.cli_evaluate import add_arguments
from uqchat.cli_terminal import real_stdout
from uqchat.errors import InputError, UqchatError
from uqchat.quick_imports import quick_imports

COMMANDS = {
    "app": ("open the chat in a browser (the default)", "uqchat.cli_app"),
    "chat": ("talk to the model in this terminal", "uqchat.cli_chat"),
    "answer": ("answer one question, tinted by risk", "uqchat.cli_answer"),
    "score": ("score a given answer, token by token", "uqchat.cli_answer"),
    "evaluate": ("answer and grade a data set into one records file", "uqchat.cli_evaluate"),
    "heads": ("show, check or export an uncertainty head", "uqchat.cli_heads"),
    "models": ("list models that are known or already here", "uqchat.cli_lists"),
    "estimators": ("list the estimators of risk", "uqchat.cli_lists"),
}


EPILOG = "Settings of the app (UQCHAT_MODEL, UQCHAT_PORT, ...) are environment variables; the README lists them."


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving, so that `--json` also covers a wrong argument."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with the usage."""
        raise InputError(f"{message}\n{self.format_usage().strip()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `--help` and `--version` leave through SystemExit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv = ["app", *argv]
    use_json = "--json" in argv
    try:
        args = parser().parse_args(argv)
    except UqchatError as error:
        return _fail(sys.stdout, use_json, error, 2)
    with real_stdout() as out:
        try:
            with quick_imports():
                command = import_module(COMMANDS[args.command][1])
            getattr(command, f"run_{args.command}")(args, out)
            out.flush()
            return 0
        except UqchatError as error:
            return _fail(out, use_json, error, 2)
        except KeyboardInterrupt as error:
            return _fail(out, use_json, error, 130)
        except BrokenPipeError:
            return 141


def _fail(out: TextIO, use_json: bool, error: BaseException, code: int) -> int:
    message = str(error) or "Stopped."
    print(message, file=sys.stderr)
    if use_json:
        out.write(json.dumps({"error": {"kind": type(error).__name__, "message": message}}, ensure_ascii=False) + "\n")
    return code


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(prog="uqchat", description="A chat that shows which tokens of an answer are likely to be wrong.")
    top.add_argument("--version", action="version", version=f"uqchat {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (text, _) in COMMANDS.items():
        _fill(commands.add_parser(name, help=text, description=text, epilog=EPILOG, allow_abbrev=False), name)
    return top


def _fill(own: Parser, name: str) -> None:
    if name in ("answer", "score"):
        own.add_argument("question", nargs="?", help="one user message; `-` reads it from standard input")
        own.add_argument("--messages", metavar="FILE", help="JSON list of {role, content}; `-` is standard input")
    if name == "score":
        own.add_argument("--answer", metavar="TEXT|@FILE", required=True, help="the answer to score")
    if name in ("answer", "score", "chat"):
        own.add_argument("--policy", metavar="NAME[@VERSION]", help="a kept threshold that the answer must obey")
    if name == "evaluate":
        add_arguments(own)
    if name == "heads":
        cli_heads.add_arguments(own)
    if name == "app":
        own.add_argument("--host", help="address to listen on")
        own.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    _add_model_options(own)
    _add_generation_options(own)
    if name not in ("app", "chat"):
        own.add_argument("--json", action="store_true", help="write exactly one JSON object to standard output")


def _add_model_options(own: Parser) -> None:
    group = own.add_argument_group("model")
    group.add_argument("--model", metavar="NAME|FOLDER|FILE.gguf", help="default: UQCHAT_MODEL, else `embedded`")
    group.add_argument("--dtype", help="float32, bfloat16 or float16; default: chosen for the device")
    group.add_argument("--device", help="cpu, cuda or mps; default: the best one here")
    group.add_argument("--quantization", help="int8, bnb-8bit or bnb-4bit; default: none")


def _add_generation_options(own: Parser) -> None:
    group = own.add_argument_group("answer")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="default 256")
    group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy, the default")
    group.add_argument("--top-p", type=float, metavar="X", help="default 1, off")
    group.add_argument("--top-k", type=int, metavar="N", help="default 0, off")
    group.add_argument("--min-p", type=float, metavar="X", help="default 0, off")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="default 1, off")
    group.add_argument("--stop", action="append", metavar="TEXT", help="the answer ends before TEXT; repeatable")
    group.add_argument("--seed", type=int, metavar="N", help="default 0")
    group.add_argument("--system", metavar="TEXT", help="a system message in front of the conversation")
    group.add_argument(
        "--estimator",
        "--estimators",
        dest="estimators",
        action="append",
        metavar="NAME[,NAME]",
        help="default entropy; the first one tints; repeatable",
    )
