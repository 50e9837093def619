"""A policy while a model answers: try again, stop early, ask the second model. Knows no page and no storage.

Asks models through their `stream` only, so that a language model, the page's host and a script all serve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from uqchat.config import GenerationConfig
from uqchat.policy import Policy
from uqchat.policy_judge import is_risky_part, judge, why_not
from uqchat.types import Answer, Decision, Message, ScoredToken

MIN_TOKENS = 8
"""Tokens that must be there before "stop_early" trusts their mean."""
Stream = Generator[ScoredToken, None, Answer]
Messages = str | Iterable[Message | Mapping[str, Any]]


class Model(Protocol):
    """The part of a language model that is used here."""

    def stream(
        self,
        messages: Any,
        estimators: Sequence[str],
        generation: GenerationConfig,
        *,
        answer_prefix: Sequence[int] = (),
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Stream:
        """As `LanguageModel.stream`."""

    def score(self, messages: Any, answer: Any, estimators: Sequence[str]) -> Answer:
        """As `LanguageModel.score`."""


class PolicyRun:
    """A model that obeys a policy. Every `Answer` it gives has a `decision`.

    Args:
        model: who answers.
        policy: what to do above its threshold.
        open_second: gives the model that "hand_over" asks, by name; None: it cannot be asked here.
    """

    def __init__(self, model: Model, policy: Policy, open_second: Callable[[str], Model] | None = None) -> None:
        self.model, self.policy, self.open_second = model, policy, open_second

    def decide(self, messages: Messages, answer: Answer | str | Sequence[int]) -> Decision:
        """What the policy makes of an answer to these messages; a text or ids are scored first.

        Raises:
            UqchatError: as `LanguageModel.score`.
        """
        if not isinstance(answer, Answer):
            answer = self.model.score(messages, answer, (self.policy.estimator,))
        return judge(self.policy, answer)

    def answer(
        self,
        messages: Messages,
        estimators: Sequence[str] = (),
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  frozen
    ) -> Answer:
        """The stream, drained. Raises what `LanguageModel.stream` raises."""
        stream = self.stream(messages, estimators, generation)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    def stream(
        self,
        messages: Messages,
        estimators: Sequence[str] = (),
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  frozen
        *,
        answer_prefix: Sequence[int] = (),
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Stream:
        """Tokens as they come, where the policy lets them be seen before the answer is whole; else all at the end.

        Of an answer that is declined or shortened no token is handed out; the returned `Answer` holds them all.

        Raises:
            UqchatError: as `LanguageModel.stream`.
        """
        policy = self.policy
        messages = messages if isinstance(messages, str) else list(messages)
        names = tuple(dict.fromkeys([*estimators, policy.estimator]))
        options = {"answer_prefix": answer_prefix, "stop": stop, "on_queue": on_queue}
        if policy.action == "stop_early":
            options["stop"] = stop or threading.Event()
            first = self.model.stream(messages, names, generation, **options)
            return (yield from _stopping(policy, first, options["stop"]))
        first = self.model.stream(messages, names, generation, **options)
        if policy.action == "mark":
            answer = yield from first
            return replace(answer, decision=judge(policy, answer))
        answer = _drained(first)
        decision = judge(policy, answer)
        if decision.outcome == "marked" and policy.action == "retry":
            answer, decision = self._retried(messages, names, generation, answer, options)
        elif decision.outcome == "marked" and policy.action == "hand_over":
            answer, decision = self._handed_over(messages, generation, answer, decision, options)
        if not (decision.is_hidden or decision.hidden):  # what is not to be seen is in the answer only
            yield from answer.tokens
        return replace(answer, decision=decision)

    def _retried(
        self, messages: Any, names: Sequence[str], generation: GenerationConfig, first: Answer, options: dict[str, Any]
    ) -> tuple[Answer, Decision]:
        """Draws until one is below the threshold or the tries are used up; the least risky one is the answer."""
        policy, stop = self.policy, options["stop"]
        best, drawn, extra = first, 1, 0
        while drawn < policy.tries and best.risks[policy.estimator].value > policy.threshold:
            if stop is not None and stop.is_set():
                break
            changed = replace(
                generation, temperature=generation.temperature or policy.temperature, seed=generation.seed + drawn
            )
            other = _drained(self.model.stream(messages, names, changed, **options))
            drawn += 1
            is_better = why_not(policy, other) is None and _value(policy, other) < _value(policy, best)
            extra += len(best.tokens) if is_better else len(other.tokens)
            best = other if is_better else best
        decision = judge(policy, best, drawn, extra)
        cost = f"This is the best of {drawn} answers; the others took {extra:,} tokens more."
        return best, replace(decision, reason=f"{decision.reason} {cost}")

    def _handed_over(
        self, messages: Any, generation: GenerationConfig, answer: Answer, decision: Decision, options: dict[str, Any]
    ) -> tuple[Answer, Decision]:
        name = self.policy.second_model
        if self.open_second is None:
            return answer, replace(decision, reason=f"{decision.reason} {name} cannot be asked here.")
        second = self.open_second(name)
        other = _drained(second.stream(messages, ("entropy",), generation, stop=options["stop"]))
        words = f"{decision.reason} {name} answered in its place; this policy does not judge its answers."
        return other, replace(
            decision, outcome="handed_over", reason=words, answered_by=name, extra_tokens=len(answer.tokens)
        )


def _value(policy: Policy, answer: Answer) -> float:
    return answer.risks[policy.estimator].value


def _drained(stream: Stream) -> Answer:
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def _stopping(policy: Policy, stream: Stream, stop: threading.Event) -> Stream:
    """Ends the answer when its tokens so far, as if they were all of it, are above the threshold.

    That is what is known before the answer is whole; the policy's guarantee is about whole answers. Tokens that are
    outside the calibration's scope, or on another scale than the threshold, stop nothing.
    """
    seen: dict[int, ScoredToken] = {}
    stopped_after = 0
    while True:
        try:
            token = next(stream)
        except StopIteration as end:
            answer = end.value
            break
        yield token
        risk = token.risks.get(policy.estimator)
        if risk is None or token.is_end or token.is_reasoning or risk.calibration != policy.calibrated_on.scope:
            continue
        seen[token.index] = token
        if not stopped_after and len(seen) >= MIN_TOKENS and is_risky_part(policy, seen.values()):
            stopped_after = len(seen)
            stop.set()
    decision = judge(policy, answer)
    if stopped_after and answer.finish_reason == "cancelled":
        words = f"Stopped: its first {stopped_after} tokens alone are riskier than the {policy.threshold:.2f} allowed."
        decision = replace(decision, outcome="stopped", reason=words)
    return replace(answer, decision=decision)
