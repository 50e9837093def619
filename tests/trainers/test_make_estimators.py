"""The script that makes the shipped estimators gives commands that their trainers take."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.__main__ import TRAINERS
from trainers.common import read_settings

ROOT = Path(__file__).resolve().parents[2]
STAGES = "data sweep probe uq_head calibrate combination leave_one_out report dtypes"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Arguments of every `python -m trainers`, in order; nothing is run but the shell."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    folder = tmp_path_factory.mktemp("made")
    stub, log = folder / "python", folder / "log"
    stub.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "print('chosen' if sys.argv[1] == '-c' else '')\n"
    )
    stub.chmod(0o755)
    (folder / "work" / "assets").mkdir(parents=True)
    shutil.copytree(ROOT / "assets" / "estimators", folder / "work" / "assets" / "estimators")
    for style in ("short", "page"):
        (folder / "work" / "runs" / f"report-{style}").mkdir(parents=True)
        (folder / "work" / "runs" / f"report-{style}" / "report.md").touch()
    script = "assets/estimators/make.sh"
    settings = {**os.environ, "PYTHON": str(stub)}
    subprocess.run(["bash", script, *STAGES.split()], cwd=folder / "work", env=settings, check=True, timeout=60)
    return [line[2:] for line in map(json.loads, log.read_text().splitlines()) if line[:2] == ["-m", "trainers"]]


def test_every_command_is_one_that_its_trainer_takes(commands: list[list[str]]) -> None:
    assert {name for name, *_ in commands} >= {
        "data",
        "sweep",
        "probe",
        "uq-head",
        "calibrate",
        "combination",
        "report",
    }
    for name, *rest in commands:
        module = importlib.import_module(TRAINERS[name][0])
        parser = argparse.ArgumentParser(exit_on_error=False)
        module.add_arguments(parser)
        args = parser.parse_args(rest)
        if hasattr(module, "TrainConfig"):
            read_settings(module.TrainConfig, args)


def test_sets_that_only_evaluate_train_and_calibrate_nothing(commands: list[list[str]]) -> None:
    fitted = [rest for name, *rest in commands if name in ("probe", "uq-head", "sweep", "combination", "calibrate")]
    assert fitted and not any("sciq" in part or "nq_open" in part for rest in fitted for part in rest)
    assert not any("-eval-" in part for rest in fitted for part in rest)
