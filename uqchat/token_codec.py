"""Scored tokens as one compact blob, an answer's own scores as JSON. Knows no database and no file format for people.

Floats keep every bit (Python writes the shortest text that reads back the same), so what is stored is what was scored.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from uqchat.types import Alternative, Decision, Risk, ScoredToken


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """What estimators say of an answer as a whole, each by the estimator's name; see `types.Answer`."""

    risks: dict[str, Risk] = field(default_factory=dict)
    outside_scope: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    decision: Decision | None = None


def encode_scores(scores: AnswerScores) -> str:
    """A JSON list; every bit of the numbers stays."""
    risks = {name: _numbers(risk) for name, risk in scores.risks.items()}
    decision = scores.decision and asdict(scores.decision)
    return json.dumps([risks, scores.outside_scope, scores.failures, decision], separators=(",", ":"))


def decode_scores(text: str | None) -> AnswerScores:
    """The scores that `encode_scores` was given; empty ones for None."""
    if text is None:
        return AnswerScores()
    risks, outside_scope, failures, *rest = json.loads(text)
    found = {name: _risk(*risk) for name, risk in risks.items()}
    return AnswerScores(found, outside_scope, failures, as_decision(rest[0]) if rest and rest[0] else None)


def as_decision(data: Mapping[str, Any]) -> Decision:
    """A decision from the fields that JSON keeps of it."""
    return Decision(**{**data, "hidden": tuple((start, end) for start, end in data["hidden"])})


def encode_tokens(tokens: Sequence[ScoredToken]) -> bytes:
    """The blob of these tokens."""
    return zlib.compress(json.dumps([_row(token) for token in tokens], separators=(",", ":")).encode("ascii"), 1)


def decode_tokens(blob: bytes) -> tuple[ScoredToken, ...]:
    """The tokens that `encode_tokens` was given, equal in every field."""
    return tuple(_token(row) for row in json.loads(zlib.decompress(blob)))


def _row(token: ScoredToken) -> list[Any]:
    return [
        token.index,
        token.token_id,
        token.text,
        *token.span,
        token.logprob,
        token.entropy,
        [[a.token_id, a.text, a.logprob] for a in token.alternatives],
        {name: _numbers(risk) for name, risk in token.risks.items()},
        token.is_reasoning + 2 * token.is_end,
    ]


def _token(row: list[Any]) -> ScoredToken:
    index, token_id, text, start, end, logprob, entropy, alternatives, risks, flags = row
    return ScoredToken(
        index,
        token_id,
        text,
        (start, end),
        logprob,
        entropy,
        tuple(Alternative(*alternative) for alternative in alternatives),
        {name: _risk(*risk) for name, risk in risks.items()},
        bool(flags & 1),
        bool(flags & 2),
    )


def _numbers(risk: Risk) -> list[Any]:
    return [risk.value, risk.raw, risk.calibration, *([risk.voters] if risk.voters else [])]


def _risk(value: float, raw: float, calibration: str | None, voters: Sequence[float] = ()) -> Risk:
    return Risk(value, raw, calibration, tuple(voters))


class TokenCache:
    """The most recently used decoded answers, so that redrawing a chat does not decode it again."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._lock = Lock()
        self._items: OrderedDict[tuple[str, float], tuple[ScoredToken, ...]] = OrderedDict()

    def get(self, key: tuple[str, float]) -> tuple[ScoredToken, ...] | None:
        """The tokens kept under (message id, time of saving), or None."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: tuple[str, float], tokens: tuple[ScoredToken, ...]) -> tuple[ScoredToken, ...]:
        """Keeps and returns the tokens; the least recently used answer makes room."""
        with self._lock:
            self._items[key] = tokens
            while len(self._items) > self._size:
                self._items.popitem(last=False)
        return tokens
