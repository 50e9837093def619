"""Calibrated values of tokens and answers: by hand, inside and outside of the scope, and where the state comes from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.test_scoring import Revising, step
from uqchat.calibration import Calibration, Calibrations
from uqchat.calibration_maps import Logistic
from uqchat.config import GenerationConfig
from uqchat.estimators import Estimator, get_estimators
from uqchat.estimators.base import AnswerContext
from uqchat.scope import Scope, ScopeDetector
from uqchat.scoring import Scorer, signals_for
from uqchat.types import Signals, StepSignals

GREEDY = GenerationConfig()
DETECTOR = ScopeDetector(layer=3, weights=(1.0, -1.0), bias=0.0)  # outside when the first number is larger


def calibration(level: str, slope: float, scope: Scope) -> Calibration:
    """P = sigmoid(slope * raw)."""
    return Calibration(level, scope, Logistic(slope, 0.0), 100, 0.5)


def calibrated(scope: Scope, name: str = "max_prob") -> Estimator:
    estimator = get_estimators(name)[0]
    estimator.calibrations = Calibrations(calibration("token", 2.0, scope), calibration("answer", 3.0, scope))
    return estimator


def scorer_of(*estimators: Estimator, generation: GenerationConfig = GREEDY) -> Scorer:
    return Scorer(estimators, AnswerContext((1, 2), (), generation, None))


def state(*values: float) -> StepSignals:
    return StepSignals({3: torch.tensor(values)})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_tokens_and_the_answer_get_the_probability_of_their_own_map() -> None:
    """Raws of the tokens are ln 2 and ln 4, of the answer their mean 1.5 ln 2."""
    scorer = scorer_of(calibrated(Scope("questions")))
    for i, probs in enumerate([(0.5, 0.5), (0.25,) * 4]):
        scorer.push(step(i, probs))
    first, second = (token.risks["max_prob"] for token in scorer.tokens)
    assert (first.value, second.value) == pytest.approx((sigmoid(2 * math.log(2)), sigmoid(2 * math.log(4))))
    answer = scorer.answer_scores()[0]["max_prob"]
    assert answer.value == pytest.approx(sigmoid(3 * 1.5 * math.log(2))) and answer.raw == pytest.approx(
        1.5 * math.log(2)
    )
    assert first.calibration == second.calibration == answer.calibration == "questions"
    assert scorer.outside_scope == {}


def test_revised_tokens_are_calibrated_too() -> None:
    estimator = Revising()
    estimator.calibrations = Calibrations(token=calibration("token", 2.0, Scope("questions")))
    scorer = scorer_of(estimator)
    seen = [[token.risks["revising"].value for token in scorer.push(step(i))] for i in range(2)]
    assert seen[0] == [pytest.approx(sigmoid(2.0))]
    assert seen[1] == pytest.approx([sigmoid(0.5), sigmoid(2.0)])
    assert scorer.answer_scores()[0]["revising"].calibration is None, "a mean of probabilities is none itself"


def test_a_prompt_unlike_the_calibrations_is_judged_by_its_own_last_position_only() -> None:
    scorer = scorer_of(calibrated(Scope("questions", detector=DETECTOR)))
    scorer.push(step(0, signals=state(0.0, 1.0)))
    scorer.push(step(1, signals=state(9.0, 0.0)))
    assert scorer.outside_scope == {} and scorer.tokens[1].risks["max_prob"].calibration == "questions"
    scorer = scorer_of(calibrated(Scope("questions", detector=DETECTOR)), *get_estimators("entropy"))
    scorer.push(step(0, signals=state(1.0, 0.0)))
    (reason,) = scorer.outside_scope.values()
    assert "unlike the questions" in reason and list(scorer.outside_scope) == ["max_prob"]
    risk = scorer.tokens[0].risks["max_prob"]
    assert risk.calibration is None and risk.value == pytest.approx(sigmoid(2 * math.log(2)))
    assert scorer.answer_scores()[0]["max_prob"].calibration is None


def test_an_answer_that_grows_too_long_takes_the_name_back_from_all_its_tokens() -> None:
    scorer = scorer_of(calibrated(Scope("questions", max_answer_tokens=2)))
    for i in range(2):
        scorer.push(step(i))
    assert [t.risks["max_prob"].calibration for t in scorer.tokens] == ["questions"] * 2
    scorer.push(step(2))
    assert (
        scorer.tokens[2].risks["max_prob"].calibration is None and "longer than 2" in scorer.outside_scope["max_prob"]
    )
    assert [token.index for token in scorer.finish()] == [0, 1]
    assert all(token.risks["max_prob"].calibration is None for token in scorer.tokens)


def test_a_temperature_outside_the_scope_and_an_unknown_origin_are_told() -> None:
    scorer = scorer_of(calibrated(Scope("questions")), generation=GenerationConfig(temperature=1.0))
    scorer.push(step(0))
    assert "temperature 1" in scorer.outside_scope["max_prob"]
    scorer = Scorer([calibrated(Scope("questions"))])
    scorer.push(step(0))
    assert "unknown" in scorer.outside_scope["max_prob"]


def test_a_stored_token_keeps_its_calibrated_risk() -> None:
    scorer = scorer_of(calibrated(Scope("questions")))
    (token,) = scorer.push(step(0))
    again = Scorer([Kept()])
    kept = replace(token, risks={"kept": token.risks["max_prob"]})
    assert again.push(kept)[0].risks["kept"] == token.risks["max_prob"]


class Kept(Revising):
    """Needs what a stored token no longer has, and is calibrated."""

    name = "kept"
    calibrations = Calibrations(token=calibration("token", 9.0, Scope("other")))

    def score_token(self, step: object, state: None) -> dict[int, object]:
        return {step.index: step.risks["kept"]}


def test_the_detectors_layer_is_asked_for_where_the_model_can_give_it() -> None:
    estimator = calibrated(Scope("questions", detector=DETECTOR))
    assert signals_for([estimator], Signals(top_n=5, hidden_layers=(0, 3))).hidden_layers == (3,)
    assert signals_for([estimator], Signals(top_n=5)).hidden_layers == ()
    scorer = scorer_of(estimator)
    scorer.push(step(0))
    assert "unknown whether this prompt" in scorer.outside_scope["max_prob"]
