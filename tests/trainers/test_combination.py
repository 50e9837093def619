"""The fitted weights are those of a logistic regression, never negative, and the artifact scores what was fitted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from tests.trainers.tiny_cache import make_model, make_tiny_cache
from trainers import combination
from trainers.combination import Scores, TrainConfig, collect, fit_formula, fit_tokens, member_of, open_members
from trainers.common import TrainingError
from trainers.replay import Opened
from trainers.training_set import DataConfig, read_training_set
from uqchat.estimators.combination import Combination, Member


def test_the_fit_finds_the_weights_that_made_the_labels() -> None:
    random = np.random.default_rng(0)
    raws = random.normal(size=(40_000, 2)) * [1.0, 5.0] + [2.0, -3.0]
    is_error = (random.random(40_000) < expit(1.5 * raws[:, 0] + 0.2 * raws[:, 1] - 1.0)).astype(float)
    found = fit_formula(raws, is_error, penalty=0.0)
    assert found.weights == pytest.approx((1.5, 0.2), abs=0.06) and found.bias == pytest.approx(-1.0, abs=0.15)


def test_at_the_fit_the_weighted_residuals_vanish() -> None:
    """The gradient of the log loss is X^T (p - y) = 0, and the sum of p - y is 0."""
    random = np.random.default_rng(1)
    raws = random.normal(size=(300, 1))
    is_error = (random.random(300) < expit(raws[:, 0])).astype(float)
    mass = random.random(300)
    found = fit_formula(raws, is_error, penalty=0.0, weights=mass)
    error = mass * (expit([found(row) for row in raws.tolist()]) - is_error)
    assert abs(error.sum()) < 1e-3 and abs((error * raws[:, 0]).sum()) < 1e-3


def test_a_member_that_points_the_wrong_way_gets_no_weight() -> None:
    random = np.random.default_rng(2)
    good = random.normal(size=2000)
    is_error = (random.random(2000) < expit(good)).astype(float)
    found = fit_formula(np.stack([good, -is_error + random.normal(size=2000)], axis=1), is_error)
    assert found.weights[0] > 0.5 and found.weights[1] == 0.0


@pytest.mark.parametrize("labels", [[1.0, 1.0], []])
def test_one_kind_of_label_is_refused(labels: list[float]) -> None:
    with pytest.raises(TrainingError, match="right and wrong"):
        fit_formula(np.zeros((len(labels), 1)), np.array(labels))


def test_names_may_carry_a_statistic() -> None:
    assert member_of("entropy:max") == Member("entropy", "max")
    assert member_of("../probe") == Member("../probe", "raw")
    assert member_of("org/name:max") == Member("org/name", "max")


def test_a_run_writes_a_combination_that_scores_as_it_was_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    cache = make_tiny_cache(tmp_path / "cache", model, count=40)
    monkeypatch.setattr(combination, "load_model", lambda name, dtype: model.info)
    import argparse

    parser = argparse.ArgumentParser()
    combination.add_arguments(parser)
    arguments = ["--run-dir", str(tmp_path / "run"), "--caches", json.dumps([str(cache.folder)])]
    arguments += ["--members", '["entropy", "entropy:max", "max_prob"]']
    assert combination.main(parser.parse_args(arguments)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["answers"] == 40 and "fit auroc of entropy:max alone" in result["metrics"]
    made = Combination.from_folder(tmp_path / "run" / "artifact", model, "mix")
    data = read_training_set(DataConfig(caches=(str(cache.folder),)), lambda line: None)
    scores = collect(data, made.members, open_members(made.members, tmp_path, Opened(model.info)))
    row = data.rows[3]
    answer = model.score(row.question, list(row.answer_ids), estimators=[str(tmp_path / "run" / "artifact")])
    assert len(scores.token_is_own) == len(scores.tokens) and set(scores.token_is_own) <= {0.0, 1.0}
    expected = made.answer(scores.answers[3].tolist())
    assert next(iter(answer.risks.values())).raw == pytest.approx(expected, abs=1e-4)


def test_what_own_words_add_is_fitted_beside_the_members_weights() -> None:
    draw = np.random.default_rng(0)
    raws, own = draw.normal(size=(4000, 1)), draw.integers(0, 2, 4000).astype(float)
    is_error = (draw.random(4000) < 1 / (1 + np.exp(-(raws[:, 0] + 3 * own - 2)))).astype(float)
    scores = Scores(raws, is_error, [], raws, is_error, own)
    data = DataConfig(caches=("a",))
    formula, added = fit_tokens(scores, TrainConfig(data))
    assert (formula.weights[0], formula.bias, added) == pytest.approx((1, -2, 3), abs=0.25)
    alone, nothing = fit_tokens(scores, TrainConfig(data, is_by_word=False))
    assert nothing == 0 and alone == fit_formula(raws, is_error)
