"""What a policy makes of one answer. Knows no model and no page.

Outside the scope of its estimator's calibration it never declines anything: it says that it cannot judge.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from uqchat.claims import answer_spans, claim_risks
from uqchat.policy import Policy
from uqchat.types import Answer, Decision, Outcome, ScoredToken, Span


def judge(policy: Policy, answer: Answer, tries: int = 1, extra_tokens: int = 0) -> Decision:
    """What the policy makes of a finished answer. Asks no model, so "retry" and "hand_over" come out as "marked".

    `uqchat.policy_run` tries again and asks the second model.
    """
    given = {"tries": tries, "extra_tokens": extra_tokens}
    reason = why_not(policy, answer)
    if reason:
        return _decision(policy, answer, "cannot_judge", f"Cannot judge this answer: {reason}", **given)
    risk = answer.risks[policy.estimator].value
    if risk <= policy.threshold:
        words = f"{_risk(answer, policy)} is within the {_number(policy.threshold)} that is allowed."
        return _decision(policy, answer, "answered", words, **given)
    words = f"{_risk(answer, policy)} is above the {_number(policy.threshold)} that is allowed."
    if policy.action == "decline":
        return _decision(policy, answer, "declined", f"I do not know this well enough to answer. {words}", **given)
    if policy.action == "trim":
        hidden = risky_sentences(policy, answer)
        if hidden and _covers(hidden, answer.text):
            words = f"No sentence is safe enough to show. {words}"
            return _decision(policy, answer, "declined", words, **given)
        if hidden:
            count = "1 sentence" if len(hidden) == 1 else f"{len(hidden)} sentences"
            words = f"Left out {count} whose own risk is above {_number(policy.threshold)}. {words}"
            return _decision(policy, answer, "trimmed", words, hidden=hidden, **given)
    return _decision(policy, answer, "marked", words, **given)


def why_not(policy: Policy, answer: Answer) -> str | None:
    """Why the policy says nothing about this answer, or None if it can."""
    name, origin = policy.estimator, policy.calibrated_on
    if origin.model and answer.model and origin.model != answer.model:
        return f"the policy was made for {origin.model}, and {answer.model} answers."
    if name in answer.failures:
        return answer.failures[name]
    if name not in answer.risks:
        return f"it has no risk by {name}."
    if name in answer.outside_scope:
        return answer.outside_scope[name]
    if origin.scope is not None and answer.risks[name].calibration != origin.scope:
        now = answer.risks[name].calibration or "not calibrated"
        return f"its risk is on another scale than the threshold ({now}; the policy has {origin.scope})."
    if answer.finish_reason in ("cancelled", "error"):
        return "it is not complete."
    return None


def risky_sentences(policy: Policy, answer: Answer) -> tuple[Span, ...]:
    """Sentences whose tokens' mean is above the threshold; those without a scored token stay.

    A sentence's own risk is no calibrated value, so the policy's guarantee says nothing about what is left.
    """
    found = claim_risks(answer.tokens, policy.estimator, answer_spans(answer.tokens))
    return tuple(claim.span for claim in found if _is_above(policy, claim.value, claim.raw))


def is_risky_part(policy: Policy, tokens: Iterable[ScoredToken]) -> bool:
    """Whether these tokens of an answer, as if they were all of it, are above the threshold.

    Scores that judge an answer otherwise than by the mean over its tokens are only approximated by it.
    """
    risks = [token.risks[policy.estimator] for token in tokens]
    return _is_above(policy, fmean(risk.value for risk in risks), fmean(risk.raw for risk in risks))


def _is_above(policy: Policy, value: float, raw: float) -> bool:
    return value > policy.threshold if policy.raw_threshold is None else raw > policy.raw_threshold


def _covers(hidden: tuple[Span, ...], text: str) -> bool:
    kept, end = "", 0
    for span in hidden:
        kept, end = kept + text[end : span[0]], span[1]
    return not (kept + text[end:]).strip()


def _decision(policy: Policy, answer: Answer, outcome: Outcome, reason: str, **more: object) -> Decision:
    risk = answer.risks.get(policy.estimator)
    return Decision(
        outcome,
        policy.name,
        policy.version,
        policy.action,
        policy.estimator,
        policy.threshold,
        None if risk is None else risk.value,
        reason,
        policy.basis,
        **more,
    )


def _risk(answer: Answer, policy: Policy) -> str:
    risk = answer.risks[policy.estimator]
    kind = "The estimated probability of error" if risk.calibration else "The risk"
    return f"{kind}, {_number(risk.value)}," if risk.calibration else f"{kind} {_number(risk.value)}"


def _number(value: float) -> str:
    return f"{value:.2f}"
