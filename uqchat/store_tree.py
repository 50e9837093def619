"""The tree of a chat's messages, on loaded rows. Knows no query and no user."""

from __future__ import annotations

from uqchat.store_tables import ChatRow, MessageRow


def versions_of(rows: dict[str, MessageRow]) -> dict[str | None, list[str]]:
    """Ids of the messages with the same parent, by parent (None: the first message), oldest first."""
    versions: dict[str | None, list[str]] = {}
    for row in rows.values():
        versions.setdefault(row.parent_id, []).append(row.id)
    return versions


def active_path(chat: ChatRow, rows: dict[str, MessageRow]) -> list[MessageRow]:
    """The messages from the chat down to the end of its active branch."""
    path, child = [], chat.active_child
    while child is not None:
        path.append(rows[child])
        child = rows[child].active_child
    return path


def ancestors(message: MessageRow, rows: dict[str, MessageRow]) -> list[MessageRow]:
    """From the first message down to this one, itself included."""
    branch = [message]
    while branch[-1].parent_id is not None:
        branch.append(rows[branch[-1].parent_id])
    return branch[::-1]


def activate(chat: ChatRow, message: MessageRow, rows: dict[str, MessageRow]) -> None:
    """Makes every message from the first down to this one the active child of its parent."""
    parent: ChatRow | MessageRow = chat
    for row in ancestors(message, rows):
        parent.active_child = row.id
        parent = row
