"""A page over a scripted host, whose handlers tests call as gradio would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import pytest

from tests.doubles import ScriptedHost, wait_until
from uqchat.config import AppConfig
from uqchat.ui.page import Page, build_page
from uqchat.ui.serve import close
from uqchat.ui.services import open_services
from uqchat.ui.sessions import Session, is_active

ALICE, BOB = "a" * 32, "b" * 32
DEFAULT_SETTINGS = ("", 256, 0, 0.0, 1.0, 0.0, 1.0, 0, "")


@dataclass
class FakeRequest:
    """What handlers read of `gr.Request`."""

    session_hash: str = "tab-1"
    username: str | None = None


@dataclass
class Tab:
    """One open browser tab of one browser."""

    page: Page
    kept: str = ALICE
    request: FakeRequest = field(default_factory=FakeRequest)

    @property
    def session(self) -> Session:
        """What the server remembers of this tab."""
        return self.page.chat._services.sessions.of(self.request.session_hash)

    def open(self, last_chat: str | None = None, choices: object = None) -> dict[Any, Any]:
        """Loads the page."""
        return self.page.chats.on_load(self.request, self.kept, last_chat, choices)

    def ask(self, text: str, *settings: Any) -> dict[Any, Any]:
        """Presses Enter."""
        return self.page.chat.respond(self.request, self.kept, text, *(settings or DEFAULT_SETTINGS))

    def score(self, text: str, answer: str) -> dict[Any, Any]:
        """Presses Score."""
        return self.page.chat.on_score(self.request, self.kept, text, answer, *DEFAULT_SETTINGS)

    def do(self, action: str, **data: Any) -> dict[Any, Any]:
        """A click inside the conversation."""
        return self.page.chat.on_select(self.request, event(action, data), self.kept, *DEFAULT_SETTINGS)

    def list(self, action: str, **data: Any) -> dict[Any, Any]:
        """A click in the list of chats."""
        return self.page.chats.on_select(self.request, event(action, data), self.kept)

    def drain(self) -> list[str]:
        """What the browser is sent while an answer streams."""
        ticket = self.session.ticket
        return [update for update in self.page.chat.follow(self.request, ticket) if isinstance(update, str)]

    def finish(self) -> dict[Any, Any]:
        """Waits for the answer's end and draws it."""
        run = self.session.run
        wait_until(lambda: run is None or not is_active(run))
        return self.page.chat.finish(self.request, self.kept, self.session.ticket)

    def html(self, updates: dict[Any, Any], name: str) -> str:
        """What a component is given."""
        return updates[getattr(self.page.widgets, name)]

    def stored(self) -> Sequence[Any]:
        """This tab's chat as the store has it."""
        return self.page.chat._store.path(f"browser:{self.kept}", self.session.chat_id)


def value_of(update: Any) -> Any:
    """What a component shows after an update, which may be a bare value."""
    return update.value if isinstance(update, gr.components.Component) else update


def event(action: str, data: dict[str, Any]) -> gr.EventData:
    """The event that a component sends."""
    return gr.EventData(None, {"action": action, **data})


@pytest.fixture
def make_page() -> Iterator[Callable[..., Page]]:
    """Builds pages over scripted hosts and closes them."""
    opened = []

    def make(host: ScriptedHost | None = None, **settings: Any) -> Page:
        services = open_services(AppConfig(history=False, **settings), host or ScriptedHost())
        opened.append(services)
        return build_page(services)

    yield make
    for services in opened:
        close(services)


@pytest.fixture
def tab(make_page: Callable[..., Page]) -> Tab:
    """An open tab; the model answers "Paris is the capital of France."."""
    tab = Tab(make_page())
    tab.open()
    return tab
