"""Fifty requests of every kind from several threads, some given up, some hit by failures: the others never notice."""

from __future__ import annotations

import random
import threading

import pytest

from benchmarks import soak
from tests.tiny import tiny_model
from uqchat.engine import decode, lineup
from uqchat.engine import worker as worker_module
from uqchat.engine.backend import StepEvent
from uqchat.errors import ModelError
from uqchat.language_model import LanguageModel

COUNT = 50


def make_model() -> LanguageModel:
    model = LanguageModel(tiny_model())
    soak.add_adapters(model)
    return model


def alone(plans: list[soak.Plan]) -> list[list[int]]:
    """What each request gives when it is the only one."""
    model = make_model()
    return [[e.step.token_id for e in model.engine.stream([p.request]) if isinstance(e, StepEvent)] for p in plans]


def test_nobody_is_harmed_and_nothing_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and short chunks, so that requests queue, wait for memory and are read in turn."""
    monkeypatch.setattr(lineup, "MAX_ROWS", 5)
    monkeypatch.setattr(worker_module, "MAX_ROWS", 7)
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 24)
    threads_before = set(threading.enumerate())
    model, rng = make_model(), random.Random(0)
    plans = soak.make_plans(model, COUNT, rng)
    expected = alone(plans)
    outcomes = soak.soak(model, plans, rng, chance=0.03)

    assert any(o.was_hit for o in outcomes) and {o.plan.fate for o in outcomes} == set(soak.FATES)
    for outcome, ids in zip(outcomes, expected, strict=True):
        check(outcome, ids)
    assert soak.left_over(model) == []
    assert {t.name for t in set(threading.enumerate()) - threads_before} == {"uqchat-model"}
    again = soak.consume(model, soak.Plan(plans[0].request, plans[0].prompt, "whole", 0))
    assert again.ids == expected[0]
    model.close()
    assert set(threading.enumerate()) == threads_before


def check(outcome: soak.Outcome, ids: list[int]) -> None:
    """Whatever came is the beginning of what the request gives alone; an error has a cause of its own."""
    fate, at = outcome.plan.fate, outcome.plan.at
    assert outcome.ids == ids[: len(outcome.ids)]
    if isinstance(outcome.error, ZeroDivisionError):
        assert fate == "estimator" and len(outcome.ids) == at
    elif outcome.error is not None:
        assert outcome.was_hit and isinstance(outcome.error, ModelError)
    elif outcome.answer is None:
        assert fate in ("close", "drop") and len(outcome.ids) == at
    elif outcome.answer.finish_reason == "cancelled":
        assert fate == "stop" and len(outcome.ids) >= at
    else:
        assert outcome.ids == ids
