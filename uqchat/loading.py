"""Progress and cancelling of a load, shared by everything that finds, fetches, converts or reads a model.

Knows no model and no interface: it hands `LoadProgress` records to a callback and raises when a stop is asked for.
"""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from uqchat.errors import ModelCancelledError, ModelError

Stage = Literal["find", "download", "convert", "load"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What a load is doing now; `done` and `total` are bytes, None where they are not known."""

    stage: Stage
    message: str
    done: int | None = None
    total: int | None = None


class Reporter:
    """Passes progress on and honours the cancel flag; every step of a load calls it."""

    def __init__(
        self, on_progress: Callable[[LoadProgress], None] | None = None, cancel: threading.Event | None = None
    ) -> None:
        self._on_progress = on_progress
        self._cancel = cancel

    def say(self, stage: Stage, message: str, done: int | None = None, total: int | None = None) -> None:
        """Report one step. Raises ModelCancelledError when the load was cancelled."""
        self.check()
        if self._on_progress is not None:
            self._on_progress(LoadProgress(stage, message, done, total))

    def check(self) -> None:
        """Raises ModelCancelledError when the load was cancelled."""
        if self._cancel is not None and self._cancel.is_set():
            raise ModelCancelledError("Loading the model was cancelled.")

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond a cancel. Raises ModelCancelledError when the load was cancelled."""
        if self._cancel is None:
            time.sleep(seconds)
        else:
            self._cancel.wait(seconds)
        self.check()


@contextmanager
def exclusive(lock_path: Path, reporter: Reporter, stage: Stage, waiting: str) -> Iterator[None]:
    """Hold a lock between processes, saying `waiting` until it is free; the system frees it when its owner dies."""
    lock = FileLock(lock_path)
    while True:
        try:
            lock.acquire(timeout=0.3)
            break
        except Timeout:
            reporter.say(stage, waiting)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bars; the load reports progress itself."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a `ModelError` that names the folder and the fix."""
    try:
        yield
    except SafetensorError as error:  # writing weights reports the system's error as text only
        if "os error 28" not in str(error):
            raise
        raise _full(folder) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ModelError(
                f"The cache folder {folder} cannot be written ({error.strerror}). Make it writable, or choose another"
                " folder with UQCHAT_CACHE_DIR (HF_HOME for models from the Hub)."
            ) from error
        raise


def _full(folder: Path) -> ModelError:
    return ModelError(
        f"The disk is full: {folder} has no room left. Free some space, or choose another folder"
        " with UQCHAT_CACHE_DIR (HF_HOME for models from the Hub)."
    )


def gigabytes(size: float) -> str:
    """Bytes as people read them: '0.27 GB', '15 GB'."""
    value = size / 1e9
    return f"{value:.2f} GB" if value < 10 else f"{value:.0f} GB"


def sha256(path: Path) -> str:
    """The file's SHA-256 as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
