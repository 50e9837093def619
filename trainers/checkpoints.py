"""Checkpoints of a run: written under a temporary name, marked complete, then renamed. Knows no model.

checkpoints/step-00000120/
    module.safetensors, best.safetensors   weights now, and those with the best watched metric so far
    optimizer.pt                           optimiser and scheduler; read as tensors and plain values only
    random-0.pt, random-1.pt ...           state of the random generators, one file for each process
    complete.json                          written last: step, loop state and the size of every file

Pickled code is never run: `torch.load` reads with `weights_only`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainers.run_folder import TrainingError, disk_errors

FOLDER, COMPLETE = "checkpoints", "complete.json"
KEPT = 2  # newest checkpoints that stay


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if nothing had happened."""

    step: int
    loop: Mapping[str, Any]
    """Plain values: best metric so far, window of losses and the like."""
    module: Mapping[str, torch.Tensor]
    best: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    random: Mapping[str, torch.Tensor]


def draft(run: Path, step: int) -> Path:
    """The temporary folder into which a checkpoint is written before it counts."""
    return run / FOLDER / f".tmp-{step:08d}"


def begin(run: Path, step: int) -> None:
    """Make room for a checkpoint. Raises TrainingError when the disk is full."""
    folder = draft(run, step)
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def write_random(run: Path, step: int, rank: int) -> None:
    """This process' part: the state of its random generators."""
    folder = draft(run, step)
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    with _whole_or_nothing(folder):
        torch.save(state, folder / f"random-{rank}.pt")


def write(run: Path, checkpoint: Checkpoint) -> Path:
    """The main process' part, after all `write_random`: everything else, the mark, the rename, and old ones go.

    Raises:
        TrainingError: the disk is full; earlier checkpoints are untouched and nothing half-written stays.
    """
    folder, final = draft(run, checkpoint.step), run / FOLDER / f"step-{checkpoint.step:08d}"
    with _whole_or_nothing(folder):
        save_file(_plain(checkpoint.module), folder / "module.safetensors")
        if checkpoint.best:
            save_file(_plain(checkpoint.best), folder / "best.safetensors")
        torch.save(dict(checkpoint.optimizer), folder / "optimizer.pt")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        mark = {"step": checkpoint.step, "loop": dict(checkpoint.loop), "files": sizes}
        with (folder / COMPLETE).open("w", encoding="utf-8") as file:
            json.dump(mark, file)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            remove(final)
        os.replace(folder, final)
    for old in complete(run)[:-KEPT]:
        remove(old)
    return final


@contextlib.contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """Whatever goes wrong, the half-written folder goes. torch and safetensors have errors of their own for it."""
    try:
        with disk_errors(folder):
            yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SafetensorError | RuntimeError):
            raise TrainingError(f"A checkpoint could not be written to {folder.parent}: {error}") from error
        raise


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def remove(folder: Path) -> None:
    """Delete a checkpoint, its mark first, so that what is left over from a kill does not count."""
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def complete(run: Path) -> list[Path]:
    """The checkpoints that are whole, oldest first."""
    return [path for path in sorted((run / FOLDER).glob("step-*")) if _is_whole(path)]


def _is_whole(folder: Path) -> bool:
    try:
        mark = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in mark["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def read_last(run: Path, rank: int) -> Checkpoint | None:
    """The newest whole checkpoint; None when there is none.

    Raises:
        TrainingError: its files cannot be read, or it is of another number of processes.
    """
    found = complete(run)
    if not found:
        return None
    folder = found[-1]
    mark = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    if f"random-{rank}.pt" not in mark["files"]:
        raise TrainingError(f"{folder} was written by fewer processes than now run. Resume with as many as before.")
    try:
        best = folder / "best.safetensors"
        return Checkpoint(
            mark["step"],
            mark["loop"],
            load_file(folder / "module.safetensors"),
            load_file(best) if best.is_file() else {},
            torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
            torch.load(folder / f"random-{rank}.pt", map_location="cpu", weights_only=True),
        )
    except Exception as error:  # a damaged file can make the readers fail in any way
        raise TrainingError(f"{folder} cannot be read: {error}. Delete it, and the one before it is used.") from error
