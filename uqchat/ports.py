"""The port to listen on, checked before the server starts. Knows no server."""

from __future__ import annotations

import errno
import socket

from uqchat.errors import InputError


def open_port(host: str, port: int) -> int:
    """`port`, or a free one for 0.

    Raises:
        InputError: another program listens there, or this machine has no such address or lets nobody use it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left counts as free
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(_reason(host, port, error)) from error
        return probe.getsockname()[1]


def _reason(host: str, port: int, error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        return (
            f"Port {port} is taken: another program, perhaps a chat that is already open, listens there."
            f" Choose another one with UQCHAT_PORT={port + 1 if port < 65535 else 7860}; 0 takes any free port."
        )
    return f"Cannot listen on {host}:{port} ({error}). UQCHAT_HOST and UQCHAT_PORT choose another address."
