"""Who is asking: the login name, or a random id that the browser keeps. Knows no page and no store."""

from __future__ import annotations

import re
import secrets
from typing import Protocol

from uqchat.errors import InputError

_BROWSER_ID = re.compile(r"[0-9a-f]{32}")


class HasLogin(Protocol):
    """The part of a gradio request that says who is logged in and which page is asking."""

    username: str | None
    session_hash: str | None


def browser_id(kept: object) -> str:
    """The 128-bit id that the browser kept, or a new one where it kept none that we could have given."""
    return kept if isinstance(kept, str) and _BROWSER_ID.fullmatch(kept) else secrets.token_hex(16)


def user_of(request: HasLogin, kept: object) -> str:
    """The user in whose name the store is asked. A browser id can never equal a login name.

    Raises:
        InputError: nobody is logged in and the browser sent no id of ours.
    """
    if request.username:
        return f"login:{request.username}"
    if not isinstance(kept, str) or not _BROWSER_ID.fullmatch(kept):
        raise InputError("This page does not know who you are; reload it. (It keeps a random id in this browser.)")
    return f"browser:{kept}"
