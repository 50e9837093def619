"""How answers are drawn, and the model's state. Thin handlers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from uqchat.conversation import AskSettings
from uqchat.ui.chat import ask_settings
from uqchat.ui.choices import Choices, to_keep
from uqchat.ui.layout import Widgets
from uqchat.ui.offers import by_name, require_offered, usual_as_none
from uqchat.ui.screen import Screen, Updates
from uqchat.ui.second_reading import begin_second_reading
from uqchat.ui.services import Services, shown_to_user
from uqchat.ui.sessions import Session
from uqchat.ui.user import user_of


class ViewHandlers:
    """Handlers of the toolbar, and of the clock that keeps the model's state true in every open page."""

    def __init__(self, services: Services, widgets: Widgets, screen: Screen) -> None:
        self._services = services
        self._widgets = widgets
        self._screen = screen

    def on_view(
        self,
        request: gr.Request,
        kept: str | None,
        estimator: str,
        scale: str,
        mode: str,
        listed: Sequence[str] | None,
        *settings: Any,
    ) -> Updates:
        """Another estimator, scale or view: only drawing, nothing is generated again; a costly one reads the answer."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            offers, old = self._services.host.status().offers, session.view.estimator
            require_offered(session, estimator, offers)
            offer = by_name(offers).get(estimator)
            if offer is not None and offer.refusal:
                gr.Warning(html.escape(offer.refusal))
                estimator = old
                offer = None
            session.look(estimator, scale, mode, usual_as_none(listed, offers))
            session.follows_default = session.follows_default and estimator == old
            if offer is None or not offer.is_costly or estimator == old:
                return self._redrawn(user, session)
            asked = ask_settings(*settings) if settings else AskSettings()
            now = begin_second_reading(self._services, user, session, asked)
            first = f"{offer.label} reads this answer now. " if now else ""
            gr.Info(html.escape(f"{first}Answers from now on are scored by {offer.label} as well."))
            return self._redrawn(user, session) | ({self._widgets.ticket: session.ticket} if now else {})

    def _redrawn(self, user: str, session: Session) -> Updates:
        screen = self._screen
        return screen.conversation(user, session) | screen.inspector(user, session) | screen.picker(session)

    def on_choice(self, request: gr.Request, kept: str | None, *values: Any) -> Updates:
        """A control was changed: the browser keeps all of them."""
        with shown_to_user():
            chosen = Choices.from_values(values)
            chosen = replace(chosen, listed=usual_as_none(chosen.listed, self._services.host.status().offers))
            return {self._widgets.choices: to_keep(user_of(request, kept), chosen)}

    def on_reset(self, request: gr.Request, kept: str | None) -> Updates:
        """Reset: every setting and the way answers are drawn, as on the first day."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            default, w = Choices(), self._widgets
            session.look(*default.view)
            session.follows_default = True
            self._screen.settle(session)
            shown = dict(zip(w.controls(), default.values, strict=True))
            return shown | self._redrawn(user, session) | {w.choices: to_keep(user, default)}

    def on_clock(self, request: gr.Request, kept: str | None = None) -> Updates:
        """What everybody should know about the model; nothing is sent while nothing changes."""
        session = self._services.sessions.of(request.session_hash)
        return (self._state(session) | self._offered(request, kept, session)) or gr.skip()

    def _state(self, session: Session) -> Updates:
        shown = self._screen.status()
        status = self._services.host.status()
        if (shown, status.adding) == session.shown_status:
            return {}
        session.shown_status = (shown, status.adding)
        state, panel = status.state, self._widgets.panel
        is_moving = state in ("loading", "switching")
        return {
            self._widgets.status: shown,
            self._widgets.clock: gr.Timer(0.5 if is_moving or status.adding else 3.0),
            panel.status: shown,
            panel.load: gr.Button(interactive=not is_moving),
            panel.cancel: gr.Button(interactive=is_moving),
            panel.unload: gr.Button(interactive=state == "ready"),
        }

    def _offered(self, request: gr.Request, kept: str | None, session: Session) -> Updates:
        """Another model, or another list of estimators: what is drawn may have to turn to another one."""
        if not session.is_open or not kept:
            return {}
        user, session = self._services.who(request, kept)
        shown = self._screen.estimators(user, session)
        if self._services.host.status().offers == session.offers:
            return shown
        self._screen.settle(session)
        return shown | self._redrawn(user, session)


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
