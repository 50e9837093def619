"""Heads from folders and the Hub: what loads, what is refused and how it is said, and that no code in them runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from tests.fake_hub import FakeHub, Repository
from tests.heads.making import ATTENTION, OPTIONS, PROBABILITIES, STATES, write_folder
from tests.tiny import tiny_model
from uqchat.errors import ModelError, UqchatError
from uqchat.features_base import ModelShape
from uqchat.heads import HeadError, assemble, load_head, save_head
from uqchat.heads.modules import HEADS
from uqchat.heads.verdict import FILE, Verdict, write_verdict
from uqchat.models import LoadedModel

SHAPE = ModelShape(num_layers=2, num_heads=4, hidden_size=32, vocab_size=260)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "head", SHAPE)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = torch.load(folder / "weights.pth", weights_only=True)
    change(weights)
    torch.save(weights, folder / "weights.pth")


@pytest.mark.parametrize("head_type", [name for name in HEADS if name != "compact"])
def test_every_published_type_survives_both_formats(head_type: str, loaded: LoadedModel, tmp_path: Path) -> None:
    first = load_head(write_folder(tmp_path / "a", SHAPE, head_type), loaded)
    save_head(first, tmp_path / "b", "luh")
    save_head(load_head(tmp_path / "b", loaded), tmp_path / "c")
    last = load_head(tmp_path / "c", loaded)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(last.module.state_dict()[name], tensor)
    assert last.config.options == first.config.options == OPTIONS.get(head_type, {})
    assert last.features.width == first.features.width == 2 * 4 * 2 + 3
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["config.yaml", "weights.pth"]


def test_a_loaded_head_is_ready_to_score(folder: Path, loaded: LoadedModel) -> None:
    head = load_head(str(folder), loaded)
    assert not head.module.training and not any(p.requires_grad for p in head.module.parameters())
    assert all(p.dtype == torch.float32 for p in head.module.parameters())
    assert head.needs.prompt_rows and head.needs.attention_lags == 2 and head.needs.top_n == 3
    assert head.level == "token" and head.is_revising
    assert load_head(folder, loaded.model).features.width == head.features.width


def test_half_precision_weights_are_read(folder: Path, loaded: LoadedModel) -> None:
    edit_weights(folder, lambda w: w.update({k: v.half() for k, v in w.items()}))
    assert next(load_head(folder, loaded).module.parameters()).dtype == torch.float32


def test_a_missing_type_is_the_token_transformer(folder: Path, loaded: LoadedModel) -> None:
    edit(folder, lambda c: c.pop("head_type"))
    assert load_head(folder, loaded).config.head_type == "luh"


def test_older_module_names_and_capitals_are_read(folder: Path, loaded: LoadedModel) -> None:
    def age(config: dict[str, Any]) -> None:
        config["head_type"] = "LUH"
        for entry in config["feature_extractor"]:
            entry["name"] = entry["name"].replace("luh.", "luq.")

    edit(folder, age)
    assert load_head(folder, loaded).config.head_type == "luh"


def test_another_base_model_is_refused_with_both_dimensions(folder: Path) -> None:
    """The head reads 2 layers x 4 heads x 2 keys + 3 = 19; three layers would give 27."""
    with pytest.raises(HeadError, match=r"read F = 19 .* gives F = 27 \(basic_attention 24.*3 layers"):
        load_head_on_shape(folder, replace(SHAPE, num_layers=3))


def load_head_on_shape(folder: Path, shape: ModelShape) -> Any:
    from uqchat.heads.luh_format import read_luh

    config, weights = read_luh(folder)
    return assemble(config, weights, shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("proj.4.weight"), "missing proj.4.weight"),
        (lambda w: w.update({"extra": torch.ones(1)}), "unexpected extra"),
        (lambda w: w["proj.1.bias"].fill_(float("nan")), "proj.1.bias holds values that are no finite numbers"),
        (lambda w: w["proj.1.bias"].fill_(float("inf")), "no finite numbers"),
        (lambda w: w.update({"proj.1.bias": torch.ones(3)}), r"proj.1.bias has the shape \(3,\).*\(16,\)"),
        (lambda w: w.update({"proj.1.bias": torch.ones(16).long()}), "no finite numbers"),
        (lambda w: w.update({"proj.0.weight": torch.tensor(1.0)}), "shape|reads|read"),
        (lambda w: w.update({"proj.1.bias": "text"}), "mapping from names to tensors"),
        (lambda w: w.clear(), "mapping from names to tensors"),
    ],
)
def test_wrong_weights_are_refused(
    change: Callable[[Any], None], message: str, folder: Path, loaded: LoadedModel
) -> None:
    edit_weights(folder, change)
    with pytest.raises(HeadError, match=message):
        load_head(folder, loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["feature_extractor"][0].update(name="os.system"), "Unknown feature extractor 'system'"),
        (lambda c: c["feature_extractor"][0].update(name=["os"]), "must have a `name`"),
        (lambda c: c["feature_extractor"][0].pop("attn_history_sz"), "older than this format"),
        (lambda c: c.update(head_type="magic"), "Unknown head type 'magic'"),
        (lambda c: c.update(head_type="claim"), "no setting 'interim_dim'"),
        (lambda c: c.update(version=2), "unknown key 'version'"),
        (lambda c: c.update(feature_extractor="all"), "must be a list of mappings"),
        (lambda c: c.update(feature_extractor=[]), "at least one entry"),
        (lambda c: c.update(uncertainty_head=[1]), "must be a mapping or empty"),
        (lambda c: c["uncertainty_head"].update(head_dim="${x}"), "of type int"),
        (lambda c: c["uncertainty_head"].update(n_layers=1), "unexpected transformer_encoder.layers.1"),
        (lambda c: c["uncertainty_head"].update(head_dim=4), "has the shape"),
    ],
)
def test_wrong_configurations_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, folder: Path, loaded: LoadedModel
) -> None:
    edit(folder, change)
    with pytest.raises(UqchatError, match=message):
        load_head(folder, loaded)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "!!python/object/apply:os.mkdir ['{path}']",
        "just words",
        "",
        "\x00\x01",
        "a: " + "[" * 5000,
        "&a [*a]",
        "d: 2024-99-99",
    ],
)
def test_broken_or_hostile_yaml_is_refused_and_runs_nothing(
    text: str, folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    (folder / "config.yaml").write_text(text.replace("{path}", str(tmp_path / "made")))
    with pytest.raises(HeadError, match="config.yaml"):
        load_head(folder, loaded)
    assert not (tmp_path / "made").exists()


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("container", ["torch", "legacy", "plain"])
def test_code_in_the_weights_is_not_run(container: str, folder: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    made = tmp_path / "made"
    target = folder / "weights.pth"
    if container == "plain":
        target.write_bytes(pickle.dumps(Hostile(made)))
    else:
        torch.save({"a": Hostile(made)}, target, _use_new_zipfile_serialization=container == "torch")
    with pytest.raises(HeadError, match="holds code, which is never run"):
        load_head(folder, loaded)
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04 broken"])
def test_damaged_weights_are_refused(content: bytes, folder: Path, loaded: LoadedModel) -> None:
    (folder / "weights.pth").write_bytes(content)
    with pytest.raises(HeadError, match="damaged"):
        load_head(folder, loaded)


@pytest.mark.parametrize("name", ["config.yaml", "weights.pth"])
def test_a_missing_file_is_named(name: str, folder: Path, loaded: LoadedModel) -> None:
    (folder / name).unlink()
    with pytest.raises(HeadError, match=f"no {name}"):
        load_head(folder, loaded)


def test_a_file_instead_of_a_folder_is_refused(folder: Path, loaded: LoadedModel) -> None:
    with pytest.raises(HeadError, match="is a file; give the folder"):
        load_head(folder / "config.yaml", loaded)


@pytest.mark.parametrize("choice", [{"layout": "old"}, {"hidden_index": "negative"}])
def test_unknown_conventions_are_refused(choice: dict[str, str], folder: Path, loaded: LoadedModel) -> None:
    with pytest.raises(HeadError, match="must be one of"):
        load_head(folder, loaded, **choice)


def test_without_a_word_on_layout_and_layers_the_newer_ones_are_taken_with_a_note(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "h", SHAPE, extractors=(ATTENTION, STATES))
    head = load_head(folder, loaded)
    assert (head.config.layout, head.config.hidden_index) == ("current", "layers")
    assert head.needs.hidden_layers == (1,) and head.needs.attention_lags == 2
    assert ["layout" in note or "hidden" in note for note in head.notes] == [True, True]
    told = load_head(folder, loaded, layout="legacy", hidden_index="tuple")
    assert told.needs.hidden_layers == (2,) and told.needs.attention_lags == 3 and told.notes == ()


def test_a_chosen_set_of_heads_or_positive_layers_leaves_no_doubt(loaded: LoadedModel, tmp_path: Path) -> None:
    sure = ({**ATTENTION, "head_nums": "all"}, {**STATES, "layer_nums": [1]})
    assert load_head(write_folder(tmp_path / "h", SHAPE, extractors=sure), loaded).notes == ()


@pytest.mark.parametrize("is_readonly", [False, True])
def test_a_stored_verdict_decides_and_an_argument_outvotes_it(
    is_readonly: bool, folder: Path, loaded: LoadedModel, private_cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_readonly:
        monkeypatch.setattr(os, "access", lambda *_: False)
    path = write_verdict(Verdict("legacy", "tuple", "pr_auc", {"legacy/tuple": 0.6}, 50), str(folder))
    assert (path.parent == folder) is not is_readonly
    head = load_head(folder, loaded)
    assert (head.config.layout, head.config.hidden_index) == ("legacy", "tuple") and head.notes == ()
    assert load_head(folder, loaded, layout="current").config.layout == "current"


@pytest.mark.parametrize("text", ["", "{}", '{"layout": "x", "hidden_index": "layers"}', "[1]"])
def test_a_broken_verdict_counts_as_none(text: str, folder: Path, loaded: LoadedModel) -> None:
    (folder / FILE).write_text(text)
    assert load_head(folder, loaded).config.layout == "current"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        folder = write_folder(tmp_path / "up", SHAPE)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.repositories["llm-uncertainty-head/uhead_some-model"] = Repository({**files, "other.bin": b"x"})
        hub.repositories["org/text"] = Repository({"README.md": b"#"})
        yield hub


def test_a_head_comes_from_the_hub_and_later_from_the_cache(
    hub: FakeHub, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llm-uncertainty-head/uhead_some-model"
    head = load_head(name, loaded)
    assert head.source == name and sorted(set(hub.fetched())) == ["config.yaml", "weights.pth"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert load_head(name, loaded).features.width == 19 and hub.requests == []
    with pytest.raises(ModelError, match="not on this machine and HF_HUB_OFFLINE is set"):
        load_head("org/never-seen", loaded)


def test_without_a_network_the_cached_copy_is_used(
    hub: FakeHub, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_head("llm-uncertainty-head/uhead_some-model", loaded)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load_head("llm-uncertainty-head/uhead_some-model", loaded).level == "token"


def test_what_the_hub_does_not_have_is_said(hub: FakeHub, loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="There is no model org/nothing"):
        load_head("org/nothing", loaded)
    with pytest.raises(ModelError, match="holds neither config.json .* nor config.yaml"):
        load_head("org/text", loaded)
    with pytest.raises(ModelError, match="neither a folder here nor a Hub id"):
        load_head("no such/folder/here", loaded)


def test_a_head_named_after_another_model_is_loaded_with_a_warning(
    hub: FakeHub, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model.config, "_name_or_path", "org/Some-Model")
    assert not any("mention" in n for n in load_head("llm-uncertainty-head/uhead_some-model", loaded).notes)
    monkeypatch.setattr(loaded.model.config, "_name_or_path", "org/another")
    assert any(
        "does not mention this model, another" in n
        for n in load_head("llm-uncertainty-head/uhead_some-model", loaded).notes
    )


def test_unknown_settings_of_an_extractor_are_noted(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "h", SHAPE, "linear", ({**PROBABILITIES, "apply_softmax": True},))
    assert load_head(folder, loaded).notes == ("token_probabilities does not know apply_softmax: left out",)
