"""Own files and data sets in the playground: shown at once, or answered and scored by the loaded model first. Thin."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from uqchat.errors import InputError
from uqchat.evaluation import Plan, check_plan
from uqchat.evaluation_data import KINDS, Kind, Question, kind_of, read_questions, source_rows
from uqchat.evaluation_job import EvaluationJob
from uqchat.records import RISK, Records
from uqchat.records_files import checked, load_table
from uqchat.ui.playground import PlaygroundHandlers, Updates
from uqchat.ui.playground_board import Board
from uqchat.ui.playground_html import notes_html, preview_html, progress_html
from uqchat.ui.playground_layout import Playground
from uqchat.ui.services import Services, shown_to_user

MAX_QUESTIONS = 5000  # that a visitor may have the model answer in one go
_POLL_S = 0.5
_HUB_NAME = re.compile(r"hub:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]*){0,2}")
_FIELDS = ("question", "answer", "references", "is_error", "risk_own")
_GUESSES = {
    "question": ("question", "prompt", "query", "instruction", "input", "q"),
    "answer": ("answer", "output", "response"),
    "references": ("references", "answers", "gold", "target"),
    "is_error": ("error", "wrong"),
    "risk_own": ("risk", "uncert"),
}


class UploadHandlers:
    """Handlers of the panel that asks what the columns of a file mean."""

    def __init__(self, services: Services, parts: Playground, playground: PlaygroundHandlers) -> None:
        self._services, self._parts, self._playground = services, parts, playground

    def on_upload(self, request: gr.Request, file: str) -> Updates:
        """Own records: shown at once, or asked about when the columns are called otherwise."""
        with shown_to_user():
            board, path = self._playground.board(request), Path(file)
            if path.suffix.lower() in (".parquet", ".csv", ".jsonl"):
                table = load_table(path)
                try:
                    return self._opened(board, Records(checked(table, path.stem), path.stem))
                except InputError as error:
                    has_risks = any(name.startswith(RISK) for name in table.column_names)
                    return self._asked(board, file, str(error) if has_risks else "")
            return self._asked(board, file)

    def on_source(self, request: gr.Request, source: str) -> Updates:
        """A data set of the Hub: its columns are asked about."""
        with shown_to_user():
            name = (source or "").strip()
            if not name:
                raise InputError("Name a data set: owner/name, with :config and :split where it has several.")
            name = name if name.startswith("hub:") else f"hub:{name}"
            if not _HUB_NAME.fullmatch(name) or Path(name.split(":")[1]).exists():
                raise InputError(f"{name[4:84]!r} is no data set of the Hub; a file on your machine can be uploaded.")
            if not self._services.config.allow_model_switch:
                raise InputError("Fetching data sets is turned off here; upload a file instead.")
            return self._asked(self._playground.board(request), name)

    def on_use(self, request: gr.Request, kind: str, limit: float, style: str, *columns: str | None) -> Iterator[Any]:
        """The columns are named: records are drawn; questions are answered, and answers scored, by the model first."""
        with shown_to_user():
            board = self._playground.board(request)
            if not board.waiting:
                raise InputError("Upload a file first.")
            named = {field: column for field, column in zip(_FIELDS, columns, strict=True) if column}
            if "risk_own" in named:
                yield self._mapped(board, named)
                return
            if board.job is not None and not board.job.wait(0):
                raise InputError("An evaluation is running already; cancel it first.")
            questions, plan = self._planned(board, named, kind, int(limit or 0), style)
            board.job = self._begin(board, questions, plan)
            yield from self._watched(board, board.job)

    def on_cancel(self, request: gr.Request) -> None:
        """Stop; what was done is kept for the next time."""
        job = self._playground.board(request).job
        if job is not None:
            job.cancel()

    # ---- inside

    def _asked(self, board: Board, source: str, error: str = "") -> Updates:
        rows = source_rows(source, 3)
        names = list(dict.fromkeys(name for row in rows for name in row))
        board.waiting, parts = source, self._parts
        picks = {
            one: gr.Dropdown([("(none)", ""), *((name, name) for name in names)], value=_guess(names, field))
            for one, field in zip(parts.columns, _FIELDS, strict=True)
        }
        return picks | {
            parts.mapping: gr.Column(visible=True),
            parts.preview: preview_html(names, [[str(row.get(name, "")) for name in names] for row in rows]),
            parts.progress: "",
            parts.notes: notes_html([error], is_error=True) if error else "",
        }

    def _mapped(self, board: Board, named: Mapping[str, str]) -> Updates:
        for field in ("question", "answer", "is_error"):
            if field not in named:
                raise InputError("Ready risks need a column for question, answer and grade too.")
        path = Path(board.waiting)
        if path.suffix.lower() not in (".parquet", ".csv", ".jsonl"):
            raise InputError("Ready risks are read from .parquet, .csv and .jsonl files.")
        records = Records(checked(load_table(path), path.stem, {ours: named[ours] for ours in named}), path.stem)
        return self._opened(board, records)

    def _planned(
        self, board: Board, named: Mapping[str, str], kind: str, limit: int, style: str
    ) -> tuple[list[Question], Plan]:
        if "question" not in named:
            raise InputError("Name the column that holds the question.")
        questions = read_questions(board.waiting, dict(named), min(limit or MAX_QUESTIONS, MAX_QUESTIONS))
        wanted: Kind = kind if kind in KINDS else ("given" if "answer" in named else kind_of(questions))
        host = self._services.host.status()
        plan = Plan(host.estimators, wanted, style)
        check_plan(questions, plan)
        return questions, plan

    def _begin(self, board: Board, questions: Sequence[Question], plan: Plan) -> EvaluationJob:
        if board.scratch is None:
            board.scratch = TemporaryDirectory(prefix="uqchat-")
        name = questions[0].set or "own"
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:60]
        path = Path(board.scratch.name) / f"{safe}-{plan.kind}-{plan.style}.parquet"
        return EvaluationJob(self._services.host, questions, plan, path)

    def _watched(self, board: Board, job: EvaluationJob) -> Iterator[Updates]:
        """Progress until it ends; a reader who leaves ends it."""
        parts, shown = self._parts, None
        try:
            while not job.wait(_POLL_S):
                if job.progress is not shown:
                    shown = job.progress
                    yield {parts.progress: progress_html(shown), parts.cancel: gr.Button(visible=True)}
        finally:
            job.cancel()
        hidden = {parts.cancel: gr.Button(visible=False)}
        if job.records is None:
            yield hidden | {parts.progress: notes_html([job.error], is_error=True)}
        else:
            yield hidden | self._opened(board, job.records) | {parts.keep: _saved(job, board)}

    def _opened(self, board: Board, records: Records) -> Updates:
        board.uploads[records.name] = records
        board.open(records)
        return self._playground.shown(board) | {
            self._parts.mapping: gr.Column(visible=False),
            self._parts.keep: gr.DownloadButton(visible=False),
        }


def _saved(job: EvaluationJob, board: Board) -> gr.DownloadButton:
    board.folder = TemporaryDirectory(prefix="uqchat-")
    return gr.DownloadButton(value=shutil.copy(job.path, board.folder.name), visible=True)


def _guess(names: Sequence[str], field: str) -> str:
    exact = next((name for word in _GUESSES[field] for name in names if name.lower() == word), None)
    part = next((name for word in _GUESSES[field] for name in names if word in name.lower() and len(word) > 1), "")
    if field in ("answer", "references"):  # "answers" is no "answer"
        return exact or ("" if any(name.lower() in _GUESSES["references"] for name in names) else part)
    return exact or part


def connect(on: Callable[..., Any], handlers: UploadHandlers, parts: Playground, shown: Sequence[Any]) -> None:
    """The events of the panel; `shown` is what drawing other curves changes."""
    mapped = [*shown, parts.mapping, parts.preview, parts.progress, parts.cancel, parts.keep, *parts.columns]
    on(parts.upload.upload, handlers.on_upload, [parts.upload], mapped)
    for event in (parts.fetch.click, parts.source.submit):
        on(event, handlers.on_source, [parts.source], mapped)
    on(parts.use.click, handlers.on_use, [parts.kind, parts.limit, parts.style, *parts.columns], mapped)
    on(parts.cancel.click, handlers.on_cancel)
