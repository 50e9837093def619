"""A chat as one HTML page without script and without any other file. Knows no database."""

from __future__ import annotations

from collections.abc import Sequence

from uqchat.paths import ASSETS
from uqchat.render import RiskView, answer_line, encode, legend_html, tokens_to_html
from uqchat.store import ChatInfo, StoredMessage

_STATES = {"cancelled": "Stopped", "streaming": "Not finished", "error": "Failed"}
_STYLE = """
body { margin: 0 auto; max-width: 46rem; padding: 2rem 1rem 4rem; color: var(--uq-ink); background: var(--uq-paper);
  font-family: var(--uq-text-font); line-height: 1.65; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
.uq-line, .uq-note { color: var(--uq-soft); font-size: 0.85rem; }
"""


def to_html(chat: ChatInfo, messages: Sequence[StoredMessage], view: RiskView) -> bytes:
    """The messages in order, tokens coloured as in `view`. The page forbids itself scripts and requests."""
    body = "".join(_message(message, view) for message in messages if message.role != "system")
    return standalone(
        chat.title,
        f"""<p class="uq-note">Exported from uqchat on {chat.updated_at:%Y-%m-%d}.</p>
{legend_html(view.estimator, view)}
<main class="uq-messages">{body}</main>""",
    )


def standalone(title: str, body: str) -> bytes:
    """A page with the app's style and nothing else: it forbids itself scripts and requests. `body` is HTML."""
    style = (ASSETS / "uqchat.css").read_text(encoding="utf-8") + _STYLE
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    page = f"""<!doctype html>
<html lang="">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{encode(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{encode(title)}</h1>
{body}
</body>
</html>
"""
    return page.encode("utf-8", "replace")


def _message(message: StoredMessage, view: RiskView) -> str:
    if message.role == "user":
        text = f'<div class="uq-bubble"><div class="uq-text" dir="auto">{encode(message.text)}</div></div>'
        return f'<article class="uq-message uq-user" aria-label="Question">{text}</article>'
    text = f'<div class="uq-text" dir="auto">{encode(message.text)}</div>'
    if message.tokens:
        text = tokens_to_html(message.tokens, view, message.id, message.labels)
    facts = [
        f"Version {message.version} of {message.version_count}" if message.version_count > 1 else "",
        message.model,
        _STATES.get(message.status, ""),
        "Scored, not generated" if message.finish_reason == "given" else "",
        message.error or "",
        *("Marked wrong" if label.is_error else "Marked right" for label in message.labels if label.start is None),
        answer_line(message.tokens, view),
    ]
    notes = encode(" · ".join(fact for fact in facts if fact))
    return f'<article class="uq-message uq-answer" aria-label="Answer">{text}<p class="uq-line">{notes}</p></article>'
