"""A conversation as HTML: bubbles, answers, toolbars, notices, the first minute. Pure; knows no page and no store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from uqchat.render_policy import decided_html, kept_tokens
from uqchat.render_text import encode, plural
from uqchat.render_tokens import SpanLabel, answer_line, tokens_to_html
from uqchat.render_units import RiskView
from uqchat.types import Decision, ScoredToken


class MessageLike(Protocol):
    """What drawing needs of a stored message."""

    id: str
    role: str
    text: str
    status: str
    finish_reason: str | None
    error: str | None
    tokens: Sequence[ScoredToken]
    model: str
    dropped_messages: int
    version: int
    version_count: int
    labels: Sequence[SpanLabel]
    is_example: bool


class SnapshotLike(Protocol):
    """What drawing needs of an answer under way."""

    tokens: Sequence[ScoredToken]
    status: str
    queue_position: int | None
    error: str | None


@dataclass(frozen=True)
class About:
    """What is known of an answer besides its tokens."""

    remark: str = ""
    """What to know before reading its colours."""
    decision: Decision | None = None
    """What a policy made of it."""
    verdict: str = ""
    """A sentence about the answer as a whole."""


def conversation_html(
    messages: Iterable[MessageLike],
    view: RiskView,
    is_busy: bool = False,
    remarks: Mapping[str, str] | None = None,
    decisions: Mapping[str, Decision] | None = None,
    verdicts: Mapping[str, str] | None = None,
) -> str:
    """Finished messages in order.

    Args:
        is_busy: an answer is under way; switches off what would start another.
        remarks: by message id, what to know before reading an answer's colours.
        decisions: by message id, what a policy made of an answer.
        verdicts: by message id, a sentence about an answer as a whole.
    """
    remarks, decisions, verdicts = remarks or {}, decisions or {}, verdicts or {}
    found = "".join(
        _message(message, view, is_busy, About(remarks.get(key, ""), decisions.get(key), verdicts.get(key, "")))
        for key, message in ((message.id, message) for message in messages)
    )
    return f'<div class="uq-messages">{found}</div>'


def _message(message: MessageLike, view: RiskView, is_busy: bool, about: About) -> str:
    if message.role == "system":
        return ""
    body = _question(message) if message.role == "user" else _answer(message, view, is_busy, about)
    tools = _toolbar(message, is_busy)
    kind = "user" if message.role == "user" else "answer"
    name = "You" if kind == "user" else "Answer"
    example = " data-example" if message.is_example else ""
    head = f'<article class="uq-message uq-{kind}" data-m="{encode(message.id)}" aria-label="{name}"{example}>'
    return f"{head}{body}{tools}</article>"


def _question(message: MessageLike) -> str:
    return f'<div class="uq-bubble"><div class="uq-text" dir="auto">{encode(message.text)}</div></div>'


def _answer(message: MessageLike, view: RiskView, is_busy: bool, about: About) -> str:
    decision = about.decision
    if message.tokens:
        text = tokens_to_html(message.tokens, view, message.id, message.labels)
    else:
        text = f'<div class="uq-text" dir="auto" data-m="{encode(message.id)}">{encode(message.text)}</div>'
    if decision is not None:
        kept = kept_tokens(message.tokens, decision) if decision.hidden else []
        shown = tokens_to_html(kept, view, message.id, message.labels) if kept else text
        text = decided_html(decision, message.id, text, shown)
    is_hidden = decision is not None and (decision.is_hidden or bool(decision.hidden))
    badge = '<span class="uq-badge">Stored example</span>' if message.is_example else ""
    told = answer_line(message.tokens, view)
    line = "" if is_hidden else f"{about.verdict} {told}".strip()  # it quotes the answer
    summary = f'<p class="uq-line">{encode(line)}</p>' if line else ""
    dropped = ""
    if message.dropped_messages:
        left = plural(message.dropped_messages, "message")
        dropped = f'<p class="uq-chip">Oldest {left} left out: the window is full</p>'
    note = f'<p class="uq-remark" role="note">{encode(about.remark)}</p>' if about.remark else ""
    return f"{badge}{dropped}{note}{text}{_notices(message, is_busy)}{summary}{_span_labels(message)}"


def _notices(message: MessageLike, is_busy: bool) -> str:
    if message.status == "error":
        error = encode(message.error or "The answer failed.")
        again = _button("retry", "Try again", message, is_busy, text="Try again")
        return f'<p class="uq-chip uq-chip-error" role="alert">{error} {again}</p>'
    if message.status == "cancelled":
        return f'<p class="uq-chip">Stopped {_go_on(message, is_busy)}</p>'
    if message.finish_reason == "given":
        return f'<p class="uq-chip">Scored, not generated {_go_on(message, is_busy)}</p>'
    if message.finish_reason == "length":
        return f'<p class="uq-chip">Length limit reached {_go_on(message, is_busy)}</p>'
    return ""


def _go_on(message: MessageLike, is_busy: bool) -> str:
    # Going on from the last token is "continue from here" with the token that is already there.
    if not message.tokens or message.is_example:
        return ""
    last = message.tokens[-1]
    extra = f' data-index="{len(message.tokens) - 1}" data-token-id="{last.token_id}"'
    return _button("continue", "Continue", message, is_busy, extra=extra, text="Continue")


def _span_labels(message: MessageLike) -> str:
    rows = [label for label in message.labels if label.start is not None and label.end is not None]
    return "".join(
        f'<p class="uq-chip">Marked {"wrong" if label.is_error else "right"}: '
        f"<q>{encode(message.text[label.start : label.end][:60])}</q> "
        + _button(
            "unmark_span",
            "Remove this mark",
            message,
            False,
            f' data-start="{label.start}" data-end="{label.end}"',
            "Remove",
        )
        + "</p>"
        for label in rows
    )


def _toolbar(message: MessageLike, is_busy: bool) -> str:
    copy = _button("copy", "Copy", message, False) if message.text else ""
    if message.is_example:
        return f'<div class="uq-tools">{copy}</div>'
    buttons = [_versions(message, is_busy), copy]
    if message.role == "user":
        buttons.append(_button("edit", "Edit and ask again", message, is_busy))
    else:
        buttons.append(_button("retry", "Answer again", message, is_busy))
        buttons.append(_verdict(message) if message.text else "")
        buttons.append(f'<span class="uq-model"><bdi>{encode(message.model)}</bdi></span>')
    return f'<div class="uq-tools" role="group" aria-label="Message">{"".join(buttons)}</div>'


def _verdict(message: MessageLike) -> str:
    whole = next((label for label in message.labels if label.start is None), None)
    return "".join(
        _button(f"mark_{word}", f"Mark as {word}", message, False, f' aria-pressed="{_js(is_pressed)}"')
        for word, is_pressed in (
            ("right", whole is not None and not whole.is_error),
            ("wrong", whole is not None and whole.is_error),
        )
    )


def _js(flag: bool) -> str:
    return "true" if flag else "false"


def _versions(message: MessageLike, is_busy: bool) -> str:
    if message.version_count < 2:
        return ""
    back = _button("versions_prev", "Previous version", message, is_busy or message.version <= 1)
    on = _button("versions_next", "Next version", message, is_busy or message.version >= message.version_count)
    return f'<span class="uq-versions">{back}<span>{message.version} / {message.version_count}</span>{on}</span>'


def _button(action: str, label: str, message: MessageLike, is_disabled: bool, extra: str = "", text: str = "") -> str:
    disabled = " disabled" if is_disabled else ""
    look = "uq-button" if text else f"uq-icon uq-i-{action}"
    return (
        f'<button type="button" class="{look}" data-action="{action}" data-message="{encode(message.id)}"{extra} '
        f'aria-label="{label}" title="{label}"{disabled}>{text}</button>'
    )


def live_answer_html(snapshot: SnapshotLike | None, view: RiskView, message_id: str) -> str:
    """The answer under way. Closing tags are left to the HTML parser, so that each update only adds to the last."""
    if snapshot is None:
        return ""
    busy = snapshot.status in ("waiting", "streaming")
    head = (
        f'<article class="uq-message uq-answer uq-live" data-m="{encode(message_id)}" aria-label="Answer" '
        f'aria-busy="{_js(busy)}">'
    )
    if snapshot.status == "error":
        return (
            f'{head}<p class="uq-chip uq-chip-error" role="alert">{encode(snapshot.error or "The answer failed.")}</p>'
        )
    if not snapshot.tokens:
        ahead = snapshot.queue_position or 0
        words = (
            f"{plural(ahead, 'request')} {'is' if ahead == 1 else 'are'} ahead of yours"
            if ahead
            else "Reading the conversation"
        )
        return f'{head}<p class="uq-waiting">{words}</p>' if busy else head
    return head + tokens_to_html(snapshot.tokens, view, message_id, is_streaming=busy)


def welcome_html(groups: Mapping[str, Sequence[str]]) -> str:
    """The first minute: questions to try, under their group's heading; a press sends `ask` with the text."""
    sections = "".join(
        f"<section><h3>{encode(title)}</h3>"
        + "".join(
            f'<button type="button" class="uq-ask" data-action="ask" data-text="{encode(text)}">{encode(text)}</button>'
            for text in questions
        )
        + "</section>"
        for title, questions in groups.items()
    )
    return f'<div class="uq-welcome"><h2>Ask something</h2><div class="uq-asks">{sections}</div></div>'
