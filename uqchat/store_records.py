"""What the store hands out, built from its rows, and how text is made fit to keep. Asks no question about users."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlmodel import Session, col, select

from uqchat.errors import InputError
from uqchat.store_tables import ChatRow, LabelRow, MessageRow, TokenRow
from uqchat.store_tree import versions_of
from uqchat.store_writer import is_writer_alive
from uqchat.token_codec import AnswerScores, TokenCache, decode_scores, decode_tokens, encode_scores
from uqchat.types import FinishReason, Role, ScoredToken

Status = Literal["streaming", "done", "cancelled", "error"]
MAX_TITLE_CHARS = 200
# Control characters that are no white space, and those that turn the reading direction of whatever follows.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
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
    """A message as it is kept; versions are the messages with the same parent, `version` counts from 1.

    `active_child` is the id of the message below it that was active last, None where the branch ends.
    """

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
    active_child: str | None = None
    scores: AnswerScores = AnswerScores()


def stored_messages(
    session: Session, cache: TokenCache, wanted: Sequence[MessageRow], rows: dict[str, MessageRow]
) -> list[StoredMessage]:
    """The wanted rows as records, in their order; `rows` are all messages of their chat."""
    labels, tokens, versions = _labels(session, wanted), _tokens(session, cache, wanted), versions_of(rows)
    return [
        _stored_message(row, tokens.get(row.id, ()), versions[row.parent_id], tuple(labels.get(row.id, ())))
        for row in wanted
    ]


def _labels(session: Session, wanted: Sequence[MessageRow]) -> dict[str, list[Label]]:
    labels: dict[str, list[Label]] = {}
    ids = [row.id for row in wanted]
    query = select(LabelRow).where(col(LabelRow.message_id).in_(ids)).order_by(col(LabelRow.number))
    for label in session.exec(query):
        labels.setdefault(label.message_id, []).append(Label(label.is_error, label.start, label.end))
    return labels


def _tokens(session: Session, cache: TokenCache, wanted: Sequence[MessageRow]) -> dict[str, tuple[ScoredToken, ...]]:
    keys = {row.id: (row.id, row.saved_at) for row in wanted if row.role == "assistant"}
    found = {message_id: cache.get(key) for message_id, key in keys.items()}
    missing = [message_id for message_id, tokens in found.items() if tokens is None]
    query = select(TokenRow).where(col(TokenRow.message_id).in_(missing))
    for scores in session.exec(query) if missing else ():
        found[scores.message_id] = cache.put(keys[scores.message_id], decode_tokens(scores.data))
    return {message_id: tokens for message_id, tokens in found.items() if tokens is not None}


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
        active_child=row.active_child,
        scores=decode_scores(row.scores),
    )


def message_row(message: StoredMessage, ids: Mapping[str, str], chat_id: str, writer: str) -> MessageRow:
    """The row of a copy of this message in another chat; `ids` gives the copies' ids by the originals'."""
    return MessageRow(
        id=ids[message.id],
        chat_id=chat_id,
        parent_id=message.parent_id and ids[message.parent_id],
        active_child=message.active_child and ids[message.active_child],
        role=message.role,
        text=storable(message.text),
        status=message.status,
        finish_reason=message.finish_reason,
        error=message.error and storable(message.error),
        model=storable(message.model),
        dropped_messages=message.dropped_messages,
        is_example=message.is_example,
        created_at=message.created_at.timestamp(),
        writer=writer,
        scores=encode_scores(message.scores),
    )


def chat_info(chat: ChatRow, message_count: int) -> ChatInfo:
    """The chat as the list shows it."""
    return ChatInfo(chat.id, chat.title, _time(chat.created_at), _time(chat.updated_at), message_count)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def check_label(row: MessageRow, start: int | None, end: int | None) -> None:
    """Raises InputError unless this is a finished answer and the span, if any, lies inside its text."""
    if row.role != "assistant" or row.status == "streaming":
        raise InputError("Only a finished answer can be marked as right or wrong.")
    if start is None and end is None:
        return
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(row.text)):
        raise InputError(
            f"A mark must cover at least one character of the answer: 0 <= start < end <= {len(row.text)}; "
            f"got start {start}, end {end}."
        )


def storable(text: str) -> str:
    """The text with what no database keeps (half of a surrogate pair, NUL) replaced; lengths stay."""
    return _UNSTORABLE.sub("\ufffd", text)


def clean_title(title: str) -> str:
    """One line of at most MAX_TITLE_CHARS, without control characters. Raises InputError when nothing is left."""
    one_line = " ".join(_INVISIBLE.sub("", storable(title)).split())
    if not one_line:
        raise InputError("A chat's title needs at least one visible character.")
    return one_line[:MAX_TITLE_CHARS]
