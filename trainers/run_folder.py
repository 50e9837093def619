"""The folder of one training run: what was asked, how far it is, what came out. Knows no model and no trainer.

    config.json     the settings, written once; `--resume` refuses others
    metrics.jsonl   one object a line, appended and flushed
    status.json     state, step, rate, seconds left; replaced as a whole, so that a reader never sees half of it
    log.txt         lines for people
    checkpoints/    see `trainers.checkpoints`
    result.json     what came out; its presence says that the run is complete
    STOP            made by whoever wants the run to end; so does SIGTERM

A page, a second shell and a restart all read the folder and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from uqchat.errors import UqchatError

CONFIG, METRICS, STATUS, LOG = "config.json", "metrics.jsonl", "status.json", "log.txt"
RESULT, STOP, ARTIFACT = "result.json", "STOP", "artifact"
STATUS_SECONDS = 0.5  # status.json is written no more often
State = Literal["running", "done", "stopped", "failed"]


class TrainingError(UqchatError):
    """A run cannot start, go on or be resumed."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk and a folder that may not be written, told in words.

    Raises:
        TrainingError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "The disk is full. Free some space and go on with --resume; the last complete checkpoint is kept."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = "The folder may not be written."
        else:
            raise
        raise TrainingError(f"{path} could not be written: {text}") from error


def write_json(path: Path, data: Any) -> None:
    """Replace a file as a whole: readers see the old text or the new one.

    Raises:
        TrainingError: the disk is full or the folder may not be written; the old file is untouched.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors(path):
            fresh.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


class Run:
    """One run's folder, open for writing. Use as a context: it catches SIGTERM and records how the run ended.

    Args:
        path: the folder; made when missing.
        config: plain settings, everything that the outcome depends on.
        resume: go on with what the folder holds; a folder without a run is then begun.
        is_main: False for all but one of several processes: they read, and write nothing.

    Raises:
        TrainingError: the folder holds a run and `resume` is off, or a run with other settings.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], *, resume: bool = False, is_main: bool = True):
        self.path, self.is_main = Path(path), is_main
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.has_signal = False
        self.message = ""
        self._begun = time.time()
        self._first: tuple[int, float] | None = None  # step and moment from which the rate is counted
        self._status_due = 0.0
        self._step = self._steps = 0
        self._check(resume)
        if is_main:
            self._prepare()

    def _check(self, resume: bool) -> None:
        path = self.path / CONFIG
        if not path.is_file():
            return
        if not resume and not self.is_main:
            return  # the main process asks, and may have begun the run already
        if not resume:
            raise TrainingError(f"{self.path} already holds a run. Pass --resume to go on with it, or name another.")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TrainingError(f"{path} is not readable JSON: {error}. Name another folder.") from error
        changed = sorted(k for k in {*stored, *self.config} if stored.get(k) != self.config.get(k))
        if changed:
            key = changed[0]
            raise TrainingError(
                f"{self.path} was begun with {key} = {stored.get(key)!r}, now it is {self.config.get(key)!r}."
                " Resume with the same settings, or name another folder."
            )

    def _prepare(self) -> None:
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / STOP).unlink(missing_ok=True)  # a new start means going on
        if not (self.path / CONFIG).is_file():
            write_json(self.path / CONFIG, self.config)

    # ---- ending

    def __enter__(self) -> Run:
        self._old_handler = None
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, self._on_signal)
        self.status("running", force=True)
        self.log(f"Started: {command_line()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
        if error is None:
            return
        self.message = str(error) if isinstance(error, UqchatError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(TrainingError, OSError):  # a full disk must not hide the reason itself
            self.log(f"Failed: {self.message}")
            self.status("failed", force=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.has_signal = True

    @property
    def must_stop(self) -> bool:
        """Whether somebody has asked this process to end: SIGTERM, or a file STOP in the folder."""
        return self.has_signal or (self.path / STOP).exists()

    @property
    def is_complete(self) -> bool:
        """Whether a result is there."""
        return (self.path / RESULT).is_file()

    def stopped(self) -> None:
        """The run has written its checkpoint and ends because it was asked to."""
        self.log(f"Stopped at step {self._step}; --resume goes on from here")
        self.status("stopped", force=True)
        if self.is_main:
            (self.path / STOP).unlink(missing_ok=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is complete. Raises TrainingError when the result cannot be written."""
        if self.is_main:
            write_json(self.path / RESULT, dict(result))
        self.log("Done")
        self.status("done", force=True)

    # ---- telling

    def log(self, line: str) -> None:
        """A line for people: into log.txt and to stderr."""
        if not self.is_main:
            return
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}"
        print(text, file=sys.stderr, flush=True)
        self._append(LOG, text)

    def metric(self, **values: Any) -> None:
        """One line of metrics.jsonl; every value is JSON."""
        if self.is_main:
            self._append(METRICS, json.dumps(values))

    def _append(self, name: str, line: str) -> None:
        path = self.path / name
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that are run again, and a line that was cut short."""
        path = self.path / METRICS
        if not self.is_main or not path.is_file():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        fresh = path.with_name(f".{METRICS}.{os.getpid()}")
        with disk_errors(path):
            fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(fresh, path)

    def progress(self, step: int, steps: int, message: str = "") -> None:
        """How far the run is; status.json follows twice a second at most."""
        if self._first is None or step < self._first[0]:
            self._first = (step, time.monotonic())
        self._step, self._steps, self.message = step, steps, message
        self.status("running")

    def status(self, state: State, force: bool = False) -> None:
        """Write status.json."""
        now = time.monotonic()
        if not self.is_main or (not force and now < self._status_due):
            return
        self._status_due = now + STATUS_SECONDS
        rate = self._rate(now)
        left = (self._steps - self._step) / rate if rate else None
        write_json(
            self.path / STATUS,
            {
                "state": state,
                "step": self._step,
                "steps": self._steps,
                "progress": self._step / self._steps if self._steps else 0.0,
                "steps_per_second": rate,
                "seconds_left": left if state == "running" else None,
                "message": self.message,
                "started": self._begun,
                "updated": time.time(),
                "pid": os.getpid(),
                "process_started": psutil.Process().create_time(),
            },
        )

    def _rate(self, now: float) -> float:
        if self._first is None:
            return 0.0
        step, moment = self._first
        return (self._step - step) / (now - moment) if now > moment else 0.0


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity where the line is not whole."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def command_line() -> str:
    """The command that started this process, for cards and logs."""
    if sys.argv[0].endswith("__main__.py"):
        package = Path(sys.argv[0]).parent.name
        return shlex.join(["python", "-m", package, *sys.argv[1:]])
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
