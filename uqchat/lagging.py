"""Voters that read behind an answer while it is written: the text comes at full speed, their risks a little later.

The answer's own row runs alone. What it has written since the voters last read is given to them as one reading, which
makes way for answers that are being written (see `Engine`). The votes are those of lockstep: a voter reads the same
ids with the same weights. Knows no page.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

from uqchat.config import GenerationConfig
from uqchat.engine.backend import FinishEvent, Request
from uqchat.engine.worker import Job, Worker
from uqchat.errors import UqchatError
from uqchat.estimators.base import Estimator
from uqchat.scoring import Scorer
from uqchat.types import Ensemble, ScoredToken, Signals, TokenStep

CHUNK = 16  # tokens that voters read at a time, at least, while the answer is written
NEARLY_FREE = 10  # rows that decode together for little more than one


def split_ensembles(
    request: Request, chosen: Sequence[Estimator], num_rows: int
) -> tuple[Request, tuple[Ensemble, ...]]:
    """The request with the voters that run beside it, and the ensembles that read behind it.

    Where an estimator leaves the choice open, its voters read behind the answer when together with the `num_rows` rows
    of other requests there would be more than `NEARLY_FREE` in the batch: several chats, or many voters. Nothing reads
    behind a given answer, nor where another estimator needs the same votes at once.
    """
    if request.generation.max_new_tokens == 0:
        return request, ()
    is_full = num_rows + 1 + len(request.companions) > NEARLY_FREE
    at_once = {
        ensemble
        for one in chosen
        for ensemble in one.needs.ensembles
        if one.lag == "never" or (one.lag == "auto" and not is_full)
    }
    beside = tuple(one for one in request.signals.ensembles if one in at_once)
    behind = tuple(one for one in request.signals.ensembles if one not in at_once)
    return replace(request, signals=replace(request.signals, ensembles=beside)), behind


class LagRun:
    """The readings behind one answer.

    Args:
        request: of the answer. stop: of the answer too.
    """

    def __init__(
        self,
        reader: Worker,
        scorer: Scorer,
        request: Request,
        ensembles: tuple[Ensemble, ...],
        stop: threading.Event | None,
    ) -> None:
        self._reader, self._scorer, self._stop = reader, scorer, stop
        self._prompt = request.prompt_ids
        self._signals = Signals(ensembles=ensembles)
        self._ids: list[int] = []
        self._asked = 0  # tokens that the voters have been given
        self._judged = 0
        self._job: Job | None = None
        self.failures: dict[str, str] = {}
        """By estimator: why it stopped on the way; the answer goes on without it."""

    def push(self, step: TokenStep) -> Iterator[ScoredToken]:
        """A token was written; gives earlier ones that the voters have come to."""
        self._ids.append(step.token_id)
        if self._job is None and len(self._ids) - self._asked >= CHUNK:
            self.ask()
        yield from self._taken(is_waiting=False)

    def rest(self) -> Iterator[ScoredToken]:
        """The answer is whole: waits for the voters, and gives what they say of its other tokens."""
        while self._judged < len(self._ids) and not self.failures:
            if self._job is None:
                self.ask()
            yield from self._taken(is_waiting=True)

    def ask(self) -> None:
        """Give the voters all that was written since; nothing while they read."""
        if self._job is not None or self._asked == len(self._ids) or self.failures:
            return
        ids = self._ids[self._asked :]
        first = self._signals.voters[0]  # writes nothing, so that a voter can take the place of the answer's row
        before, config = (*self._prompt, *self._ids[: self._asked]), GenerationConfig(max_new_tokens=0)
        request = Request(before, config, tuple(ids), self._signals, adapter=first, is_behind=True)
        self._asked = len(self._ids)
        try:
            self._job = self._reader.submit(request, self._stop)
        except UqchatError as error:
            self._fail(error)

    def cancel(self) -> None:
        """Stop reading."""
        if self._job is not None:
            self._reader.cancel(self._job)

    def _taken(self, is_waiting: bool) -> Iterator[ScoredToken]:
        job = self._job
        if job is None:
            return
        try:
            for event in self._reader.events(job) if is_waiting else self._reader.arrived(job):
                if isinstance(event, FinishEvent):
                    self._job = None
                    self._judged = self._asked if event.reason != "cancelled" else len(self._ids)
                else:
                    yield from self._scorer.late(replace(event, index=self._judged))
                    self._judged += 1
        except UqchatError as error:
            self._fail(error)

    def _fail(self, error: UqchatError) -> None:
        """What reads behind an answer cannot lose it."""
        self._job = None
        behind = [one for one in self._scorer.estimators if set(one.needs.ensembles) & set(self._signals.ensembles)]
        self.failures = {one.name: f"{one.label} judged {self._judged} tokens only: {error}" for one in behind}
