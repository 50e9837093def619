"""The list of chats as HTML. Pure; knows no component and no store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from uqchat.render import encode


class ChatLike(Protocol):
    """What the list needs of a chat."""

    id: str
    title: str


def chats_html(
    chats: Sequence[ChatLike], active: str | None, deleted: tuple[str, str] | None = None, search: str = ""
) -> str:
    """One row per chat; `deleted` (id, title) adds an offer to bring that one back."""
    rows = "".join(_row(chat, chat.id == active) for chat in chats)
    if not rows:
        rows = f'<li class="uq-none">{"No chat has this in it." if search else "No chats yet."}</li>'
    return f'{_undo(deleted)}<ul class="uq-chat-list" aria-label="Chats">{rows}</ul>'


def _row(chat: ChatLike, is_active: bool) -> str:
    title, key = encode(chat.title), encode(chat.id)
    current = ' aria-current="true"' if is_active else ""
    return (
        f'<li{current}><button type="button" class="uq-chat-name" data-action="chat_open" '
        f'data-chat="{key}" title="{title}"><bdi>{title}</bdi></button>'
        f'<button type="button" class="uq-icon uq-i-edit" data-rename="{key}" data-title="{title}" '
        f'aria-label="Rename {title}" title="Rename"></button>'
        f'<button type="button" class="uq-icon uq-i-delete" data-action="chat_delete" data-chat="{key}" '
        f'aria-label="Delete {title}" title="Delete"></button></li>'
    )


def _undo(deleted: tuple[str, str] | None) -> str:
    if deleted is None:
        return ""
    chat_id, title = deleted
    return (
        f'<p class="uq-undo" role="status">Deleted <q><bdi>{encode(title)}</bdi></q> '
        f'<button type="button" class="uq-button" data-action="chat_restore" data-chat="{encode(chat_id)}">'
        "Undo</button></p>"
    )
