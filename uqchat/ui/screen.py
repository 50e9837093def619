"""What each part of the page shows for a user and a tab, as updates by component. Knows no event.

Handlers add these dicts together; a component that is in none of them stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.components import Component

from uqchat.render import conversation_html, inspector_html, legend_html, live_answer_html, strip_figure, welcome_html
from uqchat.types import ScoredToken
from uqchat.ui.chat_list import chats_html
from uqchat.ui.layout import Widgets
from uqchat.ui.overview import overview_html
from uqchat.ui.services import Services
from uqchat.ui.sessions import Session
from uqchat.ui.status import status_html

Updates = dict[Component, Any]


class Screen:
    """Draws from the store and the running answer; changes nothing."""

    def __init__(self, services: Services, widgets: Widgets) -> None:
        self._services = services
        self._widgets = widgets

    def all(self, user: str, session: Session) -> Updates:
        """Everything that depends on the user, the chat or the view."""
        return (
            self.conversation(user, session)
            | self.chats(user, session)
            | self.inspector(user, session)
            | self.legend(session)
        )

    def conversation(self, user: str, session: Session) -> Updates:
        """The middle column, and what the right one says about its newest answer."""
        w, is_busy = self._widgets, session.is_busy
        messages = self.messages(user, session)
        shown = [m for m in messages if not (is_busy and session.run and m.id == session.run.message_id)]
        live = ""
        if is_busy and session.run:
            live = live_answer_html(session.run.snapshot(), session.view, session.run.message_id)
        is_first_minute = not any(not message.is_example for message in messages)
        return {
            w.history: conversation_html(shown, session.view, is_busy),
            w.live: live,
            w.questions: welcome_html(self._services.examples.questions) if is_first_minute else "",
            w.send: gr.Button(visible=not is_busy),
            w.stop: gr.Button(visible=is_busy),
            w.undo: gr.Button(interactive=not is_busy and not is_first_minute),
            **self.newest_answer(shown, session),
        }

    def newest_answer(self, messages: Iterable[Any], session: Session) -> Updates:
        """The strip chart and the list of estimators for the last answer that has tokens."""
        newest = next((m for m in reversed(list(messages)) if m.role == "assistant" and m.tokens), None)
        tokens = newest.tokens if newest else ()
        figure = strip_figure(tokens, session.view, newest.id) if newest else None
        chart = gr.Plot(figure, visible=True) if newest else gr.Plot(visible=False)
        return {self._widgets.chart: chart, self._widgets.overview: overview_html(tokens, session)}

    def chats(self, user: str, session: Session) -> Updates:
        """The list of chats, the one shown marked."""
        chats = self._services.store.list_chats(user, session.search)
        return {self._widgets.chats: chats_html(chats, session.chat_id, session.deleted, session.search)}

    def inspector(self, user: str, session: Session) -> Updates:
        """The open token, or the hint how to open one."""
        w = self._widgets
        if session.selected is None:
            return {w.inspector: inspector_html(None, (), session.view)}
        message_id, index = session.selected
        tokens = self.tokens(user, session, message_id)
        token = next((token for token in tokens if token.index == index), None)
        if token is not None:
            names = [session.view.estimator, *(n for n in session.listed if n != session.view.estimator)]
            token = replace(token, risks={name: token.risks[name] for name in names if name in token.risks})
        is_branchable = self._services.examples.message(message_id) is None and not session.is_busy
        return {w.inspector: inspector_html(token, tokens, session.view, message_id, is_branchable)}

    def legend(self, session: Session) -> Updates:
        """What the colours mean now."""
        return {self._widgets.legend: legend_html(session.view.estimator, session.view)}

    def status(self) -> str:
        """The line about the model that everybody sees."""
        return status_html(self._services.host.status())

    def messages(self, user: str, session: Session) -> Sequence[Any]:
        """The chat's active branch; on an empty page, the stored example."""
        found = self._services.store.path(user, session.chat_id) if session.chat_id else ()
        return found or self._services.examples.messages

    def tokens(self, user: str, session: Session, message_id: str) -> Sequence[ScoredToken]:
        """The tokens of a stored message, of the running answer, or of the example."""
        if session.is_busy and session.run and session.run.message_id == message_id:
            return session.run.snapshot().tokens
        example = self._services.examples.message(message_id)
        return (example or self._services.store.get_message(user, message_id)).tokens
