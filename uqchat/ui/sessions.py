"""What one open browser tab shows, so that a running stream can follow a change at once. Knows no page.

Only ids and choices live here; everything else is in the store. An entry goes when its tab goes.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from threading import Lock

from uqchat.conversation import AnswerRun
from uqchat.host_estimators import Offer
from uqchat.render import RiskView

_MAX_SESSIONS = 10_000


@dataclass
class Session:
    """One tab: the chat it shows, the token that is open, and how answers are drawn."""

    is_open: bool = False
    """Whether this server has opened the page; not so after a restart, when an old page is still on a screen."""
    chat_id: str | None = None
    selected: tuple[str, int] | None = None
    """Message id and token index in the inspector."""
    deleted: tuple[str, str] | None = None
    """Id and title of the chat that was deleted last, for undo."""
    search: str = ""
    view: RiskView = RiskView()
    listed: tuple[str, ...] | None = None
    """Estimators that the inspector and the overview list, None: the usual ones; the view's own is always shown."""
    follows_default: bool = True
    """Whether nobody has chosen what to tint by, so that it may follow the model."""
    offers: tuple[Offer, ...] = ()
    """What the picker shows."""
    policy: str = ""
    """What answers obey, as `name@version`."""
    run: AnswerRun | None = None
    """The answer that streams into this tab."""
    watched: list[AnswerRun] = field(default_factory=list)
    """Answers that this tab has drawn; each ends when the last tab that watches it is closed."""
    read_again: set[tuple[str, str]] = field(default_factory=set)
    """Answers, by id, that a costly estimator was given after they had been written."""
    ticket: str = ""
    """Names the stream that may draw into this tab; an older one ends itself."""
    shown_status: tuple[str, str | None] = ("", None)
    """The model's state and the estimator that is being opened, as shown last."""
    shown_estimators: tuple[object, ...] = ()
    export: TemporaryDirectory | None = None
    """Holds the file that was exported last."""

    def show(self, chat_id: str | None, run: AnswerRun | None = None) -> None:
        """Turn to another chat, or to an empty page; `run` is its answer under way."""
        self.chat_id, self.selected = chat_id, None
        self.draw(run)

    def draw(self, run: AnswerRun | None) -> None:
        """Let a new stream draw `run`, and any older stream end."""
        self.run, self.ticket = run, secrets.token_hex(8)
        self.watched = [old for old in self.watched if is_active(old)]
        if run is not None and run not in self.watched:
            run.attach()
            self.watched.append(run)

    @property
    def is_busy(self) -> bool:
        """Whether an answer streams into this tab."""
        return self.run is not None and is_active(self.run)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The estimators that this tab shows, of which costly ones score its answers too."""
        return (self.view.estimator, *(self.listed or ()))

    def look(self, estimator: str, scale: str, mode: str, listed: Sequence[str] | None) -> None:
        """Change how answers are drawn."""
        self.view, self.listed = RiskView(estimator, scale, mode), None if listed is None else tuple(listed)


class Sessions:
    """The open tabs by their session hash."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[str, Session] = OrderedDict()

    def of(self, session_hash: str | None) -> Session:
        """The tab's entry, made on first use; the oldest goes when there are very many."""
        with self._lock:
            session = self._open.setdefault(session_hash or "", Session())
            self._open.move_to_end(session_hash or "")
            while len(self._open) > _MAX_SESSIONS:
                self._open.popitem(last=False)
            return session

    def close(self, session_hash: str | None) -> None:
        """The tab is gone: forget it, so that answers which nobody watches any more stop."""
        with self._lock:
            session = self._open.pop(session_hash or "", None)
        for run in session.watched if session else ():
            run.detach()


def is_active(run: AnswerRun) -> bool:
    """Whether the run is still waiting or streaming."""
    return run.snapshot().is_running
