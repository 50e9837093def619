"""What can be done in a chat: ask, score, answer again, edit, continue from a token, stop. Knows no interface."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from uqchat.answer_run import AnswerRun, RunSnapshot, StartStream
from uqchat.config import AppConfig, GenerationConfig
from uqchat.conversation_policy import PolicyGate
from uqchat.conversation_rescore import require_rescorable, stream_again
from uqchat.errors import BusyError, InputError
from uqchat.policy import PolicyStore
from uqchat.prompt_text import clean_answer, clean_prompt, clean_text, messages_for_model, title_of
from uqchat.store import NEW_CHAT_TITLE, Store, StoredMessage
from uqchat.types import Answer, Message, ScoredToken

__all__ = ["AnswerRun", "AskSettings", "Conversations", "RunSnapshot"]

STOP_WAIT_S = 10.0
"""How long a new question waits for a stopped answer to end; one step of a slow model fits in."""


@dataclass(frozen=True, slots=True)
class AskSettings:
    """How to answer: a system message (left out when empty) and how to choose tokens.

    `estimators` names costly ones that are to score the answer too, beside those that every answer gets.
    `policy` is what the answer obeys: `name`, `name@version`, or '' for none.
    """

    system: str = ""
    generation: GenerationConfig = GenerationConfig()
    estimators: tuple[str, ...] = ()
    policy: str = ""


class Host(Protocol):
    """The part of `ModelHost` that is used here."""

    def status(self) -> Any:
        """With `.state`, `.model`, `.message` and `.estimators_with`."""

    def stream(
        self,
        messages: Sequence[Message],
        estimators: Sequence[str],
        generation: GenerationConfig,
        *,
        answer_prefix: Sequence[int],
        stop: threading.Event,
        on_queue: Callable[[int], None],
    ) -> Generator[ScoredToken, None, Answer]:
        """As `LanguageModel.stream`."""

    def score(
        self,
        messages: Sequence[Message],
        answer: str,
        estimators: Sequence[str],
        *,
        stop: threading.Event,
        on_queue: Callable[[int], None],
    ) -> Answer:
        """As `LanguageModel.score`."""


class Conversations:
    """All chats of the app: one answer at a time in each, every answer scored by every cheap estimator.

    Raises:
        InputError: from each method that begins an answer: the text, the message or the token is not usable, or an
            answer is still being written in this chat.
        BusyError: no model is ready; the text says why.
        StoreError: the chat or message is not the user's, or the database refuses.
    """

    def __init__(self, store: Store, host: Host, config: AppConfig) -> None:
        self._store, self._host = store, host
        self._max_chars = config.max_prompt_chars
        self._gate = PolicyGate(host, config)
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], AnswerRun] = {}
        self._beginning: set[tuple[str, str]] = set()

    def ask(self, user: str, chat_id: str | None, text: str, settings: AskSettings) -> tuple[str, AnswerRun]:
        """A new question at the end of the active branch (None: in a new chat); returns the chat's id and the run."""
        text = clean_prompt(text, self._max_chars)
        settings, model = self._checked(settings), self._ready_model()
        with self._asked(user, chat_id, text) as branch:
            return branch[-1].chat_id, self._answer(user, branch, settings, model)

    def score(
        self, user: str, chat_id: str | None, text: str, answer: str, settings: AskSettings
    ) -> tuple[str, AnswerRun]:
        """As `ask`, but with an answer that somebody else wrote: it is scored, nothing is generated."""
        text, answer = clean_prompt(text, self._max_chars), clean_answer(answer, self._max_chars)
        settings, model = self._checked(settings), self._ready_model()
        with self._asked(user, chat_id, text) as branch:
            return branch[-1].chat_id, self._scored(user, branch, answer, settings, model)

    def regenerate(self, user: str, message_id: str, settings: AskSettings) -> AnswerRun:
        """Another version of this answer, to the same question."""
        settings, model = self._checked(settings), self._ready_model()
        with self._only_answer(user, self._chat_of(user, message_id)):
            branch = self._branch_to(user, message_id, "assistant", "answered again")
            return self._answer(user, branch[:-1], settings, model)

    def edit(self, user: str, message_id: str, text: str, settings: AskSettings) -> AnswerRun:
        """Another version of this question, and an answer to it."""
        text = clean_prompt(text, self._max_chars)
        settings, model = self._checked(settings), self._ready_model()
        with self._only_answer(user, self._chat_of(user, message_id)):
            branch = self._branch_to(user, message_id, "user", "edited")
            old = branch[-1]
            question = self._store.add_message(user, old.chat_id, old.parent_id, "user", text)
            return self._answer(user, [*branch[:-1], question], settings, model)

    def continue_from(self, user: str, message_id: str, index: int, token_id: int, settings: AskSettings) -> AnswerRun:
        """Another version of this answer: its first `index` tokens, then `token_id`, then as the model goes on."""
        settings, model = self._checked(settings), self._ready_model()
        with self._only_answer(user, self._chat_of(user, message_id)):
            branch = self._branch_to(user, message_id, "assistant", "continued")
            prefix = _prefix(branch[-1], index, token_id, model)
            return self._answer(user, branch[:-1], settings, model, prefix)

    def rescore(self, user: str, message_id: str, name: str, settings: AskSettings) -> AnswerRun:
        """The same answer, read again by an estimator that was not asked when it was written."""
        settings, model = self._checked(settings), self._ready_model()
        with self._only_answer(user, self._chat_of(user, message_id)):
            branch = self._branch_to(user, message_id, "assistant", "scored again")
            answer, messages = branch[-1], messages_for_model(branch[:-1], settings.system)
            require_rescorable(answer, model, name)

            def start_stream(
                stop: threading.Event, on_queue: Callable[[int], None]
            ) -> Generator[ScoredToken, None, Answer]:
                return stream_again(self._host, messages, answer, name, stop, on_queue)

            return self._started(user, answer.chat_id, answer.id, start_stream, answer.text)

    def run_for(self, user: str, chat_id: str) -> AnswerRun | None:
        """The answer being written in this chat, or one that is complete but could not be saved yet."""
        with self._lock:
            return self._runs.get((user, chat_id))

    def stop(self, user: str, chat_id: str) -> None:
        """Stops the answer being written in this chat, if there is one."""
        run = self.run_for(user, chat_id)
        if run is not None:
            run.stop()

    def close(self) -> None:
        """Stops every answer and waits until what they wrote is saved."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.stop()
        for run in runs:
            run.join(STOP_WAIT_S)
        self._gate.close()

    @property
    def policies(self) -> PolicyStore:
        """What chats can be made to obey."""
        return self._gate.store

    @contextmanager
    def _asked(self, user: str, chat_id: str | None, text: str) -> Iterator[list[StoredMessage]]:
        """The active branch with a new question at its end; None: in a new chat."""
        if chat_id is None:
            chat_id = self._store.create_chat(user).id
        with self._only_answer(user, chat_id):
            branch = self._store.path(user, chat_id)
            _refuse_unfinished(branch)
            if not branch and self._store.get_chat(user, chat_id).title == NEW_CHAT_TITLE:
                self._store.rename_chat(user, chat_id, title_of(text))
            question = self._store.add_message(user, chat_id, branch[-1].id if branch else None, "user", text)
            yield [*branch, question]

    def _answer(
        self,
        user: str,
        branch: Sequence[StoredMessage],
        settings: AskSettings,
        model: str,
        prefix: tuple[int, ...] = (),
    ) -> AnswerRun:
        messages, policy = messages_for_model(branch, settings.system), self._gate.find(settings.policy)

        def start_stream(
            stop: threading.Event, on_queue: Callable[[int], None]
        ) -> Generator[ScoredToken, None, Answer]:
            given = (policy, messages, settings.estimators, settings.generation)
            return self._gate.stream(*given, answer_prefix=prefix, stop=stop, on_queue=on_queue)

        return self._run(user, branch[-1], model, start_stream)

    def _scored(
        self, user: str, branch: Sequence[StoredMessage], text: str, settings: AskSettings, model: str
    ) -> AnswerRun:
        messages, policy = messages_for_model(branch, settings.system), self._gate.find(settings.policy)

        def start_stream(
            stop: threading.Event, on_queue: Callable[[int], None]
        ) -> Generator[ScoredToken, None, Answer]:
            answer = self._gate.score(policy, messages, text, settings.estimators, stop=stop, on_queue=on_queue)
            if answer.finish_reason == "cancelled":
                return replace(answer, tokens=())  # the run keeps the whole text, which is worth more than half a score
            yield from answer.tokens
            return answer

        return self._run(user, branch[-1], model, start_stream, text)

    def _run(
        self, user: str, question: StoredMessage, model: str, start_stream: StartStream, text: str = ""
    ) -> AnswerRun:
        """Adds the answer's row below the question and begins to fill it."""
        chat_id = question.chat_id
        row = self._store.add_message(user, chat_id, question.id, "assistant", text, status="streaming", model=model)
        return self._started(user, chat_id, row.id, start_stream, text)

    def _started(self, user: str, chat_id: str, message_id: str, start_stream: StartStream, text: str) -> AnswerRun:
        run = AnswerRun(self._store, user, chat_id, message_id, start_stream, self._forget, text)
        with self._lock:
            self._runs[user, chat_id] = run
        run.start()
        return run

    def _forget(self, run: AnswerRun) -> None:
        with self._lock:
            if run.is_saved and self._runs.get((run.user, run.chat_id)) is run:
                del self._runs[run.user, run.chat_id]

    @contextmanager
    def _only_answer(self, user: str, chat_id: str) -> Iterator[None]:
        """Lets one answer at a time begin in a chat; waits for one that was told to stop."""
        key = (user, chat_id)
        run = self.run_for(user, chat_id)
        if run is not None and run.is_stopping:
            run.join(STOP_WAIT_S)
        if run is not None and not run.snapshot().is_running and run.save_again():
            self._forget(run)
        with self._lock:
            if key in self._runs or key in self._beginning:
                raise InputError("An answer is still being written in this chat. Stop it (Esc) or wait for its end.")
            self._beginning.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._beginning.discard(key)

    def _checked(self, settings: AskSettings) -> AskSettings:
        self._gate.find(settings.policy)
        return replace(settings, system=clean_text(settings.system, self._max_chars, "The system message"))

    def _ready_model(self) -> str:
        status = self._host.status()
        if status.state != "ready":
            raise BusyError(f"{status.message} Please ask again when a model is ready.")
        return status.model or ""

    def _branch_to(self, user: str, message_id: str, role: str, what: str) -> list[StoredMessage]:
        branch = self._store.branch_to(user, message_id)
        if branch[-1].role != role or (role == "assistant" and len(branch) < 2):
            kind = "an answer to a question" if role == "assistant" else "a question"
            raise InputError(f"Only {kind} can be {what}; this message is something else.")
        _refuse_unfinished(branch)
        return branch

    def _chat_of(self, user: str, message_id: str) -> str:
        return self._store.get_message(user, message_id).chat_id


def _refuse_unfinished(branch: Sequence[StoredMessage]) -> None:
    """Raises InputError when another app process on the same database is writing the branch's last answer."""
    if branch and branch[-1].status == "streaming":
        raise InputError("This answer is still being written in another window. Wait for its end, then try again.")


def _prefix(answer: StoredMessage, index: int, token_id: int, model: str) -> tuple[int, ...]:
    """The ids of the first `index` tokens and then `token_id`. Raises InputError."""
    if answer.model and model and answer.model != model:
        raise InputError(
            f"This answer is by {answer.model}, and {model} is loaded now: their tokens differ. "
            f"Load {answer.model} to continue it, or answer again."
        )
    if not 0 <= index < len(answer.tokens):
        raise InputError(f"Token {index} does not exist: the answer has {len(answer.tokens)} tokens, counted from 0.")
    if token_id < 0:
        raise InputError(f"{token_id} is not a token id; ids are 0 or more.")
    return (*(token.token_id for token in answer.tokens[:index]), token_id)
