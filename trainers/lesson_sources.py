"""Where lessons come from, in words: instructions, recipes, questions with a reference, a model's own answers.

Knows no tokenizer and no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainers.answers import AnswerRow, read_answers
from trainers.prompts import STYLES, Messages, make_messages
from trainers.questions import Columns, read_questions, shared_file
from trainers.recipes import read_recipe
from trainers.splits import CALIBRATION, shuffled, split
from uqchat.errors import InputError


@dataclass(frozen=True)
class LessonConfig:
    """What is learned."""

    instructions: tuple[str, ...] = ()
    """Shared instruction sets, such as self_instruct_seed, or .jsonl files with instruction, input and output."""
    recipes: tuple[str, ...] = ()
    """Sets of the Hub by recipe, such as alpaca_cleaned; their first reference is the response."""
    questions: tuple[str, ...] = ()
    """Shared question sets or files; their first reference is the response. Not their calibration part."""
    caches: tuple[str, ...] = ()
    """Folders of `data generate`, labelled: the model's own answers. Tokens labelled wrong are to be unlearned."""
    styles: tuple[str, ...] = ("short", "page")
    """Prompt styles in which each question is asked."""
    per_source: int = 0
    """Lessons of each source at most, drawn with the seed; 0 is all."""
    max_length: int = 400
    """Ids of prompt and response together, 8 or more; longer responses are cut, prompts that leave no room go."""
    validation: float = 0.1
    """Share of the lessons, by question, that chooses the best checkpoint, in [0, 1)."""
    data_seed: int = 0
    """Of what is drawn and of that choice."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        if not (self.instructions or self.recipes or self.questions or self.caches):
            raise InputError("There is nothing to learn: name --instructions, --recipes, --questions or --caches.")
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles:
            raise InputError(f"styles = {self.styles!r} is not allowed; it must be among {', '.join(STYLES)}.")
        if self.max_length < 8 or self.per_source < 0 or not 0 <= self.validation < 1:
            raise InputError(
                f"max_length must be 8 or more, per_source 0 or more, validation 0 to below 1; got {self.max_length},"
                f" {self.per_source}, {self.validation}."
            )


@dataclass(frozen=True, slots=True)
class RawLesson:
    """A lesson in words, or with its response in ids already."""

    messages: Messages
    group: str
    key: str
    response: str = ""
    answer: AnswerRow | None = None


def raw_lessons(config: LessonConfig) -> Iterator[RawLesson]:
    """All of them, source by source. Raises InputError: a source that cannot be read."""
    readers = (
        (config.instructions, _instructions),
        (config.recipes, _recipe),
        (config.questions, _questions),
        (config.caches, _own_answers),
    )
    for names, read in readers:
        for name in names:
            found = list(read(name, config))
            yield from shuffled(found, config.per_source, config.data_seed) if config.per_source else found


def _instructions(name: str, config: LessonConfig) -> Iterator[RawLesson]:
    path = Path(name) if name.endswith(".jsonl") else _instruction_file(name)
    count = 0
    for number, row in enumerate(_json_lines(path), 1):
        asked = "\n".join(part for part in (str(row.get(k) or "").strip() for k in ("instruction", "input")) if part)
        said = str(row.get("output") or "").strip()
        if not asked or not said:
            continue
        count += 1
        yield RawLesson(({"role": "user", "content": asked},), path.stem, f"{path.stem} {row.get('id', number)}", said)
    if not count:
        raise InputError(f"{path} holds no instruction with an output; its columns are instruction, input, output.")


def _instruction_file(name: str) -> Path:
    root = os.environ.get("UQCHAT_SHARED")
    if not root:
        raise InputError("UQCHAT_SHARED is not set: it names the folder that holds data/. Or name a .jsonl file.")
    folder = Path(root) / "data" / "instruction"
    path = folder / f"{name}_train.jsonl"
    if not path.is_file():
        known = sorted(p.stem.removesuffix("_train") for p in folder.glob("*_train.jsonl"))
        raise InputError(f"There is no instruction set {name!r} in {folder}; there is {', '.join(known) or 'none'}.")
    return path


def _json_lines(path: Path) -> Iterator[dict[str, object]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a damaged line costs itself; a file without a good one is refused by the caller
        if isinstance(row, dict):
            yield row


def _recipe(name: str, config: LessonConfig) -> Iterator[RawLesson]:
    for question in read_recipe(name, "train", config.per_source or None, config.data_seed):
        said = {"role": "user", "content": question.question.strip()}
        yield RawLesson((said,), name, f"{name} {question.id}", question.references[0])


def _questions(name: str, config: LessonConfig) -> Iterator[RawLesson]:
    path = Path(name) if Path(name).suffix else shared_file(name, "train")
    questions = split(read_questions(path, path.stem.removesuffix("_train"), Columns()), CALIBRATION)["train"]
    for question in questions:
        for style in config.styles:
            messages = make_messages(question, style)
            group = f"{question.set} (train, {style}, references)"
            yield RawLesson(messages, group, f"{question.set} {question.id}", question.references[0])


def _own_answers(folder: str, config: LessonConfig) -> Iterator[RawLesson]:
    """Of the train part: right answers, and wrong ones whose tokens are labelled."""
    for row in read_answers(Path(folder)):
        is_known = row.token_labels is not None if row.is_error else row.is_error is not None
        if row.split == "train" and is_known and row.answer_ids:
            group = f"{row.set} (train, {row.style}, own answers)"
            yield RawLesson(row.messages, group, f"{row.set} {row.id}", answer=row)
