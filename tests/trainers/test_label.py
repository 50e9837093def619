"""Graders say what a person would, the audit shows what they said, and labels that teach nothing are refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import byte_tokenizer
from tests.trainers.made_answers import make_cache, make_row
from trainers.__main__ import main
from trainers.answers import IGNORED, Fact, read_answers, write_answers
from trainers.graders import endpoint_grader, judge_prompt, model_grader, read_verdict
from trainers.label import GRADERS, check_labels, label_folder, label_row, write_audit
from uqchat.engine.backend import StepEvent
from uqchat.errors import InputError
from uqchat.models import LoadedModel
from uqchat.types import TokenStep


def said(text: str, **changes: Any) -> Any:
    """An answer with this text, one token a character."""
    spans = tuple((i, i + 1) for i in range(len(text)))
    return make_row(text=text, spans=spans, answer_ids=tuple(range(len(text))), **changes)


@pytest.mark.parametrize(
    ("grader", "text", "is_error"),
    [
        ("alias", "It is the city of Lima.", False),
        ("alias", "It is Limassol.", True),
        ("substring", "It is Limassol.", False),
        ("f1", "Lima it is", False),  # F1 of 1 word in 3 against 1: 0.5
        ("f1", "It is the big Lima", True),
        ("exact", "The Lima!", False),
        ("exact", "It is Lima", True),
    ],
)
def test_each_grader_draws_its_own_line(grader: str, text: str, is_error: bool) -> None:
    assert GRADERS[grader](said(text, references=("Lima",))) is is_error


def test_letters_and_several_facts_are_graded_in_their_own_way_whatever_the_grader() -> None:
    choice = said("(b)", references=("B", "Lima"), choices=("Quito", "Lima"))
    assert label_row(choice, GRADERS["exact"]).is_error is False
    facts = (Fact("Peru", ("Lima",)), Fact("Chad", ("N'Djamena",)))
    asked = {"references": (), "facts": facts, "question": "Capitals of Peru and Chad?"}
    assert label_row(said("Peru: Lima\nChad: N'Djamena", **asked)).is_error is False
    assert label_row(said("Peru: Lima\nChad: Bamako", **asked)).is_error is True
    assert label_row(said("Peru: Lima", **asked)).is_error is None


def test_an_empty_answer_is_wrong_and_none_of_its_tokens_is() -> None:
    row = label_row(make_row(text=" ", spans=((0, 1), (1, 1), (1, 1))))
    assert row.is_error is True and row.token_labels == (IGNORED,) * 3


def test_labelling_a_folder_leaves_answers_and_features_alone(tmp_path: Path, capsys: Any) -> None:
    rows = [said("Lima", id="a", references=("Lima",)), said("Quito", id="b", references=("Lima",))]
    make_cache(tmp_path, rows)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["data", "label", str(tmp_path)]) == 0
    assert "1 wrong (50% of the graded ones), 1 right" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [(row.is_error, set(row.token_labels or ())) for row in read_answers(tmp_path)] == [
        (False, {0}),
        (True, {1}),
    ]


def test_the_audit_shows_fifty_answers_in_a_table_that_no_answer_can_break(tmp_path: Path) -> None:
    rows = [said(f"a|b *c*\n<b> {i}", id=str(i), references=("x",)) for i in range(80)]
    write_answers(tmp_path, rows)
    label_folder(tmp_path)
    table = [line for line in write_audit(tmp_path).read_text().splitlines() if line.startswith("|")]
    assert len(table) == 52
    assert all(line.replace("\\|", "").count("|") == 7 and "<b>" not in line for line in table)
    assert write_audit(tmp_path).read_text() == write_audit(tmp_path).read_text()


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    rows = [label_row(said("Quito", id=str(i), references=("Lima",))) for i in range(3)]
    with pytest.raises(InputError, match="All 3 graded answers are wrong"):
        check_labels(rows)
    with pytest.raises(InputError, match="None of the 1 answers is labelled"):
        check_labels([said("Lima")])
    check_labels([*rows, label_row(said("Lima", references=("Lima",)))])


# ---- a language model as the grader


@contextmanager
def endpoint(replies: list[tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies in turn, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, reply = replies.pop(0)
            text = json.dumps(reply if status != 200 else {"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def test_an_endpoint_is_asked_with_question_reference_and_answer() -> None:
    with endpoint([(200, "Yes."), (200, "no"), (200, "maybe")]) as (url, asked):
        grade = endpoint_grader(url, "judge", key="secret")
        row = said("The town of Lima", references=("Lima", "Ciudad"))
        assert [grade(row), grade(row), grade(row)] == [False, True, None]
    first = asked[0]
    assert first["path"] == "/v1/chat/completions" and first["key"] == "Bearer secret" and first["temperature"] == 0
    shown = first["messages"][1]["content"]
    assert shown == judge_prompt(row) and all(x in shown for x in (row.question, "Lima or Ciudad", "The town of Lima"))


def test_a_busy_endpoint_is_asked_again_and_a_refusal_is_told() -> None:
    with endpoint([(503, "busy"), (429, "slow down"), (200, "yes")]) as (url, asked):
        assert endpoint_grader(url, "judge", pause=0.001)(said("Lima")) is False and len(asked) == 3
    with endpoint([(401, "wrong key")]) as (url, asked):
        with pytest.raises(InputError, match="refuses: 401 .*wrong key"):
            endpoint_grader(url, "judge", pause=0.001)(said("Lima"))
    with endpoint([(500, "down")] * 4) as (url, asked):
        with pytest.raises(InputError, match="no reply after 4 tries: 500"):
            endpoint_grader(url, "judge", pause=0.001)(said("Lima"))
    with pytest.raises(InputError, match="must begin with http"):
        endpoint_grader("file:///etc/passwd", "judge")


@pytest.mark.parametrize(("reply", "is_error"), [("Yes", False), (" no.", True), ("**No**", True), ("Nobody", None)])
def test_the_first_yes_or_no_of_a_reply_counts(reply: str, is_error: bool | None) -> None:
    assert read_verdict(reply) is is_error


def test_a_model_loaded_here_can_be_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    tokenizer = byte_tokenizer()

    class Scripted:
        tags = ()

        def __init__(self, *_: object) -> None:
            """Needs no model."""

        def stream(self, requests: list[Any]) -> Iterator[StepEvent]:
            asked.append(tokenizer.decode(requests[0].prompt_ids))
            yield from (StepEvent(0, TokenStep(i, i, text, (0, 0), 0.0, 0.0)) for i, text in enumerate([" N", "o."]))

    monkeypatch.setattr("trainers.graders.Engine", Scripted)
    model = LoadedModel("made", None, tokenizer, "cpu", "float32", None, 4096)
    row = said("Quito", references=("Lima",))
    assert model_grader(model)(row) is True and judge_prompt(row) in asked[0]
