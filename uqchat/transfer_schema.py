"""The JSON form of a chat: its fields, strictly checked where a file is read. Knows no database.

Numbers that JSON cannot hold are the strings "Infinity" and "-Infinity".
"""

from __future__ import annotations

import math
import operator
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from uqchat.store import Label, StoredMessage
from uqchat.store_records import MAX_TITLE_CHARS, storable
from uqchat.token_codec import AnswerScores, as_decision
from uqchat.types import Alternative, FinishReason, Outcome, Risk, Role, ScoredToken

FORMAT = "uqchat-chat"
VERSION = 1
MAX_MESSAGES = 10_000


def _infinity(value: Any) -> Any:
    return float(value) if value in ("Infinity", "-Infinity") else value


def _no_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number, not NaN")
    return value


def _plausible(value: datetime) -> datetime:
    if not 1970 <= value.year <= 9998:
        raise ValueError("must lie between the years 1970 and 9998")
    return value


def _text(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]
Number = Annotated[float, BeforeValidator(_infinity), AfterValidator(_no_nan)]
# A hair above zero: float32 log-probabilities of a sure token may be.
Logprob = Annotated[Number, Field(le=1e-3)]
Share = Annotated[Number, Field(ge=-1e-6, le=1 + 1e-6)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Id = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(max_length=500)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="strings", protected_namespaces=())


class AlternativeRecord(_Record):
    """As `types.Alternative`."""

    token_id: Count
    text: Text
    logprob: Logprob


class RiskRecord(_Record):
    """As `types.Risk`."""

    value: Share
    raw: Number
    calibration: str | None
    voters: Annotated[tuple[Share, ...], Field(exclude_if=operator.not_)] = ()

    def to_risk(self) -> Risk:
        """The risk that crosses the program's boundaries."""
        return Risk(self.value, self.raw, self.calibration, self.voters)


class TokenRecord(_Record):
    """As `types.ScoredToken`."""

    index: Count
    token_id: Count
    text: Text
    span: tuple[Count, Count]
    logprob: Logprob
    entropy: Annotated[Number, Field(ge=-1e-3)] | None
    alternatives: tuple[AlternativeRecord, ...]
    risks: dict[Name, RiskRecord]
    is_reasoning: bool
    is_end: bool

    def to_token(self) -> ScoredToken:
        """The token that crosses the program's boundaries."""
        return ScoredToken(
            self.index,
            self.token_id,
            self.text,
            self.span,
            self.logprob,
            self.entropy,
            tuple(Alternative(a.token_id, a.text, a.logprob) for a in self.alternatives),
            {name: risk.to_risk() for name, risk in self.risks.items()},
            self.is_reasoning,
            self.is_end,
        )


class DecisionRecord(_Record):
    """As `types.Decision`."""

    outcome: Outcome
    policy: Name
    version: Count
    action: Name
    estimator: Name
    threshold: Number
    risk: Number | None
    reason: Text
    basis: Text = ""
    tries: Count = 1
    extra_tokens: Count = 0
    hidden: tuple[tuple[Count, Count], ...] = ()
    answered_by: Name = ""


class ScoresRecord(_Record):
    """As `token_codec.AnswerScores`."""

    risks: dict[Name, RiskRecord] = {}
    outside_scope: dict[Name, Text] = {}
    failures: dict[Name, Text] = {}
    decision: DecisionRecord | None = None

    def to_scores(self) -> AnswerScores:
        """The scores that the store keeps."""
        risks = {name: risk.to_risk() for name, risk in self.risks.items()}
        decision = self.decision and as_decision(self.decision.model_dump())
        return AnswerScores(risks, dict(self.outside_scope), dict(self.failures), decision)


class LabelRecord(_Record):
    """As `store.Label`."""

    is_error: bool
    start: Count | None
    end: Count | None


class MessageRecord(_Record):
    """One message of the tree; parents come before their children."""

    id: Id
    parent_id: Id | None
    active_child: Id | None
    role: Role
    text: Text
    status: Literal["done", "cancelled", "error"]
    finish_reason: FinishReason | None
    error: str | None
    model: Name
    dropped_messages: Count
    is_example: bool
    created_at: Annotated[AwareDatetime, AfterValidator(_plausible)]
    labels: tuple[LabelRecord, ...]
    tokens: tuple[TokenRecord, ...]
    scores: ScoresRecord = ScoresRecord()

    @model_validator(mode="after")
    def _check(self) -> MessageRecord:
        if self.role != "assistant" and (self.tokens or self.labels):
            raise ValueError("only an answer may have tokens and labels")
        for position, token in enumerate(self.tokens):
            if token.index != position:
                raise ValueError(f"token {position} has index {token.index}; indices must count from 0")
            if self.text[slice(*token.span)] != token.text:
                raise ValueError(f"token {position} says {token.text!r}, but its span of the text says otherwise")
        if self.tokens and "".join(token.text for token in self.tokens) != self.text:
            raise ValueError("the texts of the tokens, joined, must be the text of the answer")
        for label in self.labels:
            if label.start is label.end is None:
                continue
            if label.start is None or label.end is None or not label.start < label.end <= len(self.text):
                raise ValueError(f"a label covers [{label.start}, {label.end}) of {len(self.text)} characters")
        return self

    def to_message(self) -> StoredMessage:
        """The message as the store takes it; versions and the chat follow from the tree."""
        given = {name: getattr(self, name) for name in MessageRecord.model_fields}
        given["labels"] = tuple(Label(label.is_error, label.start, label.end) for label in self.labels)
        given["tokens"] = tuple(token.to_token() for token in self.tokens)
        given["scores"] = self.scores.to_scores()
        return StoredMessage(chat_id="", version=1, version_count=1, **given)


class ChatRecord(_Record):
    """A whole chat: every version of every message."""

    format: Literal["uqchat-chat"] = FORMAT
    version: Literal[1] = VERSION
    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARS)]
    created_at: Annotated[AwareDatetime, AfterValidator(_plausible)]
    active_child: Id | None
    messages: Annotated[tuple[MessageRecord, ...], Field(max_length=MAX_MESSAGES)]

    @model_validator(mode="after")
    def _check(self) -> ChatRecord:
        children: dict[str | None, set[str]] = {None: set()}
        for message in self.messages:
            if message.id in children:
                raise ValueError(f"two messages have the id {message.id!r}")
            if message.parent_id not in children:
                raise ValueError(f"message {message.id!r} has a parent that does not come before it")
            children[message.parent_id].add(message.id)
            children[message.id] = set()
        for owner, child in ((None, self.active_child), *((m.id, m.active_child) for m in self.messages)):
            if child is not None and child not in children[owner]:
                raise ValueError(f"active_child {child!r} is not a message below the one that names it")
        return self


class Header(BaseModel):
    """The two fields that say what the rest is."""

    format: str
    version: int
