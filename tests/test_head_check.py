"""The check tells the layout that a head was trained with: here, labels are made by the head itself in one layout."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from tests.engine.test_decode import ids_of, make_engine
from tests.heads.making import ATTENTION, STATES, write_folder
from uqchat.engine.decode import Engine
from uqchat.errors import InputError
from uqchat.head_check import LabelledAnswer, _claim_logits, _read, check_head, read_answers, variants
from uqchat.heads import load_head
from uqchat.heads.verdict import read_verdict


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def model_of(engine: Engine) -> SimpleNamespace:
    return SimpleNamespace(model=engine.model, engine=engine, tokenizer=engine.vocabulary.tokenizer)


def answers_judged_by(source: Path, engine: Engine, **conventions: str) -> list[LabelledAnswer]:
    """Twelve answers of three claims each, false where the head in these conventions gives more than its median."""
    drawn = Random(0)
    claims = ((0, 1), (3, 4), (6, 7))
    blank = [
        LabelledAnswer(ids_of(engine, "q" * (i % 4 + 1)), tuple(drawn.randrange(97, 122) for _ in range(8)), claims, ())
        for i in range(12)
    ]
    head = load_head(source, model_of(engine), **conventions)
    logits = [_claim_logits(head, steps, answer) for steps, answer in _read(engine, blank, [head])]
    middle = sorted(value for of_answer in logits for value in of_answer)[18]
    return [
        LabelledAnswer(a.prompt_ids, a.answer_ids, claims, tuple(value > middle for value in of_answer))
        for a, of_answer in zip(blank, logits, strict=True)
    ]


@pytest.mark.parametrize("head_type", ["luh", "claim"])
@pytest.mark.parametrize("layout", ["current", "legacy"])
def test_the_layout_of_training_wins_and_is_used_from_then_on(
    head_type: str, layout: str, engine: Engine, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "head", engine.model, head_type, (ATTENTION,))
    verdict = check_head(folder, model_of(engine), answers_judged_by(folder, engine, layout=layout))
    assert verdict.layout == layout and verdict.rows == 12
    assert sorted(verdict.scores) == ["current/layers", "legacy/layers"]
    assert verdict.scores[f"{layout}/layers"] == pytest.approx(1)
    assert read_verdict(folder, str(folder)) == verdict and load_head(folder, model_of(engine)).config.layout == layout


def test_the_hidden_index_of_training_wins(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "head", engine.model, "linear", (STATES,))
    verdict = check_head(folder, model_of(engine), answers_judged_by(folder, engine, hidden_index="tuple"))
    assert verdict.hidden_index == "tuple" and sorted(verdict.scores) == ["current/layers", "current/tuple"]


def test_only_conventions_that_make_a_difference_are_tried(engine: Engine, tmp_path: Path) -> None:
    extractors = ({**ATTENTION, "head_nums": [0, 1]}, {**STATES, "layer_nums": [0, 2]})
    folder = write_folder(tmp_path / "head", engine.model, "linear", extractors)
    assert list(variants(folder, model_of(engine))) == ["current/layers"]


def test_labels_that_are_all_alike_are_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all labels are alike"):
        check_head(tmp_path, model_of(engine), [LabelledAnswer((1,), (2,), ((0,),), (True,))])


def test_labelled_answers_are_read_from_json_lines(tmp_path: Path) -> None:
    row = {"prompt_ids": [1, 2], "answer_ids": [3, 4], "claims": [[0], [0, 1]], "is_error": [1, 0]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n\n")
    assert read_answers(path) == [LabelledAnswer((1, 2), (3, 4), ((0,), (0, 1)), (True, False))]
    for broken in ("{", "[1]", "{}", json.dumps({**row, "is_error": [1]})):
        path.write_text(json.dumps(row) + "\n" + broken)
        with pytest.raises(InputError, match="line 2"):
            read_answers(path)


def test_rows_of_the_published_data_sets_are_read_as_ours(engine: Engine, tmp_path: Path) -> None:
    """Claims count ids without special ones: here the end token stands inside the reply's ids."""
    tokenizer = engine.vocabulary.tokenizer
    prompt = list(ids_of(engine, "a question"))
    answer = [*tokenizer("ab", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    answer += tokenizer("cd", add_special_tokens=False)["input_ids"]
    row = {
        "input_ids": prompt + answer,
        "reply": "abcd",
        "claims": [{"aligned_token_ids": at} for at in ([0, 1], [2, 3], [1], [])],
        "verified": [1.0, 0.0, float("nan"), 1.0],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (found,) = read_answers(tmp_path / "rows.jsonl", tokenizer)
    assert found == LabelledAnswer(tuple(prompt), tuple(answer), ((0, 1), (3, 4)), (True, False))
    for change, message in (
        ({"reply": "other"}, "another tokenizer"),
        ({"verified": [1.0]}, "4 claims but 1 labels"),
        ({"claims": [{"aligned_token_ids": [9]}] * 4}, "line 1: list index out of range"),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | change))
        with pytest.raises(InputError, match=message):
            read_answers(tmp_path / "rows.jsonl", tokenizer)
