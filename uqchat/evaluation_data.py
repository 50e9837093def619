"""Questions to evaluate on, from JSON lines, CSV, Parquet or the Hub, and how each is put to a model. Runs no model."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from uqchat.errors import InputError
from uqchat.types import Message

Kind = Literal["open", "choice", "references", "given"]
KINDS: tuple[Kind, ...] = ("open", "choice", "references", "given")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STYLES = {
    "page": "",
    "short": "Answer the question in a few words.",
    "sentence": "Answer the question in one full sentence.",
}
"""What each prompt style says first; `page` is what the app sends: the question alone."""
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "question_id"),
    "question": ("question", "prompt"),
    "references": ("references", "answers"),
    "category": ("category", "subject"),
    "choices": ("choices",),
    "answer_index": ("answer_index", "answerKey", "label"),
    "incorrect": ("incorrect_answers", "incorrect"),
    "answer": ("answer", "response"),
    "is_error": ("is_error",),
    "set": ("set",),
}
"""Our field -> what its column may be called without being told."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a data set. `answer` is a ready answer to score; `is_error` its grade where somebody gave one."""

    id: str
    question: str
    set: str = ""
    category: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    incorrect: tuple[str, ...] = ()
    answer: str | None = None
    is_error: bool | None = None


def read_questions(source: str, mapping: Mapping[str, str] | None = None, limit: int | None = None) -> list[Question]:
    """The questions of a file, or of `hub:owner/name[:config[:split]]`.

    Args:
        source: a .jsonl, .csv or .parquet file, or a data set on the Hub.
        mapping: our field -> its column, for columns that are called otherwise; dots reach into objects.
        limit: so many of them, drawn with seed 0; None is all.

    Raises:
        InputError: not readable, no question column, or a row whose values cannot be used; the text names it.
    """
    name = source.split(":")[1] if source.startswith("hub:") else Path(source).stem
    name = name.rpartition("/")[2].removesuffix("_eval").removesuffix("_train")
    unknown = sorted(set(mapping or {}) - set(NAMES))
    if unknown:
        raise InputError(f"{unknown[0]!r} is no field; columns can be mapped to {', '.join(NAMES)}.")
    rows = list(_rows(source))
    if not rows:
        raise InputError(f"{source} holds no row.")
    found = [_question(row, mapping or {}, name, number) for number, row in enumerate(rows)]
    if limit is not None and limit < len(found):
        kept = sorted(random.Random(0).sample(range(len(found)), limit))
        found = [found[i] for i in kept]
    return found


def source_rows(source: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a file or data set, as they are. Raises InputError when it cannot be read or holds none."""
    found = list(islice(_rows(source), count))
    if not found:
        raise InputError(f"{Path(source).name} holds no row.")
    return found


def _rows(source: str) -> Iterable[dict[str, Any]]:
    return hub_rows(source) if source.startswith("hub:") else file_rows(Path(source))


def file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as objects. Raises InputError that names the line which is none."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        elif path.suffix in (".jsonl", ".json"):
            yield from _json_lines(path)
        else:
            raise InputError(f"{path.name} must end in .jsonl, .csv or .parquet.")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} must hold an object; it holds a {type(row).__name__}.")
        yield row


def hub_rows(source: str) -> Iterable[dict[str, Any]]:
    """Rows of `hub:owner/name[:config[:split]]`; split defaults to test, else validation, else the first."""
    try:
        import datasets
    except ImportError as error:
        raise InputError("Data sets of the Hub need the package `datasets`: pip install datasets") from error
    _, name, *rest = source.split(":")
    config, split = (rest + [""] * 2)[0] or None, (rest + [""] * 2)[1] or None
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(name, config)
            split = next((wanted for wanted in ("test", "validation") if wanted in splits), splits[0])
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # the library raises whatever its readers and the network raise
        raise InputError(f"The data set {source} cannot be had: {type(error).__name__}: {str(error)[:300]}") from error


def _question(row: Mapping[str, Any], mapping: Mapping[str, str], set_name: str, number: int) -> Question:
    values = {field: _value(row, field, mapping) for field in NAMES}
    where = f"Row {number + 1}"
    if not isinstance(values["question"], str) or not values["question"].strip():
        raise InputError(
            f"{where} has no question. Its columns: {', '.join(map(str, row))[:200]}. "
            "Name the right one with --map question=COLUMN."
        )
    choices, labels = _choices(values["choices"])
    index = None if not choices else _index(values["answer_index"], choices, labels, where)
    return Question(
        id=str(values["id"]) if values["id"] not in (None, "") else f"{set_name}-{number:05d}",
        question=values["question"],
        set=str(values["set"] or set_name),
        category=str(values["category"] or ""),
        references=_texts(values["references"]),
        choices=choices,
        answer_index=index,
        incorrect=_texts(values["incorrect"]),
        answer=None if values["answer"] in (None, "") else str(values["answer"]),
        is_error=_grade(values["is_error"], where),
    )


def _value(row: Mapping[str, Any], field: str, mapping: Mapping[str, str]) -> Any:
    if field not in mapping:
        return next((row[name] for name in NAMES[field] if name in row), None)
    value: Any = row
    for part in mapping[field].split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"There is no column {mapping[field]!r}; there are {', '.join(map(str, row))[:300]}.")
        value = value[part]
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """A list, a JSON list, an object with `aliases` or `text` (TriviaQA, SQuAD), or one string."""
    if value in (None, ""):
        return ()
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("aliases", "text", "value") if key in value), None)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    items = [value] if isinstance(value, str | int | float) else list(value or ())
    return tuple(str(item) for item in items if str(item).strip())


def _choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices and their labels: a list, or {"text": [...], "label": [...]}."""
    if isinstance(value, Mapping):
        return _texts(value.get("text")), _texts(value.get("label"))
    texts = _texts(value)
    return texts, tuple(LETTERS[: len(texts)])


def _index(value: Any, choices: Sequence[str], labels: Sequence[str], where: str) -> int | None:
    if value is None:
        return None
    text = str(value).strip()
    if text in labels:
        return labels.index(text)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    if text in choices:
        return choices.index(text)
    raise InputError(
        f"{where}: the right choice must be one of 0 to {len(choices) - 1}, a letter or a choice's text; got {text!r}."
    )


def _grade(value: Any, where: str) -> bool | None:
    words = {"true": True, "1": True, "wrong": True, "false": False, "0": False, "right": False}
    if value in (None, ""):
        return None
    if str(value).strip().lower() not in words:
        raise InputError(f"{where}: is_error must be true (wrong), false (right) or empty; got {value!r}.")
    return words[str(value).strip().lower()]


def kind_of(questions: Sequence[Question]) -> Kind:
    """How these can be evaluated: by their choices, by references, or as ready answers.

    Raises:
        InputError: it cannot be told; the text says what to name.
    """
    first = questions[0]
    if first.choices:
        return "choice"
    if first.references and first.answer is None:
        return "open"
    if first.answer is not None and not first.references and first.is_error is None:
        raise InputError(
            "Is the column `answer` the right answer or one to be scored? Say --map references=answer for the first, "
            "--kind given for the second."
        )
    return "given" if first.answer is not None else "open"


def make_messages(question: Question, style: str) -> list[Message]:
    """The conversation that asks the question; choices are listed below it. Raises InputError on an unknown style."""
    if style not in STYLES:
        raise InputError(f"{style!r} is no prompt style; there are {', '.join(STYLES)}.")
    system = [Message("system", STYLES[style])] if STYLES[style] and not question.choices else []
    listed = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=False))
    asked = f"{question.question}{listed}\nAnswer with the letter only." if listed else question.question
    return [*system, Message("user", asked)]
