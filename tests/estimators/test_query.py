"""The query's score is what the merged model says of prompt, answer and query; folders of both kinds give it back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.random_adapters import low_rank, merged
from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.errors import InputError
from uqchat.estimators.base import AnswerContext, FollowUp, ModelFacts
from uqchat.estimators.query import MAX_SENTENCES, QueryEstimator, ZeroShotQuery, sentences
from uqchat.estimators.query_files import QueryFiles, QuerySettings, read_query
from uqchat.estimators.query_format import make_query, query_ids
from uqchat.language_model import LanguageModel
from uqchat.origin import ArtifactError, Origin, origin_of
from uqchat.types import Message, ScoredToken, TokenStep

QUESTION = "What is the capital of Peru?"
ENDS = ("q_proj", "v_proj")
PROMPT = tuple(tiny_model().tokenizer("<|user|>" + QUESTION + "<|assistant|>").input_ids)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(tiny_model(window=512))


def tokens_of(model: Any, text: str, end: bool = True) -> list[ScoredToken]:
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    made = [ScoredToken(i, t, c, (i, i + 1), -1.0, 1.0, (), {}) for i, (t, c) in enumerate(zip(ids, text, strict=True))]
    n = len(made)
    closing = ScoredToken(n, model.tokenizer.eos_token_id, "", (n, n), -1.0, 1.0, (), {}, is_end=True)
    return [*made, closing] if end else made


def context_of(model: Any) -> AnswerContext:
    return AnswerContext(PROMPT, (Message("user", QUESTION),), GenerationConfig(), model.tokenizer)


def replies_of(model: LanguageModel, wanted: list[FollowUp]) -> list[TokenStep]:
    """One step for each, by the real engine."""
    one = GenerationConfig(max_new_tokens=1)
    requests = [Request(each.prompt_ids, one, signals=each.signals, adapter=each.adapter) for each in wanted]
    steps: dict[int, TokenStep] = {}
    for event in model.engine.stream(requests):
        if isinstance(event, StepEvent):
            steps.setdefault(event.key, event.step)
    return [steps[key] for key in range(len(wanted))]


def scored(model: LanguageModel, estimator: Any, tokens: list[ScoredToken]) -> tuple[dict[int, Any], Any]:
    """Token risks, and the answer's risk and summary."""
    for adapter in estimator.adapters.values():
        if adapter.name not in model.engine.adapters:
            model.engine.adapters.add(adapter)
    state = estimator.new_state()
    replies = replies_of(model, estimator.follow_ups(context_of(model), tokens, state))
    risks = estimator.take_replies(replies, state)
    return risks, estimator.score_answer(tokens, state)


def log_odds(model: LanguageModel, adapter: Any, ids: tuple[int, ...], labels: tuple[int, int]) -> float:
    """By transformers, with the adapter merged into the weights."""
    with torch.no_grad():
        logits = merged(model.model, adapter)(torch.tensor([ids])).logits[0, -1]
    return float(logits[labels[0]] - logits[labels[1]])


def made_query(model: LanguageModel, **settings: Any) -> QueryEstimator:
    adapter = low_rank(model.model, "query-test", 8, ENDS)
    chosen = QuerySettings(**{"query": "letter_choice", "temperature": 1.7} | settings)
    return QueryEstimator(QueryFiles(chosen, adapter, origin_of(model, training_data="none")), window=512)


@pytest.mark.parametrize("layout", ["chat", "text"])
def test_the_score_is_the_log_odds_of_the_merged_model_over_the_temperature(model: LanguageModel, layout: Any) -> None:
    estimator, tokens = made_query(model, layout=layout), tokens_of(model, "It is Lima")
    query = make_query(model.tokenizer, layout)
    ids = query_ids(query, model.tokenizer, PROMPT, [t.token_id for t in tokens[:-1]], 512, QUESTION)
    expected = log_odds(model, estimator.adapter, ids, query.label_ids) / 1.7
    risks, (risk, summary) = scored(model, estimator, tokens)
    assert risk.raw == pytest.approx(expected, abs=1e-4)
    assert risk.value == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-4)
    assert risks == {token.index: risk for token in tokens[:-1]}  # the span it scored, without the end token
    assert summary.mean == summary.max == summary.sum == risk.raw


def test_untrained_the_plain_model_is_asked(model: LanguageModel) -> None:
    estimator, tokens = ZeroShotQuery().for_model(ModelFacts(2, True, 512)), tokens_of(model, "Lima")
    query = make_query(model.tokenizer)
    ids = query_ids(query, model.tokenizer, PROMPT, [t.token_id for t in tokens[:-1]], 512)
    _, (risk, _) = scored(model, estimator, tokens)
    assert risk.raw == pytest.approx(log_odds(model, None, ids, query.label_ids), abs=1e-4)


def test_each_sentence_is_judged_as_the_answer_so_far(model: LanguageModel) -> None:
    estimator, tokens = made_query(model, level="sentence", temperature=1.0), tokens_of(model, "Lima. In Peru! Yes")
    query = make_query(model.tokenizer)
    risks, (risk, summary) = scored(model, estimator, tokens)
    raws = []
    for text in ("Lima. ", "Lima. In Peru! ", "Lima. In Peru! Yes"):
        answer = model.tokenizer(text, add_special_tokens=False).input_ids
        ids = query_ids(query, model.tokenizer, PROMPT, answer, 512)
        raws.append(log_odds(model, estimator.adapter, ids, query.label_ids))
    assert [risks[i].raw for i in (0, 5, 6, 14, 15, 17)] == pytest.approx(
        [raws[i] for i in (0, 0, 1, 1, 2, 2)], abs=1e-4
    )
    assert risk.raw == pytest.approx(raws[-1], abs=1e-4)
    assert summary.max == pytest.approx(max(raws), abs=1e-4)


def test_a_long_answer_has_no_more_parts_than_forwards_are_allowed(model: LanguageModel) -> None:
    parts = sentences(tokens_of(model, "A b. " * 40, end=False))
    assert [len(part) for part in parts] == [5] * (MAX_SENTENCES - 1) + [5 * (40 - MAX_SENTENCES + 1)]


def test_reasoning_is_not_part_of_the_answer_that_is_judged(model: LanguageModel) -> None:
    tokens = [replace(t, is_reasoning=t.index < 3) for t in tokens_of(model, "hm Lima")]
    wanted = made_query(model).follow_ups(context_of(model), tokens, state := made_query(model).new_state())
    assert state.groups == [(3, 4, 5, 6)]
    assert model.tokenizer.decode(wanted[0].prompt_ids).startswith(model.tokenizer.decode(PROMPT) + "Lima\n\nIs")


def test_nothing_is_asked_about_an_answer_without_a_word(model: LanguageModel) -> None:
    estimator = made_query(model)
    state = estimator.new_state()
    assert estimator.follow_ups(context_of(model), tokens_of(model, ""), state) == []
    assert estimator.score_answer([], state) is None


def test_a_stored_answer_keeps_its_score_without_a_model(model: LanguageModel) -> None:
    estimator, tokens = made_query(model), tokens_of(model, "Lima")
    risks, (risk, _) = scored(model, estimator, tokens)
    stored = [replace(t, risks={"query": risks[t.index]} if t.index in risks else {}) for t in tokens]
    state = estimator.new_state()
    assert [estimator.score_token(token, state) for token in stored] == [*({i: risk} for i in range(4)), {}]
    assert estimator.score_answer(stored, state)[0] == risk


# ---- our folder


def test_what_was_saved_is_read_back_and_scores_alike(model: LanguageModel, tmp_path: Path) -> None:
    estimator, tokens = made_query(model, layout="text"), tokens_of(model, "Lima")
    estimator.save(tmp_path)
    again = QueryEstimator.from_folder(tmp_path, model, "mine")
    assert (again.name, again.parts.settings, again.origin) == ("mine", estimator.parts.settings, estimator.origin)
    assert scored(model, again, tokens)[1] == scored(model, estimator, tokens)[1]
    assert "| Training data | none |" in (tmp_path / "README.md").read_text()


def test_peft_reads_what_was_saved(model: LanguageModel, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    estimator = made_query(model)
    estimator.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["lora"]
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").rename(tmp_path / "peft/adapter_model.safetensors")
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        expected = merged(model.model, estimator.adapter)(ids).logits
        found = peft.PeftModel.from_pretrained(tiny_model(window=512).model, tmp_path / "peft")(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_two_queries_share_an_adapter_name_only_with_the_same_weights(model: LanguageModel, tmp_path: Path) -> None:
    first = made_query(model)
    first.save(tmp_path / "a")
    first.save(tmp_path / "b")
    other = QueryFiles(first.parts.settings, low_rank(model.model, "x", 4, ENDS), first.parts.info)
    QueryEstimator(other).save(tmp_path / "c")
    a, b, c = (read_query(tmp_path / name, model).adapter.name for name in "abc")
    assert a == b != c


def test_a_query_of_another_model_is_refused_unless_it_is_asked_for(model: LanguageModel, tmp_path: Path) -> None:
    made_query(model).save(tmp_path)
    other = LanguageModel(tiny_model(seed=1, window=512))
    with pytest.raises(ArtifactError, match="This query was trained for tiny-llama: its weights' fingerprint is"):
        QueryEstimator.from_folder(tmp_path, other, "query")
    assert QueryEstimator.from_folder(tmp_path, other, "query", allow_mismatch=True).temperature == 1.7
    with pytest.raises(InputError, match="the model has no such layer"):
        QueryEstimator.from_folder(tmp_path, LanguageModel(tiny_model("gpt2")), "query", allow_mismatch=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "`temperature` must be a number above 0; got '0'"),
        ({"layout": "x"}, "`layout` must be one of chat, text; got 'x'"),
        ({"query": 3}, "`query` must be one of roman_choice, letter_choice; got '3'"),
        ({"lora": {"peft_type": "LOHA"}}, "peft_type = 'LOHA'"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_a_damaged_configuration_is_refused(model: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made_query(model).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ArtifactError, InputError), match=message):
        QueryEstimator.from_folder(tmp_path, model, "query")


# ---- released calibration-tuning adapters


@pytest.fixture(scope="module")
def roman() -> LanguageModel:
    """Its tokenizer has a token "ii", as a real Llama's."""
    loaded = tiny_model(window=512)
    loaded.tokenizer.add_tokens(["ii"])
    torch.manual_seed(5)
    loaded.model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
    return LanguageModel(loaded)


def write_released(
    folder: Path, model: Any, adapter: Any, spelling: str, log_temperature: float | None, file: str = ""
) -> None:
    """The files of a released repository: LoRA and both embeddings in bfloat16, one row more than the base has."""
    calibrated = spelling == "calibrated"
    config = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 4, "lora_dropout": 0.1,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "r": 8, "rank_pattern": {},
        "revision": None, "target_modules": ["v_proj", "q_proj"], "use_rslora": False,
        "peft_type": "CALIBRATED_LORA" if calibrated else "LORA",
        "task_type": "CALIBRATED_CAUSAL_LM" if calibrated else "CAUSAL_LM",
    }  # fmt: skip
    config |= {"query_format": "roman_choice", "use_temperature": False} if calibrated else {}
    tensors = {}
    for layer, delta in adapter.deltas.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = delta.a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = delta.b
    rows, size = model.model.get_input_embeddings().weight.shape
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"base_model.model.{name}.weight"] = torch.full((rows + 1, size), 9.0)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({k: v.bfloat16().contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    if log_temperature is not None:
        value = {"log_temperature": torch.tensor(log_temperature)}
        save_file(value, folder / file) if file.endswith("safetensors") else torch.save(value, folder / file)


@pytest.mark.parametrize(
    ("spelling", "log_temperature", "file"),
    [
        ("calibrated", 0.5, "temperature_model.pt"),
        ("plain", -0.3, "temperature_model.safetensors"),
        ("plain", 0.2, "temperature_model.bin"),
        ("calibrated", 0.1, "query_temperature_head.bin"),
        ("calibrated", None, ""),
    ],
)
def test_a_released_adapter_scores_as_the_merged_model(
    roman: LanguageModel, tmp_path: Path, spelling: str, log_temperature: float | None, file: str
) -> None:
    """By the definition: plain text, scale alpha / r = 0.5, log odds over exp(log_temperature)."""
    adapter = low_rank(roman.model, "x", 8, ENDS)
    rounded = {k: replace(d, a=d.a.bfloat16().float(), b=d.b.bfloat16().float()) for k, d in adapter.deltas.items()}
    write_released(tmp_path, roman, adapter, spelling, log_temperature, file)
    estimator = QueryEstimator.from_folder(tmp_path, roman, "calibration-tuning/x", allow_mismatch=False)
    query, tokens = make_query(roman.tokenizer, "text"), tokens_of(roman, "Lima")
    ids = query_ids(query, roman.tokenizer, PROMPT, [t.token_id for t in tokens[:-1]], 512, QUESTION)
    expected = log_odds(roman, replace(adapter, deltas=rounded), ids, query.label_ids) / math.exp(log_temperature or 0)
    assert scored(roman, estimator, tokens)[1][0].raw == pytest.approx(expected, abs=1e-4)
    assert estimator.origin == Origin(base_model="meta-llama/Llama-2-7b-hf")


def test_a_temperature_that_would_run_code_is_not_read(roman: LanguageModel, tmp_path: Path) -> None:
    write_released(tmp_path, roman, low_rank(roman.model, "x", 8, ENDS), "plain", None)
    torch.save({"log_temperature": Path("x")}, tmp_path / "temperature_model.pt")
    with pytest.raises(ArtifactError, match="holds more than a tensor|cannot be read as a temperature"):
        read_query(tmp_path, roman)


def test_a_released_adapter_can_be_saved_as_one_of_ours(roman: LanguageModel, tmp_path: Path) -> None:
    write_released(
        tmp_path / "theirs", roman, low_rank(roman.model, "x", 8, ENDS), "calibrated", 0.5, "temperature_model.pt"
    )
    theirs = QueryEstimator.from_folder(tmp_path / "theirs", roman, "query")
    theirs.save(tmp_path / "ours")
    ours = QueryEstimator.from_folder(tmp_path / "ours", roman, "query")
    assert ours.parts.settings == theirs.parts.settings
    assert ours.adapter.name == theirs.adapter.name
