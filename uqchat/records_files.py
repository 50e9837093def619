"""Records files: read and checked, written in one piece, and taken up again after an interruption. Knows no model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uqchat.errors import InputError
from uqchat.records import FIELDS, RAW, REQUIRED, RISK, Record, Records, as_row

_GRADES = {
    "true": True,
    "1": True,
    "1.0": True,
    "wrong": True,
    "false": False,
    "0": False,
    "0.0": False,
    "right": False,
}


def read_table(path: Path, mapping: Mapping[str, str] | None = None) -> pa.Table:
    """The checked table of a .parquet, .csv or .jsonl file.

    Args:
        path: the file.
        mapping: our column -> the file's column, where they differ.

    Raises:
        InputError: as `uqchat.records.read_records`.
    """
    return checked(load_table(path), path.stem, mapping)


def load_table(path: Path) -> pa.Table:
    """The file's columns as they are. Raises InputError when it is none of the three kinds."""
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path.name} is no records file; its name must end in {', '.join(readers)}.")
    try:
        return readers[path.suffix.lower()](path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path.name} cannot be read as {path.suffix[1:]}: {str(error)[:200]}.") from error


def checked(table: pa.Table, name: str, mapping: Mapping[str, str] | None = None) -> pa.Table:
    """Our columns, typed, with defaults for those that may be absent. Raises InputError."""
    table = _renamed(table, mapping or {})
    risks = [column for column in table.column_names if column.startswith(RISK)]
    missing = [column for column in REQUIRED if column not in table.column_names]
    if not risks:
        missing.append("risk_<estimator>")
    if missing:
        raise InputError(
            f"{name} has no column {' and none '.join(missing)}. It has: {', '.join(table.column_names)[:300]}. "
            "Needed are question, answer, is_error (true, false or empty) and one risk_<estimator> in [0, 1]."
        )
    if not table.num_rows:
        raise InputError(f"{name} holds no row.")
    columns = {field.name: _column(table, field, name) for field in FIELDS}
    for column in risks:
        columns[column] = _numbers(table, column, name, is_risk=True)
        raw = column.replace(RISK, RAW, 1)
        columns[raw] = _numbers(table, raw, name) if raw in table.column_names else columns[column]
    return pa.table(columns)


def _renamed(table: pa.Table, mapping: Mapping[str, str]) -> pa.Table:
    for ours, theirs in mapping.items():
        if theirs not in table.column_names:
            raise InputError(f"There is no column {theirs!r} to use as {ours}; there are {table.column_names}.")
        if ours != theirs and ours in table.column_names:
            table = table.drop_columns([ours])
        table = table.set_column(table.column_names.index(theirs), ours, table[theirs])
    return table


def _column(table: pa.Table, field: pa.Field, name: str) -> pa.Array | pa.ChunkedArray:
    count = table.num_rows
    if field.name == "is_error":
        return _grades(table["is_error"], name)
    if field.name not in table.column_names or table[field.name].null_count == count:
        return _default(field, name, count)
    found = table[field.name]
    try:
        if pa.types.is_list(field.type) and not pa.types.is_list(found.type):
            return pa.array([_as_list(value) for value in found.to_pylist()], field.type)
        return found.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{name}: column {field.name} must hold {field.type}; it holds {found.type}.") from error


def _as_list(value: Any) -> list[str]:
    if value in (None, ""):
        return []
    text = str(value)
    try:
        read = json.loads(text)
    except ValueError:
        return [text]
    return [str(item) for item in read] if isinstance(read, list) else [text]


def _default(field: pa.Field, name: str, count: int) -> pa.Array:
    if field.name == "question_id":
        return pa.array([str(number) for number in range(count)])
    values = {"set": name, "versions": "{}", "sample": 0, "references": []}
    return pa.array([values.get(field.name)] * count, field.type)


def _grades(column: pa.ChunkedArray, name: str) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_boolean(column.type):
        return column
    if pa.types.is_null(column.type):
        return column.cast(pa.bool_())
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
    known = {value for value in pc.unique(texts).to_pylist() if value not in (None, "", "nan", "none", "null")}
    odd = sorted(known - set(_GRADES))
    if odd:
        raise InputError(f"{name}: is_error must be true (wrong), false (right) or empty; got {odd[0]!r}.")
    return pa.array([_GRADES.get(value) for value in texts.to_pylist()], pa.bool_())


def _numbers(table: pa.Table, column: str, name: str, is_risk: bool = False) -> pa.Array:
    try:
        numbers = table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{name}: column {column} must hold numbers; it holds {table[column].type}.") from error
    outside = ~np.isnan(numbers) & ((numbers < 0) | (numbers > 1))
    if is_risk and outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InputError(
            f"{name}: {column} must be between 0 (surely right) and 1 (surely wrong); row {row + 1} holds "
            f"{numbers[row]:g}. Where higher means better, or the scale is another, convert it first."
        )
    if is_risk and np.isnan(numbers).all():
        raise InputError(f"{name}: every value of {column} is missing (NaN); leave the column out.")
    return pa.array(numbers, pa.float64())


def write_table(table: pa.Table, path: Path) -> None:
    """Writes in one piece: a reader sees the old file or the whole new one."""
    import pyarrow.parquet

    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, fresh, compression="zstd")
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error


class RecordsWriter:
    """Collects the records of one run. What was added survives a crash beside the file, as `<file>.part`.

    Args:
        path: the Parquet file to make.
        settings: what the run depends on; a run is only taken up again with the same.
        restart: forget what an earlier run left.

    Raises:
        InputError: an unfinished run with other settings lies there.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], restart: bool = False) -> None:
        self.path, self._part = path, path.with_name(path.name + ".part")
        self._rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if restart:
            self._part.unlink(missing_ok=True)
        header = {"settings": dict(settings)}
        if self._part.exists():
            self._take_up(json.loads(json.dumps(header)))
        else:
            self._part.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def _take_up(self, header: dict[str, Any]) -> None:
        lines = self._part.read_text(encoding="utf-8").split("\n")
        found = json.loads(lines[0]) if lines[0] else header
        if found != header:
            changed = [k for k, v in header["settings"].items() if found.get("settings", {}).get(k) != v]
            raise InputError(
                f"{self._part} holds an unfinished run with other settings ({', '.join(changed) or 'other keys'}). "
                "Repeat its command to go on, or give --restart to begin anew."
            )
        whole = lines[1:-1]  # what follows the last line break is half a row, or nothing
        self._rows = [json.loads(line) for line in whole]
        self._part.write_text("\n".join([json.dumps(header), *whole, ""]), encoding="utf-8")

    @property
    def done(self) -> set[tuple[str, str, str, int]]:
        """(set, question_id, style, sample) of what is there already."""
        return {(row["set"], row["question_id"], row["style"], row["sample"]) for row in self._rows}

    def add(self, records: Sequence[Record]) -> None:
        """Keeps these records, on disk too."""
        rows = [as_row(record) for record in records]
        with self._part.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._rows += rows

    def finish(self) -> Records:
        """Writes the file and takes `<file>.part` away. Raises InputError when nothing was added."""
        if not self._rows:
            raise InputError("Nothing was evaluated: the data hold no question.")
        table = checked(table_of(self._rows), self.path.stem)
        write_table(table, self.path)
        self._part.unlink(missing_ok=True)
        return Records(table, self.path.stem)


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as `as_row` gives them, as a table; an estimator that a row lacks is null there."""
    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith((RISK, RAW))))
    schema = pa.schema([*FIELDS, *((name, pa.float64()) for name in names)])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
