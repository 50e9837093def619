"""An answer under a policy as HTML: declined, shortened, or with a line that says what the policy made of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from uqchat.render_text import encode, plural
from uqchat.types import Decision, ScoredToken

_HEADS = {
    "answered": "passed",
    "marked": "marked",
    "declined": "declined",
    "stopped": "stopped early",
    "trimmed": "shortened",
    "handed_over": "handed over",
    "cannot_judge": "cannot judge this answer",
}


def kept_tokens(tokens: Sequence[ScoredToken], decision: Decision) -> list[ScoredToken]:
    """The tokens outside the characters that the policy left out."""
    spans = decision.hidden
    return [t for t in tokens if not any(start <= t.span[0] and t.span[1] <= end and t.text for start, end in spans)]


def decided_html(decision: Decision, message_id: str, whole: str, shown: str) -> str:
    """The answer as the policy lets it be seen, and its details.

    Args:
        whole: the HTML of all of the answer. shown: of what is left when risky sentences are gone.
    """
    key = encode(f"{message_id}:whole")
    if decision.is_hidden:
        folded = _folded(key, "Show it anyway", whole)
        words = f'<div class="uq-declined" role="note"><p>{encode(decision.reason)}</p>{folded}</div>'
        return words + _details(decision, message_id)
    if decision.outcome == "trimmed":
        note = f'<p class="uq-chip">{encode(decision.reason)}</p>'
        return f"{shown}{note}{_folded(key, 'Show all of it', whole)}{_details(decision, message_id)}"
    is_loud = decision.outcome in ("marked", "stopped", "handed_over", "cannot_judge")
    note = (
        f'<p class="uq-chip uq-policy-{decision.outcome}" role="note">{encode(decision.reason)}</p>' if is_loud else ""
    )
    return f"{whole}{note}{_details(decision, message_id)}"


def _folded(key: str, label: str, body: str) -> str:
    return f'<details class="uq-whole" data-key="{key}"><summary>{label}</summary>{body}</details>'


def _details(decision: Decision, message_id: str) -> str:
    risk = "unknown" if decision.risk is None else f"{decision.risk:.2f}"
    rows = [
        ("Risk", f"{risk} by {decision.estimator}"),
        ("Threshold", f"{decision.threshold:.3f}"),
        ("Promise", decision.basis),
    ]
    if decision.tries > 1:
        rows.append(("Tries", f"{decision.tries}, {plural(decision.extra_tokens, 'token')} more than one answer"))
    if decision.answered_by:
        rows.append(("Answered by", decision.answered_by))
    listed = "".join(f"<div><dt>{name}</dt><dd>{encode(value)}</dd></div>" for name, value in rows)
    head = f"Policy {decision.policy}, version {decision.version}: {_HEADS[decision.outcome]}"
    key = encode(f"{message_id}:policy")
    return f'<details class="uq-policy" data-key="{key}"><summary>{encode(head)}</summary><dl>{listed}</dl></details>'
