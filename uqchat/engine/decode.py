"""The one decode loop: rows in, token steps out, many answers in one batch. Knows no estimator, no thread, no page.

`step()` is one forward of everything: a chunk of the prompt that is being read, and one token of every running row.
Rows join and leave between steps. Row state lives here; keys and values live in the `Forward`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from uqchat.engine.backend import Event, FinishEvent, Request, StepEvent
from uqchat.engine.forward import Forward, make_forward
from uqchat.engine.sampling import sample
from uqchat.engine.scores import NUM_ALTERNATIVES, StepScores, Vocabulary, end_ids_of, score_logits
from uqchat.engine.text import AnswerText, Detokenizer, Piece, find_reasoning_tags
from uqchat.types import Alternative, FinishReason, Signals, Timings, TokenStep

PREFILL_CHUNK = 512  # prompt tokens read per step, so that a long prompt does not freeze the others
MAX_ROWS = 16  # rows that decode together; beyond about ten, one more is no longer nearly free


@dataclass
class Row:
    """One answer under way."""

    key: int
    request: Request
    text: AnswerText
    generator: torch.Generator | None
    unread: list[int]  # prompt and forced ids that the model has not seen
    length: int = 0  # positions that the cache holds
    next_id: int = -1
    index: int = 0
    new_tokens: int = 0
    scores: deque[tuple[float, float, tuple[Alternative, ...]]] = field(default_factory=deque)
    seen: list[int] = field(default_factory=list)  # ids of prompt and answer, for the repetition penalty
    added: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0


class Engine:
    """Drives a transformers causal language model; the local `Backend`.

    Not thread-safe and needs no thread: one owner calls `add`, `step` and `remove`, or drains `stream`.
    """

    signals = Signals(top_n=NUM_ALTERNATIVES, entropy=True)

    def __init__(self, model: PreTrainedModel, tokenizer: Any, forward: Forward | None = None) -> None:
        self.model = model
        self.forward = forward or make_forward(model)
        self.vocabulary = Vocabulary(tokenizer, end_ids_of(model, tokenizer))
        self.tags = find_reasoning_tags(getattr(tokenizer, "chat_template", None), tokenizer.get_vocab())
        self._waiting: deque[Row] = deque()
        self._reading: Row | None = None
        self._running: list[Row] = []
        self._next_key = 0
        self._pid = os.getpid()

    # ---- the plain generator

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """All requests in one batch; keys are positions in `requests`. Closing the iterator removes the rows."""
        keys = {self.add(request): i for i, request in enumerate(requests)}
        pending = set(keys)
        try:
            while pending:
                for event in self.step():
                    if isinstance(event, FinishEvent):
                        pending.discard(event.key)
                        yield FinishEvent(keys[event.key], event.reason, event.timings, event.error)
                    elif event.key in keys:
                        yield StepEvent(keys[event.key], event.step)
        finally:
            for key in pending:
                self.remove(key)

    # ---- rows

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._reading or self._running)

    @property
    def num_rows(self) -> int:
        """Rows that are reading or running."""
        return len(self._running) + (self._reading is not None)

    def add(self, request: Request) -> int:
        """Put an answer into the batch; returns its key."""
        key, self._next_key = self._next_key, self._next_key + 1
        config = request.generation
        generator = None
        if config.temperature > 0:
            generator = torch.Generator(self.model.device).manual_seed(config.seed)
        text = AnswerText(Detokenizer(self.vocabulary.decode), config.stop_strings, self.tags, request.open_tag)
        ids = [*request.prompt_ids, *request.forced_ids]
        self._waiting.append(Row(key, request, text, generator, ids, seen=list(request.prompt_ids)))
        return key

    def remove(self, key: int) -> list[Event]:
        """Take a row out at once; what its text still held back comes out as events, then its end."""
        for row in self._rows():
            if row.key == key:
                with torch.inference_mode():
                    return self._finish(row, "cancelled")
        return []

    def _rows(self) -> list[Row]:
        return [*self._running, *([self._reading] if self._reading else []), *self._waiting]

    def reset(self) -> None:
        """Forget all rows and free their memory, after an error."""
        self._waiting.clear()
        self._reading, self._running = None, []
        self.forward.release()

    # ---- one step

    def step(self) -> list[Event]:
        """One forward for the prompt being read, one for all running rows; the events of both."""
        if os.getpid() != self._pid:  # OpenMP's threads do not survive a fork
            self._pid = os.getpid()
            torch.set_num_threads(1)
        with torch.inference_mode():
            return [*self._decode(), *self._read()]

    def _read(self) -> list[Event]:
        if self._reading is None and self._waiting and len(self._running) < MAX_ROWS:
            self._reading = self._waiting.popleft()
            self._reading.started = time.perf_counter()
        row = self._reading
        if row is None:
            return []
        chunk = row.unread[:PREFILL_CHUNK] if self.forward.is_chunkable else row.unread
        is_last = len(chunk) == len(row.unread)
        # Logits at a position predict the next id: those from the last prompt position on are wanted.
        wanted = min(len(chunk), len(row.request.forced_ids) - (len(row.unread) - len(chunk)) + 1)
        logits = self.forward.prefill(len(self._running), row.length, chunk, max(wanted, 0)).float()
        row.unread, row.length = row.unread[len(chunk) :], row.length + len(chunk)
        events = self._take_forced(row, logits[:-1] if is_last else logits)
        if is_last:
            self._reading = None
            self._running.append(row)
            events += self._start(row, logits[-1:])
        return events

    def _take_forced(self, row: Row, logits: torch.Tensor) -> list[Event]:
        if not len(logits):
            return []
        ids = row.request.forced_ids[row.index + len(row.scores) :][: len(logits)]
        scores = score_logits(logits, torch.tensor(ids, device=logits.device))
        events: list[Event] = []
        for position, token_id in enumerate(ids):
            events += self._push(row, token_id, scores, position)
        return events

    def _start(self, row: Row, logits: torch.Tensor) -> list[Event]:
        """The prompt is read: the first new token, or the end when none is wanted."""
        forced = row.request.forced_ids
        reason = self._reason(row, forced[-1]) if forced else None
        if reason or row.request.generation.max_new_tokens == 0:
            return self._finish(row, reason or "length")
        return self._advance([row], logits)

    def _decode(self) -> list[Event]:
        if not self._running:
            return []
        rows = list(self._running)
        ids = torch.tensor([row.next_id for row in rows], device=self.model.device)
        logits = self.forward.decode([row.length for row in rows], ids).float()
        for row in rows:
            row.length += 1
        return self._advance(rows, logits)

    def _advance(self, rows: Sequence[Row], logits: torch.Tensor) -> list[Event]:
        """Sample, score and hand out one token of each row; ends the rows that are done."""
        chosen = sample(
            logits,
            [row.request.generation for row in rows],
            [row.generator for row in rows],
            [self._history(row) for row in rows],
        )
        scores = score_logits(logits, chosen)
        events: list[Event] = []
        for position, (row, token_id) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            row.next_id = token_id
            row.new_tokens += 1
            events += self._push(row, token_id, scores, position)
            reason = self._reason(row, token_id)
            events += self._finish(row, reason) if reason else []
        return events

    def _history(self, row: Row) -> torch.Tensor | None:
        is_penalised = row.request.generation.repetition_penalty != 1
        return torch.tensor(row.seen, device=self.model.device) if is_penalised else None

    def _reason(self, row: Row, token_id: int) -> FinishReason | None:
        if token_id in self.vocabulary.end_ids:
            return "stop"
        if row.text.is_stopped:
            return "stop_string"
        return "length" if row.new_tokens >= row.request.generation.max_new_tokens else None

    def _push(self, row: Row, token_id: int, scores: StepScores, position: int) -> list[Event]:
        alternatives = self.vocabulary.alternatives(scores.top_ids[position], scores.top_logprobs[position])
        row.scores.append((scores.logprob[position], scores.entropy[position], alternatives))
        row.seen.append(token_id)
        row.first_token = row.first_token or time.perf_counter() - row.started
        return [self._event(row, piece) for piece in row.text.push(token_id)]

    def _event(self, row: Row, piece: Piece) -> StepEvent:
        logprob, entropy, alternatives = row.scores.popleft()
        is_end = piece.token_id in self.vocabulary.end_ids
        step = TokenStep(
            row.index,
            piece.token_id,
            piece.text,
            piece.span,
            logprob,
            entropy,
            alternatives,
            piece.is_reasoning,
            is_end,
        )
        row.index += 1
        return StepEvent(row.key, step)

    def _finish(self, row: Row, reason: FinishReason) -> list[Event]:
        events: list[Event] = [self._event(row, piece) for piece in row.text.flush()]
        now = time.perf_counter()
        started = row.started or now
        timings = Timings(started - row.added, row.first_token, now - started)
        self._leave(row)
        return [*events, FinishEvent(row.key, reason, timings)]

    def _leave(self, row: Row) -> None:
        """Close the gap that the row leaves: decoding rows stay at the first places, the one being read behind them."""
        if row in self._waiting:
            self._waiting.remove(row)
        elif row is self._reading:
            self._reading = None
        elif row in self._running:
            place, last = self._running.index(row), len(self._running) - 1
            if place < last:
                self.forward.move(last, place, self._running[last].length)
                self._running[place] = self._running[last]
            self._running.pop()
            if self._reading is not None and self._reading.length:
                self.forward.move(last + 1, last, self._reading.length)
        if not self.has_work:
            self.forward.release()
