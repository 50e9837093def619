"""Questions to answers, with every signal the estimators need caught while the answers are written.

Drives the engine without a thread: a window of requests is kept in its batch, finished answers go to the cache in the
order of their questions. Knows no label and no trainer.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from trainers.answers import AnswerRow
from trainers.cache import CacheWriter
from trainers.capture import to_arrays
from trainers.prompts import Messages
from trainers.questions import Question
from uqchat.config import GenerationConfig
from uqchat.engine.backend import FinishEvent, Request
from uqchat.engine.decode import Engine
from uqchat.engine.prompt import build_prompt
from uqchat.errors import InputError
from uqchat.models import LoadedModel
from uqchat.types import Message, Signals, TokenStep

WINDOW = 48  # requests with the engine at a time: its 16 rows and enough waiting ones
MIN_SHARED = 8  # what a chat template and an instruction put before every question is read once
FLUSH = 64  # answers written to disk together
Answered = tuple[AnswerRow, list[TokenStep]]


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to generate: the question, as it is asked, and how it is answered."""

    question: Question
    split: str
    style: str
    messages: Messages
    generation: GenerationConfig
    sample: int = 0
    given: AnswerRow | None = None
    """An answer to read in place of writing one."""

    @property
    def key(self) -> tuple[str, str, int]:
        """The key of the answer it becomes."""
        return self.question.id, self.style, self.sample


def make_tasks(
    asked: Iterable[tuple[Question, Messages]], split: str, style: str, generation: GenerationConfig, samples: int = 0
) -> list[Task]:
    """A greedy answer for every question, and `samples` drawn ones with the temperature of `generation`.

    Raises:
        InputError: answers are to be drawn at temperature 0.
    """
    if samples and generation.temperature <= 0:
        raise InputError(f"{samples} drawn answers at temperature 0 are all the greedy one. Set --temperature above 0.")
    greedy = replace(generation, temperature=0.0)
    tasks = []
    for question, messages in asked:
        for sample in range(samples + 1):
            drawn = replace(generation, seed=generation.seed + sample) if sample else greedy
            tasks.append(Task(question, split, style, messages, drawn, sample))
    return tasks


def reading_tasks(rows: Iterable[AnswerRow]) -> list[Task]:
    """Tasks that read given answers by teacher forcing, so that their signals are cached."""
    return [
        Task(
            Question(row.id, row.set, row.question, row.references, row.category, row.choices, row.facts),
            row.split,
            row.style,
            row.messages,
            GenerationConfig(max_new_tokens=0),
            row.sample,
            row,
        )
        for row in rows
        if row.answer_ids
    ]


def generate(
    model: LoadedModel,
    tasks: Sequence[Task],
    writer: CacheWriter,
    signals: Signals,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> int:
    """Answer every task whose answer is not in the cache yet; the number of questions left out.

    Raises:
        UqchatError: the model failed, the disk is full or the cap is reached; what was written stays, and the same
            call goes on from there.
    """
    engine = Engine(model.model, model.tokenizer, min_shared=MIN_SHARED)
    todo = [task for task in tasks if task.key not in writer.done]
    progress = Progress(len(tasks), len(tasks) - len(todo), report)
    batch: list[Answered] = []
    skipped = 0
    for task, answered in _answers(engine, model, todo, signals):
        if answered is None:
            skipped += 1
            report(f"left out: {task.question.id}, its prompt does not fit the context window")
            continue
        batch.append(answered)
        progress.add(len(answered[1]))
        if len(batch) >= FLUSH:
            _flush(writer, batch, signals)
    _flush(writer, batch, signals)
    progress.say()
    return skipped


def _flush(writer: CacheWriter, batch: list[Answered], signals: Signals) -> None:
    writer.append([row for row, _ in batch], [to_arrays(steps, signals) for _, steps in batch])
    batch.clear()


def _answers(
    engine: Engine, model: LoadedModel, tasks: Sequence[Task], signals: Signals
) -> Iterator[tuple[Task, Answered | None]]:
    """Answers in the order of the tasks; None for one whose prompt does not fit."""
    coming = iter(tasks)
    open_jobs: deque[_Job] = deque()
    by_key: dict[int, _Job] = {}
    while True:
        while len(open_jobs) < WINDOW and (task := next(coming, None)) is not None:
            job = _Job(task)
            open_jobs.append(job)
            try:
                request = _request(task, model, engine, signals)
            except InputError:
                job.is_done = True
                continue
            job.prompt_tokens = len(request.prompt_ids)
            by_key[engine.add(request)] = job
        if not open_jobs:
            return
        for event in engine.step() if engine.has_work else []:
            if isinstance(event, FinishEvent):
                by_key.pop(event.key).end(event)
            else:
                by_key[event.key].steps.append(event.step)
        while open_jobs and open_jobs[0].is_done:
            job = open_jobs.popleft()
            yield job.task, (job.row(), job.steps) if job.steps else None


@dataclass(eq=False)
class _Job:
    """A task on its way through the engine."""

    task: Task
    prompt_tokens: int = 0
    steps: list[TokenStep] = field(default_factory=list)
    finish_reason: str = ""
    is_done: bool = False

    def end(self, event: FinishEvent) -> None:
        if event.error is not None:
            raise event.error
        self.finish_reason, self.is_done = event.reason, True

    def row(self) -> AnswerRow:
        task, question = self.task, self.task.question
        if task.given is not None:
            spans, text = tuple(step.span for step in self.steps), "".join(step.text for step in self.steps)
            return replace(task.given, spans=spans, text=text, prompt_tokens=self.prompt_tokens)
        return AnswerRow(
            id=question.id,
            set=question.set,
            split=task.split,
            category=question.category,
            question=question.question,
            references=question.references,
            style=task.style,
            messages=task.messages,
            answer_ids=tuple(step.token_id for step in self.steps),
            spans=tuple(step.span for step in self.steps),
            text="".join(step.text for step in self.steps),
            finish_reason=self.finish_reason,
            sample=task.sample,
            temperature=task.generation.temperature,
            max_new_tokens=task.generation.max_new_tokens,
            prompt_tokens=self.prompt_tokens,
            choices=question.choices,
            facts=question.facts,
        )


def _request(task: Task, model: LoadedModel, engine: Engine, signals: Signals) -> Request:
    given = task.given.answer_ids if task.given else ()
    wanted = task.generation.max_new_tokens + len(given)
    if task.given and task.given.prompt_ids:
        if len(task.given.prompt_ids) + wanted > model.context_window:
            raise InputError("The answer does not fit the context window.")
        return Request(task.given.prompt_ids, task.generation, given, signals)
    messages = [Message(turn["role"], turn["content"]) for turn in task.messages]
    prompt = build_prompt(messages, model.tokenizer, model.context_window, wanted, engine.tags, wanted)
    if prompt.dropped_messages:
        raise InputError("The examples do not fit the context window.")
    return Request(prompt.ids, task.generation, given, signals, prompt.open_tag)


class Progress:
    """Rate and time left, at most every few seconds."""

    def __init__(self, total: int, done: int, report: Callable[[str], None], every: float = 10.0) -> None:
        self.total, self.done, self.report, self.every = total, done, report, every
        self._begun = self._told = time.monotonic()
        self._answers = self._tokens = 0

    def add(self, num_tokens: int) -> None:
        """One more answer."""
        self._answers += 1
        self._tokens += num_tokens
        if time.monotonic() - self._told >= self.every:
            self.say()

    def say(self) -> None:
        """Report now."""
        self._told = time.monotonic()
        seconds = max(self._told - self._begun, 1e-6)
        done = self.done + self._answers
        rate = self._answers / seconds
        left = f"{(self.total - done) / rate / 60:.1f} min left" if rate else "nothing to do"
        self.report(
            f"{done:,} of {self.total:,} answers, {rate:.2f} answers/s, {self._tokens / seconds:.1f} tokens/s, {left}"
        )
