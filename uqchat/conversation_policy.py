"""The policy that a chat's answers obey: found by name, applied while the host answers. Knows no chat and no page."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from uqchat.config import AppConfig, GenerationConfig
from uqchat.errors import ModelError
from uqchat.policy import Policy, PolicyStore
from uqchat.policy_judge import judge
from uqchat.policy_run import PolicyRun
from uqchat.selective_guarantee import drift
from uqchat.types import Answer, Decision, Message, ScoredToken

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel

MIN_SEEN, MAX_SEEN = 30, 200
"""Answers after which drift is looked for, and how many of the newest are looked at."""


class Host(Protocol):
    """The part of `ModelHost` that is used here."""

    def status(self) -> Any:
        """With `.estimators_with`."""

    def stream(self, messages: Any, estimators: Any, generation: Any, **options: Any) -> Any:
        """As `LanguageModel.stream`."""

    def score(self, messages: Any, answer: Any, estimators: Any, **options: Any) -> Answer:
        """As `LanguageModel.score`."""


class PolicyGate:
    """Asks the host in the name of a policy.

    Args:
        load: opens the second model of a policy that hands over; it is kept until another one is asked for.
    """

    def __init__(self, host: Host, config: AppConfig, load: Callable[[str], LanguageModel] | None = None) -> None:
        self.store = PolicyStore(config.policies_dir)
        self._host, self._may_load = host, config.allow_model_switch
        self._load = load or _load
        self._second: tuple[str, LanguageModel] | None = None
        self._lock = threading.Lock()
        self._seen: dict[str, deque[float]] = {}

    def find(self, ref: str) -> Policy | None:
        """The policy `name` or `name@version`; None for ''. Raises InputError when there is none of that name."""
        return self.store.load(ref) if ref else None

    def stream(
        self,
        policy: Policy | None,
        messages: Sequence[Message],
        wanted: Sequence[str],
        generation: GenerationConfig,
        **options: Any,
    ) -> Generator[ScoredToken, None, Answer]:
        """As `LanguageModel.stream`; the answer carries the policy's decision."""
        names = self._names(policy, wanted)
        if policy is None:
            return self._host.stream(messages, names, generation, **options)
        if policy.estimator not in names:  # this model cannot serve it: the policy says that it cannot judge
            return _judged(policy, self._host.stream(messages, names, generation, **options))
        run = PolicyRun(self._host, policy, self._open)
        return self._watched(policy, run.stream(messages, names, generation, **options))

    def score(
        self, policy: Policy | None, messages: Sequence[Message], text: str, wanted: Sequence[str], **options: Any
    ) -> Answer:
        """As `LanguageModel.score`, with the policy's decision."""
        answer = self._host.score(messages, text, self._names(policy, wanted), **options)
        return answer if policy is None else replace(answer, decision=judge(policy, answer))

    def _watched(
        self, policy: Policy, stream: Generator[ScoredToken, None, Answer]
    ) -> Generator[ScoredToken, None, Answer]:
        answer = yield from stream
        warning = self._drift_of(policy, answer.decision)
        if answer.decision is None or not warning:
            return answer
        return replace(answer, decision=replace(answer.decision, basis=f"{answer.decision.basis} {warning}"))

    def _drift_of(self, policy: Policy, decision: Decision | None) -> str:
        """A warning when the risks seen lately are unlike those that the threshold was chosen on; '' otherwise."""
        if decision is None or decision.risk is None or decision.outcome in ("cannot_judge", "handed_over"):
            return ""
        with self._lock:
            seen = self._seen.setdefault(policy.ref, deque(maxlen=MAX_SEEN))
            seen.append(decision.risk)
            risks = list(seen)
        if len(risks) < MIN_SEEN or not policy.calibrated_on.risks:
            return ""
        found = drift(policy.calibrated_on.risks, risks)
        words = f"the risks of the last {len(risks)} answers differ from the calibration's by {found.score:.2f}"
        return f"Careful: {words}, so this may not hold for such questions." if found.has_drifted else ""

    def close(self) -> None:
        """Frees the second model."""
        with self._lock:
            second, self._second = self._second, None
        if second is not None:
            second[1].close()

    def _names(self, policy: Policy | None, wanted: Sequence[str]) -> tuple[str, ...]:
        return self._host.status().estimators_with((*wanted, *((policy.estimator,) if policy else ())))

    def _open(self, name: str) -> LanguageModel:
        if not self._may_load:
            raise ModelError(f"{name} cannot be asked: loading models is turned off here.")
        with self._lock:
            if self._second is None or self._second[0] != name:
                old, self._second = self._second, None
                if old is not None:
                    old[1].close()
                self._second = (name, self._load(name))
            return self._second[1]


def _load(name: str) -> LanguageModel:
    from uqchat.language_model import load

    return load(name)


def _judged(policy: Policy, stream: Generator[ScoredToken, None, Answer]) -> Generator[ScoredToken, None, Answer]:
    answer = yield from stream
    return replace(answer, decision=judge(policy, answer))
