"""From shell arguments to a loaded model, a generation config and messages. Knows no gradio and writes no result."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from uqchat.config import GENERATION_FIELDS, GenerationConfig, read_config
from uqchat.errors import InputError
from uqchat.quick_imports import quick_imports
from uqchat.types import Message, as_messages

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel
    from uqchat.models import LoadProgress


def generation_of(args: argparse.Namespace) -> GenerationConfig:
    """The generation config of the arguments that were given."""
    given = {**vars(args), "stop_strings": args.stop}
    return GenerationConfig(**{name: given[name] for name in GENERATION_FIELDS if given[name] is not None})


def estimators_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of `--estimator`, in order, each once. Raises UqchatError on what can be none."""
    from uqchat.artifact_folders import require_plausible

    given = [name.strip() for entry in args.estimators or ["entropy"] for name in entry.split(",")]
    names = tuple(dict.fromkeys(name for name in given if name))
    require_plausible(names)
    return names


def messages_of(args: argparse.Namespace) -> list[Message]:
    """The conversation: the question or `--messages`, behind `--system`.

    Raises:
        InputError: neither or both are given, the question is blank, the file is not a JSON list of {role, content},
            or it is empty.
    """
    if (args.question is None) == (args.messages is None):
        raise InputError("Give either a question or --messages FILE.")
    if args.question is not None:
        question = sys.stdin.read() if args.question == "-" else args.question
        if not question.strip():
            raise InputError("The question is empty; give some text.")
        messages = as_messages(question)
    else:
        messages = _from_json(read_text(args.messages), args.messages)
    if args.system is None:
        return messages
    if any(message.role == "system" for message in messages):
        raise InputError("The messages already hold a system message; leave out --system or that message.")
    return [Message("system", args.system), *messages]


def _from_json(text: str, source: str) -> list[Message]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON: {error}.") from error
    if not isinstance(data, list) or not data:
        kind = "an empty list" if data == [] else type(data).__name__
        raise InputError(f"{source} must hold a JSON list of {{role, content}}; got {kind}.")
    return as_messages(data)


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or of standard input for `-`. Raises InputError when it cannot be read."""
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def load_language_model(args: argparse.Namespace) -> LanguageModel:
    """The model of the arguments, its progress on standard error."""
    config = read_config()
    show = Progress()
    with quick_imports():
        from transformers.utils import logging

        from uqchat.language_model import from_loaded
        from uqchat.models import load_model

        logging.disable_progress_bar()  # ours is shown instead
        loaded = load_model(
            args.model or config.model,
            device=args.device or config.device,
            dtype=args.dtype or config.dtype,
            quantization=args.quantization or config.quantization,
            trust_remote_code=config.trust_remote_code,
            cache_dir=config.cache_dir,
            on_progress=show,
        )
        show.end()
        for note in loaded.notes:
            print(note, file=sys.stderr)
        return from_loaded(loaded)


class Progress:
    """Shows loading on standard error: one line that is rewritten in a terminal, one line per stage elsewhere."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.last = ""

    def __call__(self, progress: LoadProgress) -> None:
        """Show one step of loading."""
        share = (
            f" {progress.done / progress.total:4.0%}" if self.is_terminal and progress.done and progress.total else ""
        )
        line = progress.message + share
        if line == self.last:
            return
        self.last = line
        print(
            f"\r\x1b[K{line}" if self.is_terminal else line,
            end="" if self.is_terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """Clear the rewritten line."""
        if self.is_terminal and self.last:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
