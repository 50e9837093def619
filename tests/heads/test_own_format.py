"""Heads in our own format: bound to a base model, kept with where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.heads.making import STATES, random_head, write_folder
from tests.tiny import tiny_model
from uqchat.features_base import ModelShape
from uqchat.fingerprint import weights_fingerprint
from uqchat.heads import HeadConfig, HeadError, load_head, save_head
from uqchat.int8 import quantize_linear_layers
from uqchat.models import LoadedModel
from uqchat.origin import ArtifactError, Origin, origin_of

SHAPE = ModelShape(num_layers=2, num_heads=4, hidden_size=32, vocab_size=260)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_model()


@pytest.fixture
def own(loaded: LoadedModel, tmp_path: Path) -> Path:
    info = origin_of(
        replace_name(loaded, "org/tiny"), training_data="easy_facts train", metrics={"auroc": 0.8}, command="make it"
    )
    head = replace(random_head("luh", loaded.model, is_causal=True), info=info)
    head = replace(head, config=replace(head.config, layout="legacy"))
    save_head(head, tmp_path / "own")
    return tmp_path / "own"


def replace_name(loaded: LoadedModel, name: str) -> LoadedModel:
    return replace(loaded, name=name)


def test_our_format_keeps_layout_origin_and_the_causal_setting(own: Path, loaded: LoadedModel) -> None:
    head = load_head(own, loaded)
    assert head.config.layout == "legacy" and head.module.is_causal and not head.is_revising and head.notes == ()
    assert head.info.base_model == "org/tiny" and head.info.metrics == {"auroc": 0.8}
    assert head.info.num_layers == 2 and head.info.dtype == "float32" and head.info.chat_template_hash
    assert head.info.weights_fingerprint == weights_fingerprint(loaded.model)
    card = (own / "README.md").read_text()
    for words in ("org/tiny", "easy_facts train", "auroc | 0.8", "legacy", "make it"):
        assert words in card


def test_a_causal_head_cannot_be_written_in_the_published_format(own: Path, loaded: LoadedModel) -> None:
    with pytest.raises(HeadError, match="no causal heads"):
        save_head(load_head(own, loaded), own / "x", "luh")
    with pytest.raises(HeadError, match="Unknown format 'pickle'. Known: own, luh"):
        save_head(load_head(own, loaded), own / "x", "pickle")


def test_negative_layers_of_the_older_index_are_exported_as_positive_ones(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "h", SHAPE, "linear", ({**STATES, "layer_nums": [-1, -2]},))
    head = load_head(folder, loaded, hidden_index="tuple")
    save_head(head, tmp_path / "out", "luh")
    again = load_head(tmp_path / "out", loaded)
    assert again.config.extractors[0]["layer_nums"] == [2, 1] and again.needs == head.needs


def test_a_model_with_other_weights_of_the_same_size_is_refused_unless_asked_for(own: Path) -> None:
    other = tiny_model(seed=1)
    with pytest.raises(ArtifactError, match="trained for org/tiny: its weights' fingerprint is .*allow_mismatch=True"):
        load_head(own, other)
    assert load_head(own, other, allow_mismatch=True).module.is_causal


def test_another_chat_template_is_refused(own: Path) -> None:
    other = tiny_model()
    other.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(ArtifactError, match="chat template's hash"):
        load_head(own, other)


def test_our_int8_keeps_the_fingerprint_of_the_weights_it_was_made_from() -> None:
    model = tiny_model().model
    before = weights_fingerprint(model)
    quantize_linear_layers(model)
    assert weights_fingerprint(model) == before


def test_the_fingerprint_is_the_same_in_bfloat16_and_another_after_a_change() -> None:
    model = tiny_model().model
    before = weights_fingerprint(model)
    assert weights_fingerprint(tiny_model(seed=1).model) != before
    assert weights_fingerprint(model.bfloat16()) == before
    model.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert weights_fingerprint(model) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("format"), 'lacks "format"'),
        (lambda c: c.update(version=2), "format version 2; this uqchat reads 1"),
        (lambda c: c.update(more=1), "unknown key 'more'"),
        (lambda c: c.update(layout="old"), "`layout` must be one of current, legacy"),
        (lambda c: c.update(options=[]), "`options` must be of type dict"),
        (lambda c: c["info"].update(more=1), "unknown key 'more'"),
        (lambda c: c["info"].update(metrics="good"), "`info.metrics` must be of type dict"),
    ],
)
def test_a_wrong_configuration_of_ours_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, own: Path, loaded: LoadedModel
) -> None:
    config = json.loads((own / "config.json").read_text())
    change(config)
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message):
        load_head(own, loaded)


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("model.safetensors", "x")])
def test_damaged_files_of_ours_are_refused(name: str, content: str, own: Path, loaded: LoadedModel) -> None:
    (own / name).write_text(content)
    with pytest.raises(ArtifactError, match=name):
        load_head(own, loaded)
    (own / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load_head(own, loaded)


def test_an_empty_origin_says_nothing() -> None:
    assert Origin() == Origin("", "", "") and HeadConfig("luh", ()).layout == "current"
