"""Questions of the Hub: read from a folder that `datasets` reads, and from a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, Repository
from uqchat.errors import InputError
from uqchat.evaluation_data import kind_of, read_questions
from uqchat.paths import ROOT

pytest.importorskip("datasets")

OPEN = b'{"question": "Capital of France?", "answers": ["Paris"]}\n{"question": "Of Italy?", "answers": ["Rome"]}\n'
CHOICE = b'{"question": "2+2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}\n'
READ = """
import json, sys
from uqchat.errors import InputError
from uqchat.evaluation_data import read_questions
for source in sys.argv[1:]:
    try:
        print(json.dumps([[q.id, q.question, q.references, q.choices, q.answer_index] for q in read_questions(source)]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_test_split_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "test.jsonl").write_bytes(OPEN)
    (tmp_path / "own" / "train.jsonl").write_bytes(OPEN.split(b"\n")[0] + b"\n")
    source = f"hub:{tmp_path / 'own'}"
    assert [question.references for question in read_questions(source)] == [("Paris",), ("Rome",)]
    assert len(read_questions(f"{source}::train")) == 1
    with pytest.raises(InputError, match="cannot be had"):
        read_questions(f"{source}::dev")


def test_choices_as_objects_are_read(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "test.jsonl").write_bytes(CHOICE)
    found = read_questions(f"hub:{tmp_path / 'own'}")
    assert (found[0].choices, found[0].answer_index, kind_of(found)) == (("3", "4"), 1, "choice")


def test_a_data_set_of_the_hub_is_fetched_and_one_that_is_not_there_is_explained(tmp_path: Path) -> None:
    """In a process of its own, for the libraries read the Hub's address once."""
    with FakeHub() as hub:
        hub.repositories["datasets/org/facts"] = Repository({"test.jsonl": OPEN, "README.md": b"# facts"})
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", READ, "hub:org/facts", "hub:org/none"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read, missing = map(json.loads, done.stdout.strip().split("\n"))
    assert [row[1:3] for row in read] == [["Capital of France?", ["Paris"]], ["Of Italy?", ["Rome"]]]
    assert read[0][0].startswith("facts-") and "hub:org/none cannot be had" in missing
    assert any("test.jsonl" in path for _, path, _ in hub.requests)
