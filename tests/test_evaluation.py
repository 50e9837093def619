"""Evaluation: every kind of data set becomes graded records, and an interrupted run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import scored_tokens
from uqchat import cli
from uqchat.config import GenerationConfig
from uqchat.errors import InputError, ModelError
from uqchat.evaluation import CHOICE, Plan, Progress, evaluate, likeliest, macro_accuracy
from uqchat.evaluation_data import Question, kind_of, make_messages, read_questions
from uqchat.types import Answer, Risk, Summary

PLAN = Plan(("entropy",))


class KnowsSome:
    """Answers "It is <word>." by a table of questions; the log-probability of a given text by another table."""

    name, tokenizer = "scripted", None

    def __init__(self, says: dict[str, str], logprobs: dict[str, float] | None = None, fail_after: int = 99) -> None:
        self.says, self.logprobs, self.calls, self.fail_after = says, logprobs or {}, 0, fail_after

    def answers(self, asked: Sequence[Any], estimators: Sequence[str], generation: GenerationConfig) -> list[Answer]:
        """One answer each."""
        self.calls += 1
        if self.calls > self.fail_after:
            raise ModelError("out of memory")
        words = f" {generation.seed}" if generation.temperature else ""
        return [self._answer(self.says[messages[-1].text] + words) for messages in asked]

    def scores(self, asked: Sequence[Any], answers: Sequence[str], estimators: Sequence[str]) -> list[Answer]:
        """The given answers."""
        return [self._answer(text, self.logprobs.get(text, -5.0)) for text in answers]

    def _answer(self, text: str, logprob: float = -1.0) -> Answer:
        tokens = tuple(replace(token, logprob=logprob) for token in scored_tokens(text, has_end=False))
        return Answer(text, tokens, {"entropy": Risk(0.25, 1.0, "scope")}, {"entropy": Summary(1, 1, 1)}, "stop")


def question(name: str, **changes: Any) -> Question:
    """One easy question."""
    return replace(Question(name, f"{name}?", "facts", "capital", ("Paris",)), **changes)


def test_open_answers_are_graded_by_alias_and_kept_with_risks_and_scope(tmp_path: Path) -> None:
    model = KnowsSome({"a?": "It is Paris.", "b?": "It is Lyon."})
    progress: list[Progress] = []
    records = evaluate(model, [question("a"), question("b")], PLAN, tmp_path / "r.parquet", on_progress=progress.append)
    assert records.is_error.tolist() == [0, 1]
    row = records.row(1)
    assert (row.answer, row.references, row.risks["entropy"]) == ("It is Lyon.", ("Paris",), Risk(0.25, 1.0, "scope"))
    assert [token.text for token in row.tokens] == ["It", " is", " Lyon."]
    assert [(p.done, p.total, p.seconds_left) for p in progress] == [(2, 2, 0.0)]


def test_an_interrupted_run_goes_on_and_ends_with_the_same_rows(tmp_path: Path) -> None:
    questions = [question(f"q{i}") for i in range(70)]
    says = {f"q{i}?": "Paris" for i in range(70)}
    with pytest.raises(ModelError):
        evaluate(KnowsSome(says, fail_after=2), questions, PLAN, tmp_path / "r.parquet")
    second = KnowsSome(says)
    records = evaluate(second, questions, PLAN, tmp_path / "r.parquet")
    assert second.calls == 1  # 64 of 70 were done
    assert list(records.strings("question_id")) == [f"q{i}" for i in range(70)]


def test_a_run_with_another_style_does_not_go_on_from_an_interrupted_one(tmp_path: Path) -> None:
    questions, says = [question(f"q{i}") for i in range(40)], {f"q{i}?": "Paris" for i in range(40)}
    with pytest.raises(ModelError):
        evaluate(KnowsSome(says, fail_after=1), questions, PLAN, tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"other settings \(style\)"):
        evaluate(KnowsSome(says), questions, replace(PLAN, style="short"), tmp_path / "r.parquet")


def test_drawn_answers_come_after_the_greedy_one(tmp_path: Path) -> None:
    plan = replace(PLAN, samples=2, generation=GenerationConfig(temperature=1.0, seed=5))
    records = evaluate(KnowsSome({"a?": "Paris"}), [question("a")], plan, tmp_path / "r.parquet")
    assert [records.row(i).answer for i in range(3)] == ["Paris", "Paris 6", "Paris 7"]
    assert [records.row(i).sample for i in range(3)] == [0, 1, 2]


def test_the_likeliest_letter_is_the_answer_whatever_else_the_model_would_say(tmp_path: Path) -> None:
    asked = question("a", choices=("Lyon", "Paris", "Nice"), answer_index=1, references=())
    model = KnowsSome({}, {"A": math.log(0.02), "B": math.log(0.06), "C": math.log(0.02)})
    row = evaluate(model, [asked], PLAN, tmp_path / "r.parquet").row(0)
    assert (row.answer, row.is_error, row.references) == ("B. Paris", False, ("Paris",))
    assert row.risks[CHOICE].value == pytest.approx(1 - 0.06 / 0.10)


def test_the_likeliest_reference_is_the_answer(tmp_path: Path) -> None:
    asked = [
        question("a", references=("Nothing", "It passes"), incorrect=("You die",)),
        question("b", references=("Nothing",), incorrect=("You die", "It grows")),
    ]
    model = KnowsSome({}, {"Nothing": -2.0, "It passes": -0.5, "You die": -3.0, "It grows": -0.1})
    records = evaluate(model, asked, replace(PLAN, kind="references"), tmp_path / "r.parquet")
    assert [(records.row(i).answer, records.row(i).is_error) for i in (0, 1)] == [
        ("It passes", False),
        ("It grows", True),
    ]


def test_a_long_reference_wins_by_its_mean_and_loses_by_its_sum(tmp_path: Path) -> None:
    """Three tokens of -1.0 each against one of -2.0: -3.0 < -2.0 summed, -1.0 > -2.0 on the mean."""
    asked = [question("a", references=("It is Paris",), incorrect=("Nothing",))]
    model = KnowsSome({}, {"It is Paris": -1.0, "Nothing": -2.0})
    for likelihood, is_error in (("sum", True), ("mean", False)):
        plan = replace(PLAN, kind="references", likelihood=likelihood)
        row = evaluate(model, asked, plan, tmp_path / f"{likelihood}.parquet").row(0)
        assert row.is_error is is_error and row.versions["kind"] == f"references by {likelihood}"


def test_the_share_of_the_likeliest_does_not_underflow() -> None:
    far = [
        Answer("", tuple(replace(t, logprob=p) for t in scored_tokens("a", has_end=False)), {}, {}, "given")
        for p in (-2000.0, -2001.0)
    ]
    best, share, _ = likeliest(far, PLAN)
    assert best == 0 and share == pytest.approx(1 / (1 + math.exp(-1)))


def test_ready_answers_keep_their_grade_or_are_graded_or_stay_open(tmp_path: Path) -> None:
    asked = [
        question("a", answer="Lyon", is_error=False),
        question("b", answer="Lyon"),
        question("c", answer="Lyon", references=()),
    ]
    records = evaluate(KnowsSome({}), asked, replace(PLAN, kind="given"), tmp_path / "r.parquet")
    assert [records.row(i).is_error for i in range(3)] == [False, True, None]


def test_the_macro_mean_counts_every_task_the_same(tmp_path: Path) -> None:
    says = {"a?": "Paris", "b?": "Paris", "c?": "Paris", "d?": "Lyon"}
    asked = [question(name, category="many") for name in "abc"] + [question("d", category="one")]
    records = evaluate(KnowsSome(says), asked, PLAN, tmp_path / "r.parquet")
    assert macro_accuracy(records) == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize(
    ("changes", "plan", "words"),
    [
        ({"references": ()}, replace(PLAN, kind="open"), "needs references"),
        ({}, replace(PLAN, kind="choice"), "needs choices"),
        ({}, replace(PLAN, kind="references"), "incorrect_answers"),
        ({}, replace(PLAN, kind="given"), "needs answer"),
        ({}, replace(PLAN, samples=3), "temperature above 0"),
        ({}, replace(PLAN, style="loud"), "no prompt style"),
    ],
)
def test_data_unfit_for_the_kind_are_refused(tmp_path: Path, changes: dict, plan: Plan, words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(KnowsSome({"a?": "x"}), [question("a", **changes)], plan, tmp_path / "r.parquet")


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a' occurs twice"):
        evaluate(KnowsSome({}), [question("a"), question("a")], PLAN, tmp_path / "r.parquet")


@pytest.mark.parametrize(
    ("file", "kind", "count"),
    [
        ("open_qa/easy_facts_eval", "open", 456),
        ("open_qa/truthfulqa_eval", "open", 817),
        ("multiple_choice/arc_challenge_eval", "choice", 1171),
        ("multiple_choice/boolq_eval", "choice", 1000),
    ],
)
def test_the_shared_sets_are_read(shared: Path, file: str, kind: str, count: int) -> None:
    path = shared / "data" / f"{file}.jsonl"
    found = read_questions(str(path))
    assert (len(found), kind_of(found), found[0].set) == (count, kind, path.stem.removesuffix("_eval"))
    first = json.loads(path.read_text().split("\n")[0])
    assert found[0].id == first["id"] and found[0].question == first["question"]
    if kind == "choice":
        assert found[0].choices[found[0].answer_index] == first["choices"][first["answer_index"]]


def test_own_columns_are_mapped_and_objects_of_the_hub_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('q,gold\nWho?,"[""I"", ""me""]"\n')
    assert read_questions(str(tmp_path / "a.csv"), {"question": "q", "references": "gold"})[0].references == ("I", "me")
    row = {
        "question": "Who?",
        "answer": {"aliases": ["I"]},
        "choices": {"text": ["x", "y"], "label": ["1", "2"]},
        "answerKey": "2",
    }
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    read = read_questions(str(tmp_path / "b.jsonl"), {"references": "answer.aliases"})[0]
    assert (read.references, read.choices, read.answer_index) == (("I",), ("x", "y"), 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}\n", "Row 1 has no question.*--map"),
        ("[1]\n", "line 1 must hold an object"),
        ("{\n", "line 1 is not JSON"),
        ('{"question": "a", "choices": ["x", "y"], "answer_index": "z"}\n', "right choice must be"),
        ("", "holds no row"),
    ],
)
def test_a_broken_data_file_is_explained(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        read_questions(str(tmp_path / "a.jsonl"))


def test_an_answer_column_alone_is_asked_about() -> None:
    with pytest.raises(InputError, match="--map references=answer"):
        kind_of([question("a", references=(), answer="Paris")])


def test_choices_are_listed_without_a_system_message() -> None:
    asked = make_messages(question("a", choices=("x", "y")), "short")
    assert [(m.role, m.text) for m in asked] == [("user", "a?\nA. x\nB. y\nAnswer with the letter only.")]


@pytest.mark.model
def test_the_shell_evaluates_the_embedded_model(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = shared / "data" / "open_qa" / "easy_facts_eval.jsonl", tmp_path / "r.parquet"
    command = ["evaluate", "--data", str(data), "--limit", "4", "--max-new-tokens", "8", "--out", str(out), "--json"]
    assert cli.main([*command, "--estimators", "entropy,margin"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["answers"] == found["graded"] == 4 and set(found["auroc"]) == {"entropy", "margin"}
    assert out.exists()
