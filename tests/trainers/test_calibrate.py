"""Cached answers scored as in a chat, and calibrations fitted to them, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainers.tiny_cache import make_model, make_tiny_cache, prompt_of
from trainers import calibrate, scope_fit
from trainers.__main__ import main
from trainers.answers import IGNORED, Fact
from trainers.cache import FeatureCache
from trainers.calibrate import collect, fit_both, write_risks
from trainers.metrics_report import read_graded
from trainers.replay import Opened, Scored, replay
from trainers.scope_fit import fit_detector, layer_for, outside_prompts, prompt_states, scope_of
from uqchat.calibration import read_calibrations
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.errors import InputError
from uqchat.estimators import ESTIMATORS
from uqchat.language_model import LanguageModel
from uqchat.types import Message, Signals

NAMES = ("entropy", "max_prob", "margin", "rauq")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> FeatureCache:
    return make_tiny_cache(tmp_path_factory.mktemp("cache") / "tiny", model, count=60)


@pytest.fixture(scope="module")
def opened(model: LanguageModel) -> Opened:
    return Opened(model.info)


def test_a_replayed_answer_has_the_risks_of_the_same_answer_scored_by_the_model(
    model: LanguageModel, cache: FeatureCache, opened: Opened
) -> None:
    """Attention is kept in half precision, so RAUQ differs in the third digit."""
    for scored in list(replay(cache, [opened.uncalibrated(name) for name in NAMES]))[:8]:
        live = model.score(scored.answer.question, list(scored.answer.answer_ids), estimators=NAMES)
        assert len(live.tokens) == len(scored.tokens)
        for name in NAMES:
            assert scored.risks[name].raw == pytest.approx(live.risks[name].raw, abs=2e-3 if name == "rauq" else 1e-5)
        for ours, theirs in zip(scored.tokens, live.tokens, strict=True):
            assert (ours.text, ours.span, ours.is_end) == (theirs.text, theirs.span, theirs.is_end)
            assert ours.risks["entropy"].value == pytest.approx(theirs.risks["entropy"].value, abs=1e-5)


def test_only_the_asked_splits_are_replayed_and_a_missing_signal_is_named(cache: FeatureCache, opened: Opened) -> None:
    entropy = opened.uncalibrated("entropy")
    assert len(list(replay(cache, [entropy], ["train"]))) == 60
    assert list(replay(cache, [entropy], ["eval"])) == []
    entropy.needs = Signals(hidden_layers=(0,))
    with pytest.raises(InputError, match="layer 0"):
        list(replay(cache, [entropy]))


def test_labels_and_scores_stay_together(cache: FeatureCache, opened: Opened) -> None:
    answers, columns = collect([cache], [opened.uncalibrated(name) for name in NAMES], ["train"])
    column = columns["max_prob"]
    assert column.is_error == [answer.is_error for answer in cache.answers] and len(answers) == 60
    labels = [label for answer in cache.answers for label in answer.token_labels if label != IGNORED]
    assert column.token_is_error == [bool(label) for label in labels]
    largest = cache.array("top_logprobs")[:, 0]
    mean = -largest[cache.span(3)][:-1].mean()  # the end token does not count
    assert column.answers[3] == pytest.approx(mean, abs=1e-5)
    with pytest.raises(InputError, match="No labelled answer of eval"):
        collect([cache], [opened.uncalibrated("entropy")], ["eval"])


def test_answers_to_several_facts_count_for_tokens_only(cache: FeatureCache, opened: Opened) -> None:
    def read(*given: Any) -> Iterator[Scored]:
        for number, scored in enumerate(replay(*given)):
            facts = (Fact("Peru", ("Lima",), "a"),) if number < 20 else ()
            yield replace(scored, answer=replace(scored.answer, facts=facts))

    entropy = opened.uncalibrated("entropy")
    plain = collect([cache], [entropy], ["train"])[1]["entropy"]
    answers, columns = collect([cache], [entropy], ["train"], read)
    column = columns["entropy"]
    assert len(answers) == 60
    assert (column.answers, column.is_error) == (plain.answers[20:], plain.is_error[20:])
    assert (column.tokens, column.token_answer) == (plain.tokens, plain.token_answer)
    column.answers, column.is_error = [], []
    both = fit_both(column, "platt", scope_of("several", answers, None), True)
    assert both.answer is None and both.token is not None


def test_a_state_is_the_one_that_the_model_predicts_the_answer_from(model: LanguageModel, cache: FeatureCache) -> None:
    prompts = [[Message("user", answer.question)] for answer in cache.answers[:5]]
    found = prompt_states(model.info, prompts, 2)
    for number in range(5):
        assert found[number] == pytest.approx(cache.array("hidden_2")[cache.span(number).start], abs=5e-3)
    request = Request(prompt_of(model, "Hi"), GenerationConfig(max_new_tokens=1), signals=Signals(hidden_layers=(1,)))
    steps = [e.step for e in Engine(model.model, model.tokenizer).stream([request]) if isinstance(e, StepEvent)]
    own = prompt_states(model.info, [[Message("user", "Hi")]], 1)[0]
    assert own == pytest.approx(steps[0].signals.hidden[1].numpy(), abs=1e-5)


def test_the_scope_is_that_of_the_answers(model: LanguageModel, cache: FeatureCache) -> None:
    assert layer_for([cache]) == 1
    scope = scope_of("made questions", cache.answers, "f00", fit_detector(model.info, [cache], ["train"]))
    assert (scope.prompt_styles, scope.data_sets, scope.temperatures) == (("page",), ("one", "two"), (0.0,))
    assert scope.max_answer_tokens == max(len(answer.answer_ids) for answer in cache.answers)
    states = cache.array("hidden_1")[[cache.span(i).start for i in range(60)]].astype(float)
    outside = [scope.outside(state, GenerationConfig(), 3) is not None for state in states]
    assert np.mean(outside) < 0.1
    others = prompt_states(model.info, [[Message("user", prompt)] for prompt in outside_prompts()], 1)
    assert np.mean([scope.outside(state, GenerationConfig(), 3) is not None for state in others]) > 0.8


def test_prompts_for_fitting_and_for_testing_are_many_and_not_the_same(request: pytest.FixtureRequest) -> None:
    held_out = json.loads((Path(request.config.rootpath) / "tests" / "scope_prompts.json").read_text(encoding="utf-8"))
    tested = {prompt for prompts in held_out.values() for prompt in prompts}
    assert len(tested) == 30 and len(set(outside_prompts())) >= 120
    assert not tested & set(outside_prompts())


def test_the_risks_file_holds_what_the_maps_give(tmp_path: Path, cache: FeatureCache, opened: Opened) -> None:
    estimators = [opened.uncalibrated(name) for name in NAMES]
    answers, columns = collect([cache], estimators, ["train"])
    scope = scope_of("made questions", answers, None)
    fitted = {one.name: fit_both(columns[one.name], "platt", scope, one.level == "token") for one in estimators}
    assert write_risks(tmp_path / "risks.jsonl", [cache], estimators, fitted, []) == 60
    graded = read_graded([tmp_path / "risks.jsonl"])
    assert graded.raw["rauq"] == pytest.approx(columns["rauq"].answers)
    assert graded.probability["rauq"] == pytest.approx(fitted["rauq"].answer.apply(columns["rauq"].answers))
    assert fitted["entropy"].token is not None and fitted["entropy"].token.rows == len(columns["entropy"].tokens)


def test_the_command_writes_calibrations_that_the_model_then_uses(
    tmp_path: Path, model: LanguageModel, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "load_model", lambda *given: model.info)
    monkeypatch.setattr(scope_fit, "outside_prompts", lambda: ["Hello"] * 12)
    folder = tmp_path / "estimators"
    monkeypatch.setenv("UQCHAT_ESTIMATORS_DIR", str(folder))
    command = ["calibrate", "--caches", str(cache.folder), "--splits", "train", "--out", str(folder / "tiny")]
    assert main([*command, "--estimators", "entropy,rauq"]) == 0
    found = read_calibrations(folder / "tiny" / "rauq")
    assert found is not None and found.answer is not None and found.answer.rows == 60
    answer = make_model().answer(cache.answers[0].question, estimators=("entropy",))
    assert (answer.risks["entropy"].calibration is None) == ("entropy" in answer.outside_scope)
    assert answer.risks["entropy"].value == pytest.approx(
        read_calibrations(folder / "tiny" / "entropy").answer.apply(answer.risks["entropy"].raw)
    )


def test_what_the_command_cannot_do_is_said(
    model: LanguageModel, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(calibrate, "load_model", lambda *given: model.info)
    command = ["calibrate", "--caches", str(cache.folder), "--no-detector"]
    assert main(command) == 1  # the tiny answers are all of the split "train"
    assert "No labelled answer of calibration" in capsys.readouterr().err
    assert main([*command, "--risks", "x.jsonl"]) == 1
    assert "go together" in capsys.readouterr().err
    assert main([*command, "--estimators", "entropie"]) == 1
    assert "entropy" in capsys.readouterr().err


def test_every_untrained_estimator_of_tokens_can_be_replayed_or_says_why(cache: FeatureCache, opened: Opened) -> None:
    for kind in ESTIMATORS:
        try:
            assert len(list(replay(cache, [opened.uncalibrated(kind.name)]))) == 60
        except InputError as error:
            assert kind.label in str(error)


def test_a_full_disk_leaves_no_half_file_of_risks(
    tmp_path: Path, cache: FeatureCache, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimators = [opened.uncalibrated("entropy")]
    assert write_risks(tmp_path / "risks.jsonl", [cache], estimators, {}, ["train"]) == 60
    before = (tmp_path / "risks.jsonl").read_text()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.answers.os.fsync", full)
    for name in ("risks.jsonl", "other.jsonl"):
        with pytest.raises(InputError, match="No space left on device"):
            write_risks(tmp_path / name, [cache], estimators, {}, ["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["risks.jsonl"]
    assert (tmp_path / "risks.jsonl").read_text() == before
