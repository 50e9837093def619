"""Features of answers on disk, one row per answer token, read through memory maps. Knows no model and no trainer.

Row j of an answer holds the signals of the position that PREDICTED token j, as a `TokenStep` does: row 0 is the
prompt's last position, and the state that has READ token j is row j + 1. The end token has a row too.

A folder: `answers.jsonl`, `cache.json` (what it was made with, names and shapes of the arrays, whether it is complete)
and `features/<array>.bin`, plain little-endian rows. The rows of an answer are on disk before its line is, so whatever
a killed writer leaves behind counts as never written: the next one cuts it off and goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from trainers.answers import ANSWERS, AnswerRow, from_line, read_answers, to_line, whole_lines, write_whole
from uqchat.errors import InputError

INFO, FEATURES = "cache.json", "features"
VERSION = 1
Shape = tuple[int, ...]
Layout = dict[str, tuple[str, Shape]]  # name -> dtype, shape of one token's row


class FeatureCache:
    """A folder of answers and features, for reading."""

    def __init__(self, folder: Path, info: dict[str, Any], answers: list[AnswerRow]) -> None:
        self.folder = folder
        self.info: dict[str, Any] = info["info"]
        """What it was made with: model, fingerprint, settings."""
        self.is_complete: bool = info["is_complete"]
        self.answers = answers
        self._layout = _layout_of(info)
        self._ends = np.cumsum([0, *(len(row.answer_ids) for row in answers)])

    @classmethod
    def open(cls, folder: str | Path, allow_partial: bool = False) -> Self:
        """Open a folder.

        Args:
            allow_partial: also one that is still being written, as far as it has come.

        Raises:
            InputError: no such folder, not complete, or damaged; the text says how to mend it.
        """
        folder = Path(folder)
        info = _read_info(folder)
        if not info["is_complete"] and not allow_partial:
            raise InputError(
                f"{folder} is not complete: it is being written, or was interrupted."
                " Run the same `python -m trainers data generate` again; it goes on where it stopped."
            )
        cache = cls(folder, info, read_answers(folder))
        for name in cache.names:
            if cache._size(name) > _path(folder, name).stat().st_size:
                raise InputError(f"{_path(folder, name)} is shorter than its answers need. Generate {folder} again.")
        return cache

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays that `array` gives."""
        return tuple(self._layout)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Layers whose hidden states are here."""
        return tuple(int(name.removeprefix("hidden_")) for name in self.names if name.startswith("hidden_"))

    @property
    def num_tokens(self) -> int:
        """T, rows of every array."""
        return int(self._ends[-1])

    def span(self, index: int) -> slice:
        """The rows of answer `index`."""
        return slice(int(self._ends[index]), int(self._ends[index + 1]))

    def array(self, name: str) -> np.ndarray:
        """(T, ...), read-only, mapped and not read.

        Raises:
            InputError: not captured.
        """
        if name not in self._layout:
            raise InputError(f"{self.folder} holds no {name}; it holds {', '.join(self.names)}.")
        dtype, shape = self._layout[name]
        if not self.num_tokens:
            return np.zeros((0, *shape), dtype)
        return np.memmap(_path(self.folder, name), dtype, "r", shape=(self.num_tokens, *shape))

    @cached_property
    def answer_of_row(self) -> np.ndarray:
        """(T,) which answer each row belongs to."""
        return np.repeat(np.arange(len(self.answers)), np.diff(self._ends))

    def _size(self, name: str) -> int:
        return self.num_tokens * _row_bytes(*self._layout[name])


class CacheWriter:
    """Appends answers and their features; one writer at a time.

    Args:
        info: what the answers are made with; a folder begun with anything else is refused.
        max_bytes: how large the features may grow; None is as large as the disk allows.

    Raises:
        InputError: the folder was begun with other settings, or cannot be read.
    """

    def __init__(self, folder: str | Path, info: Mapping[str, Any], max_bytes: int | None = None) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._info: dict[str, Any] = {
            "version": VERSION, "is_complete": False, "info": json.loads(json.dumps(info)), "arrays": None
        }  # fmt: skip
        self.done: set[tuple[str, str, int]] = set()
        """Keys of the answers that are here already."""
        self._num_tokens = 0
        if (self.folder / INFO).exists():
            self._resume()
        self._write_info(is_complete=False)

    def append(self, rows: Sequence[AnswerRow], features: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Write some answers: the features first, then the lines that make them count.

        Args:
            features: of each answer, name -> (answer tokens, ...).

        Raises:
            InputError: another set of arrays than before, the cap is reached, or the disk is full. The answers
                written before stay whole; none of these is kept.
        """
        if not rows:
            return
        self._check(rows, features)
        joined = {name: np.concatenate([arrays[name] for arrays in features]) for name in features[0]}
        try:
            for name, array in joined.items():
                _append(_path(self.folder, name), np.ascontiguousarray(array).tobytes())
            _append(self.folder / ANSWERS, "".join(map(to_line, rows)).encode())
        except OSError as error:
            self._cut()
            raise InputError(
                f"{self.folder} cannot be written: {error.strerror or error}. {len(self.done):,} answers are kept."
                " Free some space and run the same command again; it goes on where it stopped."
            ) from error
        self.done.update(row.key for row in rows)
        self._num_tokens += sum(len(row.answer_ids) for row in rows)

    def finish(self) -> None:
        """Mark the folder as complete."""
        self._write_info(is_complete=True)

    @property
    def num_bytes(self) -> int:
        """Size of the features."""
        return self._num_tokens * sum(_row_bytes(*entry) for entry in self._layout.values())

    @property
    def _layout(self) -> Layout:
        return _layout_of(self._info) if self._info["arrays"] else {}

    def _check(self, rows: Sequence[AnswerRow], features: Sequence[Mapping[str, np.ndarray]]) -> None:
        for row, arrays in zip(rows, features, strict=True):
            layout = {name: (array.dtype.name, array.shape[1:]) for name, array in arrays.items()}
            if not self._layout:
                self._info["arrays"] = {name: [dtype, list(shape)] for name, (dtype, shape) in layout.items()}
                self._write_info(is_complete=False)
            lengths = {len(array) for array in arrays.values()} - {len(row.answer_ids)}
            if layout != self._layout or lengths:
                raise InputError(f"The features of {row.id} do not fit {self.folder}: {layout}, {lengths or ''}.")
        new = sum(len(row.answer_ids) for row in rows) * sum(_row_bytes(*entry) for entry in self._layout.values())
        if self.max_bytes is not None and self.num_bytes + new > self.max_bytes:
            raise InputError(
                f"The features in {self.folder} would pass the cap of {self.max_bytes / 1e9:.2f} GB;"
                f" {len(self.done):,} answers are kept. Raise --max-disk, or take fewer questions or layers."
            )

    def _resume(self) -> None:
        info = _read_info(self.folder)
        if info["info"] != self._info["info"]:
            old, new = info["info"], self._info["info"]
            differ = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            raise InputError(
                f"{self.folder} was begun with other settings ({', '.join(differ)})."
                " Run it with the same ones, or choose another --out."
            )
        self._info["arrays"] = info["arrays"]
        self._cut()

    def _cut(self) -> None:
        """Bring all files back to the last answer that is whole in every one of them."""
        path = self.folder / ANSWERS
        rows = [(line, from_line(line, f"{path}, line {n}")) for n, line in whole_lines(path)]
        room = min((_size_of(_path(self.folder, n)) // _row_bytes(*e) for n, e in self._layout.items()), default=0)
        self.done, self._num_tokens, size = set(), 0, 0
        for line, row in rows:
            if self._num_tokens + len(row.answer_ids) > room:
                break
            self._num_tokens += len(row.answer_ids)
            self.done.add(row.key)
            size += len(line.encode())
        _truncate(path, size)
        for name, entry in self._layout.items():
            _truncate(_path(self.folder, name), self._num_tokens * _row_bytes(*entry))

    def _write_info(self, is_complete: bool) -> None:
        self._info["is_complete"] = is_complete
        write_whole(self.folder / INFO, [json.dumps(self._info, indent=1)])


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    if not path.exists():
        raise InputError(f"{folder} holds no cached features. Make them with: python -m trainers data generate")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        info["info"], info["arrays"], info["is_complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}). Delete {folder} and generate again.") from error
    if info.get("version") != VERSION:
        raise InputError(f"{path} has version {info.get('version')!r}; this program reads {VERSION}. Generate again.")
    return info


def _layout_of(info: Mapping[str, Any]) -> Layout:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in (info["arrays"] or {}).items()}


def _row_bytes(dtype: str, shape: Shape) -> int:
    return np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))


def _path(folder: Path, name: str) -> Path:
    return folder / FEATURES / f"{name}.bin"


def _append(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _truncate(path: Path, size: int) -> None:
    if _size_of(path) > size:
        os.truncate(path, size)
