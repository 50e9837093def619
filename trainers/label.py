"""Right or wrong: graders over answers, labels beside them, and 50 rows to look at. Knows no model of its own.

A grader says True for a wrong answer, False for a right one, None when it cannot say. Answers to multiple choice are
graded by their letter and answers to several facts by each fact, whatever grader is chosen.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainers.answers import IGNORED, AnswerRow, read_answers, write_labels, write_whole
from trainers.token_labels import WRONG, fact_errors, label_tokens
from uqchat.errors import InputError
from uqchat.grading import alias_match, exact_match, letter_of, substring_match, token_f1

log = logging.getLogger(__name__)

Grader = Callable[[AnswerRow], bool | None]
F1_THRESHOLD = 0.5
AUDIT_ROWS = 50

GRADERS: dict[str, Grader] = {
    "alias": lambda row: not alias_match(row.text, row.references),
    "substring": lambda row: not substring_match(row.text, row.references),
    "f1": lambda row: token_f1(row.text, row.references) < F1_THRESHOLD,
    "exact": lambda row: not exact_match(row.text, row.references),
}
"""Without a model: whole words of a reference; its characters anywhere; half of the words; all of them."""


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What labelling a folder gave."""

    wrong: int
    right: int
    unknown: int
    empty: int

    def __str__(self) -> str:
        graded = self.wrong + self.right
        share = f" ({self.wrong / graded:.0%} of the graded ones)" if graded else ""
        return f"{self.wrong:,} wrong{share}, {self.right:,} right, {self.unknown:,} unknown, {self.empty:,} empty"


def label_folder(folder: Path, grader: Grader = GRADERS["alias"]) -> LabelCounts:
    """Grade every answer of a folder and label its tokens; also of one that is still being written.

    Raises:
        InputError: no answers, or every graded answer is wrong, or every one is right: nothing could be learned.
    """
    rows = [label_row(row, grader) for row in read_answers(folder)]
    counts = count_labels(rows)
    if min(counts.wrong, counts.right) == 0:
        log.warning("%s: %s; an estimator learns nothing from answers that are all the same", folder, counts)
    write_labels(folder, rows)
    return counts


def label_row(row: AnswerRow, grader: Grader = GRADERS["alias"]) -> AnswerRow:
    """The answer with its labels; one without a single word is wrong, and none of its tokens is."""
    if not row.text.strip():
        return replace(row, is_error=True, token_labels=(IGNORED,) * len(row.answer_ids))
    if row.facts:
        errors = fact_errors(row)
        is_error = True if True in errors else (False if set(errors) == {False} else None)
    elif row.choices:
        is_error = letter_of(row.text, len(row.choices)) != row.references[0]
    else:
        is_error = grader(row)
    tokens = label_tokens(row, is_error) if is_error is not None or row.facts else (IGNORED,) * len(row.answer_ids)
    return replace(row, is_error=is_error, token_labels=tokens)


def count_labels(rows: Sequence[AnswerRow]) -> LabelCounts:
    """How many are what."""
    found = Counter(row.is_error for row in rows)
    return LabelCounts(found[True], found[False], found[None], sum(not row.text.strip() for row in rows))


def check_labels(rows: Sequence[AnswerRow]) -> None:
    """Refuse labels that nothing can be learned from; trainers call it before they begin.

    Raises:
        InputError: no answer is labelled, or all have the same label.
    """
    counts = count_labels(rows)
    if not counts.wrong + counts.right:
        raise InputError(f"None of the {len(rows):,} answers is labelled. Run: python -m trainers data label")
    if not counts.wrong or not counts.right:
        only = "wrong" if counts.wrong else "right"
        raise InputError(
            f"All {counts.wrong + counts.right:,} graded answers are {only}: there is nothing to tell apart."
            " Take other questions, or another grader (--grader)."
        )


def write_audit(folder: Path, count: int = AUDIT_ROWS, seed: int = 0) -> Path:
    """`audit.md`: some answers with their labels, for a person to check the grader by. Returns its path."""
    rows = read_answers(folder)
    chosen = random.Random(seed).sample(rows, min(count, len(rows)))
    lines = [
        f"# {len(chosen)} of {len(rows):,} answers, drawn with seed {seed}\n\n{count_labels(rows)}\n\n",
        "Tokens labelled wrong are **bold**, ignored ones ~~struck out~~.\n\n",
        "| | question | references | answer | label | id |\n|--:|---|---|---|---|---|\n",
    ]
    for number, row in enumerate(chosen, start=1):
        label = {True: "wrong", False: "right", None: "unknown"}[row.is_error]
        wanted = "; ".join(f"{f.subject}: {', '.join(f.references[:3])}" for f in row.facts) or ", ".join(
            row.references[:5]
        )
        cells = (str(number), _cell(row.question), _cell(wanted), _marked(row), label, _cell(row.id))
        lines.append(f"| {' | '.join(cells)} |\n")
    path = Path(folder) / "audit.md"
    write_whole(path, lines)
    return path


def _marked(row: AnswerRow) -> str:
    """The answer with its wrong and ignored stretches marked."""
    labels = row.token_labels or (0,) * len(row.spans)
    pieces: list[tuple[int, str]] = []
    for (start, end), label in zip(row.spans, labels, strict=True):
        if pieces and pieces[-1][0] == label:
            pieces[-1] = (label, pieces[-1][1] + row.text[start:end])
        else:
            pieces.append((label, row.text[start:end]))
    return "".join(_mark(text, {WRONG: "**", IGNORED: "~~"}.get(label, "")) for label, text in pieces)


def _mark(text: str, sign: str) -> str:
    stripped = text.strip()
    if not sign or not stripped:
        return _cell(text)
    lead = len(text) - len(text.lstrip())
    return f"{_cell(text[:lead])}{sign}{_cell(stripped)}{sign}{_cell(text[lead + len(stripped) :])}"


def _cell(text: str) -> str:
    """Text inside a Markdown table: no line ends, no bars, no markup of its own."""
    plain = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("~", "\\~").replace("<", "&lt;")
    return plain.replace("\r", " ").replace("\n", " ")
