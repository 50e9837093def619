"""What a reader does in the playground. Thin: the numbers come from `playground_data`, the browser follows the pointer.

What a tab looks at lives here, by its session; uploaded records are kept in memory and belong to that tab alone.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import gradio as gr

from uqchat.errors import InputError
from uqchat.policy import Policy
from uqchat.records import Records
from uqchat.records_files import checked, load_table
from uqchat.ui.playground_data import (
    MAX_CURVES,
    Curve,
    Wish,
    make_curve,
    make_policy,
    open_records,
    opening,
    payload,
    questions,
    records_files,
    slices,
)
from uqchat.ui.playground_export import curves_csv, curves_html
from uqchat.ui.playground_html import (
    answer_html,
    applied_html,
    notes_html,
    preview_html,
    slices_html,
    table_html,
    wish_note,
)
from uqchat.ui.playground_layout import Playground
from uqchat.ui.services import Services, shown_to_user

Updates = dict[Any, Any]
_PAGE = 15  # questions on each side of the threshold, and how many more a press brings
_MAX_BOARDS = 64
_FIELDS = ("question", "answer", "is_error", "risk_own")


@dataclass
class Board:
    """What one tab looks at."""

    uploads: dict[str, Records] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    wish: Wish = Wish()
    chosen: str = ""
    rank: int = 0
    limit: int = _PAGE
    waiting: Path | None = None
    """An uploaded file whose columns are not ours."""
    folder: TemporaryDirectory | None = None
    """Holds what was exported last."""


class PlaygroundHandlers:
    """Handlers of the view. `policies` of the services' conversations keeps what is applied."""

    def __init__(self, services: Services, parts: Playground) -> None:
        self._services, self._parts = services, parts
        self._folder = services.config.data_dir / "records"
        self._boards: OrderedDict[str, Board] = OrderedDict()
        self._lock = Lock()

    def on_open(self, request: gr.Request) -> Updates:
        """The view is opened: the first time with the records that ship and a level that can be certified."""
        with shown_to_user():
            board = self._board(request)
            if board.curves:
                return gr.skip()
            names = list(records_files(self._folder))
            if not names:
                return {
                    self._parts.notes: notes_html(["There are no records yet. Upload some, or run: uqchat evaluate"])
                }
            records = open_records(names[0], self._folder)
            self._take(board, [records], _first(records.estimators))
            curve, board.wish = opening(board.curves)
            board.chosen = curve.key
            return self._shown(board)

    def on_choose(
        self, request: gr.Request, runs: list[str], estimators: list[str], max_error: float, confidence: float
    ) -> Updates:
        """Other records, estimators or another promise."""
        with shown_to_user():
            board = self._board(request)
            records = [self._records(board, name) for name in runs or ()]
            self._take(board, records, estimators or ())
            board.wish = Wish(float(max_error), round(1 - float(confidence), 6))
            return self._shown(board)

    def on_settle(self, request: gr.Request, event: gr.EventData) -> Updates:
        """The threshold came to rest: the questions on both sides of it, and the slices."""
        with shown_to_user():
            board, data = self._board(request), event._data if isinstance(event._data, dict) else {}
            curve = self._place(board, data)
            board.limit = _PAGE
            return self._tables(board, curve)

    def on_more(self, request: gr.Request) -> Updates:
        """Show more questions."""
        with shown_to_user():
            board = self._board(request)
            board.limit += _PAGE
            return self._tables(board, self._curve(board, board.chosen))

    def on_row(self, request: gr.Request, event: gr.EventData) -> str:
        """A question is opened: its answer in colours."""
        with shown_to_user():
            board, data = self._board(request), event._data if isinstance(event._data, dict) else {}
            curve, row = self._curve(board, board.chosen), data.get("row")
            if not isinstance(row, int) or not 0 <= row < len(curve.run):
                raise InputError("The page sent no row of these records; reload it.")
            return answer_html(curve.run.row(row), curve.estimator, row)

    def on_upload(self, request: gr.Request, file: str) -> Updates:
        """Own records: shown at once, or asked about when the columns are called otherwise."""
        with shown_to_user():
            board, path = self._board(request), Path(file)
            table, parts = load_table(path), self._parts
            try:
                records = Records(checked(table, path.stem), path.stem)
            except InputError as error:
                board.waiting = path
                names = table.column_names
                rows = [[str(value) for value in row.values()] for row in table.slice(0, 3).to_pylist()]
                picks = {one: gr.Dropdown(names, value=_guess(names, i)) for i, one in enumerate(parts.columns)}
                return picks | {
                    parts.mapping: gr.Column(visible=True),
                    parts.preview: preview_html(names, rows),
                    parts.notes: notes_html([str(error)], is_error=True),
                }
            return self._uploaded(board, records)

    def on_use(self, request: gr.Request, *columns: str) -> Updates:
        """The columns of an uploaded file are named."""
        with shown_to_user():
            board = self._board(request)
            if board.waiting is None:
                raise InputError("Upload a file first.")
            if not all(columns):
                raise InputError("Name a column for question, answer, grade and risk.")
            path, mapping = board.waiting, dict(zip(_FIELDS, columns, strict=True))
            records = Records(checked(load_table(path), path.stem, mapping), path.stem)
            board.waiting = None
            return self._uploaded(board, records)

    def on_action(self, action: str) -> Updates:
        """What is done above the threshold: only what it needs is asked for."""
        parts = self._parts
        return {
            parts.tries: gr.Number(visible=action == "retry"),
            parts.second: gr.Textbox(visible=action == "hand_over"),
        }

    def on_export(
        self, request: gr.Request, button: str, position: str, name: str, action: str, tries: float, second: str
    ) -> Updates:
        """The curves as CSV or HTML, or the policy as JSON."""
        with shown_to_user():
            board = self._board(request)
            policy = self._policy(board, position, name, action, tries, second)
            texts = {
                "CSV": ("uqchat-curves.csv", lambda: curves_csv(board.curves)),
                "HTML": ("uqchat-curves.html", lambda: curves_html(board.curves, board.wish)),
                "Policy JSON": ("uqchat-policy.json", lambda: policy.model_dump_json(indent=1) + "\n"),
            }
            file, make = texts[button]
            board.folder = TemporaryDirectory(prefix="uqchat-")
            path = Path(board.folder.name) / file
            path.write_text(make(), encoding="utf-8")
            return {self._parts.download: gr.DownloadButton(value=str(path))}

    def keep_policy(
        self, request: gr.Request, position: str, name: str, action: str, tries: float, second: str
    ) -> tuple[Policy, Updates]:
        """Keeps the chosen threshold as the next version of its name. Raises InputError."""
        made = self._policy(self._board(request), position, name, action, tries, second)
        policy = self._services.conversations.policies.save(made)
        return policy, {self._parts.said: applied_html(policy)}

    # ---- inside

    def _board(self, request: gr.Request) -> Board:
        with self._lock:
            key = request.session_hash or ""
            board = self._boards.setdefault(key, Board())
            self._boards.move_to_end(key)
            while len(self._boards) > _MAX_BOARDS:
                self._boards.popitem(last=False)
            return board

    def _records(self, board: Board, name: str) -> Records:
        known = {curve.run.name: curve.run for curve in board.curves} | board.uploads
        return known.get(name) or open_records(name, self._folder)

    def _take(self, board: Board, runs: Sequence[Records], estimators: Sequence[str]) -> None:
        found = [make_curve(run, name) for run in runs for name in run.estimators if name in estimators]
        if runs and not found:  # these runs have others
            found = [make_curve(run, name) for run in runs for name in _first(run.estimators)]
        board.curves = [curve for curve in found if len(curve.report.risk)][:MAX_CURVES]
        if board.chosen not in [curve.key for curve in board.curves]:
            board.chosen = board.curves[0].key if board.curves else ""

    def _shown(self, board: Board) -> Updates:
        parts, runs = self._parts, list(dict.fromkeys(curve.run.name for curve in board.curves))
        names = [*records_files(self._folder), *board.uploads]
        used = {curve.run.name: curve.run for curve in board.curves}
        offered = list(dict.fromkeys(name for run in used.values() for name in run.estimators))
        notes = [note for run in used.values() for note in run.notes()]
        chosen = next((curve for curve in board.curves if curve.key == board.chosen), None)
        wanted = wish_note(chosen, board.wish) if chosen else "There is no graded answer to draw."
        data = payload(board.curves, board.chosen, board.wish)
        return {
            parts.runs: gr.Dropdown(names, value=runs, multiselect=True),
            parts.estimators: gr.Dropdown(
                offered, value=list(dict.fromkeys(curve.estimator for curve in board.curves)), multiselect=True
            ),
            parts.max_error: board.wish.max_error,
            parts.confidence: round(1 - board.wish.delta, 6),
            parts.data: f'<div class="uq-pg-data" hidden>{data}</div>',
            parts.notes: notes_html([*notes, *([wanted] if wanted else [])]),
            parts.opened: "",
        }

    def _uploaded(self, board: Board, records: Records) -> Updates:
        board.uploads[records.name] = records
        self._take(board, [records], _first(records.estimators))
        if board.curves:
            curve, board.wish = opening(board.curves)
            board.chosen = curve.key
        return self._shown(board) | {self._parts.mapping: gr.Column(visible=False)}

    def _curve(self, board: Board, key: object) -> Curve:
        found = next((curve for curve in board.curves if curve.key == key), None)
        if found is None:
            raise InputError("These curves are no longer on the server; choose the records again.")
        return found

    def _place(self, board: Board, data: dict) -> Curve:
        curve, rank = self._curve(board, data.get("curve")), data.get("rank")
        if not isinstance(rank, int) or not 0 <= rank <= len(curve.report.risk):
            raise InputError("The page sent no place on the curve; reload it.")
        board.chosen, board.rank = curve.key, rank
        return curve

    def _policy(self, board: Board, position: str, name: str, action: str, tries: float, second: str) -> Policy:
        if not position:
            raise InputError("Choose a threshold first.")
        curve = self._place(board, json.loads(position))
        more = {"tries": int(tries or 4), "second_model": (second or "").strip()}
        return make_policy(curve, board.rank, board.wish, name or "", action, **more)

    def _tables(self, board: Board, curve: Curve) -> Updates:
        threshold, parts = curve.threshold_at(board.rank), self._parts
        if not board.rank:
            threshold = -math.inf  # the strictest: every answer is declined
        passing = int((curve.report.risk <= threshold).sum())
        counts = (passing, len(curve.report.risk) - passing)
        return {
            parts.table: table_html(curve, questions(curve, threshold, board.limit), counts),
            parts.slices: slices_html(*slices(curve, threshold)),
            parts.more: gr.Button(visible=max(counts) > board.limit),
        }


def _first(estimators: Sequence[str]) -> tuple[str, ...]:
    """Those to draw at first: a handful, the trained ones before the others."""
    order = ("uq_head", "probe", "combination", "query", "entropy", "max_prob")
    known = sorted(estimators, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(known[:4])


def _guess(names: Sequence[str], position: int) -> str | None:
    words = (
        ("question", "prompt"),
        ("answer", "output", "response"),
        ("error", "wrong", "correct"),
        ("risk", "uncert"),
    )
    return next((name for word in words[position] for name in names if word in name.lower()), None)


def connect(on: Callable[..., Any], handlers: PlaygroundHandlers, parts: Playground) -> None:
    """The events of the view; `on` binds one as the page binds all of its own."""
    shown = [parts.runs, parts.estimators, parts.max_error, parts.confidence, parts.data, parts.notes, parts.opened]
    on(parts.tab.select, handlers.on_open, outputs=shown)
    chosen = [parts.runs, parts.estimators, parts.max_error, parts.confidence]
    for control in chosen:
        on(control.input, handlers.on_choose, chosen, shown, trigger_mode="always_last")
    on(parts.max_error.release, handlers.on_choose, chosen, shown, trigger_mode="always_last")
    tables = [parts.table, parts.slices, parts.more]
    on(parts.board.select, handlers.on_settle, outputs=tables, trigger_mode="always_last")
    on(parts.more.click, handlers.on_more, outputs=tables)
    on(parts.table.select, handlers.on_row, outputs=[parts.opened])
    mapped = [*shown, parts.mapping, parts.preview, *parts.columns]
    on(parts.upload.upload, handlers.on_upload, [parts.upload], mapped)
    on(parts.use.click, handlers.on_use, parts.columns, mapped)
    on(parts.action.input, handlers.on_action, [parts.action], [parts.tries, parts.second])
    policy = [parts.position, parts.name, parts.action, parts.tries, parts.second]
    for button in parts.exports:
        here = "(button, position, ...rest) => [button, window.uqPlayground.position(), ...rest]"
        saved = on(button.click, handlers.on_export, [button, *policy], [parts.download], js=here)
        on(saved.success, None, js="() => window.uqPlayground.download()")
