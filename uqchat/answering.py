"""Answers on their way: a job's events to scored tokens, then what the estimators still want to read.

Knows neither which model runs nor how messages become a prompt, and no interface.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar

from uqchat.config import GenerationConfig
from uqchat.engine.backend import FinishEvent, Request
from uqchat.engine.direct import DirectReader
from uqchat.engine.prompt import Prompt
from uqchat.engine.worker import Job, Worker
from uqchat.errors import InputError, UqchatError
from uqchat.estimators.base import AnswerContext, Estimator, FollowUp
from uqchat.lagging import LagRun, split_ensembles
from uqchat.scoring import Scorer
from uqchat.types import Answer, ScoredToken, Signals, TokenStep

Reader = Worker | DirectReader
T = TypeVar("T")
BATCH_WINDOW = 64  # requests of one batch call that are with the worker at a time


class Answering:
    """Requests to answers, for one model.

    Args:
        name: of the model. context_window: tokens that it can read. available: signals that its steps can hold.
    """

    def __init__(self, reader: Reader, name: str, tokenizer: Any, context_window: int, available: Signals) -> None:
        self.reader, self.name, self.tokenizer = reader, name, tokenizer
        self.window, self.available = context_window, available

    def stream(
        self,
        request: Request,
        prompt: Prompt,
        chosen: Sequence[Estimator],
        stop: threading.Event | None,
        on_queue: Callable[[int], None] | None,
    ) -> Generator[ScoredToken, None, Answer]:
        """One answer, see `LanguageModel.stream`."""
        request, lag, scorer = self._prepared(request, prompt, chosen, stop)
        job = self.reader.submit(request, stop)
        try:
            end = yield from scored_events(self.reader.events(job, on_queue), scorer, lag)
            more = self._follow_ups(scorer, end, stop)
            yield from lag.rest() if lag and end.reason != "cancelled" else ()
            yield from more.replies() if more else ()
        finally:
            if lag:
                lag.cancel()
        return self._finished(scorer, end, prompt, more, lag)

    def batch(self, requests: Sequence[tuple[Request, Prompt]], chosen: Sequence[Estimator]) -> list[Answer]:
        """All requests, a window of them at a time with the worker; the first error ends the others."""
        window: deque[tuple[Job, Prompt, Scorer, LagRun | None]] = deque()
        asked: deque[tuple[Scorer, FinishEvent, Prompt, LagRun | None, FollowUpRun | None]] = deque()
        answers: list[Answer] = []
        todo = deque(requests)
        try:
            while todo or window or asked:
                while todo and len(window) < BATCH_WINDOW:
                    request, prompt = todo.popleft()
                    request, lag, scorer = self._prepared(request, prompt, chosen, None)
                    window.append((self.reader.submit(request), prompt, scorer, lag))
                if window:
                    job, prompt, scorer, lag = window.popleft()
                    end = drain(scored_events(self.reader.events(job), scorer, lag))
                    asked.append((scorer, end, prompt, lag, self._follow_ups(scorer, end, None)))
                while asked and (not window or not any(asked[0][3:]) or _num_jobs(asked) > BATCH_WINDOW):
                    scorer, end, prompt, lag, more = asked.popleft()
                    deque(lag.rest() if lag else (), maxlen=0)
                    deque(more.replies() if more else (), maxlen=0)
                    answers.append(self._finished(scorer, end, prompt, more, lag))
        finally:
            for job, *_ in window:
                self.reader.cancel(job)
            for run in [run for *_, lag, more in asked for run in (lag, more) if run]:
                run.cancel()
        return answers

    def _prepared(
        self, request: Request, prompt: Prompt, chosen: Sequence[Estimator], stop: threading.Event | None
    ) -> tuple[Request, LagRun | None, Scorer]:
        """The request that is handed in, what reads behind it, and who scores it."""
        scorer = self._scorer(request, prompt, chosen)
        if not request.signals.ensembles:
            return request, None, scorer
        request, behind = split_ensembles(request, chosen, self.reader.num_rows)
        return request, LagRun(self.reader, scorer, request, behind, stop) if behind else None, scorer

    def _scorer(self, request: Request, prompt: Prompt, chosen: Sequence[Estimator]) -> Scorer:
        return Scorer(chosen, AnswerContext(request.prompt_ids, prompt.messages, request.generation, self.tokenizer))

    def _follow_ups(self, scorer: Scorer, end: FinishEvent, stop: threading.Event | None) -> FollowUpRun | None:
        if end.reason in ("cancelled", "error") or not scorer.tokens:
            return None
        return FollowUpRun(self.reader, scorer, self.window, self.available, stop)

    def _finished(
        self, scorer: Scorer, end: FinishEvent, prompt: Prompt, more: FollowUpRun | None, lag: LagRun | None
    ) -> Answer:
        risks, summaries = scorer.answer_scores()
        return Answer(
            text="".join(token.text for token in scorer.tokens),
            tokens=tuple(scorer.tokens),
            risks=risks,
            summaries=summaries,
            finish_reason=end.reason,
            model=self.name,
            prompt_tokens=len(prompt.ids),
            dropped_messages=prompt.dropped_messages,
            timings=replace(end.timings, total=end.timings.total + (more.seconds if more else 0.0)),
            outside_scope=scorer.outside_scope,
            failures={**(more.failures if more else {}), **(lag.failures if lag else {})},
        )


def _num_jobs(asked: Iterable[tuple[Scorer, FinishEvent, Prompt, LagRun | None, FollowUpRun | None]]) -> int:
    return sum((more.num_jobs if more else 0) + bool(lag) for *_, lag, more in asked)


def drain(stream: Generator[ScoredToken, None, T]) -> T:
    """Run a stream to its end; returns what it returns, such as the `Answer`."""
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def scored_events(
    events: Iterator[TokenStep | FinishEvent], scorer: Scorer, lag: LagRun | None = None
) -> Generator[ScoredToken, None, FinishEvent]:
    """Scored tokens of one job as they come; returns its end. Raises what the events raise.

    Args:
        lag: voters that read behind it; they have the whole answer when it ends, and are not waited for.
    """
    with closing(events):
        for event in events:
            if isinstance(event, FinishEvent):
                yield from scorer.finish()
                if lag and event.reason not in ("cancelled", "error"):
                    lag.ask()
                return event
            yield from scorer.push(event)
            yield from lag.push(event) if lag else ()
    raise AssertionError("a stream ends with its FinishEvent")


class FollowUpRun:
    """The follow-ups of one whole answer, handed in together so that they share forwards with whatever else runs.

    None of them can lose the answer: an estimator whose follow-up fails or is stopped goes without, and `failures`
    says why, by the estimator's name.

    Args:
        context_window: tokens that the model can read. available: signals that its steps can hold.
        stop: of the answer.
    """

    def __init__(
        self, reader: Reader, scorer: Scorer, context_window: int, available: Signals, stop: threading.Event | None
    ) -> None:
        self.failures: dict[str, str] = {}
        self.seconds = 0.0  # of the longest reading
        self._reader, self._scorer, self._stop = reader, scorer, stop
        self._window, self._available = context_window, available
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
        missing = dict.fromkeys(name for one in wanted for name in one.signals.missing(self._available))
        if missing:
            raise InputError(f"this model gives no {' and no '.join(missing)}.")
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
