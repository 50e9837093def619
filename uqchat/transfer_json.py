"""A stored chat as the JSON form of `transfer_schema`. Knows no database and checks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from uqchat.store import ChatInfo, StoredMessage
from uqchat.store_records import storable
from uqchat.token_codec import AnswerScores
from uqchat.transfer_schema import (
    AlternativeRecord,
    ChatRecord,
    DecisionRecord,
    LabelRecord,
    MessageRecord,
    RiskRecord,
    ScoresRecord,
    TokenRecord,
)
from uqchat.types import Decision, Risk, ScoredToken


def chat_record(chat: ChatInfo, messages: Sequence[StoredMessage], active_child: str | None) -> ChatRecord:
    """The record of a chat, unchecked: what is stored can always be written out.

    An answer still being written is written as cancelled.
    """
    return ChatRecord.model_construct(
        title=chat.title,
        created_at=chat.created_at,
        active_child=active_child,
        messages=tuple(_message_record(message) for message in messages),
    )


def _message_record(message: StoredMessage) -> MessageRecord:
    given = {name: getattr(message, name) for name in MessageRecord.model_fields}
    given["status"] = "cancelled" if message.status == "streaming" else message.status
    given["labels"] = tuple(LabelRecord.model_construct(**asdict(label)) for label in message.labels)
    given["tokens"] = tuple(_token_record(token) for token in message.tokens)
    given["scores"] = _scores_record(message.scores)
    return MessageRecord.model_construct(**given)


def _token_record(token: ScoredToken) -> TokenRecord:
    given = {name: getattr(token, name) for name in TokenRecord.model_fields}
    given["text"] = storable(token.text)
    given["alternatives"] = tuple(
        AlternativeRecord.model_construct(token_id=a.token_id, text=storable(a.text), logprob=a.logprob)
        for a in token.alternatives
    )
    given["risks"] = _risk_records(token.risks)
    return TokenRecord.model_construct(**given)


def _scores_record(scores: AnswerScores) -> ScoresRecord:
    texts = [{storable(k): storable(v) for k, v in one.items()} for one in (scores.outside_scope, scores.failures)]
    return ScoresRecord.model_construct(
        risks=_risk_records(scores.risks),
        outside_scope=texts[0],
        failures=texts[1],
        decision=scores.decision and _decision_record(scores.decision),
    )


def _decision_record(decision: Decision) -> DecisionRecord:
    given = {key: storable(value) if isinstance(value, str) else value for key, value in asdict(decision).items()}
    return DecisionRecord.model_construct(**given)


def _risk_records(risks: dict[str, Risk]) -> dict[str, RiskRecord]:
    return {
        storable(name): RiskRecord.model_construct(value=r.value, raw=r.raw, calibration=r.calibration, voters=r.voters)
        for name, r in risks.items()
    }
