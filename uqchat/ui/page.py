"""The page put together: which event calls which handler. Knows neither how things look nor how they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from uqchat.catalogue import known_models
from uqchat.ui.answer_api import make_answer_endpoint, make_score_endpoint
from uqchat.ui.chat import ChatHandlers
from uqchat.ui.chats import ChatsHandlers
from uqchat.ui.estimators import EstimatorHandlers
from uqchat.ui.layout import Widgets, build_layout
from uqchat.ui.playground import PlaygroundHandlers, shown_parts
from uqchat.ui.playground import connect as connect_playground
from uqchat.ui.playground_upload import UploadHandlers
from uqchat.ui.playground_upload import connect as connect_upload
from uqchat.ui.policies import PolicyHandlers
from uqchat.ui.policies import connect as connect_policies
from uqchat.ui.screen import Screen
from uqchat.ui.services import Services
from uqchat.ui.views import ModelHandlers, ViewHandlers

_PRESS_DOWNLOAD = "() => window.uqchatPage.download()"
_TO_BOTTOM = "() => window.uqchatPage.toBottom()"
_SHOW_ANSWER = "() => window.uqchatPage.showAnswer()"
_BEGIN = "() => window.uqchatPage.begin()"
_CACHE_CHECK_S, _CACHE_AGE_S = 3600, 3600  # exported files are erased after an hour


@dataclass(frozen=True)
class Page:
    """The built page and its parts, so that tests can call the handlers."""

    blocks: gr.Blocks
    widgets: Widgets
    chat: ChatHandlers
    chats: ChatsHandlers
    views: ViewHandlers
    models: ModelHandlers
    estimators: EstimatorHandlers
    playground: PlaygroundHandlers
    uploads: UploadHandlers
    policies: PolicyHandlers


def build_page(services: Services) -> Page:
    """All components and events."""
    models = [(f"{one.label} ({one.size_gb:g} GB)", one.name) for one in known_models()]
    with gr.Blocks(
        title="uqchat",
        analytics_enabled=False,
        fill_width=True,
        fill_height=True,
        delete_cache=(_CACHE_CHECK_S, _CACHE_AGE_S),
    ) as blocks:
        widgets = build_layout(services.config, models)
        screen = Screen(services, widgets)
        views = ViewHandlers(services, widgets, screen)
        playground = PlaygroundHandlers(services, widgets.playground)
        page = Page(
            blocks,
            widgets,
            ChatHandlers(services, widgets, screen),
            ChatsHandlers(services, widgets, screen),
            views,
            ModelHandlers(services, widgets, views),
            EstimatorHandlers(services, widgets.estimators, views),
            playground,
            UploadHandlers(services, widgets.playground, playground),
            PolicyHandlers(services, widgets.policy, playground),
        )
        _connect_chat(page)
        opened = _connect_chats(page)
        _connect_views(page)
        connect_playground(_on, page.playground, widgets.playground)
        connect_upload(_on, page.uploads, widgets.playground, shown_parts(widgets.playground))
        connect_policies(_on, opened, page.policies, widgets.policy, widgets.user, widgets.playground)
        for make, name in ((make_answer_endpoint, "answer"), (make_score_endpoint, "score")):
            gr.api(make(services.host, services.config), api_name=name, concurrency_limit=None)
    blocks.queue(max_size=None, default_concurrency_limit=None)  # the host limits how many questions may wait
    return page


def _on(
    event: Callable[..., Dependency],
    handler: Callable[..., Any] | None,
    inputs: Sequence[Component] = (),
    outputs: Sequence[Component] = (),
    **options: Any,
) -> Dependency:
    """One event of the page. Its handlers only wait or read the store, so none of them queues behind another."""
    options = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None, **options}
    return event(handler, list(inputs), list(outputs), **options)


def _conversation_of(w: Widgets) -> list[Component]:
    """What `Screen.conversation` draws."""
    return [w.history, w.live, w.questions, w.send, w.stop, w.undo, w.chart, w.overview, w.claims, w.legend]


def _connect_chat(page: Page) -> None:
    w, chat = page.widgets, page.chat
    settings = w.settings.inputs()
    conversation = _conversation_of(w)
    begun = [*conversation, w.chats, w.inspector, w.tabs, w.ticket, w.last_chat]
    for event in (w.prompt.submit, w.send.click):
        asked = _on(event, chat.respond, [w.user, w.prompt, *settings], [*begun, w.prompt])
        _on(asked.success, None, js=_TO_BOTTOM)
    for part in (w.history, w.live, w.questions, w.inspector, w.claims):
        selected = _on(part.select, chat.on_select, [w.user, *settings], begun, trigger_mode="multiple")
        if part is w.questions:
            _on(selected.success, None, js=_TO_BOTTOM)
    panel = w.scoring
    given = [w.user, panel.question, panel.answer, *settings]
    scored = _on(panel.score.click, chat.on_score, given, [*begun, panel.question, panel.answer])
    _on(scored.success, None, js=_SHOW_ANSWER)
    followed = _on(w.ticket.change, chat.follow, [w.ticket], [w.live], trigger_mode="multiple")
    ended = [*conversation, w.chats, w.inspector, w.ticket, w.last_chat]
    _on(followed.then, chat.finish, [w.user, w.ticket, *settings], ended)
    _on(w.stop.click, chat.on_stop, [w.user])
    _on(w.undo.click, chat.on_undo, [w.user], [*conversation, w.inspector, w.prompt])


def _connect_chats(page: Page) -> Dependency:
    """Returns the event after which the page knows its user."""
    w, chats = page.widgets, page.chats
    everything = [*_conversation_of(w), w.chats, w.inspector, w.ticket, w.last_chat, w.estimator, w.listed]
    known = [*everything, w.user, *(one for one in w.controls() if one not in everything)]
    opened = _on(page.blocks.load, chats.on_load, [w.user, w.last_chat, w.choices], known)
    _on(opened.then, None, js=_BEGIN)
    page.blocks.unload(chats.on_unload)
    cleared = _on(w.new_chat.click, chats.on_new_chat, [w.user], everything)
    _on(cleared.then, None, js=_BEGIN)
    _on(w.search.change, chats.on_search, [w.user, w.search], [w.chats], trigger_mode="always_last")
    chosen = _on(w.chats.select, chats.on_select, [w.user], everything)
    _on(chosen.success, None, js=_BEGIN)
    _on(w.upload.upload, chats.on_upload, [w.user, w.upload], everything)
    for button in w.exports:
        exported = _on(button.click, chats.on_export, [w.user, button], [w.download])
        _on(exported.success, None, js=_PRESS_DOWNLOAD)
    return opened


def _connect_views(page: Page) -> None:
    w, views, models = page.widgets, page.views, page.models
    drawn = [*_conversation_of(w), w.inspector]
    for control in w.view():
        shown = [*drawn, w.estimator, w.listed, w.ticket]
        chosen = [w.user, *w.view(), *w.settings.inputs()]
        _on(control.input, views.on_view, chosen, shown, trigger_mode="always_last")
    for control in w.controls():
        # A slider's own reset tells of itself as a release only.
        for event in (control.input, control.release) if isinstance(control, gr.Slider) else (control.input,):
            _on(event, views.on_choice, [w.user, *w.controls()], [w.choices], trigger_mode="always_last")
    _on(w.reset.click, views.on_reset, [w.user], [*drawn, *w.controls(), w.choices])
    state = [w.status, w.clock, w.panel.status, w.panel.load, w.panel.cancel, w.panel.unload]
    panel = w.estimators
    offered = [*state, *drawn, w.estimator, w.listed, panel.offered, panel.catalogue, panel.refit, panel.refresh]
    _on(page.blocks.load, views.on_clock, [w.user], offered)
    _on(w.clock.tick, views.on_clock, [w.user], offered)
    inputs = [w.panel.name, w.panel.dtype, w.panel.quantization, w.panel.token]
    _on(w.panel.load.click, models.on_load_model, inputs, [*offered, w.panel.token])
    _on(w.panel.cancel.click, models.on_cancel_load, outputs=offered)
    _on(w.panel.unload.click, models.on_unload_model, outputs=offered)
    heads = page.estimators
    for event in (panel.add.click, panel.name.submit):
        _on(event, heads.on_add, [w.user, panel.name], [*offered, panel.name])
    for part in (panel.offered, panel.catalogue):
        _on(part.select, heads.on_select, [w.user], offered)
    _on(panel.refresh.click, heads.on_refresh, [w.user], offered)
    _on(panel.refit.click, heads.on_refit, [w.user], offered)
