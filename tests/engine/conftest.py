"""Both forwards under the tests that ask for it."""

from __future__ import annotations

from functools import partial

import pytest

from uqchat.engine import decode
from uqchat.engine.choose_forward import choose_forward


@pytest.fixture(params=["own forward", "model's forward"])
def both_forwards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: with our own forward where it serves the model, and with the model's own code."""
    is_fast_wanted = request.param == "own forward"
    monkeypatch.setattr(decode, "choose_forward", partial(choose_forward, is_fast_wanted=is_fast_wanted))
    return request.param
