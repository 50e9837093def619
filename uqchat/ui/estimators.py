"""The estimators tab: what the model offers, adding a trained one, refitting from marks. Thin handlers."""

from __future__ import annotations

import gradio as gr

from uqchat.errors import InputError
from uqchat.marks import MarkedAnswer
from uqchat.ui.estimators_layout import EstimatorPanel
from uqchat.ui.overview import risk_of
from uqchat.ui.screen import Updates
from uqchat.ui.services import Services, shown_to_user
from uqchat.ui.views import ViewHandlers


class EstimatorHandlers:
    """Handlers of the tab. The host itself refuses where changing the model is turned off."""

    def __init__(self, services: Services, panel: EstimatorPanel, views: ViewHandlers) -> None:
        self._services = services
        self._host = services.host
        self._panel = panel
        self._views = views

    def on_add(self, request: gr.Request, kept: str | None, name: str) -> Updates:
        """Load: opens a trained estimator in the background; the list says how it ended."""
        with shown_to_user():
            self._host.add_estimator(name or "")
            return self._views.on_clock(request, kept) | {self._panel.name: ""}

    def on_refresh(self, request: gr.Request, kept: str | None) -> Updates:
        """Look again: what was trained or added on disk since."""
        with shown_to_user():
            self._host.refresh_estimators()
            return self._views.on_clock(request, kept)

    def on_refit(self, request: gr.Request, kept: str | None) -> Updates:
        """Refit: the tinting estimator's answer risk is calibrated on this user's own marks."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            marks = self._marks(user, session.view.estimator)
            self._host.refit_estimator(session.view.estimator, marks)
            gr.Info(f"Refitted with {len(marks)} marks. It holds for answers from now on.")
            return self._views.on_clock(request, kept)

    def _marks(self, user: str, estimator: str) -> list[MarkedAnswer]:
        """The user's marked answers of the loaded model that this estimator has scored."""
        answers = self._services.store.marked_answers(user, self._host.status().model or "")
        return [
            MarkedAnswer(risk.raw, label.is_error, sum(not token.is_end for token in answer.tokens))
            for answer in answers
            for label in answer.labels
            if label.start is None and (risk := risk_of(answer, estimator)) is not None
        ]

    def on_select(self, request: gr.Request, event: gr.EventData, kept: str | None) -> Updates:
        """A press in one of the lists: {action, text}."""
        with shown_to_user():
            data = event._data if isinstance(event._data, dict) else {}
            action, name = data.get("action"), str(data.get("text", ""))
            if action == "head_add":
                self._host.add_estimator(name)
            elif action == "head_remove":
                self._host.remove_estimator(name)
            else:
                raise InputError(f"The page sent an unknown action ({str(action)[:40]!r}); reload it.")
            return self._views.on_clock(request, kept)
