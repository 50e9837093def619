"""A chat's tokens as a CSV table. Knows no database.

A spreadsheet runs a cell that begins with = + - or @ as a formula, and this text comes from a model or a stranger: such
cells get an apostrophe in front, which spreadsheets hide.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from uqchat.store import StoredMessage
from uqchat.types import ScoredToken

_COLUMNS = (
    *("message", "version", "status", "model", "index", "token_id", "text", "start", "end"),
    *("logprob", "entropy", "is_reasoning", "is_end"),
)


def to_csv(messages: Sequence[StoredMessage]) -> bytes:
    """One row per token of every answer; `message` counts the chat's messages from 1.

    UTF-8 with a byte order mark, without which Excel reads another encoding.
    """
    names = list(dict.fromkeys(name for m in messages for token in m.tokens for name in token.risks))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow([*_COLUMNS, *(safe_cell(f"{name}_{kind}") for name in names for kind in ("risk", "raw"))])
    for number, message in enumerate(messages, 1):
        for token in message.tokens:
            writer.writerow([number, *_cells(message, token, names)])
    return table.getvalue().encode("utf-8-sig", "replace")


def _cells(message: StoredMessage, token: ScoredToken, names: Sequence[str]) -> list[object]:
    risks = [token.risks.get(name) for name in names]
    return [
        message.version,
        message.status,
        safe_cell(message.model),
        token.index,
        token.token_id,
        safe_cell(token.text),
        *token.span,
        token.logprob,
        token.entropy,
        int(token.is_reasoning),
        int(token.is_end),
        *(value for risk in risks for value in ((risk.value, risk.raw) if risk else ("", ""))),
    ]


def safe_cell(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet could take it for a formula."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r", "\n") else text
