"""The components and where they stand: chats | conversation | inspector and settings. Knows no handler.

The page has views, each as wide as the window: the chat is one, and another is one line in `build_layout`, a
`gr.Tab(title, id=...)` beside the chat's, in which its own builder places components and returns them for `Widgets`.
The bar that switches between views shows as soon as there are two. A view's parts are made when it is first opened,
and the chat behind it goes on streaming. What it holds goes into an element of class `uq-view`, which fills the
height and scrolls.

Nothing a user owns is given to a constructor: the page's configuration is readable by everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from uqchat.config import AppConfig
from uqchat.render import RiskView, inspector_html, legend_html
from uqchat.ui.estimators_layout import EstimatorPanel, build_estimator_panel
from uqchat.ui.help import HELP_HTML
from uqchat.ui.offers import BEFORE, list_rows
from uqchat.ui.panels import (
    ModelPanel,
    ScorePanel,
    Settings,
    build_model_panel,
    build_score_panel,
    build_settings,
)
from uqchat.ui.playground_layout import Playground, build_playground
from uqchat.ui.policies import PolicyChoice, build_picker, keep_in_browser

# assets/uqchat.js turns clicks and keys inside these components into one 'select' event {action, ...}.
_BIND = "window.uqchat.bind(element, trigger, 'select');"


@dataclass(frozen=True)
class Widgets:
    """Every component that a handler reads or writes."""

    views: gr.Tabs
    user: gr.BrowserState
    last_chat: gr.BrowserState
    choices: gr.BrowserState
    ticket: gr.State
    clock: gr.Timer
    new_chat: gr.Button
    search: gr.Textbox
    chats: gr.HTML
    upload: gr.UploadButton
    exports: Sequence[gr.Button]
    download: gr.DownloadButton
    estimator: gr.Dropdown
    scale: gr.Radio
    mode: gr.Radio
    legend: gr.HTML
    history: gr.HTML
    live: gr.HTML
    questions: gr.HTML
    prompt: gr.Textbox
    send: gr.Button
    stop: gr.Button
    undo: gr.Button
    status: gr.HTML
    tabs: gr.Tabs
    inspector: gr.HTML
    claims: gr.HTML
    chart: gr.Plot
    overview: gr.HTML
    listed: gr.CheckboxGroup
    reset: gr.Button
    settings: Settings
    panel: ModelPanel
    estimators: EstimatorPanel
    scoring: ScorePanel
    policy: PolicyChoice
    playground: Playground

    def controls(self) -> list[gr.components.Component]:
        """All that the browser keeps, in the order of `Choices`."""
        return [*self.settings.inputs(), *self.view()]

    def view(self) -> list[gr.components.Component]:
        """What says how answers are drawn."""
        return [self.estimator, self.scale, self.mode, self.listed]


def build_layout(config: AppConfig, models: Sequence[tuple[str, str]]) -> Widgets:
    """Places everything inside the open `gr.Blocks`. `models` are (label, name) of the models to choose from."""
    found: dict[str, object] = {
        "user": gr.BrowserState(None, storage_key="uqchat-user", secret=config.browser_secret()),
        "last_chat": gr.BrowserState(None, storage_key="uqchat-chat", secret=config.browser_secret()),
        "choices": gr.BrowserState(None, storage_key="uqchat-choices", secret=config.browser_secret()),
        "ticket": gr.State(None),
        "clock": gr.Timer(1.0),
    }
    kept_policy = keep_in_browser(config)
    with gr.Tabs(elem_id="uq-views") as views:
        with gr.Tab("Chat", id="chat"):
            found |= _chat(config, models)
        found["playground"] = build_playground()
    found["policy"] = PolicyChoice(kept_policy, found.pop("policy"))
    return Widgets(views=views, **found)


def _chat(config: AppConfig, models: Sequence[tuple[str, str]]) -> dict[str, object]:
    found: dict[str, object] = {}
    with gr.Row(elem_classes="uq-page", equal_height=False):
        with gr.Column(elem_classes="uq-chats", min_width=0):
            found |= _left(config)
        with gr.Column(elem_classes="uq-main", min_width=0):
            found |= _toolbar() | _conversation() | _composer()
        with gr.Column(elem_classes="uq-inspector", min_width=0):
            found |= _right(config, models)
    return found


def _left(config: AppConfig) -> dict[str, object]:
    gr.HTML('<h1 class="uq-brand">uqchat</h1>', elem_id="uq-brand")
    new_chat = gr.Button("New chat", elem_id="uq-new", size="sm")
    search = gr.Textbox(
        label="Search chats", show_label=False, placeholder="Search chats", container=False, elem_id="uq-search"
    )
    chats = gr.HTML("", elem_id="uq-chats", js_on_load=_BIND)
    if not config.history:
        gr.HTML('<p class="uq-note">History is off: chats are forgotten when the app stops.</p>')
    with gr.Row(elem_id="uq-transfer"):
        gr.HTML('<span class="uq-note">Export</span>', elem_id="uq-export-label")
        exports = [
            gr.Button(name.upper(), size="sm", elem_id=f"uq-export-{name}", elem_classes="uq-export")
            for name in ("json", "csv", "html")
        ]
        upload = gr.UploadButton("Import", file_types=[".json"], type="binary", size="sm", elem_id="uq-import")
        download = gr.DownloadButton("Download", visible="hidden", elem_id="uq-download")
    return {
        "new_chat": new_chat,
        "search": search,
        "chats": chats,
        "upload": upload,
        "exports": exports,
        "download": download,
    }


def _toolbar() -> dict[str, object]:
    first = RiskView().estimator
    with gr.Row(elem_id="uq-toolbar", elem_classes="uq-bar-top"):
        gr.HTML(
            '<button type="button" class="uq-icon uq-i-menu uq-toggle-chats" aria-label="Chats"></button>',
            elem_id="uq-open-chats",
        )
        estimator = gr.Dropdown(
            [(one.label, one.name) for one in BEFORE],
            value=first,
            label="Tint by",
            filterable=False,
            elem_id="uq-estimator",
            min_width=0,
        )
        scale = gr.Radio(
            [("Absolute", "absolute"), ("Within answer", "relative")],
            value="absolute",
            label="Scale",
            elem_id="uq-scale",
            elem_classes="uq-switch",
            min_width=0,
        )
        mode = gr.Radio(
            [("Tokens", "risk"), ("Sentences", "sentence"), ("Facts", "entity"), ("Markdown", "markdown")],
            value="risk",
            label="View",
            elem_id="uq-mode",
            elem_classes="uq-switch",
            min_width=0,
        )
        gr.HTML(
            '<button type="button" class="uq-icon uq-i-panel uq-toggle-panel" aria-label="Details, settings"></button>',
            elem_id="uq-open-panel",
        )
    legend = gr.HTML(legend_html(first, RiskView(estimator=first)), elem_id="uq-legend")
    return {"estimator": estimator, "scale": scale, "mode": mode, "legend": legend}


def _conversation() -> dict[str, object]:
    with gr.Column(elem_id="uq-scroll", elem_classes="uq-scroll", min_width=0):
        history = gr.HTML("", elem_id="uq-history", js_on_load=_BIND)
        live = gr.HTML("", elem_id="uq-live", js_on_load=_BIND)
        questions = gr.HTML("", elem_id="uq-questions", js_on_load=_BIND)
    return {"history": history, "live": live, "questions": questions}


def _composer() -> dict[str, object]:
    with gr.Row(elem_id="uq-composer", elem_classes="uq-composer"):
        prompt = gr.Textbox(
            label="Message",
            show_label=False,
            placeholder="Ask something",
            lines=1,
            max_lines=7,
            container=False,
            elem_id="uq-prompt",
            min_width=0,
        )
        undo = gr.Button("Undo", elem_id="uq-undo", size="sm", min_width=0)
        send = gr.Button("Send", variant="primary", elem_id="uq-send", size="sm", min_width=0)
        stop = gr.Button("Stop", elem_id="uq-stop", size="sm", visible=False, min_width=0)
    status = gr.HTML("", elem_id="uq-status")
    return {"prompt": prompt, "undo": undo, "send": send, "stop": stop, "status": status}


def _right(config: AppConfig, models: Sequence[tuple[str, str]]) -> dict[str, object]:
    with gr.Tabs(elem_id="uq-tabs") as tabs:
        with gr.Tab("Inspect", id="inspect"):
            inspector = gr.HTML(inspector_html(None, (), RiskView()), elem_id="uq-inspector", js_on_load=_BIND)
            claims = gr.HTML("", elem_id="uq-claims", js_on_load=_BIND)
            overview = gr.HTML("", elem_id="uq-overview")
            chart = gr.Plot(label="Risk over the newest answer", show_label=False, elem_id="uq-chart", visible=False)
        with gr.Tab("Score", id="score"):
            scoring = build_score_panel()
        with gr.Tab("Settings", id="settings"):
            settings = build_settings()
            policy = build_picker()
            listed = gr.CheckboxGroup(list_rows(()), label="Estimators to list", elem_id="uq-listed")
            reset = gr.Button("Reset to defaults", size="sm", elem_id="uq-reset")
        with gr.Tab("Model", id="model", visible=config.allow_model_switch):
            panel = build_model_panel(models)
        with gr.Tab("Estimators", id="estimators"):
            estimators = build_estimator_panel(_BIND, config.allow_model_switch)
        with gr.Tab("Help", id="help"):
            gr.HTML(HELP_HTML, elem_id="uq-help")
    return {
        "tabs": tabs,
        "inspector": inspector,
        "claims": claims,
        "chart": chart,
        "overview": overview,
        "listed": listed,
        "reset": reset,
        "settings": settings,
        "policy": policy,
        "panel": panel,
        "estimators": estimators,
        "scoring": scoring,
    }
