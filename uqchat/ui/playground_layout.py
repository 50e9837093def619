"""The components of the playground and where they stand. Knows no handler."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from uqchat.evaluation_data import STYLES
from uqchat.policy import ACTIONS

_BOARD = "window.uqPlayground.bindBoard(element, trigger);"
_DATA = "window.uqPlayground.bindData(element, watch);"
_TABLE = "window.uqPlayground.bindTable(element, trigger);"
_FIGURES = (
    ("answered", "Answered"),
    ("accuracy", "Right, of the answered"),
    ("declined", "Declined"),
    ("stopped", "Wrong answers stopped"),
    ("withheld", "Right answers withheld"),
    ("cost", "Cost of a question"),
)
_COSTS = (
    ("wrong", "A wrong answer", 1.0),
    ("refusal", "A refusal", 0.25),
    ("withheld", "… of a right answer, on top", 0.0),
    ("hand_over", "A hand-over, in place of the refusal", None),
)
_KINDS = {
    "open": "Open questions, graded by their references",
    "choice": "Multiple choice, by letter",
    "references": "Right against wrong references, by likelihood",
    "given": "Ready answers, only scored",
}


@dataclass(frozen=True)
class Playground:
    """Every component of the view that a handler reads or writes."""

    tab: gr.Tab
    runs: gr.Dropdown
    estimators: gr.Dropdown
    max_error: gr.Slider
    confidence: gr.Dropdown
    upload: gr.UploadButton
    source: gr.Textbox
    fetch: gr.Button
    mapping: gr.Column
    preview: gr.HTML
    columns: tuple[gr.Dropdown, ...]
    kind: gr.Dropdown
    style: gr.Dropdown
    limit: gr.Number
    use: gr.Button
    cancel: gr.Button
    keep: gr.DownloadButton
    progress: gr.HTML
    notes: gr.HTML
    data: gr.HTML
    board: gr.HTML
    position: gr.Textbox
    name: gr.Textbox
    action: gr.Dropdown
    tries: gr.Number
    second: gr.Textbox
    apply: gr.Button
    said: gr.HTML
    exports: tuple[gr.Button, ...]
    bring: gr.UploadButton
    download: gr.DownloadButton
    slices: gr.HTML
    table: gr.HTML
    opened: gr.HTML
    more: gr.Button


def build_playground() -> Playground:
    """The view, inside the open tabs of the page."""
    with gr.Tab("Playground", id="playground") as tab, gr.Column(elem_classes=["uq-view", "uq-pg"], min_width=0):
        found: dict[str, object] = {"tab": tab}
        gr.HTML(
            '<p class="uq-pg-lead">Drag the threshold: answers whose risk is at most it are given, the others declined.'
            " Then let the chat obey it.</p>"
        )
        found |= _choices() | _mapping()
        found["notes"] = gr.HTML("", elem_id="uq-pg-notes")
        found["data"] = gr.HTML("", elem_id="uq-pg-payload", js_on_load=_DATA)
        found["board"] = gr.HTML(board_html(), elem_id="uq-pg-board", js_on_load=_BOARD)
        found["position"] = gr.Textbox(visible="hidden", elem_id="uq-pg-position", label="Position")
        found |= _policy() | _tables()
    return Playground(**found)


def _choices() -> dict[str, object]:
    with gr.Row(elem_classes="uq-pg-controls"):
        runs = gr.Dropdown([], value=[], multiselect=True, label="Records", elem_id="uq-pg-runs", min_width=180)
        estimators = gr.Dropdown(
            [], value=[], multiselect=True, label="Estimators", elem_id="uq-pg-estimators", min_width=220
        )
        max_error = gr.Slider(0.01, 0.6, 0.3, step=0.01, label="Wrong at most (r)", elem_id="uq-pg-r", min_width=160)
        confidence = gr.Dropdown(
            [("80 %", 0.8), ("90 %", 0.9), ("95 %", 0.95), ("99 %", 0.99)],
            value=0.9,
            label="Confidence",
            elem_id="uq-pg-confidence",
            min_width=110,
        )
    return {"runs": runs, "estimators": estimators, "max_error": max_error, "confidence": confidence}


def _mapping() -> dict[str, object]:
    names = ("Question", "Answer, if ready", "References", "Is wrong (true, false)", "Risk (0 to 1), if ready")
    found: dict[str, object] = {}
    with gr.Accordion("Own questions, answers or records", open=False, elem_id="uq-pg-own"):
        gr.HTML(
            '<p class="uq-note">A file (.parquet, .csv, .jsonl) with risks is drawn as it is. Ready answers without '
            "risks are scored by the loaded model; questions with references are answered by it first.</p>"
        )
        with gr.Row(elem_classes="uq-pg-controls"):
            found["upload"] = gr.UploadButton(
                "Upload a file",
                file_types=[".parquet", ".csv", ".jsonl", ".json"],
                size="sm",
                elem_id="uq-pg-upload",
                min_width=110,
            )
            found["source"] = gr.Textbox(
                label="or a data set of the Hub",
                placeholder="owner/name[:config[:split]]",
                max_lines=1,
                elem_id="uq-pg-source",
                min_width=200,
            )
            found["fetch"] = gr.Button("Fetch", size="sm", elem_id="uq-pg-fetch", min_width=80)
        with gr.Column(visible=False, elem_id="uq-pg-mapping") as found["mapping"]:
            found["preview"] = gr.HTML("")
            with gr.Row(elem_classes="uq-pg-controls"):
                found["columns"] = tuple(gr.Dropdown([], label=name, min_width=130) for name in names)
            with gr.Row(elem_classes="uq-pg-controls"):
                found["kind"] = gr.Dropdown(
                    [("As the columns suggest", ""), *((words, kind) for kind, words in _KINDS.items())],
                    value="",
                    label="How to evaluate",
                    elem_id="uq-pg-kind",
                    min_width=210,
                )
                found["style"] = gr.Dropdown(list(STYLES), value="page", label="Prompt style", min_width=110)
                found["limit"] = gr.Number(200, label="Questions at most", precision=0, minimum=1, min_width=110)
                found["use"] = gr.Button(
                    "Use these columns", size="sm", variant="primary", elem_id="uq-pg-use", min_width=140
                )
        with gr.Row(elem_classes="uq-pg-controls"):
            found["progress"] = gr.HTML("", elem_id="uq-pg-progress")
            found["cancel"] = gr.Button("Cancel", size="sm", visible=False, elem_id="uq-pg-cancel", min_width=90)
            found["keep"] = gr.DownloadButton(
                "Download the records", size="sm", visible=False, elem_id="uq-pg-keep", min_width=150
            )
    return found


def _policy() -> dict[str, object]:
    with gr.Row(elem_classes="uq-pg-controls"):
        name = gr.Textbox("my policy", label="Policy", max_lines=1, elem_id="uq-pg-name", min_width=140)
        action = gr.Dropdown(
            [(label, value) for value, label in ACTIONS.items()],
            value="decline",
            label="Above the threshold",
            elem_id="uq-pg-action",
            min_width=220,
        )
        tries = gr.Number(4, label="Tries", precision=0, minimum=2, maximum=32, visible=False, min_width=90)
        second = gr.Textbox("", label="Second model", placeholder="Hub id or folder", visible=False, min_width=160)
        apply = gr.Button("Apply to the chat", variant="primary", size="sm", elem_id="uq-pg-apply", min_width=140)
        exports = tuple(
            gr.Button(label, size="sm", elem_id=f"uq-pg-save-{key}", min_width=90)
            for key, label in (("csv", "CSV"), ("html", "HTML"), ("json", "Policy JSON"))
        )
        bring = gr.UploadButton("Import policy", file_types=[".json"], size="sm", elem_id="uq-pg-bring", min_width=110)
        download = gr.DownloadButton("Download", visible="hidden", elem_id="uq-pg-download")
    said = gr.HTML("", elem_id="uq-pg-said")
    fields = {"name": name, "action": action, "tries": tries, "second": second, "apply": apply}
    return {**fields, "exports": exports, "bring": bring, "download": download, "said": said}


def _tables() -> dict[str, object]:
    slices = gr.HTML("", elem_id="uq-pg-slices")
    opened = gr.HTML("", elem_id="uq-pg-opened")
    table = gr.HTML("", elem_id="uq-pg-table", js_on_load=_TABLE)
    more = gr.Button("Show more", size="sm", elem_id="uq-pg-more", visible=False)
    return {"slices": slices, "table": table, "opened": opened, "more": more}


def board_html() -> str:
    """What assets/uqchat-playground.js draws into; it holds no value, so nothing of it is ever redrawn from here."""
    figures = "".join(f'<div><dt>{label}</dt><dd data-n="{name}">–</dd></div>' for name, label in _FIGURES)
    costs = "".join(
        f'<label>{label} <input type="number" min="0" step="0.05" value="{"" if value is None else value}" '
        f'data-cost="{name}"></label>'
        for name, label, value in _COSTS
    )
    return (
        '<section class="uq-pg-board" aria-label="Threshold">'
        '<div class="uq-pg-left"><div class="uq-pg-key" role="group" aria-label="Curves"></div>'
        '<div class="uq-pg-curve"></div>'
        '<input class="uq-pg-slider" type="range" min="0" max="1" value="0" step="1" aria-label="Threshold">'
        '<div class="uq-pg-go" role="group" aria-label="Go to a threshold">'
        '<button type="button" class="uq-button" data-go="certified">Certified</button>'
        '<button type="button" class="uq-button" data-go="cheapest">Cheapest</button>'
        '<span><button type="button" class="uq-button" data-go="target">Right at least</button> '
        '<input class="uq-pg-target" type="number" min="0" max="100" value="80" aria-label="Right at least, percent"> %'
        '</span><button type="button" class="uq-button" data-go="png">Save PNG</button></div></div>'
        '<div class="uq-pg-right"><p class="uq-pg-big">Threshold <b data-n="threshold">–</b></p>'
        f'<dl class="uq-pg-figures">{figures}</dl><p class="uq-pg-guarantee" data-n="guarantee"></p>'
        f'<details class="uq-pg-costs"><summary>Costs</summary>{costs}</details></div>'
        '<figure><figcaption>Risk of right <i class="uq-pg-right-mark"></i> and wrong <i class="uq-pg-wrong-mark"></i>'
        ' answers</figcaption><div class="uq-pg-histogram"></div></figure>'
        "<figure><figcaption>Is the risk what it says?</figcaption>"
        '<div class="uq-pg-reliability"></div><p class="uq-pg-gap"></p></figure>'
        '<details class="uq-pg-scores" open><summary>All curves side by side</summary><div class="uq-pg-scroll"></div>'
        "</details></section>"
    )
