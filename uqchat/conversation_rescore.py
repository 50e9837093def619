"""A finished answer read again by an estimator that was not asked when it was written. Knows no thread and no page.

Its text, tokens and what others said of it stay; the estimator's risks are added. What fails leaves it as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from uqchat.errors import InputError, UqchatError
from uqchat.store import StoredMessage
from uqchat.types import Answer, Message, ScoredToken


class Host(Protocol):
    """The part of `ModelHost` that is used here."""

    def score(self, messages: Any, answer: Any, estimators: Any, **options: Any) -> Answer:
        """As `LanguageModel.score`."""


def require_rescorable(answer: StoredMessage, model: str, name: str) -> None:
    """Raises InputError when this estimator cannot read the answer again with this model."""
    if answer.role != "assistant" or not answer.tokens or answer.status not in ("done", "cancelled"):
        raise InputError("Only a finished answer can be scored again.")
    if answer.model != model:
        raise InputError(
            f"This answer is by {answer.model or 'nobody known'}, and {model} is loaded: its tokens differ."
        )
    if name in answer.scores.risks:
        raise InputError(f"{name} has scored this answer already.")


def stream_again(
    host: Host,
    messages: Sequence[Message],
    answer: StoredMessage,
    name: str,
    stop: threading.Event,
    on_queue: Callable[[int], None],
) -> Generator[ScoredToken, None, Answer]:
    """The answer's tokens as they are, then once more with the estimator's risks; returns it with them."""
    yield from answer.tokens
    ids = [token.token_id for token in answer.tokens]
    try:
        found = host.score(messages, ids, (name,), stop=stop, on_queue=on_queue)
    except UqchatError as error:
        return _kept(answer, answer.tokens, failures={**answer.scores.failures, name: str(error)})
    if found.finish_reason == "cancelled" or len(found.tokens) != len(ids):
        return _kept(answer, answer.tokens)
    tokens = tuple(
        replace(old, risks={**old.risks, **new.risks}) for old, new in zip(answer.tokens, found.tokens, strict=True)
    )
    yield from tokens
    return _kept(
        answer,
        tokens,
        risks={**answer.scores.risks, **found.risks},
        outside_scope={**answer.scores.outside_scope, **found.outside_scope},
        failures={**answer.scores.failures, **found.failures},
    )


def _kept(answer: StoredMessage, tokens: tuple[ScoredToken, ...], **scores: Any) -> Answer:
    """The stored answer with these tokens and scores; what is not given stays."""
    old = answer.scores
    known = {"risks": old.risks, "outside_scope": old.outside_scope, "failures": old.failures, "decision": old.decision}
    return Answer(
        text=answer.text,
        tokens=tokens,
        summaries={},
        finish_reason="cancelled" if answer.status == "cancelled" else answer.finish_reason or "stop",
        dropped_messages=answer.dropped_messages,
        **{**known, **scores},
    )
