"""The model's state as one line for everybody. Pure; knows no component and no model."""

from __future__ import annotations

from uqchat.host import HostStatus
from uqchat.render import encode


def status_html(status: HostStatus) -> str:
    """A mark, the model or what happens to it, and a bar while bytes are counted."""
    if status.state == "ready":
        words = f"<b><bdi>{encode(status.model or '')}</bdi></b> {encode(status.details)}"
    else:
        words = encode(status.message)
    error = f'<span class="uq-status-error">{encode(status.error)}</span>' if status.error else ""
    return (
        f'<p class="uq-status uq-is-{status.state}" role="status"><i></i><span>{words}</span>{_bar(status)}{error}</p>'
    )


def _bar(status: HostStatus) -> str:
    if status.state not in ("loading", "switching"):
        return ""
    if status.done is None or not status.total:
        return '<progress aria-label="Loading"></progress>'
    return f'<progress aria-label="Loading" max="{status.total}" value="{status.done}"></progress>'
