"""One line per listed estimator about an answer as a whole, and what to know before trusting its colours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from uqchat.render import NameLike, RiskView, answer_line, encode, label_of
from uqchat.token_codec import AnswerScores
from uqchat.types import Risk, ScoredToken


class AnswerLike(Protocol):
    """What is asked of a message here."""

    tokens: Sequence[ScoredToken]
    scores: AnswerScores


def overview_html(message: AnswerLike, view: RiskView, listed: Sequence[str], known: Mapping[str, NameLike]) -> str:
    """The answer's risk by every listed estimator, the tinting one first; '' without tokens."""
    if not message.tokens:
        return ""
    names = dict.fromkeys([view.estimator, *listed])
    rows = "".join(_row(message, view, name, known) for name in names)
    return f'<section class="uq-overview"><h3>The newest answer, by estimator</h3><dl>{rows}</dl></section>'


def _row(message: AnswerLike, view: RiskView, name: str, known: Mapping[str, NameLike]) -> str:
    risk = risk_of(message, name)
    if risk is None and not any(name in token.risks for token in message.tokens):
        return ""
    line = answer_line(message.tokens, replace(view, estimator=name)).partition(":")[0].removesuffix(".")
    scope = f"probability of error within {risk.calibration}" if risk and risk.calibration else ""
    words = encode("; ".join(part for part in (scope, line) if part))
    value = f"{risk.value:.2f}" if risk else "–"
    return f"<div><dt>{encode(label_of(name, known))}</dt><dd><b>{value}</b> <span>{words}</span></dd></div>"


def risk_of(message: AnswerLike, name: str) -> Risk | None:
    """The estimator's risk of the whole answer; of one kept without it the mean of its tokens', as `scoring` has it."""
    if name in message.scores.risks:
        return message.scores.risks[name]
    from uqchat.scoring import mean_over_tokens  # brings torch, which a page that is just opening does not wait for

    found = mean_over_tokens(message.tokens, name)
    return found[0] if found else None


def verdict_on(scores: AnswerScores, name: str) -> str:
    """How likely the answer as a whole is wrong; '' where this estimator has no probability for it. Plain text."""
    risk = scores.risks.get(name)
    if risk is None or risk.calibration is None:
        return ""
    return f"The answer as a whole: {risk.value:.0%} likely wrong."


def remark_on(scores: AnswerScores, name: str, known: Mapping[str, NameLike]) -> str:
    """What to know before reading this answer's colours by this estimator; '' when there is nothing. Plain text."""
    label = label_of(name, known)
    if name in scores.failures:
        return scores.failures[name]
    if name in scores.outside_scope:
        reason = scores.outside_scope[name].rstrip(".")
        return (
            f"Outside of what {label} was calibrated on: {reason}. The colours rank the tokens, but are no "
            "probabilities here."
        )
    return ""
