"""Users' chats in a database: a tree of messages per chat, scored tokens, labels. Knows no model and no interface.

Every method that reads or changes a chat takes the user first, and another user's id is as unknown as one that was
never given out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import get_args

from sqlalchemy import delete, func, update
from sqlmodel import col, select

from uqchat.errors import InputError, StoreError
from uqchat.store_records import (
    ChatInfo,
    Label,
    Status,
    StoredMessage,
    chat_info,
    check_label,
    clean_title,
    message_row,
    storable,
    stored_messages,
)
from uqchat.store_sessions import Sessions, chat_of, chats_of, erase, marked, message_of, rows_of
from uqchat.store_tables import ChatRow, LabelRow, MessageRow, TokenRow, new_id
from uqchat.store_tree import activate, active_path, ancestors, versions_of
from uqchat.store_writer import is_writer_alive, new_writer
from uqchat.token_codec import AnswerScores, TokenCache, encode_scores, encode_tokens
from uqchat.types import FinishReason, Role, ScoredToken

__all__ = ["ChatInfo", "Label", "Status", "Store", "StoredMessage", "NEW_CHAT_TITLE"]

NEW_CHAT_TITLE = "New chat"


class Store:
    """All chats of all users in one database; safe to use from many threads.

    Args:
        url: an SQLAlchemy URL; `sqlite://` keeps everything in memory and forgets it at the end.

    Raises:
        StoreError: from every method, when an id is unknown to the user or the database refuses.
    """

    def __init__(self, url: str) -> None:
        self._sessions = Sessions(url)
        self._writer = new_writer()
        self._cache = TokenCache()

    # Chats

    def create_chat(self, user: str, title: str = NEW_CHAT_TITLE) -> ChatInfo:
        """A new, empty chat."""
        with self._sessions.writing(user) as session:
            chat = ChatRow(user=user, title=clean_title(title))
            session.add(chat)
            session.flush()
            return chat_info(chat, 0)

    def get_chat(self, user: str, chat_id: str) -> ChatInfo:
        """One chat of the user."""
        with self._sessions.reading(user) as session:
            chat = chat_of(session, user, chat_id)
            count = session.exec(select(func.count()).where(MessageRow.chat_id == chat_id)).one()
            return chat_info(chat, count)

    def list_chats(self, user: str, search: str = "") -> list[ChatInfo]:
        """The user's chats, the last used first; with `search`, those with it in the title or in any message."""
        with self._sessions.reading(user) as session:
            return [chat_info(chat, count) for chat, count in chats_of(session, user, search.strip())]

    def rename_chat(self, user: str, chat_id: str, title: str) -> ChatInfo:
        """Gives the chat a new title. Raises InputError when nothing is left of it without white space."""
        title = clean_title(title)
        with self._sessions.writing(user) as session:
            chat_of(session, user, chat_id).title = title
        return self.get_chat(user, chat_id)

    def delete_chat(self, user: str, chat_id: str) -> None:
        """Hides the chat; `restore_chat` brings it back until `purge_deleted`."""
        with self._sessions.writing(user) as session:
            chat_of(session, user, chat_id).deleted_at = time.time()

    def restore_chat(self, user: str, chat_id: str) -> ChatInfo:
        """Brings a deleted chat back."""
        with self._sessions.writing(user) as session:
            chat_of(session, user, chat_id, with_deleted=True).deleted_at = None
        return self.get_chat(user, chat_id)

    def purge_deleted(self, older_than_s: float = 86_400.0) -> int:
        """Erases all users' chats that were deleted this many seconds ago; returns how many.

        The default leaves a day, so that one app process starting up does not take away another's undo.
        """
        with self._sessions.writing() as session:
            old = select(ChatRow.id).where(col(ChatRow.deleted_at) <= time.time() - older_than_s)
            chats = list(session.exec(old))
            erase(session, chats)
            return len(chats)

    # Messages

    def path(self, user: str, chat_id: str) -> list[StoredMessage]:
        """The active branch, from the first message to the last."""
        with self._sessions.reading(user) as session:
            chat = chat_of(session, user, chat_id)
            rows = rows_of(session, chat_id)
            return stored_messages(session, self._cache, active_path(chat, rows), rows)

    def all_messages(self, user: str, chat_id: str) -> list[StoredMessage]:
        """Every version of every message, in the order they were begun; a parent comes before its children."""
        with self._sessions.reading(user) as session:
            chat_of(session, user, chat_id)
            rows = rows_of(session, chat_id)
            return stored_messages(session, self._cache, list(rows.values()), rows)

    def branch_to(self, user: str, message_id: str) -> list[StoredMessage]:
        """From the first message down to this one, whichever branch is active."""
        with self._sessions.reading(user) as session:
            message = message_of(session, user, message_id)
            rows = rows_of(session, message.chat_id)
            return stored_messages(session, self._cache, ancestors(message, rows), rows)

    def get_message(self, user: str, message_id: str) -> StoredMessage:
        """One message of the user."""
        with self._sessions.reading(user) as session:
            message = message_of(session, user, message_id)
            return stored_messages(session, self._cache, [message], rows_of(session, message.chat_id))[0]

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
        with self._sessions.writing(user) as session:
            chat = chat_of(session, user, chat_id)
            if parent_id is not None and message_of(session, user, parent_id).chat_id != chat_id:
                raise StoreError("The message to go on from belongs to another chat.")
            row = MessageRow(chat_id=chat_id, parent_id=parent_id, role=role, text=storable(text), status=status)
            row.model, row.is_example, row.writer = model, is_example, self._writer
            session.add(row)
            session.flush()
            chat.updated_at = row.created_at
            rows = rows_of(session, chat_id)
            activate(chat, row, rows)
            return stored_messages(session, self._cache, [row], rows)[0]

    def add_tree(self, user: str, title: str, messages: Sequence[StoredMessage], active_child: str | None) -> ChatInfo:
        """A new chat with all these messages, their tokens and labels, under fresh ids; all of it or nothing.

        A parent must come before its children. `active_child` is the first message of the active branch.
        """
        ids = {message.id: new_id() for message in messages}
        with self._sessions.writing(user) as session:
            chat = ChatRow(user=user, title=clean_title(title), active_child=ids.get(active_child))
            session.add(chat)
            session.flush()
            for message in messages:
                session.add(message_row(message, ids, chat.id, self._writer))
                session.flush()  # one by one: the order of versions, and a parent before its children
                if message.tokens:
                    session.add(TokenRow(message_id=ids[message.id], data=encode_tokens(message.tokens)))
                for label in message.labels:
                    session.add(
                        LabelRow(message_id=ids[message.id], is_error=label.is_error, start=label.start, end=label.end)
                    )
            return chat_info(chat, len(messages))

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
        scores: AnswerScores = AnswerScores(),  # noqa: B008  frozen
    ) -> None:
        """Replaces what is kept of an answer; works in a deleted chat too, which may be restored later."""
        if status not in get_args(Status):
            raise InputError(f"status must be one of {get_args(Status)}; got {status!r}.")
        data = encode_tokens(tokens)
        with self._sessions.writing(user) as session:
            row = message_of(session, user, message_id, with_deleted=True)
            row.text, row.status, row.finish_reason = storable(text), status, finish_reason
            row.error, row.dropped_messages = error and storable(error), dropped_messages
            row.writer, row.saved_at, row.scores = self._writer, time.time(), encode_scores(scores)
            blob = session.get(TokenRow, message_id) or TokenRow(message_id=message_id, data=b"")
            blob.data = data
            session.add(blob)

    def select_version(self, user: str, message_id: str, step: int) -> str:
        """Makes the version `step` places further active, with the messages last used below it; returns its id.

        A step past the first or last version stops there.
        """
        with self._sessions.writing(user) as session:
            message = message_of(session, user, message_id)
            rows = rows_of(session, message.chat_id)
            versions = versions_of(rows)[message.parent_id]
            position = versions.index(message.id) + step
            chosen = versions[max(0, min(position, len(versions) - 1))]
            activate(chat_of(session, user, message.chat_id), rows[chosen], rows)
            return chosen

    def step_back(self, user: str, chat_id: str) -> str | None:
        """Ends the active branch before its last question, whose text is returned; None when there is none.

        Nothing is deleted: the next question becomes another version of the one that was taken back.
        """
        with self._sessions.writing(user) as session:
            chat = chat_of(session, user, chat_id)
            rows = rows_of(session, chat_id)
            questions = [row for row in active_path(chat, rows) if row.role == "user"]
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
        with self._sessions.writing(user) as session:
            row = message_of(session, user, message_id)
            check_label(row, start, end)
            same = (LabelRow.message_id == message_id, col(LabelRow.start) == start, col(LabelRow.end) == end)
            session.exec(delete(LabelRow).where(*same))
            if is_error is not None:
                session.add(LabelRow(message_id=message_id, is_error=bool(is_error), start=start, end=end))

    def count_marks(self, user: str, model: str) -> tuple[int, int]:
        """How many answers of this model the user has marked right, and how many wrong."""
        with self._sessions.reading(user) as session:
            query = select(LabelRow.is_error, func.count()).join(MessageRow, col(MessageRow.id) == LabelRow.message_id)
            query = marked(query, user, model).group_by(col(LabelRow.is_error))
            counts = {bool(is_error): count for is_error, count in session.exec(query)}
            return counts.get(False, 0), counts.get(True, 0)

    def marked_answers(self, user: str, model: str) -> list[StoredMessage]:
        """The answers of this model that the user has marked as a whole, oldest first."""
        with self._sessions.reading(user) as session:
            query = select(MessageRow).join(LabelRow, col(MessageRow.id) == LabelRow.message_id)
            rows = list(session.exec(marked(query, user, model).order_by(col(MessageRow.number))))
            return [stored_messages(session, self._cache, [row], rows_of(session, row.chat_id))[0] for row in rows]

    # Life of the process

    def mark_interrupted(self) -> int:
        """Turns answers that nobody is writing any more into cancelled ones, for all users; returns how many.

        Answers that another living process writes into the same database are left alone.
        """
        with self._sessions.writing() as session:
            rows = session.exec(select(MessageRow).where(MessageRow.status == "streaming")).all()
            abandoned = [row for row in rows if not is_writer_alive(row.writer, row.saved_at)]
            for row in abandoned:
                row.status, row.finish_reason = "cancelled", "cancelled"
            return len(abandoned)

    def close(self) -> None:
        """Marks what this store was still writing as cancelled and lets the database go."""
        with self._sessions.writing() as session:
            unfinished = (MessageRow.writer == self._writer, MessageRow.status == "streaming")
            session.exec(update(MessageRow).where(*unfinished).values(status="cancelled", finish_reason="cancelled"))
        self._sessions.close()
