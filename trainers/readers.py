"""Labelled answers of others: the published formats of calibration-tuning and of llm-uncertainty-head (luh).

What they hold becomes `AnswerRow`s without features; `python -m trainers data features` reads them through the model
and caches its signals. Knows no engine.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.answers import IGNORED, AnswerRow
from uqchat.errors import InputError
from uqchat.head_check import answer_start

log = logging.getLogger(__name__)

FORMATS = ("folder", "calibration-tuning", "luh")
_CALIBRATION_TUNING = ("context", "target", "target_prompt", "output", "query_label")
_LUH = ("input_ids", "reply")


def rows_of(source: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a CSV, JSON-lines or Parquet file, or of all such files in a folder, in the order of their names.

    Raises:
        InputError: nothing there, or a file cannot be read.
    """
    kinds = (".csv", ".jsonl", ".parquet")
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix in kinds)
    if not files:
        raise InputError(f"{source} holds no {', '.join(kinds)} file.")
    for path in files:
        try:
            yield from _rows(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}.") from error


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    else:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from (json.loads(line) for line in file if line.strip())


def read_calibration_tuning(rows: Iterable[Mapping[str, Any]], tokenizer: Any, name: str) -> list[AnswerRow]:
    """Rows `context, target_prompt, [prompt], target, output, query_label` (1 right, 0 wrong, -1 not graded).

    The prompt is the text as it was rendered there, prompt + context + cue, without a chat template; the answer
    follows after one space. An empty output is left out and counted.

    Raises:
        InputError: a column is missing, or no row is left.
    """

    def make(number: int, row: Mapping[str, Any]) -> AnswerRow | str:
        output = (row["output"] or "").strip()
        if not output:
            return "an empty answer"
        asked = f"{row.get('prompt') or ''}{row['context'] or ''}{row['target_prompt'] or ''}".strip()
        label = int(row["query_label"])
        if label not in (-1, 0, 1):
            return f"query_label {label}"
        prompt = tokenizer(asked)["input_ids"]
        answer = tokenizer(f" {output}", add_special_tokens=False)["input_ids"]
        return _row(name, number, asked, prompt, answer, output, (row["target"] or "",), _inverse(label))

    return _made(rows, _CALIBRATION_TUNING, make, name)


def read_luh(rows: Iterable[Mapping[str, Any]], tokenizer: Any, name: str) -> list[AnswerRow]:
    """Rows with `input_ids` (prompt and answer), `reply`, and token labels or claims.

    `uncertainty_labels` (one per input id: 1 wrong, 0 right, -100 ignored) win over `claims` with `verified` (1 false,
    0 true, NaN unknown), whose `aligned_token_ids` count the answer's ids without special ones; of two claims about one
    token the later counts.

    Raises:
        InputError: a column is missing, or no row is left.
    """

    def make(number: int, row: Mapping[str, Any]) -> AnswerRow | str:
        ids = [int(token_id) for token_id in row["input_ids"]]
        start = answer_start(ids, str(row["reply"] or ""), tokenizer)
        if start is None:
            return "the reply is not what the input ids end with"
        answer = ids[start:]
        labels = _luh_labels(row, ids, start, tokenizer)
        if isinstance(labels, str):
            return labels
        is_error = True if 1 in labels else (False if 0 in labels else None)
        question = str(row.get("question") or "")
        made = _row(name, number, question, ids[:start], answer, str(row["reply"]).strip(), (), is_error)
        return replace(made, token_labels=labels)

    return _made(rows, _LUH, make, name)


def _made(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    make: Callable[[int, Mapping[str, Any]], AnswerRow | str],
    name: str,
) -> list[AnswerRow]:
    found: list[AnswerRow] = []
    faults: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise InputError(f"{name}, row {number} lacks {', '.join(missing)}; it has {', '.join(map(str, row))}.")
        try:
            made = make(number, row)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            made = f"unreadable: {error}"
        if isinstance(made, str):
            faults[made] = faults.get(made, 0) + 1
        else:
            found.append(made)
    said = "; ".join(f"{count} x {fault}" for fault, count in faults.items())
    if not found:
        raise InputError(f"{name} holds no usable answer ({said or 'it is empty'}).")
    if faults:
        log.warning("%s: %d rows left out: %s", name, sum(faults.values()), said)
    return found


def _inverse(label: int) -> bool | None:
    return None if label == -1 else label == 0


def _luh_labels(row: Mapping[str, Any], ids: Sequence[int], start: int, tokenizer: Any) -> tuple[int, ...] | str:
    """Labels of the answer's ids, or what is wrong with them."""
    given = row.get("uncertainty_labels")
    if given is not None:
        if len(given) != len(ids):
            return "as many labels as ids are wanted"
        return tuple(_label(value) for value in given[start:])
    special = set(tokenizer.all_special_ids)
    places = [i for i, token_id in enumerate(ids[start:]) if token_id not in special]
    labels = [IGNORED] * (len(ids) - start)
    claims, verified = row.get("claims") or [], row.get("verified") or []
    if len(claims) != len(verified):
        return "as many verdicts as claims are wanted"
    for claim, verdict in zip(claims, verified, strict=True):
        for at in claim["aligned_token_ids"]:
            labels[places[int(at)]] = _label(verdict)
    return tuple(labels)


def _label(value: Any) -> int:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return IGNORED
    return {0: 0, 1: 1}.get(int(value), IGNORED)


def _row(
    name: str,
    number: int,
    question: str,
    prompt: Sequence[int],
    answer: Sequence[int],
    text: str,
    references: tuple[str, ...],
    is_error: bool | None,
) -> AnswerRow:
    return AnswerRow(
        id=f"{name}-{number:06d}",
        set=name,
        split="train",
        category="",
        question=question,
        references=references,
        style="given",
        messages=({"role": "user", "content": question},),
        answer_ids=tuple(answer),
        spans=((0, 0),) * len(answer),  # the features stage, which has the model's own detokenizer, fills them in
        text=text,
        finish_reason="given",
        prompt_tokens=len(prompt),
        prompt_ids=tuple(prompt),
        is_error=is_error,
    )
