"""A tiny model learns to judge its answers; a run that died ends bitwise as one that did not; inputs keep the query."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainers.query as trainer
from tests.random_adapters import merged
from tests.tiny import tiny_model
from tests.trainers.tiny_cache import make_model, make_tiny_cache
from trainers.answers import write_answers
from trainers.cache import FeatureCache
from trainers.lora import LoraConfig
from trainers.query import QueryTask, TrainConfig, add_arguments, main
from trainers.query_config import QueryLoop
from trainers.query_inputs import choose, make_example
from trainers.query_loss import divergence
from trainers.query_lower import Inputs, by_length
from trainers.training_set import DataConfig
from uqchat.errors import InputError
from uqchat.estimators.query import QueryEstimator
from uqchat.estimators.query_format import make_query
from uqchat.language_model import from_loaded
from uqchat.metrics import auroc

SMALL = ["--epochs", "6", "--batch-size", "12", "--learning-rate", "0.01", "--rank", "8", "--validation", "0.3",
         "--checkpoint-every", "3", "--evaluations-per-epoch", "1", "--patience", "0", "--log-every", "1",
         "--targets", '["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj"]']  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer loads the tiny model."""
    monkeypatch.setattr(trainer, "load_model", lambda *_: tiny_model())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """An answer is wrong when it begins with the token 150, right when with 40; the rest is random."""
    folder = tmp_path_factory.mktemp("cache")
    rows = []
    for number, row in enumerate(make_tiny_cache(folder, make_model(), 120).answers):
        is_error = number % 5 < 2
        ids = (150 if is_error else 40, *row.answer_ids[1:])
        rows.append(replace(row, is_error=is_error, answer_ids=ids))
    write_answers(folder, rows)
    return FeatureCache.open(folder)


def run(cache: FeatureCache, folder: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(["--run-dir", str(folder), "--caches", str(cache.folder), *SMALL, *more]))


@pytest.fixture(scope="module")
def whole(cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "load_model", lambda *_: tiny_model())
        folder = tmp_path_factory.mktemp("run") / "whole"
        assert run(cache, folder, "--divergence-weight", "0.01") == 0
    return folder


def test_the_query_learns_and_the_finished_folder_says_what_training_said(cache: FeatureCache, whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert result["metrics"]["validation auroc"] > 0.9
    model = from_loaded(tiny_model())
    estimator = QueryEstimator.from_folder(whole / "artifact", model, "query")
    assert estimator.temperature == result["temperature"]
    changed, query = merged(model.model, estimator.adapter), make_query(model.tokenizer)
    raws = []
    for row in cache.answers:
        ids = make_example(row, tiny_model(), query).ids
        logits = changed(torch.tensor([ids])).logits[0, -1]
        raws.append(float(logits[query.no_id] - logits[query.yes_id]))
    assert auroc(raws, [row.is_error for row in cache.answers]) > 0.9


def test_the_folder_names_its_base_data_and_command(whole: Path) -> None:
    info = json.loads((whole / "artifact/config.json").read_text())["info"]
    assert info["base_model"] == "tiny-llama" and len(info["weights_fingerprint"]) == 16
    assert "one (train, page)" in info["training_data"] and "two (train, page)" in info["training_data"]
    assert "validation auroc" in info["metrics"]


def test_a_run_that_died_and_was_resumed_ends_bitwise_as_one_that_did_not(
    cache: FeatureCache, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after some steps, the last of them without a checkpoint."""
    calls, real = [0], QueryTask.loss

    def dying(self: QueryTask, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return real(self, *args)

    folder = tmp_path / "run"
    monkeypatch.setattr(QueryTask, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(cache, folder, "--divergence-weight", "0.01")
    early = shutil.copytree(folder, tmp_path / "early")
    assert run(cache, early, "--divergence-weight", "0.01", "--finish") == 0
    assert_finished_early(early, steps=9)
    assert run(cache, folder, "--divergence-weight", "0.01", "--resume") == 0
    for name in ("metrics.jsonl", "artifact/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def assert_finished_early(folder: Path, steps: int) -> None:
    """The artifact holds the best weights that the last checkpoint knows."""
    result = json.loads((folder / "result.json").read_text())
    kept = load_file(folder / f"checkpoints/step-{steps:08d}/best.safetensors")
    found = load_file(folder / "artifact/model.safetensors")
    assert (result["steps"], result["best_step"]) == (steps, 7)
    assert torch.equal(found["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"], kept["a.0"])


def test_a_run_without_a_checkpoint_cannot_be_finished(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(trainer.TrainingError, match="has no complete checkpoint to finish with"):
        run(cache, tmp_path / "run", "--finish")


@pytest.mark.parametrize("layout", ["chat", "text"])
def test_states_that_were_kept_give_the_loss_of_whole_forwards(cache: FeatureCache, layout: Any) -> None:
    """Float16 keeps three digits; the model is float32."""
    lora = LoraConfig(rank=4, dropout=0.0, first_layer=1)
    found = []
    for gigabytes in (1.0, 0.0):
        config = TrainConfig(
            DataConfig((str(cache.folder),)), QueryLoop(), lora, layout=layout, max_states_gb=gigabytes
        )
        model = tiny_model()
        query = make_query(model.tokenizer, layout)
        examples = [make_example(row, model, query, True) for row in cache.answers[:7]]
        module = trainer.LoraModel(model.model, lora)
        for b in module.b:
            b.data.fill_(0.01)
        task = QueryTask(config, examples, examples, query.label_ids, module)
        assert task.inputs.starts_at == (1 if gigabytes else 0)
        found.append((task.loss(module, range(7))[0].item(), *task.log_odds(module)))
    assert found[0] == pytest.approx(found[1], rel=1e-2, abs=1e-2)


def test_the_divergence_is_that_of_the_answer_and_of_the_reference(cache: FeatureCache) -> None:
    """Each row alone, by transformers and merged weights, against a padded batch."""
    model = tiny_model()
    query = make_query(model.tokenizer)
    rows = cache.answers[:5]
    examples = [make_example(row, model, query, True) for row in rows]
    module = trainer.LoraModel(model.model, LoraConfig(rank=4, dropout=0.0))
    for b in module.b:
        b.data.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    changed = merged(tiny_model().model, module.adapter("x"))
    expected = {"none": 0.0, "own": 0.0, "gold": 0.0}
    with torch.no_grad():
        for example in examples:
            p, q = (m(torch.tensor([example.ids])).logits for m in (changed, tiny_model().model))
            two = p[0, -1, list(query.label_ids)].log_softmax(-1)
            expected["none"] -= float(two[0 if example.is_error else 1])
            start, end = (at - 1 for at in example.answer)
            every = torch.ones(1, end - start, dtype=torch.bool)
            expected["own"] += float(divergence(p[:, start:end], q[:, start:end], every))
            p, q = (m(torch.tensor([example.gold_ids])).logits for m in (changed, tiny_model().model))
            at = example.gold_start - 1
            every = torch.ones(1, len(example.gold_ids) - 1 - at, dtype=torch.bool)
            expected["gold"] += float(divergence(p[:, at:-1], q[:, at:-1], every))
    for name, value in {**expected, "both": expected["own"] + expected["gold"]}.items():
        config = TrainConfig(DataConfig(("x",)), QueryLoop(), module.config, divergence_on=name, divergence_weight=2.0)
        found = QueryTask(config, examples, [], query.label_ids, module).loss(module, range(5))[0]
        right = value if name == "none" else expected["none"] + 2 * value
        assert found.item() == pytest.approx(right, rel=1e-4), name


def test_an_answer_and_a_reference_lie_where_they_are_said_to(cache: FeatureCache) -> None:
    model, row = tiny_model(), replace(cache.answers[0], references=("Lima",))
    example = make_example(row, model, make_query(model.tokenizer), True)
    assert example.ids[slice(*example.answer)] == row.answer_ids[:-1]  # without the end token
    assert model.tokenizer.decode(example.gold_ids[example.gold_start :]) == "Lima"
    text = replace(row, text="Cusco", answer_ids=tuple(model.tokenizer("Cusco").input_ids), finish_reason="length")
    example = make_example(text, model, make_query(model.tokenizer, "text"), True)
    assert model.tokenizer.decode(example.ids[slice(*example.answer)]) == " Cusco"
    assert model.tokenizer.decode(example.gold_ids[example.gold_start :]) == " Lima"


def test_wrong_answers_are_thinned_inside_each_set_and_the_limit_is_kept(cache: FeatureCache) -> None:
    rows = [replace(row, is_error=i % 10 > 1) for i, row in enumerate(cache.answers)]
    kept = choose(rows, 0, 2.0, seed=0)
    for name in ("one", "two"):
        labels = [rows[i].is_error for i in kept if rows[i].set == name]
        assert (labels.count(False), labels.count(True)) == (12, 24)
    assert choose(rows, 0, 0.0, 0) == list(range(len(rows)))
    assert len(choose(rows, 9, 0.0, 0)) == 9 and choose(rows, 9, 0.0, 0) == choose(rows, 9, 0.0, 0)


def test_parts_are_of_similar_length_and_leave_nothing_out() -> None:
    assert by_length([5, 1, 4, 2, 3], 2) == [[1, 3], [4, 2], [0]]


def test_states_beyond_the_allowed_memory_are_not_kept() -> None:
    rows = [list(range(20))] * 4  # 80 ids of 32 features in half precision are 5,120 bytes
    assert Inputs(tiny_model().model, rows, 1, 5120).starts_at == 1
    assert Inputs(tiny_model().model, rows, 1, 5119).starts_at == 0


@pytest.mark.parametrize(("setting", "value"), [("layout", "x"), ("divergence_on", "x"), ("max_wrong", -1.0)])
def test_settings_that_are_not_allowed_are_refused(
    cache: FeatureCache, tmp_path: Path, setting: str, value: object
) -> None:
    with pytest.raises(InputError, match=f"{setting} = {value!r} is not allowed"):
        run(cache, tmp_path / "run", f"--{setting.replace('_', '-')}", str(value))
    assert not (tmp_path / "run").exists()


def test_weights_are_those_of_the_best_look(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["validation_auroc"] for line in lines if "validation_auroc" in line}
    result = json.loads((whole / "result.json").read_text())
    assert looks[result["best_step"]] == max(looks.values())
    tensors = load_file(whole / "artifact/model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in tensors)
