"""A backend that returns only log-probabilities, as a server does: what it gives is enough for some estimators."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.doubles import wait_until
from tests.tiny import byte_tokenizer
from uqchat.config import AppConfig, GenerationConfig
from uqchat.conversation import AskSettings, Conversations
from uqchat.engine.backend import Event, FinishEvent, Request, StepEvent
from uqchat.errors import InputError, ModelError
from uqchat.host import ModelHost
from uqchat.language_model import LanguageModel, drain
from uqchat.models import LoadedModel
from uqchat.render import RiskView, inspector_html, tokens_to_html
from uqchat.store import Store
from uqchat.transfer import export_chat, import_chat
from uqchat.types import Alternative, Signals, Timings, TokenStep

TEXT, TOP = "Paris it is.", (0.6, 0.2, 0.1, 0.05, 0.01)


class ServerBackend:
    """Says the same to everybody, one byte a token, with its five likeliest tokens and nothing else."""

    signals = Signals(top_n=5)

    def __init__(self, tokenizer: Any, fail_after: int | None = None) -> None:
        self.tokenizer, self.fail_after = tokenizer, fail_after
        self.closed = 0

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """See `Backend.stream`."""
        ((key, request),) = enumerate(requests)
        given = list(request.forced_ids)
        ids = (given + self.tokenizer(TEXT)["input_ids"])[: len(given) + request.generation.max_new_tokens]
        try:
            for index, token_id in enumerate(ids):
                if index == self.fail_after:
                    yield FinishEvent(key, "error", Timings(), ModelError("The server is gone."))
                yield StepEvent(key, self._step(index, token_id))
            yield FinishEvent(key, "length", Timings())
        finally:
            self.closed += 1

    def _step(self, index: int, token_id: int) -> TokenStep:
        top = tuple(Alternative(token_id + i, f"<{i}>", math.log(p)) for i, p in enumerate(TOP))
        text = self.tokenizer.decode([token_id])
        return TokenStep(index, token_id, text, (index, index + 1), top[0].logprob, None, top)


def make_model(**options: Any) -> LanguageModel:
    tokenizer = byte_tokenizer()
    loaded = LoadedModel("server", None, tokenizer, "server", "unknown", None, 256)
    return LanguageModel(loaded, backend=ServerBackend(tokenizer, **options))


def test_probabilities_are_enough_for_the_estimators_that_use_only_them() -> None:
    """margin 1 - (0.6 - 0.2) = 0.6; maximum probability 1 - 0.6 = 0.4."""
    answer = make_model().answer("hi", ("max_prob", "margin"))
    assert answer.text == TEXT and answer.model == "server"
    assert answer.risks["max_prob"].value == pytest.approx(0.4)
    assert answer.risks["margin"].value == pytest.approx(0.6)


def test_other_estimators_are_refused_by_the_missing_signal() -> None:
    model = make_model()
    with pytest.raises(InputError, match="Entropy cannot be used here.*no entropy of the full distribution"):
        model.stream("hi", ("margin", "entropy"))
    assert list(model.refused) == ["entropy", "rauq", "lookback"] and model.running == 0


def test_a_reading_that_the_server_cannot_give_leaves_the_answer() -> None:
    answer = make_model().answer("hi", ("margin", "query_zero_shot"))
    assert answer.text == TEXT and list(answer.risks) == ["margin"]
    assert "gives no log-probabilities of given tokens" in answer.failures["query_zero_shot"]


def test_answers_scores_and_given_beginnings_work_as_with_the_local_engine() -> None:
    model = make_model()
    assert [a.text for a in model.answers(["a", "b"], "margin", GenerationConfig(max_new_tokens=5))] == ["Paris"] * 2
    assert model.score("hi", "Rome", "margin").text == "Rome"
    prefix = model.tokenizer("So: ")["input_ids"]
    assert model.answer("hi", "margin", answer_prefix=prefix).text == "So: " + TEXT
    with pytest.raises(InputError, match="outside"):
        model.score("hi", [10**6], "margin")


def test_stop_close_and_failure_end_the_stream_at_the_backend() -> None:
    model, stop = make_model(), threading.Event()
    stream = model.stream("hi", "margin", stop=stop)
    next(stream)
    stop.set()
    assert drain(stream).finish_reason == "cancelled"
    stream = model.stream("hi", "margin")
    next(stream)
    stream.close()
    assert model.engine.closed == 2 and model.running == 0
    broken = make_model(fail_after=3)
    with pytest.raises(ModelError, match="The server is gone"):
        broken.answer("hi", "margin")
    assert broken.engine.closed == 1 and broken.running == 0


def test_closing_the_model_ends_its_streams_and_refuses_new_ones() -> None:
    model = make_model()
    stream = model.stream("hi", "margin")
    next(stream)
    model.close()
    with pytest.raises(ModelError, match="unloaded"):
        list(stream)
    with pytest.raises(InputError, match="closed"):
        model.answer("hi", "margin")


def test_a_chat_runs_on_it_and_is_stored_drawn_exported_and_read_again() -> None:
    store, config = Store("sqlite://"), AppConfig(model="server", history=False)
    host = ModelHost(config, lambda name, **options: make_model())
    host.start()
    wait_until(lambda: host.status().state == "ready")
    refusals = {offer.name: offer.refusal for offer in host.status().offers}
    assert "Entropy cannot be used here" in refusals["entropy"] and refusals["margin"] is None
    chats = Conversations(store, host, config)
    chat_id, run = chats.ask("ann", None, "Where?", AskSettings())
    wait_until(lambda: run.snapshot().status == "done")
    chats.close()
    answer = store.path("ann", chat_id)[-1]
    assert answer.text == TEXT and answer.tokens[0].entropy is None
    assert all(list(token.risks) == ["max_prob", "margin"] for token in answer.tokens)
    assert "uq-b" in tokens_to_html(answer.tokens, RiskView("margin"), answer.id)
    assert "uq-b" not in tokens_to_html(answer.tokens, RiskView("entropy"), answer.id)
    assert "not known" in inspector_html(answer.tokens[0], answer.tokens, RiskView("margin"), answer.id)
    _, data = export_chat(store, "ann", chat_id, "json")
    json.loads(data, parse_constant=pytest.fail)  # no NaN
    again = import_chat(store, "ann", data)
    assert store.path("ann", again.id)[-1].tokens == answer.tokens
    host.close()
