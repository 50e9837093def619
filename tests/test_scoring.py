"""Risks by hand, sums that leave out what they should, revisions, and refusals by missing signal."""

from __future__ import annotations

import math

import pytest

from uqchat.errors import InputError
from uqchat.estimators import ESTIMATORS, Estimator, get_estimators
from uqchat.scoring import Scorer, answer_scores, rescore, signals_for, stream_scored
from uqchat.types import Alternative, Risk, ScoredToken, Signals, TokenStep


def step(index: int, probs: tuple[float, ...] = (0.5, 0.25, 0.25), **changes: object) -> TokenStep:
    """A step whose whole distribution is `probs`."""
    alternatives = tuple(Alternative(i, f"t{i}", math.log(p)) for i, p in enumerate(probs))
    entropy = -sum(p * math.log(p) for p in probs)
    return TokenStep(
        index, 0, f"t{index}", (2 * index, 2 * index + 2), math.log(probs[0]), entropy, alternatives, **changes
    )


def test_risks_of_a_known_distribution() -> None:
    """p = (1/2, 1/4, 1/4): H = 1.5 ln 2, so 1 - exp(-H) = 1 - 2^-1.5; -log p1 = ln 2 -> 1/2; margin 1 - 1/4 = 3/4."""
    (token,) = stream_scored([step(0)], get_estimators(["entropy", "max_prob", "margin"]))
    assert token.risks["entropy"].raw == pytest.approx(1.5 * math.log(2))
    assert token.risks["entropy"].value == pytest.approx(1 - 2**-1.5)
    assert token.risks["max_prob"].raw == pytest.approx(math.log(2))
    assert token.risks["max_prob"].value == pytest.approx(0.5)
    assert token.risks["margin"].raw == token.risks["margin"].value == pytest.approx(0.75)
    assert all(risk.calibration is None for risk in token.risks.values())


@pytest.mark.parametrize("probs", [(1.0,), (1.0, 1e-300), (0.1,) * 10, (0.5, 0.5)])
def test_values_stay_between_zero_and_one(probs: tuple[float, ...]) -> None:
    names = [one.name for one in ESTIMATORS if not one.needs.has_tensors or one.name == "rauq"]
    (token,) = stream_scored([step(0, probs)], get_estimators(names))
    assert all(0 <= risk.value <= 1 and risk.raw >= 0 for risk in token.risks.values())


def test_risks_follow_the_order_asked_for_and_each_comes_once() -> None:
    chosen = get_estimators(["margin", "entropy", "margin"])
    (token,) = stream_scored([step(0)], chosen)
    assert list(token.risks) == ["margin", "entropy"]
    assert list(answer_scores([token], chosen)[0]) == ["margin", "entropy"]


def test_the_answers_risk_leaves_out_end_token_and_reasoning() -> None:
    tokens = rescore(
        [
            step(0, (0.2,) * 5, is_reasoning=True),
            step(1, (0.5, 0.5)),
            step(2, (0.9, 0.1)),
            step(3, (0.25,) * 4, is_end=True),
        ],
        get_estimators("max_prob"),
    )
    risks, summaries = answer_scores(tokens, get_estimators("max_prob"))
    assert risks["max_prob"].value == pytest.approx((0.5 + 0.1) / 2)
    raws = [math.log(2), -math.log(0.9)]
    summary = summaries["max_prob"]
    assert (summary.mean, summary.max, summary.sum) == pytest.approx((sum(raws) / 2, raws[0], sum(raws)))


def test_an_answer_of_only_its_end_token_is_judged_by_it_and_no_token_gives_no_risk() -> None:
    tokens = rescore([step(0, (0.5, 0.5), is_end=True)], get_estimators("max_prob"))
    assert answer_scores(tokens, get_estimators("max_prob"))[0]["max_prob"].value == pytest.approx(0.5)
    assert answer_scores([], get_estimators("max_prob")) == ({}, {})


class Revising(Estimator):
    """Scores 1 for the newest token and revises the one before it to 0.25."""

    name, label, level, needs, trainable, unit, value_map = "revising", "Revising", "token", Signals(), False, "", ""

    def score_token(self, step: TokenStep | ScoredToken, state: None) -> dict[int, Risk]:
        newest = {step.index: Risk(1.0, 1.0)}
        return newest | ({step.index - 1: Risk(0.25, 0.25)} if step.index else {})


def test_a_revised_token_comes_again_with_its_index_and_other_risks_stay() -> None:
    scorer = Scorer([*get_estimators("entropy"), Revising()])
    seen = [[t.index for t in scorer.push(step(i))] for i in range(3)]
    assert seen == [[0], [0, 1], [1, 2]]
    assert [t.risks["revising"].value for t in scorer.tokens] == [0.25, 0.25, 1.0]
    assert all(set(t.risks) == {"entropy", "revising"} for t in scorer.tokens)


def test_a_source_without_the_signal_refuses_the_estimator_and_names_it() -> None:
    poor = Signals(top_n=1)
    assert signals_for(get_estimators("max_prob"), poor) == Signals(top_n=1)
    with pytest.raises(InputError, match="Margin.*top-2"):
        signals_for(get_estimators(["max_prob", "margin"]), poor)
    with pytest.raises(InputError, match="Entropy.*entropy"):
        signals_for(get_estimators("entropy"), poor)


def test_an_unknown_estimator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'magic'.*entropy, max_prob, margin"):
        get_estimators("magic")
