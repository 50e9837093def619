"""The promise of the records that ship: kept in simulation, and large enough to be of use."""

from __future__ import annotations

import numpy as np
import pytest

from uqchat.paths import ASSETS
from uqchat.records import Records, read_records
from uqchat.records_split import calibration_part
from uqchat.selective_guarantee import guaranteed_threshold

LEVEL, DELTA, SPLITS = 0.3, 0.1, 2000


@pytest.fixture(scope="module")
def records() -> Records:
    """The run that the playground opens with."""
    return read_records(ASSETS / "records" / "easy_facts.parquet")


def test_they_hold_the_evaluation_file_and_answers_that_only_certify(records: Records) -> None:
    splits = records.strings("split")
    assert (splits == "eval").sum() == 456 and (splits == "calibration").sum() > 150
    assert len(set(records.strings("category"))) == 14
    assert len(set(records.strings("question_id"))) == len(records)


def test_the_stated_share_is_exceeded_in_at_most_delta_of_two_thousand_draws(records: Records) -> None:
    """The answers that ship stand for a population: as many as certify are drawn from it, independently.

    A tiny noise that ranks nothing anew keeps answers that are drawn twice from being tied.
    """
    generator, count = np.random.default_rng(0), int(calibration_part(records).sum())
    for name in records.estimators:
        found = records.labelled(name)
        order = np.argsort(found.risk, kind="stable")
        error_share = found.is_error[order].cumsum() / np.arange(1, len(order) + 1)
        ranks = np.empty(len(order))
        ranks[order] = np.arange(len(order))
        broken = 0
        for _ in range(SPLITS):
            rows = generator.integers(0, len(order), count)
            noise = generator.random(count) * 0.5
            threshold = guaranteed_threshold(ranks[rows] + noise, found.is_error[rows], LEVEL, DELTA)
            broken += threshold is not None and error_share[int(threshold)] > LEVEL
        assert broken / SPLITS <= DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / SPLITS), name


def test_the_best_score_certifies_at_least_fifteen_percent_on_average(records: Records) -> None:
    """Over 200 random splits of the sizes that ship, counted on the part that did not certify."""
    count = int(calibration_part(records).sum())
    means = {}
    for name in records.estimators:
        found, generator = records.labelled(name), np.random.default_rng(0)
        shares = []
        for _ in range(200):
            order = generator.permutation(len(found.risk))
            mine, other = order[:count], order[count:]
            threshold = guaranteed_threshold(found.risk[mine], found.is_error[mine], LEVEL, DELTA)
            shares.append(0.0 if threshold is None else float((found.risk[other] <= threshold).mean()))
        means[name] = float(np.mean(shares))
    assert max(means.values()) >= 0.15, means
