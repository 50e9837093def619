"""Token steps and estimators to scored tokens and answer scores. Knows no model, no thread and no interface."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from uqchat.errors import InputError
from uqchat.estimators.base import AnswerContext, Estimator, FollowUp
from uqchat.estimators.running import run_all
from uqchat.scoring_scope import AnswerCalibration, scope_signals
from uqchat.teams import alone
from uqchat.types import Risk, ScoredToken, Signals, Summary, TokenStep


def refusal(estimator: type[Estimator] | Estimator, available: Signals) -> str | None:
    """Why the estimator cannot be used with a source that gives no more than this, or None if it can."""
    missing = estimator.needs.missing(available)
    return (
        f"{estimator.label} cannot be used here: this model gives no {' and no '.join(missing)}." if missing else None
    )


def signals_for(estimators: Iterable[Estimator], available: Signals) -> Signals:
    """The union of what the estimators need.

    Raises:
        InputError: the source of steps lacks a signal; the text names estimator and signal.
    """
    needed = Signals()
    for estimator in estimators:
        reason = refusal(estimator, available)
        if reason:
            raise InputError(reason)
        needed |= estimator.needs
        scope = scope_signals(estimator.calibrations)
        needed |= Signals() if scope.missing(available) else scope  # without it the scope is unknown, the score is not
    return needed


class Scorer:
    """Runs the estimators over the steps of one answer and keeps the newest risks of every token.

    Args:
        context: what is asked; without it no estimator gets follow-ups, as with stored tokens.
    """

    def __init__(self, estimators: Sequence[Estimator], context: AnswerContext | None = None) -> None:
        self.estimators = estimators
        self.context = context
        self.tokens: list[ScoredToken] = []
        self._running = run_all(estimators)
        generation = None if context is None else context.generation
        self._calibrated = [AnswerCalibration(one.calibrations, generation) for one in estimators]
        if context is not None:
            for one in self._running:
                one.begin(context)

    @property
    def outside_scope(self) -> dict[str, str]:
        """By estimator: why its values are no probabilities of error here, though it is calibrated."""
        found = {one.name: kept.outside for one, kept in zip(self.estimators, self._calibrated, strict=True)}
        return {name: reason for name, reason in found.items() if reason}

    @alone()
    def push(self, step: TokenStep | ScoredToken) -> list[ScoredToken]:
        """The new token, scored; before it, any earlier tokens whose risks this step has revised."""
        found = []
        for one, calibrated in zip(self._running, self._calibrated, strict=True):
            calibrated.see(step)
            risks, name = one.push(step), one.estimator.name
            is_kept = isinstance(step, ScoredToken) and risks.get(step.index) == step.risks.get(name)
            found.append((name, risks if is_kept else calibrated.of_tokens(risks)))
        self.tokens.append(as_scored(step, {name: risks[step.index] for name, risks in found if step.index in risks}))
        earlier = [(name, {i: risk for i, risk in risks.items() if i != step.index}) for name, risks in found]
        return self._revise(earlier) + self.tokens[-1:]

    @alone()
    def late(self, step: TokenStep) -> list[ScoredToken]:
        """A step once more, with what voters say of it that read behind the answer; tokens whose risks change."""
        found = []
        for one, calibrated in zip(self._running, self._calibrated, strict=True):
            if one.estimator.lag != "never":
                found.append((one.estimator.name, calibrated.of_tokens(one.push(step))))
        return self._revise(found)

    @alone()
    def finish(self) -> list[ScoredToken]:
        """The answer is whole, or was stopped: tokens whose risks change once more."""
        changed = {}
        for one, calibrated in zip(self._running, self._calibrated, strict=True):
            revised, name = calibrated.of_tokens(one.finish()), one.estimator.name
            risks = calibrated.settle(self.tokens, name) | revised
            changed |= {token.index: token for token in self._revise([(name, risks)])}
        return [self.tokens[index] for index in sorted(changed)]

    def follow_ups(self) -> list[list[FollowUp]]:
        """What each estimator wants read now that the answer is whole."""
        if self.context is None:
            return [[] for _ in self.estimators]
        return [one.estimator.follow_ups(self.context, self.tokens, one.state) for one in self._running]

    @alone()
    def take_replies(self, number: int, replies: list[TokenStep]) -> list[ScoredToken]:
        """Hand an estimator, by its place in the list, the steps that it asked for; gives tokens whose risks change."""
        estimator = self.estimators[number]
        risks = estimator.take_replies(replies, self._running[number].state)
        return self._revise([(estimator.name, self._calibrated[number].of_tokens(risks))])

    def _revise(self, found: Iterable[tuple[str, dict[int, Risk]]]) -> list[ScoredToken]:
        changed = set()
        for name, risks in found:
            for index, risk in risks.items():
                token = self.tokens[index]
                self.tokens[index] = replace(token, risks={**token.risks, name: risk})
                changed.add(index)
        return [self.tokens[index] for index in sorted(changed)]

    @alone()
    def answer_scores(self) -> tuple[dict[str, Risk], dict[str, Summary]]:
        """Per estimator: the answer's risk, and mean, max and sum of its raw scores."""
        risks, summaries = {}, {}
        for one, calibrated in zip(self._running, self._calibrated, strict=True):
            name, own = one.estimator.name, one.estimator.score_answer(self.tokens, one.state)
            found = own or mean_over_tokens(self.tokens, name)
            if found is not None:
                risks[name], summaries[name] = calibrated.of_answer(found[0]), found[1]
        return risks, summaries


def as_scored(step: TokenStep | ScoredToken, risks: dict[str, Risk]) -> ScoredToken:
    """The step with the given risks."""
    return ScoredToken(
        index=step.index,
        token_id=step.token_id,
        text=step.text,
        span=step.span,
        logprob=step.logprob,
        entropy=step.entropy,
        alternatives=step.alternatives,
        risks=risks,
        is_reasoning=step.is_reasoning,
        is_end=step.is_end,
    )


def mean_over_tokens(tokens: Sequence[ScoredToken], name: str) -> tuple[Risk, Summary] | None:
    """Mean risk over the answer's tokens, end token and reasoning left out, and the summary of the raw scores.

    An answer that has nothing else (say, only its end token) is judged by all its tokens; None if it has no token. A
    mean of tokens' probabilities is not the probability that the answer is wrong, so it names no calibration, unless
    all of them have the same risk.
    """
    scored = [t for t in tokens if name in t.risks]
    counted = [t.risks[name] for t in scored if not (t.is_end or t.is_reasoning)] or [t.risks[name] for t in scored]
    if not counted:
        return None
    raws = [risk.raw for risk in counted]
    is_one = len(set(counted)) == 1
    mean = counted[0] if is_one else Risk(fmean(r.value for r in counted), fmean(raws))
    return mean, Summary(mean.raw, max(raws), math.fsum(raws))


def stream_scored(steps: Iterable[TokenStep], estimators: Sequence[Estimator]) -> Iterator[ScoredToken]:
    """Scored tokens as the steps arrive; a token given again with the same index carries revised risks."""
    scorer = Scorer(estimators)
    for step in steps:
        yield from scorer.push(step)
    yield from scorer.finish()


def rescore(tokens: Sequence[ScoredToken], estimators: Sequence[Estimator]) -> list[ScoredToken]:
    """Stored tokens under other estimators, without a model."""
    scorer = Scorer(estimators)
    for token in tokens:
        scorer.push(token)
    scorer.finish()
    return scorer.tokens


def answer_scores(
    tokens: Sequence[ScoredToken], estimators: Sequence[Estimator]
) -> tuple[dict[str, Risk], dict[str, Summary]]:
    """Answer-level risk and summary per estimator of a finished answer's tokens."""
    scorer = Scorer(estimators)
    for token in tokens:
        scorer.push(token)
    scorer.finish()
    return scorer.answer_scores()
