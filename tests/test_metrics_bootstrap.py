"""Bootstrap intervals against a plain loop over the public metrics, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uqchat import metrics
from uqchat.errors import InputError
from uqchat.metrics_bootstrap import bootstrap, bootstrap_difference, macro_bootstrap, macro_difference
from uqchat.metrics_weighted import METRICS

PUBLIC = {
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "aurc": metrics.aurc,
    "prr": lambda risk, wrong: metrics.prr(risk, 1 - wrong).normalised,
    "prr_50": lambda risk, wrong: metrics.prr(risk, 1 - wrong, 0.5).normalised,
    "brier": lambda risk, wrong: metrics.brier(1 - risk, 1 - wrong),
    "brier_skill": lambda risk, wrong: metrics.brier_skill(1 - risk, 1 - wrong),
    "ece": metrics.ece,
    "ece_adaptive": lambda risk, wrong: metrics.ece(risk, wrong, variant="adaptive"),
}


def sample(count: int, seed: int, gain: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Risks with ties, and errors that they predict a little."""
    rng = np.random.default_rng(seed)
    wrong = (rng.random(count) < 0.6).astype(float)
    return np.clip(np.round(rng.normal(0.4 + gain * wrong, 0.2), 1), 0, 1), wrong


def test_every_metric_has_a_public_function_to_compare_with() -> None:
    assert PUBLIC.keys() == METRICS.keys()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([name for name in METRICS if name != "ece_adaptive"]), st.integers(0, 10_000))
def test_a_weighting_is_the_metric_of_the_repeated_rows(name: str, seed: int) -> None:
    """Adaptive ECE is left out: its edges are those of all rows."""
    risk, wrong = sample(30, seed)
    counts = np.random.default_rng(seed).multinomial(30, [1 / 30] * 30)
    found = METRICS[name](risk, wrong, counts[None].astype(float))[0]
    repeated = np.repeat(wrong, counts)
    if 0 < repeated.sum() < 30:
        assert found == pytest.approx(PUBLIC[name](np.repeat(risk, counts), repeated))


@pytest.mark.parametrize("name", METRICS)
def test_the_value_is_that_of_all_rows_and_lies_in_its_interval(name: str) -> None:
    risk, wrong = sample(200, 1)
    found = bootstrap(name, risk, wrong, samples=400)
    assert found.value == pytest.approx(PUBLIC[name](risk, wrong))
    assert found.low < found.high
    assert name.startswith("ece") or found.low < found.value < found.high


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    """Mean of squared errors: 1.96 standard errors either side, from its own variance."""
    risk, wrong = sample(2000, 2)
    found = bootstrap("brier", risk, wrong, samples=4000)
    error = ((risk - wrong) ** 2).std() / np.sqrt(len(risk))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 samples of one population: 95 % intervals of the AUROC hold the population's at least 90 % of the time."""
    truth = metrics.auroc(*sample(200_000, 0))
    hits = 0
    for seed in range(200):
        found = bootstrap("auroc", *sample(150, seed + 10), samples=300)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_paired_difference_is_tighter_than_the_two_alone_and_zero_against_itself() -> None:
    risk, wrong = sample(400, 3)
    noisy = np.clip(risk + np.random.default_rng(0).normal(0, 0.02, 400), 0, 1)
    pair = bootstrap_difference("auroc", noisy, risk, wrong)
    alone = bootstrap("auroc", risk, wrong)
    assert pair.high - pair.low < (alone.high - alone.low) / 2
    same = bootstrap_difference("auroc", risk, risk, wrong)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_macro_mean_gives_every_set_the_same_weight() -> None:
    large, small = sample(1000, 4), sample(60, 5, gain=0.0)
    found = macro_bootstrap("auroc", [large, small])
    assert found.value == pytest.approx((metrics.auroc(*large) + metrics.auroc(*small)) / 2)
    gain = macro_difference("auroc", [(1 - large[0], *large), (small[0], *small)])
    assert gain.value == pytest.approx((1 - 2 * metrics.auroc(*large)) / 2)
    assert gain.high < 0


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    data = sample(100, 6)
    assert bootstrap("prr", *data) == bootstrap("prr", *data) != bootstrap("prr", *data, seed=1)


def test_what_has_no_interval_is_said() -> None:
    with pytest.raises(InputError, match="known: auroc"):
        bootstrap("accuracy", [0.1], [1])
    with pytest.raises(InputError, match="each of the 2 answers is an error"):
        bootstrap("auroc", [0.1, 0.2], [1, 1])
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        bootstrap("brier", [3.0], [1])
    with pytest.raises(InputError, match="at least one set"):
        macro_bootstrap("auroc", [])
    with pytest.raises(InputError, match="confidence"):
        bootstrap("auroc", [0.1, 0.2], [1, 0], confidence=95)
