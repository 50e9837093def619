"""A data set, a model and estimators to one records file. Knows no shell and no page.

Open questions are answered and graded by alias. Of multiple-choice questions the letter with the largest probability
among the letters is the answer. With kind "references" the likeliest of right and wrong references, read by teacher
forcing, is the answer, and it is right iff it is one of the right ones (TruthfulQA, Lin et al. 2022, section 3.2, by
the log-probability summed over a reference's tokens as there, or by its mean). Ready answers are only scored.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from uqchat import __version__
from uqchat.config import GenerationConfig
from uqchat.errors import CancelledError, InputError
from uqchat.evaluation_data import KINDS, LETTERS, Kind, Question, kind_of, make_messages
from uqchat.grading import alias_match
from uqchat.records import Record, Records
from uqchat.records_files import RecordsWriter
from uqchat.types import Answer, Message, Risk

CHOICE = "choice"
"""Risk of the chosen letter or reference: one minus its share of the probability of all that could be chosen."""
BATCH = 32


class Model(Protocol):
    """The part of `LanguageModel` that is used here."""

    @property
    def name(self) -> str:
        """What the records call it."""

    def answers(
        self, list_of_messages: Sequence[Any], estimators: Sequence[str], generation: GenerationConfig
    ) -> list[Answer]:
        """As `LanguageModel.answers`."""

    def scores(
        self, list_of_messages: Sequence[Any], answers: Sequence[Any], estimators: Sequence[str]
    ) -> list[Answer]:
        """As `LanguageModel.scores`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to evaluate."""

    estimators: tuple[str, ...]
    kind: Kind | None = None
    """None takes what the data are fit for."""
    style: str = "page"
    generation: GenerationConfig = GenerationConfig(max_new_tokens=64)
    samples: int = 0
    """Answers drawn besides the first one, for open questions; needs a temperature above 0."""
    likelihood: Literal["sum", "mean"] = "sum"
    """Over a reference's tokens, for kind "references"; the mean does not favour short ones."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`seconds_left` is judged by the speed of this run; None before anything was done."""

    done: int
    total: int
    seconds_left: float | None


def evaluate(
    model: Model,
    questions: Sequence[Question],
    plan: Plan,
    path: str | Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    restart: bool = False,
    stop: threading.Event | None = None,
    batch: int = BATCH,
) -> Records:
    """Evaluate and write the file; the same call after an interruption goes on where it was.

    Args:
        path: the .parquet file to write.
        on_progress: told after every batch.
        restart: forget what an interrupted run left.
        stop: ends it after the batch under way; what was done stays beside the file.
        batch: questions that are read together, and between two looks at the disk.

    Raises:
        InputError: nothing to evaluate, data unfit for the kind, or an unfinished run with other settings.
        CancelledError: `stop` was set.
        UqchatError: the model failed; what was done stays.
    """
    if not questions:
        raise InputError("There is no question to evaluate.")
    plan = replace(plan, kind=plan.kind or kind_of(questions))
    check_plan(questions, plan)
    writer = RecordsWriter(Path(path), settings_of(model, questions, plan), restart)
    done = writer.done
    todo = [(s, q) for s in range(plan.samples + 1) for q in questions if (q.set, q.id, plan.style, s) not in done]
    begun, total = time.monotonic(), len(todo)
    for start in range(0, total, batch):
        if stop is not None and stop.is_set():
            raise CancelledError("The evaluation was cancelled; the same one begun again goes on from here.")
        part = todo[start : start + batch]
        for sample in sorted({sample for sample, _ in part}):
            writer.add(list(evaluated(model, [q for s, q in part if s == sample], plan, sample)))
        count = min(start + batch, total)
        left = (time.monotonic() - begun) / count * (total - count)
        if on_progress:
            on_progress(Progress(len(done) + count, len(done) + total, left))
    return writer.finish()


def settings_of(model: Model, questions: Sequence[Question], plan: Plan) -> dict[str, Any]:
    """What the results depend on; a run is only taken up again with the same."""
    digest = hashlib.sha256("\n".join(repr(question) for question in questions).encode()).hexdigest()[:16]
    return {"model": model.name, "data": digest, "version": __version__, **asdict(plan)}


def check_plan(questions: Sequence[Question], plan: Plan) -> None:
    """Raises InputError when the questions lack what the kind needs, or drawn answers would all be the same."""
    if plan.kind not in KINDS:
        raise InputError(f"{plan.kind!r} is no kind of evaluation; there are {', '.join(KINDS)}.")
    lacks = {
        "open": ("references", lambda q: q.references),
        "choice": ("choices with answer_index", lambda q: len(q.choices) > 1 and q.answer_index is not None),
        "references": ("references and incorrect_answers", lambda q: q.references and q.incorrect),
        "given": ("answer", lambda q: q.answer is not None),
    }
    name, is_fit = lacks[plan.kind]
    unfit = [question.id for question in questions if not is_fit(question)]
    if unfit:
        raise InputError(
            f"Kind {plan.kind} needs {name} in every row; {len(unfit)} have none, the first is {unfit[0]}."
        )
    keys = [(question.set, question.id) for question in questions]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"The id {twice[1]!r} occurs twice in {twice[0]}; ids must differ.")
    if plan.samples and (plan.kind != "open" or plan.generation.temperature <= 0):
        raise InputError("Drawn answers need open questions and a temperature above 0; at 0 all would be the same.")


def evaluated(model: Model, questions: Sequence[Question], plan: Plan, sample: int = 0) -> Iterator[Record]:
    """The records of one batch; `sample` 0 is the greedy answer unless no others are drawn."""
    messages = [make_messages(question, plan.style) for question in questions]
    if plan.kind == "choice":
        yield from _chosen(model, questions, messages, plan, [_letters(question) for question in questions])
    elif plan.kind == "references":
        yield from _chosen(model, questions, messages, plan, [[*q.references, *q.incorrect] for q in questions])
    elif plan.kind == "given":
        answers = model.scores(messages, [str(question.answer) for question in questions], plan.estimators)
        for question, answer in zip(questions, answers, strict=True):
            graded = question.is_error
            if graded is None and question.references:
                graded = not alias_match(answer.text, question.references)
            yield record_of(model, question, answer, plan, graded)
    else:
        generation = plan.generation
        if plan.samples:
            drawn = replace(generation, seed=generation.seed + sample)
            generation = drawn if sample else replace(generation, temperature=0.0)
        for question, answer in zip(questions, model.answers(messages, plan.estimators, generation), strict=True):
            is_error = not alias_match(answer.text, question.references)
            yield replace(record_of(model, question, answer, plan, is_error), sample=sample)


def _letters(question: Question) -> list[str]:
    return list(LETTERS[: len(question.choices)])


def _chosen(
    model: Model,
    questions: Sequence[Question],
    messages: Sequence[Sequence[Message]],
    plan: Plan,
    candidates: Sequence[Sequence[str]],
) -> Iterator[Record]:
    """The likeliest candidate of each question is its answer, with the risks that the estimators give it.

    All candidates are read for their probability alone; the estimators read only the one that became the answer.
    """
    pairs = [(asked, text) for asked, texts in zip(messages, candidates, strict=True) for text in texts]
    read = iter(model.scores([asked for asked, _ in pairs], [text for _, text in pairs], ()))
    found = [likeliest([next(read) for _ in texts], plan) for texts in candidates]
    chosen = [texts[best] for texts, (best, _, _) in zip(candidates, found, strict=True)]
    answers = model.scores(messages, chosen, plan.estimators)
    for question, answer, text, (best, share, seconds) in zip(questions, answers, chosen, found, strict=True):
        if plan.kind == "choice":
            is_error, references = best != question.answer_index, (question.choices[question.answer_index or 0],)
            text = f"{text}. {question.choices[best]}"
        else:
            is_error, references = best >= len(question.references), question.references
        record = record_of(model, replace(question, references=references), answer, plan, is_error)
        risks = {**record.risks, CHOICE: Risk(1 - share, -math.log(max(share, 1e-300)))}
        yield replace(record, answer=text, seconds=record.seconds + seconds, risks=risks)


def likeliest(answers: Sequence[Answer], plan: Plan) -> tuple[int, float, float]:
    """The answer with the largest log-probability, its share among all of them, and the seconds they took.

    Letters and, with likelihood "sum", references are compared by the log-probability of all of their tokens.
    """
    totals = [math.fsum(token.logprob for token in answer.tokens) for answer in answers]
    if plan.kind == "references" and plan.likelihood == "mean":
        totals = [total / len(answer.tokens) for total, answer in zip(totals, answers, strict=True)]
    best = max(range(len(totals)), key=totals.__getitem__)
    share = 1 / math.fsum(math.exp(total - totals[best]) for total in totals)
    return best, share, math.fsum(answer.timings.total for answer in answers)


def record_of(model: Model, question: Question, answer: Answer, plan: Plan, is_error: bool | None) -> Record:
    """One answer as a record."""
    scopes = {name: risk.calibration for name, risk in answer.risks.items() if risk.calibration}
    return Record(
        question_id=question.id,
        question=question.question,
        answer=answer.text,
        is_error=is_error,
        risks=dict(answer.risks),
        set=question.set,
        category=question.category,
        references=question.references,
        style=plan.style,
        outside_scope=dict(answer.outside_scope),
        tokens=answer.tokens,
        seconds=answer.timings.total,
        model=model.name,
        versions={"uqchat": __version__, "calibrations": scopes, "kind": _how(plan)},
    )


def _how(plan: Plan) -> str:
    return f"references by {plan.likelihood}" if plan.kind == "references" else plan.kind or "open"


def accuracy(records: Records, rows: Iterable[int] | None = None) -> float:
    """Share of right answers among the graded ones, NaN without any."""
    errors = records.is_error if rows is None else records.is_error[list(rows)]
    graded = errors[~_isnan(errors)]
    return float(1 - graded.mean()) if len(graded) else math.nan


def macro_accuracy(records: Records) -> float:
    """Mean of the accuracies of the categories, each counting the same (MMLU's mean over tasks)."""
    tasks = records.strings("category")
    means = [accuracy(records, [i for i, task in enumerate(tasks) if task == wanted]) for wanted in sorted(set(tasks))]
    known = [mean for mean in means if not math.isnan(mean)]
    return math.fsum(known) / len(known) if known else math.nan


def _isnan(values: Any) -> Any:
    return values != values  # noqa: PLR0124  NaN alone differs from itself
