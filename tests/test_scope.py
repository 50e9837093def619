"""The scope of a calibration, on made states and, marked `model`, on prompts that the embedded model reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.scope import FALSE_ALARMS, Scope, ScopeDetector

GREEDY = GenerationConfig()


def states(count: int, seed: int, shift: float = 0.0, size: int = 60) -> np.ndarray:
    """Rows of very different scales, as hidden states are; the first five numbers move by `shift`."""
    rows = np.random.default_rng(seed).normal(0, 1, (count, size))
    rows[:, :5] += shift
    return rows * np.logspace(-2, 2, size) + 3


def test_prompts_of_both_kinds_are_told_apart_also_from_few_examples() -> None:
    detector = ScopeDetector.fit(states(800, 0), states(40, 1, 2.5), layer=16)
    inside = [detector.outside_probability(row) for row in states(400, 2)]
    outside = [detector.outside_probability(row) for row in states(200, 3, 2.5)]
    assert detector.layer == 16
    assert np.mean(np.array(inside) > 0.5) < 3 * FALSE_ALARMS
    assert np.mean(np.array(outside) > 0.5) > 0.9


def test_prompts_that_cannot_be_told_apart_stay_inside() -> None:
    """Both kinds from one population: no more alarms than the share that is allowed, and noise."""
    detector = ScopeDetector.fit(states(500, 0), states(100, 1), layer=3)
    alarms = [detector.outside_probability(row) > 0.5 for row in states(1000, 2)]
    assert np.mean(alarms) < 5 * FALSE_ALARMS


def test_fitting_twice_gives_the_same_detector_and_tensors_are_taken() -> None:
    once = ScopeDetector.fit(states(50, 0), states(20, 1, 2.0), layer=3)
    again = ScopeDetector.fit(torch.tensor(states(50, 0)), torch.tensor(states(20, 1, 2.0)), layer=3)
    assert once == again
    row = states(1, 4)[0]
    assert (
        once.outside_probability(row)
        == once.outside_probability(torch.tensor(row))
        == once.outside_probability(list(row))
    )


@pytest.mark.parametrize(
    ("inside", "outside", "says"),
    [
        (states(9, 0), states(50, 1), "10 prompts of each kind"),
        (states(50, 0), states(0, 1), "10 prompts of each kind"),
        (states(50, 0), states(50, 1, size=59), "same length"),
        (states(50, 0)[0], states(50, 1), "same length"),
        (states(50, 0) * np.nan, states(50, 1), "finite"),
    ],
)
def test_a_detector_that_cannot_be_fitted_says_so(inside: np.ndarray, outside: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ScopeDetector.fit(inside, outside, layer=1)


def test_a_state_of_another_model_is_refused() -> None:
    detector = ScopeDetector(16, (1.0, -1.0), 0.0)
    with pytest.raises(InputError, match="2 numbers; got 3"):
        detector.outside_probability([1, 2, 3])
    with pytest.raises(InputError, match="finite"):
        detector.outside_probability([float("nan"), 1])


def test_every_way_out_of_the_scope_has_its_reason() -> None:
    detector = ScopeDetector(16, (1.0, 0.0), 0.0)
    scope = Scope("short questions", max_answer_tokens=10, temperatures=(0.0, 0.5), detector=detector)
    assert scope.outside([-1, 0], GREEDY, 10) is None
    assert "unlike the short questions" in str(scope.outside([1, 0], GREEDY, 10))
    assert "unknown whether" in str(scope.outside(None, GREEDY, 10))
    assert "temperature 0.7; the calibration holds for 0 to 0.5" in str(
        scope.outside([-1, 0], GenerationConfig(temperature=0.7), 10)
    )
    assert "longer than 10 tokens" in str(scope.outside([-1, 0], GREEDY, 11))


def test_what_a_scope_does_not_say_does_not_bind() -> None:
    scope = Scope("anything", temperatures=())
    assert scope.outside(None, GenerationConfig(temperature=2.0), 10_000) is None


def test_a_scope_has_a_name() -> None:
    with pytest.raises(InputError, match="name"):
        Scope("")
