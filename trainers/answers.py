"""One answer of a model to one question, with its label, as a line of JSON. Knows no model, no features and no grader.

A folder holds `answers.jsonl` (what the model said; appended, never rewritten) and, once labelled, `labels.jsonl`
(what is wrong with it; written whole, beside it, so that labelling again is cheap and loses nothing).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from uqchat.errors import InputError

ANSWERS, LABELS = "answers.jsonl", "labels.jsonl"
IGNORED = -100
"""Label of a token that says nothing about right or wrong (the number that torch's losses ignore)."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One of several things asked for in one prompt: what it is about, and every string that answers it."""

    subject: str
    references: tuple[str, ...]
    id: str = ""  # of the question it comes from


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer. `answer_ids` holds the end token when there is one; `spans` are characters of `text`, one per id."""

    id: str
    set: str
    split: str
    category: str
    question: str
    references: tuple[str, ...]
    style: str
    messages: tuple[dict[str, str], ...]
    answer_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    text: str
    finish_reason: str
    sample: int = 0
    """0 is the greedy answer, 1 and up are drawn."""
    temperature: float = 0.0
    max_new_tokens: int = 256
    """The cap under which it was generated: an answer that reached it may have gone on."""
    prompt_tokens: int = 0
    prompt_ids: tuple[int, ...] = ()
    """Of an answer that came with its prompt's ids; else the messages say what was asked."""
    choices: tuple[str, ...] = ()
    """Of a multiple-choice question; the right letter is `references[0]`."""
    facts: tuple[Fact, ...] = ()
    """Of a prompt that asks for several things."""
    is_error: bool | None = None
    token_labels: tuple[int, ...] | None = None
    """One per id: 1 wrong, 0 right, -100 ignored."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What names an answer inside a folder."""
        return self.id, self.style, self.sample


def to_line(row: AnswerRow) -> str:
    """The row as a line of JSON, its labels left out."""
    values = asdict(row)
    del values["is_error"], values["token_labels"]
    return json.dumps(values, ensure_ascii=False) + "\n"


def from_line(line: str, where: str = "an answer") -> AnswerRow:
    """The row of a line.

    Args:
        where: file and line, for the message.

    Raises:
        InputError: no JSON object, a missing or unknown column, ids and spans of different lengths.
    """
    values = _object(line, where)
    known = {field.name for field in fields(AnswerRow)}
    missing = sorted(_REQUIRED - set(values))
    unknown = sorted(set(values) - known)
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has unknown columns {', '.join(unknown)}"
        raise InputError(f"{where} {what}; allowed are {', '.join(sorted(known))}.")
    try:
        row = AnswerRow(**{name: _frozen(name, value) for name, value in values.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    if len(row.answer_ids) != len(row.spans):
        raise InputError(f"{where} has {len(row.answer_ids)} ids but {len(row.spans)} spans; it takes one for each.")
    return row


_REQUIRED = {field.name for field in fields(AnswerRow)[:12]}


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"{where} is not JSON: {error}. Delete the line, or the folder, and generate again."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a JSON object; got {str(values)[:80]!r}.")
    return values


def _frozen(name: str, value: Any) -> Any:
    if name == "spans":
        return tuple((int(start), int(end)) for start, end in value)
    if name in ("answer_ids", "prompt_ids"):
        return tuple(int(token_id) for token_id in value)
    if name == "facts":
        return tuple(Fact(fact["subject"], tuple(fact["references"]), fact.get("id", "")) for fact in value)
    return tuple(value) if isinstance(value, list) else value


def whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that ends; what a killed writer left half-written is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n") and line.strip():
                yield number, line


def read_answers(folder: Path) -> list[AnswerRow]:
    """All whole answers of a folder, with their labels where there are some.

    Raises:
        InputError: there are none, or a line is damaged; the text names file and line.
    """
    path = Path(folder) / ANSWERS
    if not path.exists():
        raise InputError(f"{folder} holds no {ANSWERS}. Make it with: python -m trainers data generate --out {folder}")
    rows = [from_line(line, f"{path}, line {number}") for number, line in whole_lines(path)]
    labels = _read_labels(Path(folder) / LABELS)
    return [_labelled(row, labels.get(row.key)) for row in rows]


def _read_labels(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    found = {}
    for number, line in whole_lines(path):
        values = _object(line, f"{path}, line {number}")
        try:
            found[values["id"], values["style"], values["sample"]] = values
        except KeyError as error:
            raise InputError(
                f"{path}, line {number} lacks {error}. Label again: python -m trainers data label"
            ) from error
    return found


def _labelled(row: AnswerRow, label: Mapping[str, Any] | None) -> AnswerRow:
    if label is None:
        return row
    tokens = label.get("token_labels")
    if tokens is not None and len(tokens) != len(row.answer_ids):
        raise InputError(
            f"The labels of {row.id} are for {len(tokens)} tokens, but the answer has {len(row.answer_ids)}."
            " Label again: python -m trainers data label"
        )
    return replace(row, is_error=label.get("is_error"), token_labels=None if tokens is None else tuple(tokens))


def write_answers(folder: Path, rows: Iterable[AnswerRow]) -> None:
    """Write a folder's answers whole, and their labels. For answers without cached features."""
    rows = list(rows)
    write_whole(Path(folder) / ANSWERS, (to_line(row) for row in rows))
    write_labels(folder, rows)


def write_labels(folder: Path, rows: Iterable[AnswerRow]) -> None:
    """Write the labels of these rows in place of all earlier ones; nobody sees half a file."""
    labelled = (row for row in rows if row.is_error is not None or row.token_labels is not None)
    write_whole(Path(folder) / LABELS, (_label_line(row) for row in labelled))


def _label_line(row: AnswerRow) -> str:
    values = {"id": row.id, "style": row.style, "sample": row.sample, "is_error": row.is_error}
    return json.dumps({**values, "token_labels": row.token_labels}, ensure_ascii=False) + "\n"


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a text file beside its place and move it there when it is on disk.

    Raises:
        InputError: the disk is full or the folder cannot be written; what was there before stays.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}. Free some space, or choose another folder."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
