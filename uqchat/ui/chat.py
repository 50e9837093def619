"""A question, its answer and what a reader does to them. Thin: the work is done by `Conversations` and the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from uqchat.config import GenerationConfig
from uqchat.conversation import AnswerRun, AskSettings
from uqchat.errors import InputError
from uqchat.prompt_text import has_control_characters
from uqchat.render import live_answer_html
from uqchat.ui.layout import Widgets
from uqchat.ui.screen import Screen, Updates
from uqchat.ui.second_reading import begin_second_reading
from uqchat.ui.services import Services, shown_to_user
from uqchat.ui.sessions import Session, is_active

_UPDATE_S = 1 / 12  # several tokens per update: the eye sees no difference, browser and server do


class ChatHandlers:
    """Handlers of the middle column. Each takes the request, the browser's user id, then values of components."""

    def __init__(self, services: Services, widgets: Widgets, screen: Screen) -> None:
        self._services = services
        self._conversations = services.conversations
        self._store = services.store
        self._widgets = widgets
        self._screen = screen

    def respond(self, request: gr.Request, kept: str | None, text: str, *settings: Any) -> Updates:
        """Send: ask in this tab's chat. On an error the prompt stays in the composer."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            return self._ask(user, session, text, settings) | {self._widgets.prompt: ""}

    def _ask(self, user: str, session: Session, text: str, settings: tuple) -> Updates:
        is_new = session.chat_id is None
        if has_control_characters(text or ""):
            gr.Info("Control characters in your message were left out.")
        chat_id, run = self._conversations.ask(user, session.chat_id, text or "", _settings(session, settings))
        if is_new:
            session.show(chat_id)
        return self._begin(user, session, run) | self._screen.chats(user, session)

    def on_score(self, request: gr.Request, kept: str | None, text: str, answer: str, *settings: Any) -> Updates:
        """Score: a question with an answer that somebody else wrote becomes a turn. On an error both texts stay."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            is_new = session.chat_id is None
            given = (text or "", answer or "", _settings(session, settings))
            chat_id, run = self._conversations.score(user, session.chat_id, *given)
            if is_new:
                session.show(chat_id)
            panel = self._widgets.scoring
            updates = self._begin(user, session, run) | self._screen.chats(user, session)
            return updates | {panel.question: "", panel.answer: "", self._widgets.tabs: gr.Tabs(selected="inspect")}

    def _begin(self, user: str, session: Session, run: AnswerRun) -> Updates:
        session.draw(run)
        return self._shown(user, session)

    def _shown(self, user: str, session: Session) -> Updates:
        updates = self._screen.conversation(user, session)
        return updates | {self._widgets.ticket: session.ticket, self._widgets.last_chat: session.chat_id}

    def follow(self, request: gr.Request, ticket: str | None) -> Iterator[Any]:
        """Draws the answer under way, a dozen times a second, until it ends or the tab turns elsewhere.

        Nothing is computed here and nothing is stopped here: the run goes on without its reader until the tab closes.
        """
        session = self._services.sessions.of(request.session_hash)
        run, version = session.run, 0
        yield gr.skip()
        while run is not None and session.ticket == ticket and is_active(run):
            begun = time.monotonic()
            yield live_answer_html(run.snapshot(), session.view, run.message_id)
            version = run.wait_change(version, timeout=1.0)
            time.sleep(max(0.0, begun + _UPDATE_S - time.monotonic()))

    def finish(self, request: gr.Request, kept: str | None, ticket: str | None, *settings: Any) -> Updates:
        """The stream ended: the answer moves from the live part to the finished ones.

        A costly estimator that was chosen while it was written reads it now.
        """
        with shown_to_user():
            user, session = self._services.who(request, kept)
            if session.ticket != ticket or session.run is None:
                return gr.skip()
            session.run = session.run if is_active(session.run) else None
            screen = self._screen
            if begin_second_reading(self._services, user, session, _settings(session, settings)):
                return self._shown(user, session) | screen.chats(user, session) | screen.inspector(user, session)
            return screen.conversation(user, session) | screen.chats(user, session) | screen.inspector(user, session)

    def on_stop(self, request: gr.Request, kept: str | None) -> None:
        """Stop: ends within one step; what was written stays."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            if session.chat_id:
                self._conversations.stop(user, session.chat_id)

    def on_undo(self, request: gr.Request, kept: str | None) -> Updates:
        """Undo: the last question goes back into the composer; nothing is deleted."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            if session.is_busy:
                raise InputError("An answer is being written; stop it first.")
            text = self._store.step_back(user, session.chat_id) if session.chat_id else None
            session.selected = None
            updates = self._screen.conversation(user, session) | self._screen.inspector(user, session)
            return updates if text is None else updates | {self._widgets.prompt: text}

    def on_select(self, request: gr.Request, event: gr.EventData, kept: str | None, *settings: Any) -> Updates:
        """A click or key inside the conversation, the questions or the inspector: {action, message, ...}."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            data = event._data if isinstance(event._data, dict) else {}
            action = data.get("action")
            if action not in self._actions:
                raise InputError(f"The page sent an unknown action ({str(action)[:40]!r}); reload it.")
            return self._actions[action](self, user, session, data, settings)

    def _on_token(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        session.selected = (_text(data, "message"), _number(data, "index"))
        return self._screen.inspector(user, session) | {self._widgets.tabs: gr.Tabs(selected="inspect")}

    def _on_close(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        session.selected = None
        return self._screen.inspector(user, session)

    def _on_ask(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        return self._ask(user, session, _text(data, "text"), settings)

    def _on_edit(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        message_id = self._own(data)
        run = self._conversations.edit(user, message_id, _text(data, "text"), _settings(session, settings))
        return self._begin(user, session, run)

    def _on_retry(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        run = self._conversations.regenerate(user, self._own(data), _settings(session, settings))
        return self._begin(user, session, run)

    def _on_continue(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        place = (self._own(data), _number(data, "index"), _number(data, "token_id"))
        run = self._conversations.continue_from(user, *place, _settings(session, settings))
        session.selected = None
        return self._begin(user, session, run) | self._screen.inspector(user, session)

    def _on_version(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        self._store.select_version(user, self._own(data), -1 if data["action"] == "versions_prev" else 1)
        session.selected = None
        return self._screen.conversation(user, session) | self._screen.inspector(user, session)

    def _on_mark(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        message_id, action = self._own(data), data["action"]
        is_error: bool | None = None if action == "unmark_span" else action.endswith("wrong")
        span = (_number(data, "start"), _number(data, "end")) if "span" in action else (None, None)
        if span == (None, None):
            now = next((x for x in self._store.get_message(user, message_id).labels if x.start is None), None)
            is_error = None if now is not None and now.is_error == is_error else is_error  # a second press removes it
        self._store.set_label(user, message_id, is_error, *span)
        return self._screen.conversation(user, session)

    def _on_stop_key(self, user: str, session: Session, data: dict, settings: tuple) -> Updates:
        if session.chat_id:
            self._conversations.stop(user, session.chat_id)
        return gr.skip()

    def _own(self, data: dict) -> str:
        """The message an action is about, which must not be the example."""
        message_id = _text(data, "message")
        if self._services.examples.message(message_id):
            raise InputError("This is a stored example. Ask the question yourself, then you can do this.")
        return message_id

    _actions = {
        "token": _on_token,
        "close": _on_close,
        "ask": _on_ask,
        "edit": _on_edit,
        "retry": _on_retry,
        "continue": _on_continue,
        "versions_prev": _on_version,
        "versions_next": _on_version,
        "mark_right": _on_mark,
        "mark_wrong": _on_mark,
        "mark_span_right": _on_mark,
        "mark_span_wrong": _on_mark,
        "unmark_span": _on_mark,
        "stop": _on_stop_key,
    }


def _settings(session: Session, values: tuple) -> AskSettings:
    """The settings tab, and the estimators that this tab shows."""
    asked = ask_settings(*values) if values else AskSettings()
    return replace(asked, estimators=session.wanted, policy=session.policy)


def ask_settings(
    system: str,
    max_new_tokens: float | None,
    seed: float | None,
    temperature: float,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    top_k: float | None,
    stop_strings: str,
) -> AskSettings:
    """The settings tab as `AskSettings`; an emptied number is its default, `\\n` in a stop string is a line break.

    Raises:
        InputError: a value is outside its range.
    """
    default = GenerationConfig()
    generation = GenerationConfig(
        max_new_tokens=int(max_new_tokens) if max_new_tokens is not None else default.max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=int(top_k or 0),
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=int(seed or 0),
        stop_strings=tuple(line.replace("\\n", "\n") for line in (stop_strings or "").splitlines() if line),
    )
    return AskSettings(system=system or "", generation=generation)


def _text(data: dict, key: str) -> str:
    if not isinstance(data.get(key), str):
        raise InputError(f"The page sent no {key}; reload it.")
    return data[key]


def _number(data: dict, key: str) -> int:
    if isinstance(data.get(key), bool) or not isinstance(data.get(key), int | float) or data[key] != data[key] // 1:
        raise InputError(f"The page sent no whole number as {key}; reload it.")
    return int(data[key])
