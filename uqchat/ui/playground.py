"""What a reader does in the playground. Thin: `playground_data` and `playground_tables` have the numbers.

The browser follows the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from uqchat.errors import InputError
from uqchat.policy import Policy
from uqchat.ui.playground_board import PAGE, Board, Boards
from uqchat.ui.playground_data import Curve, Wish, make_policy, open_records, payload, records_files
from uqchat.ui.playground_export import curves_csv, curves_html
from uqchat.ui.playground_html import answer_html, notes_html, slices_html, table_html, wish_note
from uqchat.ui.playground_layout import Playground
from uqchat.ui.playground_tables import questions, slices
from uqchat.ui.services import Services, shown_to_user

Updates = dict[Any, Any]


class PlaygroundHandlers:
    """Handlers of the view. `policies` of the services' conversations keeps what is applied."""

    def __init__(self, services: Services, parts: Playground) -> None:
        self._services, self._parts = services, parts
        self._folder = services.config.data_dir / "records"
        self._boards = Boards()

    def on_open(self, request: gr.Request) -> Updates:
        """The view is opened: the first time with the records that ship and a level that can be certified."""
        with shown_to_user():
            board = self.board(request)
            if board.curves:
                return gr.skip()
            names = list(records_files(self._folder))
            if not names:
                return {
                    self._parts.notes: notes_html(["There are no records yet. Upload some, or run: uqchat evaluate"])
                }
            board.open(open_records(names[0], self._folder))
            return self.shown(board)

    def on_choose(
        self, request: gr.Request, runs: list[str], estimators: list[str], max_error: float, confidence: float
    ) -> Updates:
        """Other records, estimators or another promise."""
        with shown_to_user():
            board = self.board(request)
            records = [board.records(name, self._folder) for name in runs or ()]
            board.take(records, estimators or ())
            board.wish = Wish(float(max_error), round(1 - float(confidence), 6))
            return self.shown(board)

    def on_settle(self, request: gr.Request, event: gr.EventData) -> Updates:
        """The threshold came to rest: the questions on both sides of it, and the slices."""
        with shown_to_user():
            board, data = self.board(request), event._data if isinstance(event._data, dict) else {}
            curve = board.place(data)
            board.limit = PAGE
            return self._tables(board, curve)

    def on_more(self, request: gr.Request) -> Updates:
        """Show more questions."""
        with shown_to_user():
            board = self.board(request)
            board.limit += PAGE
            return self._tables(board, board.curve(board.chosen))

    def on_row(self, request: gr.Request, event: gr.EventData) -> str:
        """A question is opened: its answer in colours."""
        with shown_to_user():
            board, data = self.board(request), event._data if isinstance(event._data, dict) else {}
            curve, row = board.curve(board.chosen), data.get("row")
            if not isinstance(row, int) or not 0 <= row < len(curve.run):
                raise InputError("The page sent no row of these records; reload it.")
            return answer_html(curve.run.row(row), curve.estimator, row)

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
            board = self.board(request)
            chosen = (board, position, name, action, tries, second)
            texts = {
                "CSV": ("uqchat-curves.csv", lambda: curves_csv(board.curves)),
                "HTML": ("uqchat-curves.html", lambda: curves_html(board.curves, board.wish)),
                "Policy JSON": ("uqchat-policy.json", lambda: self._policy(*chosen).model_dump_json(indent=1) + "\n"),
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
        made = self._policy(self.board(request), position, name, action, tries, second)
        policy = self._services.conversations.policies.save(made)
        return policy, self.said(f"The chat obeys {policy.ref} now. {policy.basis}")

    # ---- for the other handlers of the view

    def said(self, words: str) -> Updates:
        """What became of a policy."""
        return {self._parts.said: notes_html([words])}

    def board(self, request: gr.Request) -> Board:
        """What this tab looks at."""
        return self._boards.of(request.session_hash)

    def shown(self, board: Board) -> Updates:
        """Everything that depends on which curves are drawn."""
        parts, used = self._parts, {curve.run.name: curve.run for curve in board.curves}
        names = [*records_files(self._folder), *board.uploads]
        offered = list(dict.fromkeys(name for run in used.values() for name in run.estimators))
        drawn = list(dict.fromkeys(curve.estimator for curve in board.curves))
        notes = [note for run in used.values() for note in run.notes()]
        chosen = next((curve for curve in board.curves if curve.key == board.chosen), None)
        wanted = wish_note(chosen, board.wish) if chosen else "There is no graded answer to draw."
        data = payload(board.curves, board.chosen, board.wish)
        return {
            parts.runs: gr.Dropdown(names, value=list(used), multiselect=True),
            parts.estimators: gr.Dropdown(offered, value=drawn, multiselect=True),
            parts.max_error: board.wish.max_error,
            parts.confidence: round(1 - board.wish.delta, 6),
            parts.data: f'<div class="uq-pg-data" hidden>{data}</div>',
            parts.notes: notes_html([*notes, *([wanted] if wanted else [])]),
            parts.opened: "",
        }

    # ---- inside

    def _policy(self, board: Board, position: str, name: str, action: str, tries: float, second: str) -> Policy:
        if not position:
            raise InputError("Choose a threshold first.")
        curve = board.place(json.loads(position))
        more = {"tries": int(tries or 4), "second_model": (second or "").strip(), "costs": board.costs}
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


def shown_parts(parts: Playground) -> list[Any]:
    """What `PlaygroundHandlers.shown` updates."""
    return [parts.runs, parts.estimators, parts.max_error, parts.confidence, parts.data, parts.notes, parts.opened]


def connect(on: Callable[..., Any], handlers: PlaygroundHandlers, parts: Playground) -> None:
    """The events of the view; `on` binds one as the page binds all of its own."""
    shown = shown_parts(parts)
    on(parts.tab.select, handlers.on_open, outputs=shown)
    chosen = [parts.runs, parts.estimators, parts.max_error, parts.confidence]
    for control in chosen:
        on(control.input, handlers.on_choose, chosen, shown, trigger_mode="always_last")
    on(parts.max_error.release, handlers.on_choose, chosen, shown, trigger_mode="always_last")
    tables = [parts.table, parts.slices, parts.more]
    on(parts.board.select, handlers.on_settle, outputs=tables, trigger_mode="always_last")
    on(parts.more.click, handlers.on_more, outputs=tables)
    opened = on(parts.table.select, handlers.on_row, outputs=[parts.opened])
    on(opened.success, None, js="() => window.uqPlayground.showOpened()")
    on(parts.action.input, handlers.on_action, [parts.action], [parts.tries, parts.second])
    policy = [parts.position, parts.name, parts.action, parts.tries, parts.second]
    for button in parts.exports:
        here = "(button, position, ...rest) => [button, window.uqPlayground.position(), ...rest]"
        saved = on(button.click, handlers.on_export, [button, *policy], [parts.download], js=here)
        on(saved.success, None, js="() => window.uqPlayground.download()")
