"""Chats to files and back: JSON keeps everything, CSV has a row per token, HTML is for reading. Knows no interface."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

from pydantic import ValidationError

from uqchat.errors import InputError
from uqchat.render import RiskView
from uqchat.store import ChatInfo, Store, StoredMessage
from uqchat.transfer_csv import to_csv
from uqchat.transfer_html import to_html
from uqchat.transfer_json import chat_record
from uqchat.transfer_schema import FORMAT, VERSION, ChatRecord, Header

Format = Literal["json", "csv", "html"]
MAX_IMPORT_BYTES = 64 * 2**20


def export_chat(
    store: Store, user: str, chat_id: str, format: Format, view: RiskView | None = None
) -> tuple[str, bytes]:
    """A file name and the file.

    Args:
        format: `json`: the whole tree with tokens, labels and versions, for `import_chat`; `csv`: one row per token of
            every answer; `html`: the active branch as a page that needs no other file.
        view: how the HTML page colours tokens.

    Raises:
        InputError: another format. StoreError: not a chat of this user.
    """
    writers: dict[str, Callable[[], bytes]] = {
        "json": lambda: _to_json(chat, store.all_messages(user, chat_id), store.path(user, chat_id)),
        "csv": lambda: to_csv(store.all_messages(user, chat_id)),
        "html": lambda: to_html(chat, store.path(user, chat_id), view or RiskView()),
    }
    if format not in writers:
        raise InputError(f"A chat can be exported as {', '.join(get_args(Format))}; got {format!r}.")
    chat = store.get_chat(user, chat_id)
    return f"{_file_stem(chat.title)}.{format}", writers[format]()


def import_chat(store: Store, user: str, data: bytes) -> ChatInfo:
    """A chat of `user`'s own from an exported JSON file, under fresh ids.

    Raises:
        InputError: the file is too large, of another kind or version, or not consistent; the text says where.
    """
    if len(data) > MAX_IMPORT_BYTES:
        limit = MAX_IMPORT_BYTES // 2**20
        raise InputError(f"The file has {len(data) / 2**20:.0f} MiB; at most {limit} MiB can be imported.")
    data = data.removeprefix(b"\xef\xbb\xbf")
    _check_header(data)
    try:
        record = ChatRecord.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"This chat cannot be imported: {_first(error)}") from error
    messages = [message.to_message() for message in record.messages]
    return store.add_tree(user, record.title, messages, record.active_child)


def _check_header(data: bytes) -> None:
    try:
        header = Header.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"This is not a chat that uqchat exported as JSON: {_first(error)}") from error
    if header.format != FORMAT:
        raise InputError(f"The file's format is {header.format[:80]!r}; a chat has {FORMAT!r}.")
    if header.version != VERSION:
        raise InputError(
            f"The file has version {header.version} of the chat format; this uqchat reads version {VERSION}. Update it."
        )


def _first(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False)
    place = ".".join(str(part)[:80] for part in details[0]["loc"])
    more = f" ({len(details) - 1} more)" if len(details) > 1 else ""
    return f"{place + ': ' if place else ''}{details[0]['msg'].removeprefix('Value error, ')[:300]}{more}."


def _to_json(chat: ChatInfo, messages: list[StoredMessage], path: list[StoredMessage]) -> bytes:
    record = chat_record(chat, messages, path[0].id if path else None)
    return record.model_dump_json().encode("utf-8")


def _file_stem(title: str) -> str:
    """A name that is safe on every system and says which chat it is."""
    words = re.sub(r"[^\w]+", "-", title).strip("-").lower()
    return f"uqchat-{words[:60].strip('-') or 'chat'}"
