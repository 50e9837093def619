"""Instructions for tiny models in files, and a trainer's run on them. Knows no trainer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny import tiny_model


def write_instructions(folder: Path, count: int = 24) -> Path:
    """The response repeats one letter, which the instruction names."""
    path = folder / "letters.jsonl"
    rows = [
        {"id": i, "instruction": f"Say {chr(97 + i % 6)}.", "input": "", "output": chr(97 + i % 6) * 4}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_tiny(trainer: ModuleType, folder: Path, *arguments: str) -> int:
    """The trainer's `main` on the tiny model, as from a shell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "load_model", lambda *_: tiny_model())
        parser = argparse.ArgumentParser()
        trainer.add_arguments(parser)
        return trainer.main(parser.parse_args(["--run-dir", str(folder), *arguments]))
