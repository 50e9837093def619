"""Which process writes an answer, and whether it still lives. Knows no table."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

HEARTBEAT_S = 30.0
"""An answer still being written counts as abandoned when its writer on another machine was silent for longer."""


def new_writer() -> str:
    """Names this process, and one opened store in it: place|pid|start of the process|random."""
    return f"{_place()}|{os.getpid()}|{_started(os.getpid())}|{uuid.uuid4().hex}"


def is_writer_alive(writer: str, saved_at: float) -> bool:
    """Whether whoever began a row can still finish it.

    A process on this machine is looked up by pid and start time (a pid may be used again); one elsewhere, or where
    there is no /proc, counts as alive until it was silent for HEARTBEAT_S.
    """
    place, _, rest = writer.partition("|")
    if place == _place() and Path("/proc/self/stat").exists():
        pid, _, rest = rest.partition("|")
        return pid.isdigit() and _started(int(pid)) == rest.partition("|")[0] != ""
    return time.time() - saved_at < HEARTBEAT_S


def _place() -> str:
    # Two containers may share a host name and a database: the namespace of their process ids tells them apart.
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}{namespace}".replace("|", "")


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # behind the command's name in brackets; the first is field 3
    return "" if fields[0] == "Z" else fields[19]
