"""One estimator's calibration over one answer: raw scores to probabilities of error, and where that does not hold.

Knows no estimator's formula and no model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from uqchat.calibration import Calibration, Calibrations
from uqchat.config import GenerationConfig
from uqchat.scope import Scope
from uqchat.types import Risk, ScoredToken, Signals, TokenStep

NOTHING = Calibrations()


def scope_signals(calibrations: Calibrations | None) -> Signals:
    """What the scopes look at: a hidden state of the prompt's last position, which comes with the first step."""
    found = [one.scope.detector for one in _both(calibrations) if one.scope.detector is not None]
    return Signals(hidden_layers=tuple(sorted({detector.layer for detector in found})))


def _both(calibrations: Calibrations | None) -> list[Calibration]:
    both = calibrations or NOTHING
    return [one for one in (both.token, both.answer) if one is not None]


class ScopeWatch:
    """Whether one answer is still inside a scope.

    Args:
        generation: how the answer is chosen; None when nobody knows, as with stored tokens.
    """

    def __init__(self, scope: Scope, generation: GenerationConfig | None) -> None:
        self.scope, self.generation = scope, generation
        self.reason: str | None = None
        if generation is None:
            self.reason = "it is unknown how this answer was written"
        self._state: Any = None
        self._has_begun = False

    def see(self, step: TokenStep | ScoredToken) -> None:
        """Take a step in; the first one carries the prompt's state."""
        if self.reason is not None:
            return
        if not self._has_begun:
            self._has_begun = True
            self._state = self._prompt_state(step)
            self.reason = self.scope.outside(self._state, self.generation, 1)
        elif self.scope.max_answer_tokens is not None and step.index >= self.scope.max_answer_tokens:
            self.reason = self.scope.outside(self._state, self.generation, step.index + 1)

    def _prompt_state(self, step: TokenStep | ScoredToken) -> Any:
        signals = step.signals if isinstance(step, TokenStep) else None
        if self.scope.detector is None or signals is None:
            return None
        return signals.hidden.get(self.scope.detector.layer)


class AnswerCalibration:
    """The token and answer maps of one estimator, for one answer."""

    def __init__(self, calibrations: Calibrations | None, generation: GenerationConfig | None) -> None:
        both = calibrations or NOTHING
        self._token, self._answer = both.token, both.answer
        self._watches = {id(one): ScopeWatch(one.scope, generation) for one in _both(calibrations)}

    @property
    def outside(self) -> str | None:
        """Why a value of this answer is no probability, the answer's own first; None where all of them are."""
        known = [self._watches[id(one)].reason for one in (self._answer, self._token) if one is not None]
        return next((reason for reason in known if reason), None)

    def see(self, step: TokenStep | ScoredToken) -> None:
        """Take a step in, before its risks."""
        for watch in self._watches.values():
            watch.see(step)

    def of_tokens(self, risks: dict[int, Risk]) -> dict[int, Risk]:
        """Tokens' risks with calibrated values; unchanged without a map for tokens."""
        if self._token is None or not risks:
            return risks
        values = self._token.apply([risk.raw for risk in risks.values()])
        name = self._name(self._token)
        return {
            i: replace(risk, value=float(v), calibration=name)
            for (i, risk), v in zip(risks.items(), values, strict=True)
        }

    def of_answer(self, risk: Risk) -> Risk:
        """The answer's risk with a calibrated value; unchanged without a map for answers."""
        if self._answer is None:
            return risk
        return Risk(float(self._answer.apply(risk.raw)), risk.raw, self._name(self._answer))

    def settle(self, tokens: list[ScoredToken], estimator: str) -> dict[int, Risk]:
        """The answer has left the scope on its way: earlier tokens whose values are no probabilities after all."""
        if self._token is None or self._name(self._token) is not None:
            return {}
        named = {t.index: t.risks[estimator] for t in tokens if estimator in t.risks}
        return {i: replace(risk, calibration=None) for i, risk in named.items() if risk.calibration is not None}

    def _name(self, calibration: Calibration) -> str | None:
        return None if self._watches[id(calibration)].reason else calibration.scope.name
