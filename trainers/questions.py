"""Questions with reference answers, from files. Knows no model, no prompt and no split.

A damaged row is left out and counted, so that one bad line does not cost a night; a file without one usable row, or
without a column it needs, is an error.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.answers import Fact
from uqchat.errors import InputError

log = logging.getLogger(__name__)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHARED_KINDS = ("open_qa", "multiple_choice")
"""Folders of the shared data that hold questions."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question; any string of `references` is right. With `choices`, `references[0]` is the right letter."""

    id: str
    set: str
    question: str
    references: tuple[str, ...]
    category: str = ""
    choices: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a source are called; an empty name is a column that it lacks."""

    question: str = "question"
    answers: str = "answers"
    choices: str = "choices"
    answer_index: str = "answer_index"
    id: str = "id"
    category: str = "category"


def shared_file(name: str, part: str, root: str | Path | None = None) -> Path:
    """The file of a shared set, `<root>/data/<kind>/<name>_<part>.jsonl`.

    Args:
        part: "train", "eval", "val" or "dev". root: None takes the environment variable UQCHAT_SHARED.

    Raises:
        InputError: no such folder or set; the text lists what there is.
    """
    root = root or os.environ.get("UQCHAT_SHARED")
    if not root:
        raise InputError("UQCHAT_SHARED is not set: it names the folder that holds data/. Or give a file with --file.")
    for kind in SHARED_KINDS:
        path = Path(root) / "data" / kind / f"{name}_{part}.jsonl"
        if path.exists():
            return path
    found = sorted(p.stem for kind in SHARED_KINDS for p in (Path(root) / "data" / kind).glob("*.jsonl"))
    raise InputError(f"There is no set {name}_{part} in {root}/data; there is {', '.join(found) or 'none'}.")


def read_questions(path: str | Path, set_name: str, columns: Columns = Columns()) -> list[Question]:  # noqa: B008  frozen
    """The questions of a JSONL, CSV or Parquet file.

    Raises:
        InputError: no such file, another kind of file, a missing column, no usable row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise InputError(f"{path.name} is no known kind of file; allowed are {', '.join(readers)}.")
    return as_questions(readers[path.suffix](path), set_name, columns, str(path))


def as_questions(rows: Iterable[Any], set_name: str, columns: Columns, where: str) -> list[Question]:
    """Rows as questions; the unusable ones are left out, counted, and told in the log.

    Raises:
        InputError: no row is usable; the text says what was wrong with them.
    """
    found: list[Question] = []
    faults: Counter[str] = Counter()
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            question = _question(row, set_name, columns, number)
            if question.id in seen:
                raise InputError("an id that another row has")
            seen.add(question.id)
            found.append(question)
        except InputError as error:
            faults[str(error)] += 1
    said = "; ".join(f"{count:,} x {fault}" for fault, count in faults.most_common(5))
    if not found:
        raise InputError(f"{where} holds no usable question ({said or 'it is empty'}). Columns: {columns}.")
    if faults:
        log.warning("%s: %d of %d rows left out: %s", where, faults.total(), faults.total() + len(found), said)
    return found


def _question(row: Any, set_name: str, columns: Columns, number: int) -> Question:
    if not isinstance(row, Mapping):
        raise InputError(row if isinstance(row, str) else "not an object")
    text = row.get(columns.question)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"no text in column {columns.question!r}")
    choices, references = _choices(row, columns), _strings(row.get(columns.answers))
    if choices:
        references = _letter(row.get(columns.answer_index), choices)
    if not references:
        raise InputError(f"no answer in column {columns.answers!r}")
    return Question(
        id=str(row.get(columns.id) or f"{set_name}-{number:06d}"),
        set=set_name,
        question=text.strip(),
        references=references,
        category=str(row.get(columns.category) or ""),
        choices=choices,
    )


def _choices(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    value = row.get(columns.choices)
    value = value.get("text") if isinstance(value, Mapping) else value  # Hub sets: {"text": [...], "label": [...]}
    return _strings(value)


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):  # Hub sets: {"value": ..., "aliases": [...]}
        value = [value.get("value"), *(value.get("aliases") or [])]
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list in a CSV cell
        try:
            value = json.loads(value)
        except ValueError:
            pass
    items = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return tuple(str(item).strip() for item in items if item is not None and str(item).strip())


def _letter(index: Any, choices: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(index, str) and len(index.strip()) == 1 and index.strip().upper() in LETTERS[: len(choices)]:
        index = LETTERS.index(index.strip().upper())
    try:
        index = int(index)
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < min(len(choices), len(LETTERS)):
        raise InputError("an answer index outside the choices")
    return LETTERS[index], choices[index]


def _json_lines(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                yield _or_fault(lambda line=line: json.loads(line), "not JSON")


def _or_fault(read: Callable[[], Any], fault: str) -> Any:
    try:
        value = read()
    except ValueError:
        return fault
    return value if isinstance(value, Mapping) else "not an object"


def _csv_rows(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: Path) -> Iterable[Any]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from error
