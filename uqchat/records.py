"""Evaluated answers: one Parquet file per run, a row per answer. Knows no model and no interface.

Columns: `question_id`, `set`, `category`, `question`, `answer`, `references` (list), `is_error` (true, false or null),
`style`, `sample` (0: the first answer to its question), `split` ("calibration" where it only certifies thresholds, see
`records_split`), per estimator `risk_<name>` in [0, 1] and `raw_<name>`, `outside_scope` (JSON: estimator -> why its
calibration does not hold), `tokens` (JSON), `seconds`, `model`, `versions` (JSON).
Files of other makers need `question`, `answer`, `is_error` and one `risk_<name>`; CSV and JSON lines are read too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from uqchat.errors import InputError
from uqchat.types import Risk, ScoredToken

RISK, RAW = "risk_", "raw_"
REQUIRED = ("question", "answer", "is_error")
FIELDS = pa.schema(
    [
        ("question_id", pa.string()),
        ("set", pa.string()),
        ("category", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("references", pa.list_(pa.string())),
        ("is_error", pa.bool_()),
        ("style", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("outside_scope", pa.string()),
        ("tokens", pa.string()),
        ("seconds", pa.float64()),
        ("model", pa.string()),
        ("versions", pa.string()),
    ]
)
"""The columns that do not depend on the estimators."""


@dataclass(frozen=True, slots=True)
class Record:
    """One evaluated answer; see the module for the fields. `is_error` None: nobody could tell."""

    question_id: str
    question: str
    answer: str
    is_error: bool | None
    risks: Mapping[str, Risk]
    set: str = ""
    category: str = ""
    references: tuple[str, ...] = ()
    style: str = ""
    sample: int = 0
    split: str = ""
    outside_scope: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[ScoredToken, ...] = ()
    seconds: float = math.nan
    model: str = ""
    versions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labelled:
    """What one estimator says of the graded answers: `risk` (N,), `is_error` (N,) bool, `rows` (N,) of the file."""

    risk: np.ndarray
    is_error: np.ndarray
    rows: np.ndarray


class Records:
    """The answers of one run. Columns stay in Arrow; what is asked for is made when it is asked for.

    Args:
        table: checked by `uqchat.records_files`, which also says what a file lacks.
        name: what to call the run.
    """

    def __init__(self, table: pa.Table, name: str) -> None:
        self.table, self.name = table, name
        self.estimators = tuple(c.removeprefix(RISK) for c in table.column_names if c.startswith(RISK))

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def is_error(self) -> np.ndarray:
        """(N,) float64: 1 wrong, 0 right, NaN where nobody could tell."""
        return self.table["is_error"].cast(pa.float64()).to_numpy(zero_copy_only=False)

    def risk(self, estimator: str) -> np.ndarray:
        """(N,) float64, NaN where the estimator gave none. Raises InputError on an estimator that is not there."""
        if estimator not in self.estimators:
            raise InputError(f"{self.name} has no risks of {estimator!r}; it has {', '.join(self.estimators)}.")
        return self.table[RISK + estimator].to_numpy(zero_copy_only=False)

    def strings(self, column: str) -> np.ndarray:
        """(N,) of str, '' where the file has none; for `set`, `category`, `question_id`, `model`, `style`."""
        return np.array(self.table[column].fill_null("").to_pylist(), dtype=object)

    def labelled(self, estimator: str, *, only: np.ndarray | None = None) -> Labelled:
        """Rows with a grade and a risk, in the file's order; `only` (N,) bool narrows them further."""
        risk, errors = self.risk(estimator), self.is_error
        keep = ~(np.isnan(risk) | np.isnan(errors))
        rows = np.flatnonzero(keep if only is None else keep & only)
        return Labelled(risk[rows], errors[rows] > 0, rows)

    def notes(self, estimators: Sequence[str] | None = None) -> tuple[str, ...]:
        """What a reader of the numbers must know: rows that are left out, answers all right or all wrong, one row."""
        found = []
        ungraded = int(np.isnan(self.is_error).sum())
        if ungraded:
            found.append(f"{ungraded:,} of {len(self):,} answers have no grade and are left out.")
        for name in estimators or self.estimators:
            missing = int(np.isnan(self.risk(name)).sum())
            if missing:
                found.append(f"{missing:,} of {len(self):,} answers have no risk by {name} and are left out there.")
        graded = self.is_error[~np.isnan(self.is_error)]
        if len(graded) < 2:
            found.append("Fewer than two graded answers: no curve can be drawn from them.")
        elif graded.min() == graded.max():
            word = "wrong" if graded[0] else "right"
            found.append(f"Every graded answer is {word}: no threshold can tell right from wrong here.")
        return tuple(found)

    def row(self, index: int) -> Record:
        """One answer with its tokens."""
        values = {name: column[0] for name, column in self.table.slice(index, 1).to_pydict().items()}
        risks = {name: _risk(values, name) for name in self.estimators}
        kept_as_json = ("tokens", "versions", "references", "outside_scope")
        plain = {name: values[name] for name in FIELDS.names if name not in kept_as_json}
        return Record(
            **{name: "" if plain[name] is None and name != "is_error" else plain[name] for name in plain}
            | {
                "risks": {name: risk for name, risk in risks.items() if not math.isnan(risk.value)},
                "references": tuple(values["references"] or ()),
                "outside_scope": json.loads(values["outside_scope"] or "{}"),
                "seconds": math.nan if values["seconds"] is None else values["seconds"],
                "tokens": decode_tokens(values["tokens"] or ""),
                "versions": json.loads(values["versions"] or "{}"),
            }
        )


def _risk(values: Mapping[str, Any], name: str) -> Risk:
    value, raw = values[RISK + name], values.get(RAW + name)
    scope = json.loads(values["versions"] or "{}").get("calibrations", {}).get(name)
    return Risk(
        math.nan if value is None else value,
        math.nan if raw is None else raw,
        None if name in json.loads(values["outside_scope"] or "{}") else scope,
    )


def as_row(record: Record) -> dict[str, Any]:
    """A record as the file holds it: plain values by column."""
    row = {name: getattr(record, name) for name in FIELDS.names}
    row |= {"references": list(record.references), "tokens": encode_tokens(record.tokens)}
    row["versions"] = json.dumps(dict(record.versions), sort_keys=True)
    row["outside_scope"] = json.dumps(dict(record.outside_scope), sort_keys=True) if record.outside_scope else None
    for name, risk in record.risks.items():
        row |= {RISK + name: float(risk.value), RAW + name: float(risk.raw)}
    return row


def encode_tokens(tokens: Sequence[ScoredToken]) -> str:
    """Texts, ids, log-probabilities and risks as JSON; alternatives are left out, four digits are kept."""
    if not tokens:
        return ""
    names = list(tokens[0].risks)
    return json.dumps(
        {
            "texts": [token.text for token in tokens],
            "ids": [token.token_id for token in tokens],
            "logprobs": [_short(token.logprob) for token in tokens],
            "flags": [token.is_reasoning + 2 * token.is_end for token in tokens],
            "risks": {n: [_short(t.risks[n].value if n in t.risks else math.nan) for t in tokens] for n in names},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def decode_tokens(text: str) -> tuple[ScoredToken, ...]:
    """What `encode_tokens` kept; () for an empty text. Raises InputError on anything else.

    The raw score of a token is not kept: its risk stands in for it.
    """
    if not text:
        return ()
    try:
        data = json.loads(text)
        texts, names = data["texts"], data.get("risks", {})
        count = len(texts)
        ids, flags = data.get("ids") or [0] * count, data.get("flags") or [0] * count
        logprobs = data.get("logprobs") or [None] * count
        found, start = [], 0
        for i, piece in enumerate(texts):
            risks = {name: Risk(values[i], values[i]) for name, values in names.items() if values[i] is not None}
            logprob = math.nan if logprobs[i] is None else logprobs[i]
            span = (start, start + len(piece))
            found.append(
                ScoredToken(i, ids[i], piece, span, logprob, None, (), risks, bool(flags[i] & 1), bool(flags[i] & 2))
            )
            start = span[1]
        return tuple(found)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f'`tokens` must be JSON like {{"texts": [...], "risks": {{"entropy": [...]}}}}; got {text[:60]!r}.'
        ) from error


def _short(number: float) -> float | None:
    return round(float(number), 4) if math.isfinite(number) else None


def read_records(path: str | Path) -> Records:
    """The records of a file (.parquet, .csv, .jsonl), checked.

    Raises:
        InputError: the file cannot be read, lacks a column, or holds values that are no risk or no grade.
    """
    from uqchat.records_files import read_table

    return Records(read_table(Path(path)), Path(path).stem)
