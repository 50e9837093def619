"""Sessions of the database in a user's name, and the rows that they find. Knows no version and no label's meaning.

Another user's id is as unknown as one that was never given out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import delete, func, or_
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col, select

from uqchat.errors import StoreError
from uqchat.store_records import storable
from uqchat.store_tables import ChatRow, LabelRow, MessageRow, TokenRow, explain, is_memory, open_database


class Sessions:
    """Opens them, in any thread; what the database refuses becomes a StoreError. Raises one for an unusable `url`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.engine = open_database(url)
        self._write_engine = self.engine.execution_options(is_write=True)
        # One connection in memory serves one thread at a time.
        self._lock = threading.RLock() if is_memory(self.engine.url) else nullcontext()

    @contextmanager
    def reading(self, user: str) -> Iterator[Session]:
        """A session for a user who reads. Raises StoreError: no user, or the database refuses."""
        _check_user(user)
        with self._lock, self._explained(), Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self, user: str | None = None) -> Iterator[Session]:
        """A session whose changes are kept at its end, None for those of the app itself. Raises as `reading`."""
        if user is not None:
            _check_user(user)
        with self._lock, self._explained(), Session(self._write_engine, expire_on_commit=False) as session:
            yield session
            session.commit()

    def close(self) -> None:
        """Let the database go."""
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise StoreError(explain(error, self._url)) from error


def _check_user(user: str) -> None:
    if not isinstance(user, str) or not user:
        raise StoreError("Chats belong to a user, but no user was given. Reload the page.")


def marked(query: Any, user: str, model: str) -> Any:
    """Narrows a query over messages and labels to marks of whole answers of this model in the user's chats."""
    query = query.join(ChatRow, col(ChatRow.id) == MessageRow.chat_id)
    of_user = (ChatRow.user == user, col(ChatRow.deleted_at).is_(None))
    return query.where(*of_user, MessageRow.model == model, col(LabelRow.start).is_(None))


def chat_of(session: Session, user: str, chat_id: str, with_deleted: bool = False) -> ChatRow:
    """One chat of the user. Raises StoreError: there is none, or it was deleted."""
    query = select(ChatRow).where(ChatRow.id == chat_id, ChatRow.user == user)
    chat = session.exec(query).first()
    if chat is None or (chat.deleted_at is not None and not with_deleted):
        raise StoreError("This chat does not exist (any more). Choose another one from the list.")
    return chat


def chats_of(session: Session, user: str, search: str) -> list[tuple[ChatRow, int]]:
    """The user's chats with their numbers of messages, the last used first; see `Store.list_chats`."""
    counts = select(func.count()).where(MessageRow.chat_id == ChatRow.id).scalar_subquery()
    query = select(ChatRow, counts).where(ChatRow.user == user, col(ChatRow.deleted_at).is_(None))
    if search:
        wanted = storable(search)
        has_text = select(MessageRow.number).where(
            MessageRow.chat_id == ChatRow.id, col(MessageRow.text).icontains(wanted, autoescape=True)
        )
        query = query.where(or_(col(ChatRow.title).icontains(wanted, autoescape=True), has_text.exists()))
    return list(session.exec(query.order_by(col(ChatRow.updated_at).desc(), col(ChatRow.number).desc())))


def erase(session: Session, chats: Sequence[str]) -> None:
    """Take these chats, by id, with all that belongs to them out of the database."""
    messages = select(MessageRow.id).where(col(MessageRow.chat_id).in_(chats))
    session.exec(delete(LabelRow).where(col(LabelRow.message_id).in_(messages)))
    session.exec(delete(TokenRow).where(col(TokenRow.message_id).in_(messages)))
    session.exec(delete(MessageRow).where(col(MessageRow.chat_id).in_(chats)))
    session.exec(delete(ChatRow).where(col(ChatRow.id).in_(chats)))


def message_of(session: Session, user: str, message_id: str, with_deleted: bool = False) -> MessageRow:
    """One message of the user. Raises StoreError: there is none, or its chat was deleted."""
    query = select(MessageRow).join(ChatRow, col(ChatRow.id) == MessageRow.chat_id)
    query = query.where(MessageRow.id == message_id, ChatRow.user == user)
    if not with_deleted:
        query = query.where(col(ChatRow.deleted_at).is_(None))
    message = session.exec(query).first()
    if message is None:
        raise StoreError("This message does not exist (any more). Open the chat again from the list.")
    return message


def rows_of(session: Session, chat_id: str) -> dict[str, MessageRow]:
    """The chat's messages by id, in the order they were added."""
    query = select(MessageRow).where(MessageRow.chat_id == chat_id).order_by(col(MessageRow.number))
    return {row.id: row for row in session.exec(query)}
