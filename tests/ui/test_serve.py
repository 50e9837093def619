"""A setting that cannot be used is told before anything slow starts."""

from __future__ import annotations

import socket

import pytest

from uqchat.config import AppConfig
from uqchat.errors import InputError
from uqchat.ui import serve


@pytest.fixture(autouse=True)
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the services, which begins to load the model, fails the test."""
    monkeypatch.setattr(serve, "open_services", lambda config: pytest.fail("the model began to load"))


def test_a_login_without_a_password_is_refused_before_the_model_loads() -> None:
    with pytest.raises(InputError, match="name:password"):
        serve.serve(AppConfig(auth="alice", port=0))


def test_a_taken_port_is_told_before_the_model_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match="is taken"):
            serve.serve(AppConfig(port=port))
