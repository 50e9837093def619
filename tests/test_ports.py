"""The port is checked before anything slow starts."""

from __future__ import annotations

import socket

import pytest

from uqchat.errors import InputError
from uqchat.ports import open_port


def test_zero_gives_a_port_one_can_listen_on() -> None:
    port = open_port("127.0.0.1", 0)
    assert port > 0
    assert open_port("127.0.0.1", port) == port


def test_a_taken_port_is_told_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} is taken.*UQCHAT_PORT="):
            open_port("127.0.0.1", port)


def test_an_address_this_machine_does_not_have_is_named() -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.1:7860.*UQCHAT_HOST"):
        open_port("192.0.2.1", 7860)
