"""The first minute: a stored answer of the embedded model and questions to try. Knows no component.

`assets/make_examples.py` writes the file; nothing in it is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uqchat.paths import ASSETS
from uqchat.token_codec import AnswerScores
from uqchat.types import Alternative, Risk, ScoredToken

EXAMPLES_FILE = ASSETS / "examples.json"
EXAMPLE_PREFIX = "example-"


@dataclass(frozen=True)
class ExampleMessage:
    """A message that is drawn like a stored one but belongs to no chat."""

    id: str
    role: str
    text: str
    tokens: tuple[ScoredToken, ...] = ()
    model: str = ""
    status: str = "done"
    finish_reason: str | None = "stop"
    error: str | None = None
    dropped_messages: int = 0
    version: int = 1
    version_count: int = 1
    labels: tuple[()] = ()
    is_example: bool = True
    scores: AnswerScores = AnswerScores()


@dataclass(frozen=True)
class Examples:
    """`messages` is the stored exchange; `questions` maps a group's heading to its questions."""

    messages: tuple[ExampleMessage, ...] = ()
    questions: Mapping[str, tuple[str, ...]] = ()

    def message(self, message_id: str) -> ExampleMessage | None:
        """The stored message with this id."""
        return next((message for message in self.messages if message.id == message_id), None)


def load_examples(path: Path = EXAMPLES_FILE) -> Examples:
    """Reads the file: {"model", "question", "answer": Answer.to_json(), "questions": {heading: [text]}}."""
    data = json.loads(path.read_text(encoding="utf-8"))
    tokens = tuple(_token(item) for item in data["answer"]["tokens"])
    answer = ExampleMessage(f"{EXAMPLE_PREFIX}2", "assistant", data["answer"]["text"], tokens, data["model"])
    risks = {name: Risk(**risk) for name, risk in data["answer"]["risks"].items()}
    answer = replace(answer, finish_reason=data["answer"]["finish_reason"], scores=AnswerScores(risks))
    question = ExampleMessage(f"{EXAMPLE_PREFIX}1", "user", data["question"])
    return Examples((question, answer), {name: tuple(texts) for name, texts in data["questions"].items()})


def _token(item: dict[str, Any]) -> ScoredToken:
    alternatives = tuple(Alternative(**alternative) for alternative in item["alternatives"])
    risks = {name: Risk(**risk) for name, risk in item["risks"].items()}
    return ScoredToken(**{**item, "span": tuple(item["span"]), "alternatives": alternatives, "risks": risks})
