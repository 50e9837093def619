"""The rows of a running batch and the places where their keys and values lie. Samples and scores nothing."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace

import torch

from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.forward import Forward
from uqchat.engine.text import AnswerText, Piece
from uqchat.errors import ModelError
from uqchat.types import Alternative, FinishReason, Signals, StepSignals, Timings, TokenStep


@dataclass(frozen=True, slots=True)
class Score:
    """What is known of a token when it is chosen."""

    logprob: float
    entropy: float
    alternatives: tuple[Alternative, ...]
    signals: StepSignals | None = None


@dataclass(eq=False)
class Row:
    """One answer under way."""

    key: int
    request: Request
    text: AnswerText
    end_ids: frozenset[int]
    generator: torch.Generator | None = None
    length: int = 0  # positions that the cache holds
    next_id: int = -1
    index: int = 0  # tokens handed out
    new_tokens: int = 0
    scores: deque[Score] = field(default_factory=deque)  # of tokens whose text is still held back
    ids: list[int] = field(default_factory=list)  # prompt and answer so far
    prompt_parts: list[StepSignals] = field(default_factory=list)  # signals of prompt positions, chunk by chunk
    added: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    error: ModelError | None = None  # its logits, or a voter's, are no numbers: it ends with this step
    leader: Row | None = None  # of a voter: the answer's row, which it follows
    companions: list[Row] = field(default_factory=list)  # voters that read and run beside this row

    def __post_init__(self) -> None:
        """A voter's row for each adapter that the request names; it shares the ids and has no text of its own."""
        for name in self.request.companions if self.leader is None else ():
            request = replace(self.request, adapter=name, signals=Signals())
            self.companions.append(Row(self.key, request, self.text, self.end_ids, ids=self.ids, leader=self))

    @property
    def group(self) -> list[Row]:
        """This row and its voters', which are always equally long."""
        return [self, *self.companions]

    @property
    def is_seen(self) -> bool:
        """Whether logits behind all it has read were looked at; else nobody knows whether those are numbers."""
        return self.first_token > 0

    @property
    def kept_as(self) -> str | None:
        """Whose keys and values these are: a voter's may lack blocks in which it equals its answer's row."""
        own = self.request.adapter
        return own if self.leader is None else f"{own} beside {self.leader.request.adapter}"

    @property
    def to_read(self) -> tuple[int, ...]:
        """Prompt and forced ids: what the model reads before it writes."""
        return self.request.prompt_ids + self.request.forced_ids

    @property
    def unread(self) -> tuple[int, ...]:
        """What is still to be read."""
        return self.to_read[self.length :]

    def num_wanted(self, count: int) -> int:
        """Logits wanted of the next `count` ids: those from the prompt's last position on, which predict the answer."""
        return max(0, min(count, self.length + count - (len(self.request.prompt_ids) - 1)))

    @property
    def num_reused(self) -> int:
        """How many positions a saved prefix may at most provide: the prompt's last one gives the first scores."""
        return 0 if self.request.signals.prompt_rows else len(self.request.prompt_ids) - 1

    def push(self, token_id: int, score: Score) -> list[StepEvent]:
        """Take a chosen or given id; the tokens whose text is final now."""
        self.ids.append(token_id)
        self.scores.append(score)
        self.first_token = self.first_token or time.perf_counter() - self.started
        return [self._event(piece) for piece in self.text.push(token_id)]

    def end(self, reason: FinishReason) -> list[StepEvent | FinishEvent]:
        """The tokens that were held back, and the ending."""
        now = time.perf_counter()
        started = self.started or now
        timings = Timings(started - self.added, self.first_token, now - started)
        return [*map(self._event, self.text.flush()), FinishEvent(self.key, reason, timings)]

    def reason_to_end(self, token_id: int) -> FinishReason | None:
        """Why the answer ends after this id, or None when it goes on."""
        if token_id in self.end_ids:
            return "stop"
        if self.text.is_stopped:
            return "stop_string"
        return "length" if self.new_tokens >= self.request.generation.max_new_tokens > 0 else None

    def _event(self, piece: Piece) -> StepEvent:
        score = self.scores.popleft()
        step = TokenStep(
            index=self.index,
            token_id=piece.token_id,
            text=piece.text,
            span=piece.span,
            logprob=score.logprob,
            entropy=score.entropy,
            alternatives=score.alternatives,
            is_reasoning=piece.is_reasoning,
            is_end=piece.token_id in self.end_ids,
            signals=score.signals,
        )
        self.index += 1
        return StepEvent(self.key, step)


class Batch:
    """Decoding rows at places 0..n-1, rows being read behind them, without gaps."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.running: list[Row] = []
        self.reading: list[Row] = []

    def __len__(self) -> int:
        return len(self.running) + len(self.reading)

    def place(self, row: Row) -> int:
        """Where the row's keys and values lie."""
        if row in self.running:
            return self.running.index(row)
        return len(self.running) + self.reading.index(row)

    def readers(self, max_tokens: int) -> list[Row]:
        """Who reads next: the row that has read least, so that a short prompt does not wait for a long one.

        Its voters read with it. Neighbours come along while all their unread ids, filled up to the longest, are at most
        `max_tokens`. Rows that read behind an answer wait until no other reads.
        """
        leaders = [row for row in self.reading if row.leader is None]
        if not leaders:
            return []
        rows = self._side_by_side(min(leaders, key=lambda row: (row.request.is_behind, row.length, row.key)))
        width, at = len(rows[0].unread), self.reading.index(rows[-1]) + 1
        while at < len(self.reading):
            group = self.reading[at].group
            width = max(width, len(group[0].unread))
            is_apart = group[0].leader is not None or self.reading[at : at + len(group)] != group
            is_other = group[0].request.is_behind != rows[0].request.is_behind
            if is_apart or is_other or width * (len(rows) + len(group)) > max_tokens:
                break
            rows += group
            at += len(group)
        return rows

    def _side_by_side(self, leader: Row) -> list[Row]:
        """A reading row and its voters, brought to places next to each other."""
        group = leader.group
        first = min(self.reading.index(leader), len(self.reading) - len(group))
        for at, row in enumerate(group, start=first):
            self._exchange(at, self.reading.index(row))
        return group

    def _exchange(self, first: int, second: int) -> None:
        """Swap two reading rows, by their numbers among those."""
        if first == second:
            return
        one, other = self.reading[first], self.reading[second]
        before = len(self.running)
        self.forward.swap(before + first, before + second, max(one.length, other.length))
        self.reading[first], self.reading[second] = other, one

    def start(self, row: Row) -> None:
        """The row has been read: it becomes the last of the running ones."""
        self._exchange(0, self.reading.index(row))
        self.running.append(self.reading.pop(0))

    def clone(self, source: Row, twin: Row) -> None:
        """Add a running row with a copy of the source's positions."""
        free = len(self.running)
        if self.reading and self.reading[0].length:
            self.forward.copy(free, len(self), self.reading[0].length)
        self.forward.copy(self.place(source), free, source.length)
        self.reading = self.reading[1:] + self.reading[:1]  # only now: either copy may run out of memory
        twin.length = source.length
        self.running.append(twin)

    def leave(self, row: Row) -> None:
        """Take a row out and close the gap: the last running row moves in, then the last one being read."""
        if row in self.running:
            gap = self.running.index(row)
            last = self.running.pop()
            if last is not row:
                self.forward.copy(len(self.running), gap, last.length)
                self.running[gap] = last
            gap = len(self.running)
        elif row in self.reading:
            gap = self.place(row)
            self.reading.remove(row)
            if gap == len(self):
                return
            self.reading.insert(gap - len(self.running), self.reading.pop())
            moved = self.reading[gap - len(self.running)]
            self._bring(moved, len(self), gap)
            return
        else:
            return
        if self.reading:
            moved = self.reading.pop()
            self.reading.insert(0, moved)
            self._bring(moved, len(self), gap)

    def _bring(self, row: Row, source: int, target: int) -> None:
        if row.length:
            self.forward.copy(source, target, row.length)
