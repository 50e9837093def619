"""Users' chats in a database: a tree of messages per chat, scored tokens, labels. Knows no model and no interface.

Every method that reads or changes a chat takes the user first, and another user's id is as unknown as one that was
never given out.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from sqlalchemy import delete, func, or_, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col, select

from uqchat.errors import InputError, StoreError
from uqchat.store_tables import (
    ChatRow,
    LabelRow,
    MessageRow,
    TokenRow,
    explain,
    is_writer_alive,
    new_writer,
    open_database,
)
from uqchat.token_codec import TokenCache, decode_tokens, encode_tokens
from uqchat.types import FinishReason, Role, ScoredToken

Status = Literal["streaming", "done", "cancelled", "error"]
MAX_TITLE_CHARS = 200
NEW_CHAT_TITLE = "New chat"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ChatInfo:
    """A chat in the list; `message_count` counts every version of every message."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime
    message_count: int


@dataclass(frozen=True, slots=True)
class Label:
    """A person's mark: on the whole answer when `start` is None, else on characters [start, end) of its text."""

    is_error: bool
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it is kept; versions are the messages with the same parent, `version` counts from 1."""

    id: str
    chat_id: str
    parent_id: str | None
    role: Role
    text: str
    status: Status
    finish_reason: FinishReason | None
    error: str | None
    tokens: tuple[ScoredToken, ...]
    model: str
    dropped_messages: int
    version: int
    version_count: int
    labels: tuple[Label, ...]
    created_at: datetime
    is_example: bool


class Store:
    """All chats of all users in one database; safe to use from many threads.

    Args:
        url: an SQLAlchemy URL; `sqlite://` keeps everything in memory and forgets it at the end.

    Raises:
        StoreError: from every method, when an id is unknown to the user or the database refuses.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = open_database(url)
        self._write_engine = self._engine.execution_options(is_write=True)
        is_shared = self._engine.url.get_backend_name() == "sqlite" and self._engine.url.database in (
            None,
            "",
            ":memory:",
        )
        self._lock = threading.RLock() if is_shared else nullcontext()  # one connection serves one thread at a time
        self._writer = new_writer()
        self._cache = TokenCache()

    # Chats

    def create_chat(self, user: str, title: str = NEW_CHAT_TITLE) -> ChatInfo:
        """A new, empty chat."""
        with self._writing(user) as session:
            chat = ChatRow(user=user, title=_clean_title(title))
            session.add(chat)
            session.flush()
            return _chat_info(chat, 0)

    def get_chat(self, user: str, chat_id: str) -> ChatInfo:
        """One chat of the user."""
        with self._reading(user) as session:
            chat = _chat(session, user, chat_id)
            count = session.exec(select(func.count()).where(MessageRow.chat_id == chat_id)).one()
            return _chat_info(chat, count)

    def list_chats(self, user: str, search: str = "") -> list[ChatInfo]:
        """The user's chats, the last used first; with `search`, those with it in the title or in any message."""
        counts = select(func.count()).where(MessageRow.chat_id == ChatRow.id).scalar_subquery()
        query = select(ChatRow, counts).where(ChatRow.user == user, col(ChatRow.deleted_at).is_(None))
        if search.strip():
            wanted = _storable(search.strip())
            has_text = select(MessageRow.number).where(
                MessageRow.chat_id == ChatRow.id, col(MessageRow.text).icontains(wanted, autoescape=True)
            )
            query = query.where(or_(col(ChatRow.title).icontains(wanted, autoescape=True), has_text.exists()))
        query = query.order_by(col(ChatRow.updated_at).desc(), col(ChatRow.number).desc())
        with self._reading(user) as session:
            return [_chat_info(chat, count) for chat, count in session.exec(query)]

    def rename_chat(self, user: str, chat_id: str, title: str) -> ChatInfo:
        """Gives the chat a new title. Raises InputError when nothing is left of it without white space."""
        title = _clean_title(title)
        with self._writing(user) as session:
            _chat(session, user, chat_id).title = title
        return self.get_chat(user, chat_id)

    def delete_chat(self, user: str, chat_id: str) -> None:
        """Hides the chat; `restore_chat` brings it back until `purge_deleted`."""
        with self._writing(user) as session:
            _chat(session, user, chat_id).deleted_at = time.time()

    def restore_chat(self, user: str, chat_id: str) -> ChatInfo:
        """Brings a deleted chat back."""
        with self._writing(user) as session:
            _chat(session, user, chat_id, with_deleted=True).deleted_at = None
        return self.get_chat(user, chat_id)

    def purge_deleted(self, older_than_s: float = 86_400.0) -> int:
        """Erases all users' chats that were deleted this many seconds ago; returns how many.

        The default leaves a day, so that one app process starting up does not take away another's undo.
        """
        with self._writing() as session:
            old = select(ChatRow.id).where(col(ChatRow.deleted_at) <= time.time() - older_than_s)
            chats = list(session.exec(old))
            messages = select(MessageRow.id).where(col(MessageRow.chat_id).in_(chats))
            session.exec(delete(LabelRow).where(col(LabelRow.message_id).in_(messages)))
            session.exec(delete(TokenRow).where(col(TokenRow.message_id).in_(messages)))
            session.exec(delete(MessageRow).where(col(MessageRow.chat_id).in_(chats)))
            session.exec(delete(ChatRow).where(col(ChatRow.id).in_(chats)))
            return len(chats)

    # Messages

    def path(self, user: str, chat_id: str) -> list[StoredMessage]:
        """The active branch, from the first message to the last."""
        with self._reading(user) as session:
            chat = _chat(session, user, chat_id)
            rows = _rows(session, chat_id)
            return self._stored(session, _active_path(chat, rows), rows)

    def all_messages(self, user: str, chat_id: str) -> list[StoredMessage]:
        """Every version of every message, in the order they were begun; a parent comes before its children."""
        with self._reading(user) as session:
            _chat(session, user, chat_id)
            rows = _rows(session, chat_id)
            return self._stored(session, list(rows.values()), rows)

    def branch_to(self, user: str, message_id: str) -> list[StoredMessage]:
        """From the first message down to this one, whichever branch is active."""
        with self._reading(user) as session:
            message = _message(session, user, message_id)
            rows = _rows(session, message.chat_id)
            return self._stored(session, _ancestors(message, rows), rows)

    def get_message(self, user: str, message_id: str) -> StoredMessage:
        """One message of the user."""
        with self._reading(user) as session:
            message = _message(session, user, message_id)
            return self._stored(session, [message], _rows(session, message.chat_id))[0]

    def add_message(
        self,
        user: str,
        chat_id: str,
        parent_id: str | None,
        role: Role,
        text: str,
        *,
        status: Status = "done",
        model: str = "",
        is_example: bool = False,
    ) -> StoredMessage:
        """Adds a version below `parent_id` (None: a first message); the active branch now ends with it."""
        if role not in get_args(Role) or status not in get_args(Status):
            raise InputError(
                f"role must be one of {get_args(Role)} and status one of {get_args(Status)}; got {role!r}, {status!r}."
            )
        with self._writing(user) as session:
            chat = _chat(session, user, chat_id)
            if parent_id is not None and _message(session, user, parent_id).chat_id != chat_id:
                raise StoreError("The message to go on from belongs to another chat.")
            row = MessageRow(chat_id=chat_id, parent_id=parent_id, role=role, text=_storable(text), status=status)
            row.model, row.is_example, row.writer = model, is_example, self._writer
            session.add(row)
            session.flush()
            chat.updated_at = row.created_at
            rows = _rows(session, chat_id)
            _activate(chat, row, rows)
            return self._stored(session, [row], rows)[0]

    def save_answer(
        self,
        user: str,
        message_id: str,
        text: str,
        tokens: Sequence[ScoredToken],
        status: Status,
        finish_reason: FinishReason | None = None,
        error: str | None = None,
        dropped_messages: int = 0,
    ) -> None:
        """Replaces what is kept of an answer; works in a deleted chat too, which may be restored later."""
        if status not in get_args(Status):
            raise InputError(f"status must be one of {get_args(Status)}; got {status!r}.")
        data = encode_tokens(tokens)
        with self._writing(user) as session:
            row = _message(session, user, message_id, with_deleted=True)
            row.text, row.status, row.finish_reason = _storable(text), status, finish_reason
            row.error, row.dropped_messages = error and _storable(error), dropped_messages
            row.writer, row.saved_at = self._writer, time.time()
            scores = session.get(TokenRow, message_id) or TokenRow(message_id=message_id, data=b"")
            scores.data = data
            session.add(scores)

    def select_version(self, user: str, message_id: str, step: int) -> str:
        """Makes the version `step` places further active, with the messages last used below it; returns its id.

        A step past the first or last version stops there.
        """
        with self._writing(user) as session:
            message = _message(session, user, message_id)
            rows = _rows(session, message.chat_id)
            versions = _versions(rows)[message.parent_id]
            position = versions.index(message.id) + step
            chosen = versions[max(0, min(position, len(versions) - 1))]
            _activate(_chat(session, user, message.chat_id), rows[chosen], rows)
            return chosen

    def step_back(self, user: str, chat_id: str) -> str | None:
        """Ends the active branch before its last question, whose text is returned; None when there is none.

        Nothing is deleted: the next question becomes another version of the one that was taken back.
        """
        with self._writing(user) as session:
            chat = _chat(session, user, chat_id)
            rows = _rows(session, chat_id)
            questions = [row for row in _active_path(chat, rows) if row.role == "user"]
            if not questions:
                return None
            parent = chat if questions[-1].parent_id is None else rows[questions[-1].parent_id]
            parent.active_child = None
            return questions[-1].text

    def set_label(
        self, user: str, message_id: str, is_error: bool | None, start: int | None = None, end: int | None = None
    ) -> None:
        """Marks a finished answer, or characters [start, end) of it, right or wrong; None takes the mark away.

        Raises:
            InputError: not a finished answer, or the span does not lie inside its text.
        """
        with self._writing(user) as session:
            row = _message(session, user, message_id)
            _check_label(row, start, end)
            same = (LabelRow.message_id == message_id, col(LabelRow.start) == start, col(LabelRow.end) == end)
            session.exec(delete(LabelRow).where(*same))
            if is_error is not None:
                session.add(LabelRow(message_id=message_id, is_error=bool(is_error), start=start, end=end))

    # Life of the process

    def mark_interrupted(self) -> int:
        """Turns answers that nobody is writing any more into cancelled ones, for all users; returns how many.

        Answers that another living process writes into the same database are left alone.
        """
        with self._writing() as session:
            rows = session.exec(select(MessageRow).where(MessageRow.status == "streaming")).all()
            abandoned = [row for row in rows if not is_writer_alive(row.writer, row.saved_at)]
            for row in abandoned:
                row.status, row.finish_reason = "cancelled", "cancelled"
            return len(abandoned)

    def close(self) -> None:
        """Marks what this store was still writing as cancelled and lets the database go."""
        with self._writing() as session:
            unfinished = (MessageRow.writer == self._writer, MessageRow.status == "streaming")
            session.exec(update(MessageRow).where(*unfinished).values(status="cancelled", finish_reason="cancelled"))
        self._engine.dispose()

    @contextmanager
    def _reading(self, user: str) -> Iterator[Session]:
        _check_user(user)
        with self._lock, self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _writing(self, user: str | None = None) -> Iterator[Session]:
        if user is not None:
            _check_user(user)
        with self._lock, self._explained(), Session(self._write_engine, expire_on_commit=False) as session:
            yield session
            session.commit()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise StoreError(explain(error, self._url)) from error

    def _stored(
        self, session: Session, wanted: Sequence[MessageRow], rows: dict[str, MessageRow]
    ) -> list[StoredMessage]:
        ids = [row.id for row in wanted]
        labels: dict[str, list[Label]] = {}
        for label in session.exec(
            select(LabelRow).where(col(LabelRow.message_id).in_(ids)).order_by(col(LabelRow.number))
        ):
            labels.setdefault(label.message_id, []).append(Label(label.is_error, label.start, label.end))
        tokens, versions = self._tokens(session, wanted), _versions(rows)
        return [
            _stored_message(row, tokens.get(row.id, ()), versions[row.parent_id], tuple(labels.get(row.id, ())))
            for row in wanted
        ]

    def _tokens(self, session: Session, wanted: Sequence[MessageRow]) -> dict[str, tuple[ScoredToken, ...]]:
        found = {row.id: self._cache.get((row.id, row.saved_at)) for row in wanted if row.role == "assistant"}
        missing = [message_id for message_id, tokens in found.items() if tokens is None]
        saved_at = {row.id: row.saved_at for row in wanted}
        for scores in session.exec(select(TokenRow).where(col(TokenRow.message_id).in_(missing))) if missing else ():
            key, data = (scores.message_id, saved_at[scores.message_id]), scores.data
            found[scores.message_id] = self._cache.put(key, lambda data=data: decode_tokens(data))
        return {message_id: tokens for message_id, tokens in found.items() if tokens is not None}


def _check_user(user: str) -> None:
    if not isinstance(user, str) or not user:
        raise StoreError("Chats belong to a user, but no user was given. Reload the page.")


def _chat(session: Session, user: str, chat_id: str, with_deleted: bool = False) -> ChatRow:
    query = select(ChatRow).where(ChatRow.id == chat_id, ChatRow.user == user)
    chat = session.exec(query).first()
    if chat is None or (chat.deleted_at is not None and not with_deleted):
        raise StoreError("This chat does not exist (any more). Choose another one from the list.")
    return chat


def _message(session: Session, user: str, message_id: str, with_deleted: bool = False) -> MessageRow:
    query = select(MessageRow).join(ChatRow, col(ChatRow.id) == MessageRow.chat_id)
    query = query.where(MessageRow.id == message_id, ChatRow.user == user)
    if not with_deleted:
        query = query.where(col(ChatRow.deleted_at).is_(None))
    message = session.exec(query).first()
    if message is None:
        raise StoreError("This message does not exist (any more). Open the chat again from the list.")
    return message


def _rows(session: Session, chat_id: str) -> dict[str, MessageRow]:
    """The chat's messages by id, in the order they were added."""
    query = select(MessageRow).where(MessageRow.chat_id == chat_id).order_by(col(MessageRow.number))
    return {row.id: row for row in session.exec(query)}


def _versions(rows: dict[str, MessageRow]) -> dict[str | None, list[str]]:
    versions: dict[str | None, list[str]] = {}
    for row in rows.values():
        versions.setdefault(row.parent_id, []).append(row.id)
    return versions


def _active_path(chat: ChatRow, rows: dict[str, MessageRow]) -> list[MessageRow]:
    path, child = [], chat.active_child
    while child is not None:
        path.append(rows[child])
        child = rows[child].active_child
    return path


def _ancestors(message: MessageRow, rows: dict[str, MessageRow]) -> list[MessageRow]:
    branch = [message]
    while branch[-1].parent_id is not None:
        branch.append(rows[branch[-1].parent_id])
    return branch[::-1]


def _activate(chat: ChatRow, message: MessageRow, rows: dict[str, MessageRow]) -> None:
    """Makes every message from the first down to this one the active child of its parent."""
    parent: ChatRow | MessageRow = chat
    for row in _ancestors(message, rows):
        parent.active_child = row.id
        parent = row


def _check_label(row: MessageRow, start: int | None, end: int | None) -> None:
    if row.role != "assistant" or row.status == "streaming":
        raise InputError("Only a finished answer can be marked as right or wrong.")
    if start is None and end is None:
        return
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(row.text)):
        raise InputError(
            f"A mark must cover at least one character of the answer: 0 <= start < end <= {len(row.text)}; "
            f"got start {start}, end {end}."
        )


def _stored_message(
    row: MessageRow, tokens: tuple[ScoredToken, ...], versions: list[str], labels: tuple[Label, ...]
) -> StoredMessage:
    # The status is judged at every reading, so that a crash of another process never leaves an answer "streaming".
    is_abandoned = row.status == "streaming" and not is_writer_alive(row.writer, row.saved_at)
    return StoredMessage(
        id=row.id,
        chat_id=row.chat_id,
        parent_id=row.parent_id,
        role=row.role,
        text=row.text,
        status="cancelled" if is_abandoned else row.status,
        finish_reason="cancelled" if is_abandoned else row.finish_reason,
        error=row.error,
        tokens=tokens,
        model=row.model,
        dropped_messages=row.dropped_messages,
        version=versions.index(row.id) + 1,
        version_count=len(versions),
        labels=labels,
        created_at=_time(row.created_at),
        is_example=row.is_example,
    )


def _chat_info(chat: ChatRow, message_count: int) -> ChatInfo:
    return ChatInfo(chat.id, chat.title, _time(chat.created_at), _time(chat.updated_at), message_count)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _storable(text: str) -> str:
    """The text with what no database keeps (half of a surrogate pair, NUL) replaced; lengths stay."""
    return _UNSTORABLE.sub("\ufffd", text)


def _clean_title(title: str) -> str:
    title = " ".join("".join(c for c in _storable(title) if c.isprintable() or c.isspace()).split())
    if not title:
        raise InputError("A chat's title needs at least one visible character.")
    return title[:MAX_TITLE_CHARS]
