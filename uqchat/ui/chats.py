"""The list of chats: open, search, rename, delete, bring back, import, export. Thin handlers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr

from uqchat.errors import InputError, UqchatError
from uqchat.transfer import export_chat, import_chat
from uqchat.ui.choices import Choices, from_kept
from uqchat.ui.layout import Widgets
from uqchat.ui.screen import Screen, Updates
from uqchat.ui.services import Services, shown_to_user
from uqchat.ui.sessions import Session
from uqchat.ui.user import browser_id


class ChatsHandlers:
    """Handlers of the left column and of the page's opening."""

    def __init__(self, services: Services, widgets: Widgets, screen: Screen) -> None:
        self._services = services
        self._store = services.store
        self._widgets = widgets
        self._screen = screen

    def on_load(self, request: gr.Request, kept: str | None, last_chat: str | None, choices: object) -> Updates:
        """The page opens: know the user again, show the chat that was open last, as it was drawn last."""
        with shown_to_user():
            kept = browser_id(kept)
            self._services.sessions.of(request.session_hash).is_open = True
            user, session = self._services.who(request, kept)
            chosen = from_kept(user, choices)
            session.look(*chosen.view)
            session.follows_default = chosen == Choices()
            self._screen.settle(session)
            self._show(user, session, last_chat if isinstance(last_chat, str) else None)
            shown = dict(zip(self._widgets.controls(), chosen.values, strict=True))
            return shown | self._redrawn(user, session) | {self._widgets.user: kept}

    def on_unload(self, request: gr.Request) -> None:
        """The tab is gone: its answers stop, what they have is kept."""
        self._services.sessions.close(request.session_hash)

    def on_new_chat(self, request: gr.Request, kept: str | None) -> Updates:
        """An empty page; the chat itself is made by the first question."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            session.show(None)
            return self._redrawn(user, session)

    def on_search(self, request: gr.Request, kept: str | None, search: str) -> Updates:
        """Narrow the list to chats with these words in title or text."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            session.search = search or ""
            return self._screen.chats(user, session)

    def on_select(self, request: gr.Request, event: gr.EventData, kept: str | None) -> Updates:
        """A click in the list: {action, chat, text}."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            data = event._data if isinstance(event._data, dict) else {}
            chat_id, action = str(data.get("chat")), data.get("action")
            if action not in self._actions:
                raise InputError(f"The page sent an unknown action ({str(action)[:40]!r}); reload it.")
            return self._actions[action](self, user, session, chat_id, str(data.get("text", "")))

    def _on_open(self, user: str, session: Session, chat_id: str, title: str) -> Updates:
        self._store.get_chat(user, chat_id)
        self._show(user, session, chat_id)
        return self._redrawn(user, session)

    def _on_rename(self, user: str, session: Session, chat_id: str, title: str) -> Updates:
        self._store.rename_chat(user, chat_id, title)
        return self._screen.chats(user, session)

    def _on_delete(self, user: str, session: Session, chat_id: str, title: str) -> Updates:
        chat = self._store.get_chat(user, chat_id)
        self._services.conversations.stop(user, chat_id)
        self._store.delete_chat(user, chat_id)
        session.deleted = (chat.id, chat.title)
        if session.chat_id != chat_id:
            return self._screen.chats(user, session)
        session.show(None)
        return self._redrawn(user, session)

    def _on_restore(self, user: str, session: Session, chat_id: str, title: str) -> Updates:
        self._store.restore_chat(user, chat_id)
        session.deleted = None
        return self._on_open(user, session, chat_id, title)

    _actions = {
        "chat_open": _on_open,
        "chat_rename": _on_rename,
        "chat_delete": _on_delete,
        "chat_restore": _on_restore,
    }

    def on_upload(self, request: gr.Request, kept: str | None, data: bytes | None) -> Updates:
        """Import: a file that was exported as JSON becomes a new chat, which opens."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            chat = import_chat(self._store, user, data or b"")
            return self._on_open(user, session, chat.id, "")

    def on_export(self, request: gr.Request, kept: str | None, label: str) -> Updates:
        """Export: writes the chat as JSON, CSV or HTML and hands it to the download button, which the page presses."""
        with shown_to_user():
            user, session = self._services.who(request, kept)
            if session.chat_id is None:
                raise InputError("There is nothing to export yet: open a chat or ask something first.")
            name, content = export_chat(self._store, user, session.chat_id, label.lower())
            session.export = TemporaryDirectory(prefix="uqchat-")  # the one before goes with its last reference
            path = Path(session.export.name) / name
            path.write_bytes(content)
            return {self._widgets.download: gr.DownloadButton(value=str(path))}

    def _show(self, user: str, session: Session, chat_id: str | None) -> None:
        try:
            run = self._services.conversations.run_for(user, chat_id) if chat_id else None
            self._store.get_chat(user, chat_id) if chat_id else None
        except UqchatError:
            chat_id, run = None, None  # deleted in another tab, or kept by a browser whose database is gone
        session.show(chat_id, run)

    def _redrawn(self, user: str, session: Session) -> Updates:
        ids = {self._widgets.ticket: session.ticket, self._widgets.last_chat: session.chat_id}
        return self._screen.all(user, session) | ids
