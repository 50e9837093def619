"""`uqchat chat`: a conversation in the terminal, tokens tinted by risk. Knows no gradio and keeps nothing on disk."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from uqchat.cli_answer import drain
from uqchat.cli_model import estimators_of, generation_of, load_language_model
from uqchat.cli_policy import decided, end_answer, obeying, policy_of
from uqchat.cli_terminal import TokenWriter, summary_line
from uqchat.config import GenerationConfig
from uqchat.errors import InputError, UqchatError
from uqchat.types import Answer, Message

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel
    from uqchat.policy import Policy

HELP = """/retry             answer the last question again (differs only with --temperature above 0)
/undo              take back the last question and its answer
/system [TEXT]     show or set the system message; /system - removes it
/estimator [NAME]  show the estimators, or tint by another one: the last answer is drawn again
/show              show an answer that the policy declined or shortened
/save FILE.json    write the conversation as a list that `answer --messages` reads
/help  /quit       Ctrl-C stops an answer; Ctrl-D leaves"""


def run_chat(args: argparse.Namespace, out: TextIO) -> None:
    """Talk until /quit or the end of the input."""
    from uqchat.estimators import ESTIMATOR_NAMES

    named, generation, policy = estimators_of(args), generation_of(args), policy_of(args)
    names, chosen = tuple(dict.fromkeys((*ESTIMATOR_NAMES, *named))), named[0]
    try:
        import readline  # noqa: F401  (line editing and history for input(); not built into every Python)
    except ImportError:
        pass
    with closing(load_language_model(args)) as model:
        print(f"{model.name} is ready. /help lists the commands.", file=sys.stderr)
        TerminalChat(model, out, names, chosen, generation, args.system, policy).run()


class TerminalChat:
    """One conversation. Every answer is scored by all estimators at hand, so that switching is only drawing."""

    def __init__(
        self,
        model: LanguageModel,
        out: TextIO,
        estimators: Sequence[str],
        chosen: str,
        generation: GenerationConfig,
        system: str | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.model, self.out, self.estimators = model, out, tuple(estimators)
        self.chosen, self.generation, self.system, self.policy = chosen, generation, system, policy
        self.messages: list[Message] = []
        self.last: Answer | None = None

    def run(self) -> None:
        """Read lines until /quit or the end; an error is told and the conversation goes on."""
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print("\n/quit or Ctrl-D leaves.", file=sys.stderr)
                continue
            if line == "/quit":
                return
            try:
                self.handle(line)
            except UqchatError as error:
                print(error, file=sys.stderr)

    def handle(self, line: str) -> None:
        """Do what one line says. Raises UqchatError on an unknown command or one that cannot be done now."""
        if not line.startswith("/"):
            if line:
                self._ask([*self.messages, Message("user", line)], self.generation)
            return
        command, _, rest = line[1:].partition(" ")
        actions = {
            "help": lambda _: self._tell(HELP),
            "retry": self._retry,
            "undo": self._undo,
            "system": self._set_system,
            "estimator": self._choose,
            "save": self._save,
            "show": self._show,
        }
        if command not in actions:
            raise InputError(f"/{command} is no command; /help lists them.")
        actions[command](rest.strip())

    def _ask(self, messages: list[Message], generation: GenerationConfig) -> None:
        prompt = [Message("system", self.system), *messages] if self.system else messages
        with interrupt_sets() as stop:
            stream = obeying(self.model, self.policy).stream(prompt, self.estimators, generation, stop=stop)
            writer = TokenWriter(self.out, self.chosen)
            answer = decided(stream, self.policy, writer, drain)
        end_answer(answer, writer)
        self.messages, self.last = [*messages, Message("assistant", answer.text)], answer
        self._tell(
            summary_line(replace(answer, risks={self.chosen: answer.risks[self.chosen]} if answer.risks else {}))
        )

    def _retry(self, _: str) -> None:
        if not self.messages:
            raise InputError("There is no question yet.")
        if self.generation.temperature > 0:
            self.generation = replace(self.generation, seed=(self.generation.seed + 1) % 2**63)
        self._ask(self.messages[:-1], self.generation)

    def _undo(self, _: str) -> None:
        if not self.messages:
            raise InputError("There is nothing to take back.")
        self._tell(f"Taken back: {self.messages[-2].text}")
        self.messages, self.last = self.messages[:-2], None

    def _set_system(self, text: str) -> None:
        if text:
            self.system = None if text == "-" else text
        self._tell(f"System message: {self.system or 'none'}")

    def _choose(self, name: str) -> None:
        if name and name not in self.estimators:
            raise InputError(f"{name!r} is no estimator; there are {', '.join(self.estimators)}.")
        self.chosen = name or self.chosen
        self._tell("  ".join(f"[{n}]" if n == self.chosen else n for n in self.estimators))
        if name and self.last:
            writer = TokenWriter(self.out, self.chosen)
            for token in self.last.tokens:
                writer.write(token)
            self.out.write("\n")
            self.out.flush()

    def _show(self, _: str) -> None:
        if self.last is None:
            raise InputError("There is no answer yet.")
        self._choose(self.chosen)

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("Name a file: /save chat.json")
        messages = [Message("system", self.system), *self.messages] if self.system else self.messages
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                json.dump([message.to_dict() for message in messages], file, ensure_ascii=False, indent=1)
        except FileExistsError as error:
            raise InputError(f"{name} exists already; choose another name.") from error
        except OSError as error:
            raise InputError(f"{name} cannot be written: {error.strerror}.") from error
        self._tell(f"{len(messages)} messages written to {name}")

    @staticmethod
    def _tell(text: str) -> None:
        print(text, file=sys.stderr)


@contextmanager
def interrupt_sets() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that the answer ends within one step; a second Ctrl-C interrupts as usual."""
    stop = threading.Event()

    def on_interrupt(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
