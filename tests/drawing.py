"""Messages and tokens for tests about drawing. Knows no page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.doubles import scored_token
from uqchat.types import Alternative, Risk, ScoredToken

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NASTY = st.sampled_from(
    [
        "<script>",
        "</div>",
        "&amp;",
        "&#39;",
        "${alert(1)}",
        "{{x}}",
        "`",
        "\\",
        "\r\n",
        "\r",
        "\0",
        "\x80",
        "\u202e",
        "]]>",
        "<!--",
        '"',
        "'",
    ]
)


@dataclass(frozen=True)
class Mark:
    """A person's verdict on a span, or on the whole answer."""

    is_error: bool
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Stored:
    """A message as the store hands it out, as far as drawing needs it."""

    role: str = "assistant"
    text: str = ""
    id: str = "m1"
    status: str = "done"
    finish_reason: str | None = "stop"
    error: str | None = None
    tokens: tuple[ScoredToken, ...] = ()
    model: str = "scripted"
    dropped_messages: int = 0
    version: int = 1
    version_count: int = 1
    labels: tuple[Mark, ...] = field(default=())
    is_example: bool = False


@dataclass(frozen=True)
class Running:
    """An answer under way."""

    tokens: tuple[ScoredToken, ...] = ()
    status: str = "streaming"
    queue_position: int | None = None
    error: str | None = None


def with_risk(index: int, text: str, value: float, start: int = 0, **changes: Any) -> ScoredToken:
    """A token with this risk."""
    return scored_token(index, text, start, risks={"entropy": Risk(value, value)}, **changes)


def sequence(*pairs: tuple[str, float], **changes: Any) -> list[ScoredToken]:
    """Tokens with these texts and risks, one after the other."""
    tokens: list[ScoredToken] = []
    for text, value in pairs:
        start = tokens[-1].span[1] if tokens else 0
        tokens.append(with_risk(len(tokens), text, value, start, **changes))
    return tokens


def alternatives(*pairs: tuple[str, float]) -> tuple[Alternative, ...]:
    """Candidates with these texts and probabilities; ids from 1."""
    return tuple(Alternative(i, text, math.log(share)) for i, (text, share) in enumerate(pairs, 1))
