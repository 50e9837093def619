"""Both forwards under the tests that ask for it; short prompts are used again in all of them."""

from __future__ import annotations

from functools import partial

import pytest

from uqchat.engine import decode, prefix
from uqchat.engine.choose_forward import choose_forward


@pytest.fixture(params=["own forward", "model's forward"])
def both_forwards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: with our own forward where it serves the model, and with the model's own code."""
    is_fast_wanted = request.param == "own forward"
    monkeypatch.setattr(decode, "choose_forward", partial(choose_forward, is_fast_wanted=is_fast_wanted))
    return request.param


@pytest.fixture(autouse=True)
def short_beginnings_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of the tests are short, so that they are quick; what they share is to be used again all the same."""
    monkeypatch.setattr(prefix, "MIN_SHARED", 16)
