"""What the handlers work with: settings, store, host, conversations, open tabs. Knows no component."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gradio as gr

from uqchat.config import AppConfig
from uqchat.conversation import Conversations
from uqchat.errors import InputError, UqchatError
from uqchat.host import ModelHost
from uqchat.store import Store
from uqchat.ui.examples import Examples, load_examples
from uqchat.ui.sessions import Session, Sessions
from uqchat.ui.user import user_of


@dataclass(frozen=True)
class Services:
    """Everything behind the page, made once per app."""

    config: AppConfig
    store: Store
    host: ModelHost
    conversations: Conversations
    examples: Examples = field(default_factory=load_examples)
    sessions: Sessions = field(default_factory=Sessions)

    def who(self, request: gr.Request, kept: str | None) -> tuple[str, Session]:
        """The user who asks and the tab that asks. Raises InputError if either is unknown."""
        user, session = user_of(request, kept), self.sessions.of(request.session_hash)
        if not session.is_open:
            raise InputError("The app was restarted since this page was opened; reload the page. Your chats are kept.")
        return user, session


def open_services(config: AppConfig, host: ModelHost | None = None) -> Services:
    """Opens the database, tidies what a crash left, and starts loading the model in the background."""
    store = Store(config.database_url)
    store.mark_interrupted()
    host = host or ModelHost(config)
    host.start()
    return Services(config, store, host, Conversations(store, host, config))


@contextmanager
def shown_to_user() -> Iterator[None]:
    """Turns an error meant for the user into a notice on the page; everything else stays loud in the log."""
    try:
        yield
    except UqchatError as error:
        # Notices are drawn as HTML, and an error quotes what came in.
        raise gr.Error(html.escape(str(error)).replace("\n", "<br>"), duration=12, print_exception=False) from error
