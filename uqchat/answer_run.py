"""One answer being written: a thread drains the model's stream into memory and into the store. Knows no interface."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

from uqchat.errors import StoreError, UqchatError
from uqchat.store import Store
from uqchat.token_codec import AnswerScores
from uqchat.types import Answer, FinishReason, ScoredToken

RunStatus = Literal["waiting", "streaming", "done", "cancelled", "error"]
SAVE_EVERY_S = 1.0
SAVE_SHARE = 0.05
"""Saving a long answer again and again may take this share of the time at most."""

logger = logging.getLogger(__name__)

StartStream = Callable[[threading.Event, Callable[[int], None]], Generator[ScoredToken, None, Answer]]


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A running answer as it is at this moment.

    `queue_position` counts the requests ahead while waiting. `error` may come with status "done": the answer is
    complete, but could not be saved.
    """

    tokens: tuple[ScoredToken, ...]
    status: RunStatus
    queue_position: int | None
    error: str | None
    tokens_per_second: float

    @property
    def is_running(self) -> bool:
        """Whether more may come."""
        return self.status in ("waiting", "streaming")

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True)
class _Final:
    """What the store is to keep of a finished answer."""

    text: str
    tokens: tuple[ScoredToken, ...]
    status: Literal["done", "cancelled", "error"]
    finish_reason: FinishReason
    error: str | None = None
    dropped_messages: int = 0
    scores: AnswerScores = AnswerScores()


class AnswerRun:
    """Writes one answer that the store already has a row for.

    Args:
        start_stream: called in the run's thread with its stop flag and a function for the place in the queue.
        on_end: called once, in the run's thread, when the final state is reached.
        text: what the answer keeps when it ends without a token: the text that was to be scored.
    """

    def __init__(
        self,
        store: Store,
        user: str,
        chat_id: str,
        message_id: str,
        start_stream: StartStream,
        on_end: Callable[[AnswerRun], None],
        text: str = "",
    ) -> None:
        self.user, self.chat_id, self.message_id = user, chat_id, message_id
        self._store, self._start_stream, self._on_end, self._text = store, start_stream, on_end, text
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._tokens: list[ScoredToken] = []
        self._status: RunStatus = "waiting"
        self._queue_position: int | None = None
        self._error: str | None = None
        self._version = 0
        self._viewers = 0
        self._token_times: tuple[float, float] = (0.0, 0.0)  # when the first and the last token came
        self._unsaved: _Final | None = None
        self._save_after = time.monotonic() + SAVE_EVERY_S
        self._thread = threading.Thread(target=self._run, name=f"answer-{message_id[:8]}", daemon=True)

    def start(self) -> None:
        """Begins; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the model to stop within one step; what was written so far is kept as cancelled."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    @property
    def is_saved(self) -> bool:
        """Whether the store has the final state."""
        return not self.snapshot().is_running and self._unsaved is None

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end, saving included; whether it came within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def attach(self) -> None:
        """A page begins to watch."""
        with self._changed:
            self._viewers += 1

    def detach(self) -> None:
        """A page went away; the last one stops the answer."""
        with self._changed:
            self._viewers -= 1
            is_last = self._viewers <= 0
        if is_last:
            self.stop()

    def snapshot(self) -> RunSnapshot:
        """The answer as it is now."""
        with self._changed:
            first, last = self._token_times
            speed = (len(self._tokens) - 1) / (last - first) if last > first else 0.0
            return RunSnapshot(tuple(self._tokens), self._status, self._queue_position, self._error, speed)

    def wait_change(self, version: int, timeout: float) -> int:
        """Blocks until there is something newer than `version` (begin with 0) or `timeout` seconds passed.

        Returns:
            The version to wait for next; the same as before when nothing changed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)
            return self._version

    def save_again(self) -> bool:
        """Tries once more to save a finished answer that the store refused; whether all is saved now."""
        final = self._unsaved
        if final is None:
            return True
        try:
            self._save(final)
        except StoreError as refusal:
            self._publish(final.status, f"{final.error or 'This answer is not saved.'} {refusal}")
            return False
        self._unsaved = None
        self._publish(final.status, final.error)
        return True

    def _run(self) -> None:
        try:
            answer = self._drain()
            status = "cancelled" if answer.finish_reason == "cancelled" else "done"
            text = answer.text if answer.tokens else self._text
            scores = AnswerScores(answer.risks, answer.outside_scope, answer.failures, answer.decision)
            final = _Final(text, answer.tokens, status, answer.finish_reason, None, answer.dropped_messages, scores)
        except UqchatError as error:
            final = self._failed(str(error))
        except Exception:
            logger.exception("The answer %s failed", self.message_id)
            final = self._failed("Something went wrong while answering. Try again; the log has the details.")
        self._finish(final)

    def _failed(self, error: str) -> _Final:
        tokens = tuple(self._tokens)
        return _Final(_text(tokens) if tokens else self._text, tokens, "error", "error", error)

    def _finish(self, final: _Final) -> None:
        with self._changed:
            self._tokens = list(final.tokens)
        self._unsaved = final
        self.save_again()
        self._on_end(self)

    def _drain(self) -> Answer:
        stream = self._start_stream(self._stop, self._on_queue)
        try:
            while True:
                self._take(next(stream))
        except StopIteration as end:
            return end.value
        finally:
            stream.close()

    def _on_queue(self, position: int) -> None:
        self._publish("waiting", queue_position=position)

    def _take(self, token: ScoredToken) -> None:
        now = time.monotonic()
        with self._changed:
            if token.index < len(self._tokens):
                self._tokens[token.index] = token  # the same token again, with revised risks
            else:
                self._tokens.append(token)
                self._token_times = (self._token_times[0] or now, now)
            self._status, self._queue_position = "streaming", None
            self._version += 1
            self._changed.notify_all()
        if now >= self._save_after:
            self._save_partly()

    def _save_partly(self) -> None:
        began = time.monotonic()
        tokens = tuple(self._tokens)
        try:
            self._store.save_answer(self.user, self.message_id, _text(tokens), tokens, "streaming")
        except StoreError as error:
            logger.warning("The answer %s could not be saved yet: %s", self.message_id, error)
        ended = time.monotonic()
        self._save_after = ended + max(SAVE_EVERY_S, (ended - began) / SAVE_SHARE)

    def _save(self, final: _Final) -> None:
        self._store.save_answer(
            self.user,
            self.message_id,
            final.text,
            final.tokens,
            final.status,
            final.finish_reason,
            final.error,
            final.dropped_messages,
            final.scores,
        )

    def _publish(self, status: RunStatus, error: str | None = None, queue_position: int | None = None) -> None:
        with self._changed:
            self._status, self._error, self._queue_position = status, error, queue_position
            self._version += 1
            self._changed.notify_all()


def _text(tokens: tuple[ScoredToken, ...]) -> str:
    return "".join(token.text for token in tokens)
