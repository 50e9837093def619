"""Published answer sets become ours: ids where they belong, labels the right way round; recipes fit their sets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_models import byte_tokenizer, make_tiny_llama
from trainers.__main__ import main
from trainers.answers import IGNORED
from trainers.cache import FeatureCache
from trainers.questions import Columns
from trainers.readers import read_calibration_tuning, read_luh, rows_of
from trainers.recipes import MIXTURES, RECIPES, read_hub, read_recipe
from uqchat.errors import InputError

TOKENIZER: Any = byte_tokenizer()
TUNING = {"context": "Question: Capital of Peru?", "target_prompt": "\nAnswer:", "prompt": "", "target": "Lima"}


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_calibration_tuning_rows_keep_their_rendering_and_their_label(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {**TUNING, "output": "Lima", "query_label": "1"},
        {**TUNING, "output": "Quito ", "query_label": 0, "prompt": "Answer these.\n\n"},
        {**TUNING, "output": " ", "query_label": 1},
        {**TUNING, "output": "Lima", "query_label": 7},
        {**TUNING, "output": "Lima", "query_label": -1},
    ]
    with caplog.at_level(logging.WARNING):
        right, wrong, unknown = read_calibration_tuning(rows, TOKENIZER, "ct")
    assert [right.is_error, wrong.is_error, unknown.is_error] == [False, True, None]
    assert TOKENIZER.decode([*wrong.prompt_ids, *wrong.answer_ids]) == (
        "Answer these.\n\nQuestion: Capital of Peru?\nAnswer: Quito"
    )
    assert "2 rows left out: 1 x an empty answer; 1 x query_label 7" in caplog.text
    with pytest.raises(InputError, match="row 1 lacks query_label"):
        read_calibration_tuning([{**TUNING, "output": "x"}], TOKENIZER, "ct")


def luh_row(**changes: Any) -> dict[str, Any]:
    """Prompt "<s>Where?", reply "in Lima" and the end token."""
    return {"question": "Where?", "reply": "in Lima", "input_ids": [1, *ids("Where?"), *ids("in Lima"), 2], **changes}


def test_luh_claims_become_token_labels_at_the_ids_they_are_aligned_to() -> None:
    claims = [{"claim_text": "in", "aligned_token_ids": [0, 1]}, {"claim_text": "Lima", "aligned_token_ids": [3, 4]}]
    both = [{"claim_text": "im", "aligned_token_ids": [4, 5]}]
    row = read_luh([luh_row(claims=[*claims, *both], verified=[0.0, 1.0, float("nan")])], TOKENIZER, "luh")[0]
    assert row.prompt_ids == (1, *ids("Where?")) and row.answer_ids == (*ids("in Lima"), 2)
    assert row.token_labels == (0, 0, IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED) and row.is_error is True


def test_luh_token_labels_win_over_claims_and_count_from_the_prompt() -> None:
    labels = [IGNORED] * 7 + [0, 0, IGNORED, 1, 1, 1, 1, IGNORED]
    row = read_luh([luh_row(uncertainty_labels=labels)], TOKENIZER, "luh")[0]
    assert row.token_labels == tuple(labels[7:])


def test_luh_rows_that_do_not_fit_together_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    bad = [
        luh_row(reply="elsewhere"),
        luh_row(uncertainty_labels=[0]),
        luh_row(claims=[{"aligned_token_ids": [99]}], verified=[1]),
        luh_row(claims=[{}], verified=[]),
    ]
    with caplog.at_level(logging.WARNING):
        assert len(read_luh([*bad, luh_row()], TOKENIZER, "luh")) == 1
    assert "4 rows left out" in caplog.text
    with pytest.raises(InputError, match="no usable answer .1 x the reply is not"):
        read_luh(bad[:1], TOKENIZER, "luh")


def test_given_answers_get_their_features_by_teacher_forcing(tmp_path: Path) -> None:
    tiny = make_tiny_llama(tmp_path / "model", window=256)
    source = tmp_path / "luh.jsonl"
    claims = {"claims": [{"aligned_token_ids": [3, 4, 5, 6]}], "verified": [1]}
    source.write_text("\n".join(json.dumps(luh_row(**c)) for c in ({}, claims)))
    common = ["--model", str(tiny), "--dtype", "float32", "--device", "cpu"]
    read = ["data", "features", "--answers", str(source), "--format", "luh", "--out", str(tmp_path / "out"), *common]
    assert main(read) == 0
    cache = FeatureCache.open(tmp_path / "out")
    plain, labelled = cache.answers
    assert labelled.token_labels == (IGNORED,) * 3 + (1,) * 4 + (IGNORED,) and plain.is_error is None
    assert labelled.text == "in Lima" and labelled.spans[3:7] == ((3, 4), (4, 5), (5, 6), (6, 7))
    np.testing.assert_array_equal(cache.array("token_id")[cache.span(0)], plain.answer_ids)

    import torch
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        whole = torch.tensor([[*plain.prompt_ids, *plain.answer_ids]])
        states = AutoModelForCausalLM.from_pretrained(tiny)(whole, output_hidden_states=True).hidden_states[1][0]
    first = len(plain.prompt_ids) - 1
    np.testing.assert_allclose(cache.array("hidden_1")[cache.span(0)], states[first:-1], atol=2e-3)
    again = ["data", "features", "--answers", str(tmp_path / "out"), "--out", str(tmp_path / "again"), "--layers", "0"]
    assert main([*again, *common]) == 0
    assert FeatureCache.open(tmp_path / "again").answers == cache.answers
    again[5] = str(tmp_path / "first")
    assert main([*again, "--limit", "1", *common]) == 0
    assert FeatureCache.open(tmp_path / "first").answers == cache.answers[:1]


def test_files_of_a_folder_are_read_in_order_and_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "a.csv").write_text("n\n1\n")
    assert [str(row["n"]) for row in rows_of(tmp_path)] == ["1", "2"]
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(InputError, match="c.parquet cannot be read"):
        list(rows_of(tmp_path))
    with pytest.raises(InputError, match="holds no .csv"):
        list(rows_of(tmp_path / "nothing"))


# ---- the Hub


@pytest.mark.parametrize(
    ("name", "row", "answer", "options"),
    [
        ("arc_easy", {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B", 2),
        ("siqa", {"context": "c", "question": "q", **dict(answerA="x", answerB="y", answerC="z"), "label": 3}, "C", 3),
        ("boolq", {"passage": "p", "question": "is it", "answer": True}, "B", 2),
        ("mmlu", {"question": "q", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 3}, "D", 4),
        ("winogrande", {"sentence": "s", "option1": "x", "option2": "y", "answer": "1"}, "A", 2),
        ("hellaswag", {"ctx": "c", "endings": ["w", "x", "y", "z"], "label": "2"}, "C", 4),
        ("trivia_qa", {"question": "q", "answer": {"value": "Lima", "aliases": ["Ciudad"]}}, "Lima", 0),
    ],
)  # fmt: skip
def test_a_recipe_reads_its_set(
    monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, Any], answer: str, options: int
) -> None:
    monkeypatch.setattr("trainers.recipes._hub_rows", lambda *_: [row, {"other": 1}])
    (question,) = read_recipe(name, "train")
    assert question.references[0] == answer and len(question.choices) == options and question.set == name


def test_a_mixture_takes_equal_parts_of_its_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        {c: "x" for c in "question sentence text premise hypothesis ctx goal title content context passage".split()}
    ]
    for recipe in RECIPES.values():
        recipe.question.format_map(dict.fromkeys(made[0], "x") | dict.fromkeys(
            "paragraph answer question_stem question_title instruction input".split(), "x"))  # fmt: skip
    assert all(name in RECIPES for names in MIXTURES.values() for name in names)
    rows = [{"passage": "p", "question": f"q{i}", "answer": False} for i in range(50)]
    monkeypatch.setattr("trainers.recipes._hub_rows", lambda *_: rows)
    monkeypatch.setitem(MIXTURES, "two", ("boolq", "boolq"))
    found = read_recipe("two", "train", limit=20)
    assert len(found) == 20 and len({q.question for q in found[:10]}) == 10
    assert found != read_recipe("two", "train", limit=20, seed=1)


def test_sets_are_read_through_datasets_with_a_column_mapping(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"prompt": "Capital of Peru?", "target": ["Lima"]}\n')
    (question,) = read_hub(str(tmp_path), "train", Columns(question="prompt", answers="target"))
    assert (question.question, question.references) == ("Capital of Peru?", ("Lima",))
    with pytest.raises(InputError, match="cannot be read"):
        read_hub(str(tmp_path / "nowhere"), "train", Columns())
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe("nq_open", "train")  # offline
    with pytest.raises(InputError, match="Unknown recipe 'x'. Known: mmlu"):
        read_recipe("x", "train")
