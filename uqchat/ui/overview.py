"""One line per listed estimator about an answer as a whole. Pure; knows no component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uqchat.estimators import get_estimators
from uqchat.render import answer_line, encode
from uqchat.scoring import answer_scores
from uqchat.types import ScoredToken
from uqchat.ui.sessions import Session


def overview_html(tokens: Sequence[ScoredToken], session: Session) -> str:
    """The answer's risk by every listed estimator, the tinting one first; '' without tokens."""
    if not tokens:
        return ""
    names = [session.view.estimator, *(name for name in session.listed if name != session.view.estimator)]
    known = [one for one in get_estimators(names) if one.name in tokens[0].risks]
    risks, _ = answer_scores(tokens, known)
    rows = ""
    for one in known:
        line = answer_line(tokens, replace(session.view, estimator=one.name))
        value = f"{risks[one.name].value:.2f}" if one.name in risks else "–"
        words = encode(line.partition(":")[0].removesuffix("."))
        rows += f"<div><dt>{encode(one.label)}</dt><dd><b>{value}</b> <span>{words}</span></dd></div>"
    return f'<section class="uq-overview"><h3>The newest answer, by estimator</h3><dl>{rows}</dl></section>'
