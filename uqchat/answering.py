"""One answer on its way: a job's events to scored tokens, then what the estimators still want to read.

Knows no messages, no model and no interface.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

from uqchat.config import GenerationConfig
from uqchat.engine.backend import FinishEvent, Request
from uqchat.engine.direct import DirectReader
from uqchat.engine.worker import Job, Worker
from uqchat.errors import InputError, UqchatError
from uqchat.estimators.base import FollowUp
from uqchat.scoring import Scorer
from uqchat.types import ScoredToken, TokenStep

Reader = Worker | DirectReader
T = TypeVar("T")


def scored_events(
    events: Iterator[TokenStep | FinishEvent], scorer: Scorer
) -> Generator[ScoredToken, None, FinishEvent]:
    """Scored tokens of one job as they come; returns its end. Raises what the events raise."""
    with closing(events):
        for event in events:
            if isinstance(event, FinishEvent):
                yield from scorer.finish()
                return event
            yield from scorer.push(event)
    raise AssertionError("a stream ends with its FinishEvent")


class FollowUpRun:
    """The follow-ups of one whole answer, handed in together so that they share forwards with whatever else runs.

    None of them can lose the answer: an estimator whose follow-up fails or is stopped goes without, and `failures`
    says why, by the estimator's name.

    Args:
        context_window: tokens that the model can read.
        stop: of the answer.
    """

    def __init__(self, reader: Reader, scorer: Scorer, context_window: int, stop: threading.Event | None) -> None:
        self.failures: dict[str, str] = {}
        self.seconds = 0.0  # of the longest reading
        self._reader, self._scorer, self._window, self._stop = reader, scorer, context_window, stop
        self._jobs: dict[int, list[Job]] = {}
        for number, wanted in enumerate(scorer.follow_ups()):
            if wanted:
                self._jobs[number] = self._attempt(number, lambda wanted=wanted: self._submit(wanted)) or []

    @property
    def num_jobs(self) -> int:
        """Readings that were handed in."""
        return sum(map(len, self._jobs.values()))

    def replies(self) -> Generator[ScoredToken, None, None]:
        """Wait for all of them; gives tokens whose risks they change."""
        try:
            for number, jobs in self._jobs.items():
                steps = self._attempt(number, lambda jobs=jobs: [self._step_of(job) for job in jobs])
                if steps:
                    yield from self._scorer.take_replies(number, steps)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop those that still run."""
        for job in [job for jobs in self._jobs.values() for job in jobs]:
            self._reader.cancel(job)

    def _attempt(self, number: int, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except UqchatError as error:
            estimator = self._scorer.estimators[number]
            self.failures[estimator.name] = f"{estimator.label} gave no score: {error}"
            return None

    def _submit(self, wanted: list[FollowUp]) -> list[Job]:
        longest = max(len(one.prompt_ids) for one in wanted)
        if longest >= self._window:
            raise InputError(f"it reads {longest:,} tokens, and this model reads {self._window - 1:,} at most.")
        one_step = GenerationConfig(max_new_tokens=1)
        jobs: list[Job] = []
        try:
            for one in wanted:
                request = Request(one.prompt_ids, one_step, signals=one.signals, adapter=one.adapter)
                jobs.append(self._reader.submit(request, self._stop))
        except UqchatError:
            for job in jobs:
                self._reader.cancel(job)
            raise
        return jobs

    def _step_of(self, job: Job) -> TokenStep:
        steps = []
        for event in self._reader.events(job):
            if isinstance(event, FinishEvent):
                self.seconds = max(self.seconds, event.timings.total)
            else:
                steps.append(event)
        if not steps:
            raise InputError("it was stopped before its last reading.")
        return steps[0]
