"""The one decode loop: rows in, token steps out, many answers in one batch. Knows no estimator, no thread, no page.

`step()` is one forward of everything: one token of every running row, and a chunk of one prompt that is being read.
Rows join and leave between steps. Keys and values live in the `Forward`, rows and their places in the `Batch`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from uqchat.engine.adapters import AdapterSet
from uqchat.engine.backend import Event, FinishEvent, Request, StepEvent
from uqchat.engine.broken import find_broken
from uqchat.engine.capture import available_signals
from uqchat.engine.choose_forward import Choice, choose_forward
from uqchat.engine.failure import explain, is_out_of_memory
from uqchat.engine.forward import Forward
from uqchat.engine.lineup import MAX_ROWS, Lineup
from uqchat.engine.memory import check_memory, free_memory
from uqchat.engine.pace import Pace
from uqchat.engine.row_signals import capture_for, keep_prompt, signals_of
from uqchat.engine.rows import Row, Score
from uqchat.engine.sampling import sample
from uqchat.engine.scores import NUM_ALTERNATIVES, StepScores, Vocabulary, end_ids_of, score_logits
from uqchat.engine.text import AnswerText, Detokenizer, find_reasoning_tags
from uqchat.engine.voters import Ballot, ballot_of
from uqchat.errors import InputError
from uqchat.types import FinishReason, Signals, StepSignals

log = logging.getLogger(__name__)

PREFILL_CHUNK = 512  # prompt tokens read per step, so that a long prompt does not freeze the others
MAX_LAGS = 64  # attention lags that may be asked for


class Engine:
    """Drives a transformers causal language model; the local `Backend`.

    Not thread-safe and needs no thread: one owner calls `add`, `step` and `remove`, or drains `stream`.

    Args:
        forward: runs the model; None chooses, and `forward_note` says which and why.
        memory: bytes that keys and values may take, at most a quarter of it for saved prefixes; None takes 80 % of
            what is free now.
        min_shared: shortest common beginning of two prompts that is read once; None takes `prefix.MIN_SHARED`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        forward: Forward | None = None,
        memory: int | None = None,
        min_shared: int | None = None,
    ) -> None:
        self.model = model
        chosen = Choice(forward, "The forward that was given.") if forward else choose_forward(model)
        self.forward, self.forward_note = chosen.forward, chosen.note
        self.vocabulary = Vocabulary(tokenizer, end_ids_of(model, tokenizer))
        self.tags = find_reasoning_tags(getattr(tokenizer, "chat_template", None), tokenizer.get_vocab())
        memory = free_memory(model.device) * 4 // 5 if memory is None else memory
        self.lineup = Lineup(self.forward, memory, min_shared)
        self.adapters = AdapterSet(model)
        self.pace = Pace()
        self._rows: dict[int, Row] = {}  # whose end has not been handed out yet
        self._next_key = 0
        self._pid = os.getpid()
        layers, has_attention = available_signals(model)
        lags = MAX_LAGS if has_attention and self.forward.is_chunkable else 0
        size = model.config.get_text_config().vocab_size
        voters = MAX_ROWS - 1 if self.forward.is_chunkable else 0
        self.signals = Signals(size, True, layers, lags, watched_ids=range(size), voter_rows=voters)

    # ---- the plain generator

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """All requests in one batch; keys are positions in `requests`. Closing the iterator removes the rows.

        Raises:
            UqchatError: a request cannot be taken, or the model failed while answering it; the rows are removed.
        """
        keys = {self.add(request): i for i, request in enumerate(requests)}
        pending = set(keys)
        try:
            while pending:
                for event in self.step():
                    if event.key not in keys:
                        continue
                    if isinstance(event, FinishEvent):
                        pending.discard(event.key)
                        if event.error is not None:
                            raise event.error
                    yield replace(event, key=keys[event.key])
        finally:
            for key in pending:
                self.remove(key)

    # ---- rows

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.lineup.has_work

    def add(self, request: Request) -> int:
        """Put an answer into the batch; returns its key.

        Raises:
            InputError: it could never fit into the memory for keys and values, with the numbers; no such adapter;
                a signal that this model does not give.
        """
        missing = request.signals.missing(self.signals)
        if missing:
            raise InputError(f"This model's steps hold no {', '.join(missing)}.")
        for name in (request.adapter, *request.signals.voters):
            if name is not None and name not in self.adapters:
                known = ", ".join(self.adapters.names) or "none"
                raise InputError(f"This model has no adapter {name!r}; loaded: {known}.")
        check_memory(self.forward, request, self.lineup.memory)
        key, self._next_key = self._next_key, self._next_key + 1
        config = request.generation
        generator = None
        if config.temperature > 0:
            generator = torch.Generator(self.model.device).manual_seed(config.seed)
        text = AnswerText(Detokenizer(self.vocabulary.decode), config.stop_strings, self.tags, request.open_tag)
        row = Row(key, request, text, self.vocabulary.end_ids, generator, ids=list(request.prompt_ids))
        self._rows[key] = row
        self.lineup.waiting.append(row)
        return key

    def remove(self, key: int) -> list[Event]:
        """Take a row out at once; what its text still held back comes out as events, then its end."""
        row = self._rows.pop(key, None)
        if row is None:
            return []
        with torch.inference_mode():
            return self._finish(row, "cancelled")

    def reset(self) -> None:
        """Forget all rows and free their memory, after an error."""
        self._rows.clear()
        self.lineup.reset()

    # ---- one step

    def step(self) -> list[Event]:
        """One forward for all running rows, one for prompts that are being read; the events of both.

        A failure ends rows of the forward that failed, with a `FinishEvent` that tells why, and no others.
        """
        if os.getpid() != self._pid:  # OpenMP's threads do not survive a fork
            self._pid = os.getpid()
            torch.set_num_threads(1)
        with torch.inference_mode():
            running = list(self.lineup.batch.running)
            # Without chunks there is no going back: the rows before the failing one have taken the step.
            with self.pace.writing(running):
                events = self._attempt(self._decode, running, running, self.forward.is_chunkable)
            self.lineup.admit()
            readers = self.lineup.batch.readers(PREFILL_CHUNK if self.forward.is_chunkable else 0)
            with self.pace.reading(readers, bool(running)) as allowed:
                events += self._attempt(self._read, allowed, list(self.lineup.batch.reading))
            batch = self.lineup.batch
            broken = [row for row in (*batch.running, *batch.reading) if row.error is not None]
            events += [event for row in broken for event in self._fail(row, row.error)]
        for event in events:
            if isinstance(event, FinishEvent):
                del self._rows[event.key]
        return events

    def _attempt(
        self, part: Callable[[list[Row]], list[Event]], rows: list[Row], half: list[Row], is_repeatable: bool = True
    ) -> list[Event]:
        """Run one part of a step; what it raises ends rows of that part.

        Args:
            rows: those in this part's forward.
            half: all running or all reading rows: none of them is trusted when a step was taken half.
            is_repeatable: whether a forward that failed may be run again.
        """
        spared = [row for row in [*self.lineup.batch.running, *self.lineup.batch.reading] if row not in half]
        lengths = [row.length for row in rows]
        try:
            return part(rows)
        except Exception as error:  # noqa: BLE001  one bad step must not take the others down
            log.exception("a step of the model failed")
            if not is_repeatable or lengths != [row.length for row in rows]:
                failed = [row for row in self._rows.values() if row not in spared and row not in self.lineup.waiting]
            elif not is_out_of_memory(error):
                failed = [row for row in rows if row.leader is None]
            elif len(self.lineup.prefixes):  # room can be made: the next step tries again
                self.lineup.prefixes.clear()
                failed = []
            else:
                failed = [max(rows, key=lambda row: (len(row.ids), row.key, row.leader is None))]
            return [event for row in failed for event in self._fail(row, explain(error))]

    def _fail(self, row: Row, error: Exception) -> list[Event]:
        self.lineup.leave(row, is_broken=True)
        return [replace(event, error=error) for event in row.end("error") if isinstance(event, FinishEvent)]

    def _decode(self, rows: list[Row]) -> list[Event]:
        if not rows:
            return []
        ids = torch.tensor([row.next_id for row in rows], device=self.model.device)
        capture = capture_for(rows, 1)
        with self._adapted(rows):
            logits = self.forward.decode([row.length for row in rows], ids, capture).float()
        for row in rows:
            row.length += 1
        answers = [i for i, row in enumerate(rows) if row.leader is None]
        leaders = [rows[i] for i in answers]
        ballots = [ballot_of(row, rows, logits[:, None]) for row in leaders]
        own = logits if len(leaders) == len(rows) else logits[answers]
        return self._advance(leaders, own, [signals_of(rows[i], capture, i, -1) for i in answers], ballots)

    def _read(self, rows: list[Row]) -> list[Event]:
        """A chunk of the prompt whose turn it is, and of its neighbours while they are short."""
        if not rows:
            return []
        size = self.pace.chunk(rows[0], PREFILL_CHUNK, bool(self.lineup.batch.running))
        chunks = [row.unread[:size] if self.forward.is_chunkable else row.unread for row in rows]
        wanted = [row.num_wanted(len(chunk)) for row, chunk in zip(rows, chunks, strict=True)]
        width = max(map(len, chunks))
        is_all = len(rows) > 1 or rows[0].request.signals.prompt_rows
        capture = capture_for(rows, width if is_all else wanted[0])
        starts = [row.length for row in rows]
        with self._adapted(rows):
            logits = self.forward.prefill(self.lineup.batch.place(rows[0]), starts, chunks, wanted, capture)
        for row, chunk in zip(rows, chunks, strict=True):
            row.length += len(chunk)
        events: list[Event] = []
        for i, (row, chunk, n) in enumerate(zip(rows, chunks, wanted, strict=True)):
            if row.leader is not None:
                continue
            keep_prompt(row, capture, i, len(chunk) - n)
            signals = [signals_of(row, capture, i, len(chunk) - width - n + k) for k in range(n)]
            events += self._have_read(row, logits[i].float(), signals, ballot_of(row, rows, logits) if n else None)
        return events

    def _have_read(
        self, row: Row, logits: torch.Tensor, signals: list[StepSignals | None], ballot: Ballot | None
    ) -> list[Event]:
        if row.unread:
            return self._take_forced(row, logits, signals, ballot)
        events = self._take_forced(row, logits[:-1], signals[:-1], ballot and ballot[:-1])
        if row.error is not None:
            return events
        for each in row.group:
            self.lineup.batch.start(each)
        return events + self._start(row, logits[-1:], signals[-1:], ballot and ballot[-1:])

    def _take_forced(
        self, row: Row, logits: torch.Tensor, signals: list[StepSignals | None], ballot: Ballot | None
    ) -> list[Event]:
        if not len(logits):
            return []
        taken = len(row.ids) - len(row.request.prompt_ids)
        ids = row.request.forced_ids[taken : taken + len(logits)]
        chosen = torch.tensor(ids, device=logits.device)
        scores = self._score([row], logits if ballot is None else ballot.decided, chosen)
        signals = signals if ballot is None else ballot.add_to(signals, chosen)
        return [e for i, token_id in enumerate(ids) for e in self._push(row, token_id, scores, i, signals[i])]

    def _start(
        self, row: Row, logits: torch.Tensor, signals: list[StepSignals | None], ballot: Ballot | None
    ) -> list[Event]:
        """The prompt is read: the first new token of this row and of those that read the same, or the end."""
        forced = row.request.forced_ids
        reason = row.reason_to_end(forced[-1]) if forced else None
        if reason or row.request.generation.max_new_tokens == 0:
            return self._finish(row, reason or "length")
        twins = self.lineup.take_twins(row)
        same = [signals[0] if twin.request.signals.has_tensors else None for twin in twins]
        rows = [row, *twins]
        return self._advance(rows, logits.expand(len(rows), -1), signals + same, [ballot] * len(rows))

    # ---- tokens

    def _advance(
        self,
        rows: Sequence[Row],
        logits: torch.Tensor,
        signals: list[StepSignals | None],
        ballots: Sequence[Ballot | None],
    ) -> list[Event]:
        """Sample, score and hand out one token of each answer's row; ends those that are done."""
        if any(ballots):
            logits = torch.cat([own[None] if b is None else b.decided for own, b in zip(logits, ballots, strict=True)])
        chosen = sample(
            logits,
            [row.request.generation for row in rows],
            [row.generator for row in rows],
            [self._history(row) for row in rows],
        )
        scores = self._score(rows, logits, chosen)
        events: list[Event] = []
        for i, (row, token_id) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            for each in row.group:
                each.next_id = token_id
            row.new_tokens += 1
            ballot, own = ballots[i], signals[i : i + 1]
            (known,) = own if ballot is None else ballot.add_to(own, chosen[i : i + 1])
            events += self._push(row, token_id, scores, i, known)
            reason = None if row.error else row.reason_to_end(token_id)
            events += self._finish(row, reason) if reason else []
        return events

    def _score(self, rows: Sequence[Row], logits: torch.Tensor, chosen: torch.Tensor) -> StepScores:
        return score_logits(logits, chosen, max(NUM_ALTERNATIVES, *(row.request.signals.top_n for row in rows)))

    def _history(self, row: Row) -> torch.Tensor | None:
        is_penalised = row.request.generation.repetition_penalty != 1
        return torch.tensor(row.ids, device=self.model.device) if is_penalised else None

    def _push(
        self, row: Row, token_id: int, scores: StepScores, at: int, signals: StepSignals | None
    ) -> list[StepEvent]:
        logprobs, top_n = scores.top_logprobs[at], row.request.signals.top_n
        if top_n > NUM_ALTERNATIVES:
            more = torch.tensor(logprobs[:top_n], device=self.model.device)
            signals = replace(signals or StepSignals(), top_logprobs=more)
        if watched := tuple(row.request.signals.watched_ids):
            log_probs = scores.log_probs(at, watched)
            signals = replace(signals or StepSignals(), watched=log_probs, watched_ids=watched)
        row.error = row.error or find_broken(row.request, scores.logprob[at], signals)
        if row.error is not None:  # the step ends this answer before its first token without numbers
            return []
        ids = scores.top_ids[at][:NUM_ALTERNATIVES]
        alternatives = self.vocabulary.alternatives(ids, logprobs[:NUM_ALTERNATIVES])
        return row.push(token_id, Score(scores.logprob[at], scores.entropy[at], alternatives, signals))

    def _finish(self, row: Row, reason: FinishReason) -> list[Event]:
        events = row.end(reason)
        self.lineup.keep(row)
        self.lineup.leave(row)
        return events

    def _adapted(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        at = {row.key: i for i, row in enumerate(rows) if row.leader is None}
        leaders = [i if row.leader is None else at[row.key] for i, row in enumerate(rows)]
        return self.forward.adapted(self.adapters, [row.request.adapter for row in rows], leaders)
