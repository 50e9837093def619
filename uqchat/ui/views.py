"""How answers are drawn, and the model's state. Thin handlers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from uqchat.ui.choices import Choices, to_keep
from uqchat.ui.layout import Widgets
from uqchat.ui.screen import Screen, Updates
from uqchat.ui.services import Services, shown_to_user
from uqchat.ui.user import user_of


class ViewHandlers:
    """Handlers of the toolbar, and of the clock that keeps the model's state true in every open page."""

    def __init__(self, services: Services, widgets: Widgets, screen: Screen) -> None:
        self._services = services
        self._widgets = widgets
        self._screen = screen

    def on_view(
        self, request: gr.Request, kept: str | None, estimator: str, scale: str, mode: str, listed: Sequence[str]
    ) -> Updates:
        """Another estimator, scale or view: only drawing, nothing is generated again."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            session.look(estimator, scale, mode, listed)
            reason = self._services.host.status().refused.get(estimator)
            if reason:
                gr.Warning(reason)
            screen = self._screen
            return screen.conversation(user, session) | screen.inspector(user, session) | screen.legend(session)

    def on_choice(self, request: gr.Request, kept: str | None, *values: Any) -> Updates:
        """A control was changed: the browser keeps all of them."""
        with shown_to_user():
            return {self._widgets.choices: to_keep(user_of(request, kept), Choices.from_values(values))}

    def on_reset(self, request: gr.Request, kept: str | None) -> Updates:
        """Reset: every setting and the way answers are drawn, as on the first day."""
        with shown_to_user():
            user, _ = self._services.who(request, kept)
            default, w = Choices(), self._widgets
            shown = dict(zip(w.controls(), default.values, strict=True))
            return self.on_view(request, kept, *default.view) | shown | {w.choices: to_keep(user, default)}

    def on_clock(self, request: gr.Request) -> Updates:
        """What everybody should know about the model; nothing is sent while nothing changes."""
        session = self._services.sessions.of(request.session_hash)
        html = self._screen.status()
        if html == session.shown_status:
            return gr.skip()
        session.shown_status = html
        state = self._services.host.status().state
        is_moving, panel = state in ("loading", "switching"), self._widgets.panel
        return {
            self._widgets.status: html,
            self._widgets.clock: gr.Timer(0.5 if is_moving else 3.0),
            panel.status: html,
            panel.load: gr.Button(interactive=not is_moving),
            panel.cancel: gr.Button(interactive=is_moving),
            panel.unload: gr.Button(interactive=state == "ready"),
        }


class ModelHandlers:
    """Handlers of the model tab. The host itself refuses when switching is off; hiding the tab protects nothing."""

    def __init__(self, services: Services, widgets: Widgets, views: ViewHandlers) -> None:
        self._host = services.host
        self._panel = widgets.panel
        self._views = views

    def on_load_model(self, request: gr.Request, name: str, dtype: str, quantization: str, token: str) -> Updates:
        """Load: begins in the background; the old model answers until the running answers are done."""
        with shown_to_user():
            self._host.switch(
                (name or "").strip(), token=token or None, dtype=dtype or None, quantization=quantization or None
            )
            return self._views.on_clock(request) | {self._panel.token: ""}

    def on_cancel_load(self, request: gr.Request) -> Updates:
        """Cancel: the old model stays."""
        with shown_to_user():
            self._host.cancel_switch()
            return self._views.on_clock(request)

    def on_unload_model(self, request: gr.Request) -> Updates:
        """Unload: frees the memory; questions are refused until a model is loaded."""
        with shown_to_user():
            self._host.unload()
            return self._views.on_clock(request)
