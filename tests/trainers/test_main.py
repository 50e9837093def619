"""One shell for all trainers: names lead to modules, modules load only when named, refusals are sentences."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from trainers.__main__ import TRAINERS, main
from uqchat.errors import InputError
from uqchat.paths import ROOT


@pytest.mark.parametrize("name", TRAINERS)
def test_every_name_leads_to_a_module_with_arguments_and_a_main(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(TRAINERS[name][0])
    assert callable(module.main)
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and f"python -m trainers {name}" in capsys.readouterr().out


def test_only_the_named_trainer_is_loaded_and_never_the_page() -> None:
    code = (
        "import sys, json, trainers.__main__ as shell\n"
        "before = [n for n in sys.modules if n in {m for m, _ in shell.TRAINERS.values()}]\n"
        "import trainers.data\n"
        "print(json.dumps([before, 'gradio' in sys.modules]))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == [[], False]


def test_a_refusal_is_one_sentence_on_stderr_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: object) -> None:
        raise InputError("That cannot be.")

    monkeypatch.setattr("trainers.data.main", refuse)
    assert main(["data", "label", "x"]) == 1
    assert capsys.readouterr().err == "error: That cannot be.\n"


def test_an_unknown_trainer_is_a_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["nothing"])
    assert end.value.code == 2 and "data" in capsys.readouterr().err
