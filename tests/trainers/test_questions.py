"""Questions come in from every kind of file; a bad row costs itself, not the file; splits never share a question."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from trainers.long_answers import compose, subject_of
from trainers.prompts import STYLES, make_messages, pick_examples
from trainers.questions import Columns, Question, read_questions, shared_file
from trainers.splits import check_no_leak, entity_of, group_of, shuffled, split, without_leaks
from uqchat.errors import InputError

GOOD = {"id": "a", "question": "Capital of Peru?", "answers": ["Lima"]}
BAD = ["{broken", "[1]", '{"question": "x"}', '{"answers": ["y"]}', '{"question": "  ", "answers": ["y"]}']


def easy_facts(shared: Path, part: str) -> list[Question]:
    return read_questions(shared_file("easy_facts", part, shared), "easy_facts")


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    twice = json.dumps({**GOOD, "question": "again?"})
    path.write_text("\n".join([*BAD, json.dumps(GOOD), twice, '{"question": "q", "answers": ""}']))
    with caplog.at_level(logging.WARNING):
        assert [q.question for q in read_questions(path, "made")] == ["Capital of Peru?"]
    assert "7 of 8 rows left out" in caplog.text and "1 x an id that another row has" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "", "no usable question (it is empty)"),
        ("a.jsonl", '{"frage": "x", "answers": ["y"]}', "no text in column 'question'"),
        ("a.csv", "question,loesung\nx,y\n", "no answer in column 'answers'"),
        ("a.txt", "x", "no known kind of file; allowed are .jsonl, .csv, .parquet"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_without_a_usable_row_says_what_is_wrong(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        read_questions(tmp_path / name, "made")
    assert said in str(refused.value)
    with pytest.raises(InputError, match="There is no file"):
        read_questions(tmp_path / "nothing.jsonl", "made")


def test_the_same_questions_come_from_json_lines_csv_and_parquet(tmp_path: Path) -> None:
    import csv

    import pyarrow
    import pyarrow.parquet as parquet

    rows = [{"q": 'Größte Stadt, in "Peru"?', "a": ["Lima", "Ciudad, de los Reyes"], "kind": "x"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["q", "a", "kind"])
        writer.writeheader()
        writer.writerow({**rows[0], "a": json.dumps(rows[0]["a"])})
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = Columns(question="q", answers="a", category="kind")
    found = [read_questions(tmp_path / f"a.{kind}", "made", columns) for kind in ("jsonl", "csv", "parquet")]
    assert found[0] == found[1] == found[2]
    assert found[0][0].references == ("Lima", "Ciudad, de los Reyes") and found[0][0].id == "made-000001"


def test_a_choice_question_is_answered_by_its_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    choices = {"question": "Pick", "choices": ["x", "y", "z"]}
    lines = [{**choices, "answer_index": 2}, {**choices, "answer_index": "B"}, {**choices, "answer_index": 3}]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_questions(path, "made")
    assert [q.references for q in found] == [("C", "z"), ("B", "y")]
    asked = make_messages(found[0], "page")[0]["content"]
    assert asked == "Pick\nA. x\nB. y\nC. z\nAnswer with the letter only."


def test_styles_ask_as_the_page_does_or_with_one_system_sentence() -> None:
    question = Question("a", "made", "Capital of Peru?", ("Lima",))
    assert make_messages(question, "page") == ({"role": "user", "content": "Capital of Peru?"},)
    assert {len(make_messages(question, style)) for style in STYLES} == {1, 2}
    with pytest.raises(InputError, match="Unknown prompt style 'loud'. Known: page, short, sentence"):
        make_messages(question, "loud")


def test_examples_never_hold_the_question_itself() -> None:
    pool = [Question(str(i), "made", f"Question {i}?", ("x",)) for i in range(6)]
    for question in pool:
        picked = pick_examples(question, pool, 3)
        assert question not in picked and len(set(picked)) == 3
        assert picked == pick_examples(question, pool, 3)


@pytest.mark.parametrize("name", ["easy_facts", "popqa", "webquestions"])
def test_splits_share_nothing_and_every_category_gives_its_fifth(shared: Path, name: str) -> None:
    questions = read_questions(shared_file(name, "train", shared), name)
    parts = split(questions)
    assert sorted(q.id for part in parts.values() for q in part) == sorted(q.id for q in questions)
    assert abs(len(parts["calibration"]) / len(questions) - 0.2) < 0.01
    check_no_leak(parts["train"], parts["calibration"])
    assert split(questions) == parts and split(questions, seed=1) != parts
    everywhere = Counter(q.category for q in questions)
    held = Counter(q.category for q in parts["calibration"])
    for category, count in everywhere.items():
        if count >= 40:
            assert 0.08 < held[category] / count < 0.35, category


def test_no_country_state_or_noun_of_easy_facts_is_in_two_splits(shared: Path) -> None:
    """Elements and pairs of numbers are: the published files ask for gold's symbol in one, its number in the other."""
    parts = {**split(easy_facts(shared, "train")), "eval": easy_facts(shared, "eval")}
    found = {name: {entity_of(q) for q in part if entity_of(q)} for name, part in parts.items()}
    assert len(found["train"]) > 150 and not found["train"] & found["calibration"]
    for name in ("train", "calibration"):
        assert {kind for kind, _ in found[name] & found["eval"]} <= {"element"}
    with pytest.raises(InputError, match="in both splits"):
        check_no_leak(parts["eval"], parts["train"])
    clean = without_leaks(parts["eval"], [*parts["train"], *parts["calibration"]])
    check_no_leak(clean, [*parts["train"], *parts["calibration"]])
    assert 350 < len(clean) < len(parts["eval"])


def test_a_leak_is_found_through_other_words_for_the_same_thing() -> None:
    capital = Question("1", "easy_facts", "What is the capital of Peru?", ("Lima",), "capital")
    country = Question("2", "easy_facts", "Lima is the capital of which country?", ("Peru",), "country_of_capital")
    assert group_of(capital) == group_of(country)
    with pytest.raises(InputError, match="1 questions are in both splits"):
        check_no_leak([capital], [country])


def test_a_limit_takes_the_first_of_a_fixed_shuffle() -> None:
    questions = [Question(str(i), "made", f"Question {i}?", ("x",)) for i in range(50)]
    assert shuffled(questions, 10) == shuffled(questions, 20)[:10]
    assert len(shuffled(questions, 99)) == 50 and shuffled(questions) != questions


def test_prompts_of_several_facts_hold_only_entities_of_their_split(shared: Path) -> None:
    train, held = split(easy_facts(shared, "train"))["train"], easy_facts(shared, "eval")
    made = compose(held, train, 60, "eval")
    known = {q.id: q for q in held}
    assert compose(held, train, 60, "eval") == made and len({q.id for q, _ in made}) == 60
    for question, messages in made:
        facts = [known[fact.id] for fact in question.facts]
        assert len({entity_of(f) or subject_of(f) for f in facts}) == len(facts) in (3, 4)
        assert all(fact.subject in question.question for fact in question.facts)
        assert messages[-1]["content"] == question.question
        for turn in messages[:-1]:
            assert not any(subject in turn["content"].split() for f in facts if (subject := subject_of(f)))
    assert {q.category for q, _ in made} == {"shown_mixed", "shown_same", "plain_same", "plain_list"}


def test_several_facts_need_easy_facts() -> None:
    with pytest.raises(InputError, match="easy_facts only"):
        compose([Question("a", "made", "Capital of Peru?", ("Lima",))], [], 3, "train")
