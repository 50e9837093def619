"""What each part of the page shows for a user and a tab, as updates by component. Knows no event.

Handlers add these dicts together; a component that is in none of them stays as it is.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.components import Component

from uqchat.host_estimators import Offer
from uqchat.marks import MIN_MARKS
from uqchat.render import (
    CLAIM_MODES,
    claims_html,
    conversation_html,
    inspector_html,
    legend_html,
    live_answer_html,
    strip_figure,
    welcome_html,
)
from uqchat.types import Decision, ScoredToken
from uqchat.ui.chat_list import chats_html
from uqchat.ui.estimators_html import estimators_html, heads_html, refit_words
from uqchat.ui.layout import Widgets
from uqchat.ui.offers import by_name, list_rows, picker, settle, ticked
from uqchat.ui.overview import overview_html, remark_on, verdict_on
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
            | self.picker(session)
        )

    @property
    def known(self) -> Mapping[str, Offer]:
        """The estimators of the loaded model by name."""
        return by_name(self._services.host.status().offers)

    def settle(self, session: Session) -> None:
        """Makes the tab's choice one that the model offers, and tells the reader if it was another."""
        notice = settle(session, self._services.host.status().offers)
        if notice:
            gr.Info(html.escape(notice))

    def estimators(self, user: str, session: Session) -> Updates:
        """The estimators tab, as far as it has changed: the list, the catalogue, how many marks there are."""
        status, panel = self._services.host.status(), self._widgets.estimators
        right, wrong = self._services.store.count_marks(user, status.model) if status.model else (0, 0)
        key = (status.offers, status.adding, status.adding_error, status.model, status.state, right, wrong)
        if key == session.shown_estimators:
            return {}
        session.shown_estimators = key
        can_change = self._services.config.allow_model_switch
        is_enough = right + wrong >= MIN_MARKS and min(right, wrong) > 0
        return {
            panel.offered: estimators_html(status, can_change),
            panel.catalogue: heads_html(status.model, can_change and status.state == "ready"),
            panel.refit: gr.Button(refit_words(right, wrong), interactive=is_enough and can_change),
            panel.refresh: gr.Button(interactive=status.state == "ready"),
        }

    def picker(self, session: Session) -> Updates:
        """What there is to tint by and to list."""
        w, offers = self._widgets, self._services.host.status().offers
        session.offers = offers
        return {
            w.estimator: gr.Dropdown(picker(session, offers), value=session.view.estimator),
            w.listed: gr.CheckboxGroup(list_rows(offers), value=ticked(session, offers)),
        }

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
            w.history: conversation_html(
                shown,
                session.view,
                is_busy,
                self._remarks(shown, session),
                _decisions(shown),
                {m.id: verdict_on(m.scores, session.view.estimator) for m in shown if m.role == "assistant"},
            ),
            w.live: live,
            w.questions: welcome_html(self._services.examples.questions) if is_first_minute else "",
            w.send: gr.Button(visible=not is_busy),
            w.stop: gr.Button(visible=is_busy),
            w.undo: gr.Button(interactive=not is_busy and not is_first_minute),
            **self.newest_answer(shown, session),
        }

    def _remarks(self, messages: Sequence[Any], session: Session) -> dict[str, str]:
        known, name = self.known, session.view.estimator
        return {m.id: remark_on(m.scores, name, known) for m in messages if m.role == "assistant"}

    def newest_answer(self, messages: Sequence[Any], session: Session) -> Updates:
        """The legend, and of the last answer that has tokens the strip chart, the claims and the list of estimators."""
        w, view, known = self._widgets, session.view, self.known
        newest = next(
            (m for m in reversed(messages) if m.role == "assistant" and m.tokens and not _is_declined(m)), None
        )
        drawn = {w.legend: legend_html(view.estimator, view, _scope_shown(newest, view.estimator, known), known)}
        if newest is None:
            return drawn | {w.chart: gr.Plot(visible=False), w.overview: "", w.claims: ""}
        listed = ticked(session, self._services.host.status().offers)
        return drawn | {
            w.chart: gr.Plot(strip_figure(newest.tokens, view, newest.id), visible=True),
            w.overview: overview_html(newest, view, listed, known),
            w.claims: claims_html(newest.tokens, view, newest.id, known) if view.mode in CLAIM_MODES else "",
        }

    def chats(self, user: str, session: Session) -> Updates:
        """The list of chats, the one shown marked."""
        chats = self._services.store.list_chats(user, session.search)
        return {self._widgets.chats: chats_html(chats, session.chat_id, session.deleted, session.search)}

    def inspector(self, user: str, session: Session) -> Updates:
        """The open token, or the hint how to open one."""
        w = self._widgets
        if session.selected is None:
            hint = "" if session.view.mode in CLAIM_MODES else inspector_html(None, (), session.view)
            return {w.inspector: hint}
        message_id, index = session.selected
        tokens = self.tokens(user, session, message_id)
        token = next((token for token in tokens if token.index == index), None)
        if token is not None:
            names = dict.fromkeys([session.view.estimator, *ticked(session, self._services.host.status().offers)])
            token = replace(token, risks={name: token.risks[name] for name in names if name in token.risks})
        is_branchable = self._services.examples.message(message_id) is None and not session.is_busy
        return {w.inspector: inspector_html(token, tokens, session.view, message_id, is_branchable, self.known)}

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


def _scope_shown(newest: Any, name: str, known: Mapping[str, Offer]) -> str | None:
    """What the shown colours are calibrated on, as the newest answer has it; without one, as the estimator has it."""
    risks = [token.risks[name] for token in newest.tokens if name in token.risks] if newest else []
    if not risks:
        return known[name].scope if name in known else None
    scopes = {risk.calibration for risk in risks}
    return scopes.pop() if len(scopes) == 1 else None


def _decisions(messages: Sequence[Any]) -> dict[str, Decision]:
    return {m.id: m.scores.decision for m in messages if m.role == "assistant" and m.scores.decision is not None}


def _is_declined(message: Any) -> bool:
    return message.scores.decision is not None and message.scores.decision.is_hidden
