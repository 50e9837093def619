"""Trained estimators by name, folder and Hub id: which folder a name stands for, what is refused and how it is said."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.fake_hub import FakeHub, Repository
from tests.heads.making import random_head, write_folder
from tests.tiny import tiny_model
from uqchat import artifacts
from uqchat.artifact_folders import hub_groups, kind_of, require_plausible, slug_of
from uqchat.artifacts import list_artifacts, open_estimator
from uqchat.calibration import Calibration, Calibrations, write_calibrations
from uqchat.calibration_maps import Logistic
from uqchat.config import GenerationConfig
from uqchat.errors import ModelError, UqchatError
from uqchat.heads import save_head
from uqchat.language_model import LanguageModel
from uqchat.origin import ArtifactError, origin_of
from uqchat.scope import Scope

SHORT = GenerationConfig(max_new_tokens=5)


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    made = LanguageModel(tiny_model())
    yield made
    made.close()


@pytest.fixture
def root(private_data_dir: Path) -> Path:
    """The folder that estimators trained here lie in."""
    return private_data_dir / "estimators"


def save(model: LanguageModel, folder: Path, trained_on: LanguageModel | None = None, **options: object) -> Path:
    """A small head trained (so it says) on a model."""
    head = random_head("luh", model.model, is_causal=True, **options)
    save_head(replace(head, info=origin_of(trained_on or model, training_data="none at all")), folder)
    return folder


def calibration(scope: Scope) -> Calibrations:
    return Calibrations(answer=Calibration("answer", scope, Logistic(1.0, 0.0), 50, 0.5))


def test_a_name_stands_for_the_folder_of_this_very_model(model: LanguageModel, root: Path) -> None:
    other = LanguageModel(tiny_model(seed=1))
    save(other, root / "a-first" / "uq_head")
    mine = save(model, root / "b-second" / "uq_head")
    (found,) = list_artifacts(model)
    assert (found.name, found.folder, found.kind, found.level) == ("uq_head", mine, "uqchat-head", "token")
    assert found.origin.training_data == "none at all" and "none at all" in found.card
    assert open_estimator("uq_head", model).head.source == "uq_head"
    assert list_artifacts(other)[0].folder == root / "a-first" / "uq_head"


def test_risks_are_keyed_by_the_string_given_in_that_order(model: LanguageModel, root: Path) -> None:
    folder = str(save(model, root / "tiny-llama" / "uq_head"))
    answer = model.answer("hello", (folder, "entropy", "uq_head", "entropy"), SHORT)
    assert list(answer.risks) == list(answer.tokens[0].risks) == [folder, "entropy", "uq_head"]
    assert answer.risks[folder] == answer.risks["uq_head"]


def test_an_unknown_name_is_told_with_the_known_and_the_near_ones(model: LanguageModel, root: Path) -> None:
    save(model, root / "tiny-llama" / "uq_head")
    with pytest.raises(UqchatError, match="'uq_haed'. Did you mean uq_head. Known: entropy, .*uq_head"):
        model.answer("hello", "uq_haed")
    with pytest.raises(UqchatError, match="No probe has been trained for tiny-llama yet.*trainers prepare"):
        model.answer("hello", "probe")
    for hostile in ("..", "*", "", "a/b/c", "uq_head/..", "\0"):
        with pytest.raises(UqchatError):
            model.answer("hello", hostile)


def test_an_artifact_of_another_model_is_refused_with_both_values(model: LanguageModel, root: Path) -> None:
    folder = save(model, root / "tiny-llama" / "uq_head")
    other = LanguageModel(tiny_model(seed=1))
    for name in ("uq_head", str(folder)):
        with pytest.raises(
            ArtifactError, match=f"trained for tiny-llama: its weights' fingerprint is .*{_print(other)}"
        ):
            other.answer("hello", name)
    assert open_estimator(str(folder), other, allow_mismatch=True).level == "token"
    assert list_artifacts(other) == []


def _print(model: LanguageModel) -> str:
    return origin_of(model).weights_fingerprint


def test_another_size_is_refused_with_both_dimensions(tmp_path: Path, model: LanguageModel) -> None:
    folder = save(model, tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    config["info"] |= {"hidden_size": 64, "weights_fingerprint": ""}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="hidden size is 64, this model's 32"):
        model.answer("hello", str(folder))


def test_a_folder_is_opened_once_and_again_when_its_files_change(
    model: LanguageModel, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(model, root / "tiny-llama" / "uq_head")
    first = model.estimator("uq_head")
    assert model.estimator("uq_head") is first
    save(model, folder, n_layers=1)
    os.utime(folder / "config.json", ns=(1, 1))
    second = model.estimator("uq_head")
    assert second is not first and len(second.head.module.encoder.layers) == 1
    write_calibrations(folder, calibration(Scope("questions")))
    assert model.estimator("uq_head").calibrations.answer.scope.name == "questions"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_files_are_told_by_name_and_the_model_goes_on(
    file: str, model: LanguageModel, root: Path, tmp_path: Path
) -> None:
    folder = save(model, root / "tiny-llama" / "uq_head")
    (folder / file).write_text("{")
    for name in ("uq_head", str(folder)):
        with pytest.raises(ArtifactError, match=file):
            model.answer("hello", name)
    assert len(model.answer("hello", "entropy", SHORT).tokens) == 5
    named = [choice.name for choice in model.available]
    assert "entropy" in named


def test_a_folder_without_an_estimator_and_a_file_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no trained estimator.*uqchat-head.*config.yaml"):
        model.answer("hello", str(tmp_path / "empty"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        model.answer("hello", str(tmp_path / "file"))
    (tmp_path / "empty" / "config.json").write_text('{"format": "os.system", "version": 1}')
    with pytest.raises(ArtifactError, match="known format"):
        kind_of(tmp_path / "empty")


def test_a_published_head_from_the_hub_is_an_estimator(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.name: p.read_bytes() for p in write_folder(tmp_path / "luh", model.model).iterdir()}
    hub_id = "llm-uncertainty-head/uhead_some"
    with FakeHub({hub_id: Repository(files)}) as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        answer = model.answer("hello", hub_id, SHORT)
        choice = model.describe(hub_id)
        asked = len(hub.requests)
        assert model.answer("hello", hub_id, SHORT).risks == answer.risks and len(hub.requests) == asked
        with pytest.raises(ModelError, match="some-one/nothing"):
            model.answer("hello", "some-one/nothing")
    assert list(answer.risks) == [hub_id] and choice.level == "token" and "luh" in choice.card
    assert any("attention layout" in note for note in choice.notes)
    assert hub_groups()[0][:2] == ("config.json", "model.safetensors")


def test_an_untrained_score_has_the_calibration_that_was_fitted_on_this_model(model: LanguageModel, root: Path) -> None:
    for slug, name, fingerprint in (("a", "other", "0" * 16), ("b", "mine", _print(model))):
        (root / slug / "entropy").mkdir(parents=True)
        write_calibrations(root / slug / "entropy", calibration(Scope(name, weights_fingerprint=fingerprint)))
    answer = model.answer("hello", ("entropy", "max_prob"), SHORT)
    assert answer.risks["entropy"].calibration == "mine" and answer.risks["max_prob"].calibration is None
    (choice,) = [choice for choice in model.available if choice.name == "entropy"]
    assert choice.calibration == "mine"
    (root / "b" / "entropy" / "calibration.json").write_text("{")
    assert model.answer("hello", "entropy", SHORT).risks["entropy"].calibration is None
    assert "not calibrated" in model.describe("entropy").notes[0]


def test_what_is_available_names_everything_once_with_the_reason_where_it_cannot_be_used(
    model: LanguageModel, root: Path
) -> None:
    save(model, root / "tiny-llama" / "uq_head")
    (save(model, root / "tiny-llama" / "broken") / "model.safetensors").write_text("x")
    by_name = {choice.name: choice for choice in model.available}
    assert list(by_name)[:3] == ["entropy", "max_prob", "margin"] and by_name["uq_head"].refusal is None
    assert "model.safetensors" in by_name["broken"].refusal and by_name["uq_head"].card.startswith("---")


def test_the_folder_of_a_model_is_a_plain_name(model: LanguageModel) -> None:
    names = {
        "embedded": "smollm2-135m-instruct",
        "Org/Some-Model_1.5B": "some-model_1.5b",
        "/a/b c/": "b-c",
        "..": "model",
    }
    for name, slug in names.items():
        assert slug_of(LanguageModel(replace(tiny_model(), name=name))) == slug


def test_what_can_be_no_estimator_is_told_before_a_model_is_loaded(model: LanguageModel, root: Path) -> None:
    folder = save(model, root / "tiny-llama" / "my_head")
    require_plausible(["entropy", "probe", "my_head", str(folder), "org/name"])
    for name in ("entropi", "", "a/b/c", "/no/such"):
        with pytest.raises(ArtifactError, match="Known: entropy, .*probe.*my_head"):
            require_plausible(["entropy", name])


def test_a_slow_download_holds_up_nobody_who_asks_for_another(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def download(*_: object) -> Path:
        begun.set()
        assert go_on.wait(30)
        raise ModelError("nothing there")

    monkeypatch.setattr(artifacts, "download_files", download)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(model.estimator, "org/slow")
        assert begun.wait(30)
        assert len(model.answer("hello", "entropy", SHORT).tokens) == 5
        go_on.set()
        with pytest.raises(ModelError, match="nothing there"):
            slow.result()


def test_no_more_estimators_are_kept_open_than_allowed(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_OPEN", 2)
    shelf = artifacts.Shelf(model)
    names = [str(save(model, tmp_path / str(i))) for i in range(3)]
    first = [shelf.get(name) for name in names][0]
    assert shelf.get(names[2]) is shelf.get(names[2]) and shelf.get(names[0]) is not first
