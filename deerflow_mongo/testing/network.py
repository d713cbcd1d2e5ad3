"""Assert that code opens no connection: the socket's methods raise while it runs."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

_CONNECTING_METHODS = ("connect", "connect_ex", "sendto")


@contextmanager
def no_connections() -> Generator[None]:
    """Fail if a connection is attempted inside, also by another thread or by code that hides the error."""
    attempts: list[str] = []

    def blocked(name: str) -> Any:
        def raise_error(*arguments: object, **_: object) -> None:
            attempts.append(f"{name}{arguments[1:]!r}")
            raise ConnectionRefusedError("a connection was attempted where none is allowed")

        return raise_error

    with pytest.MonkeyPatch.context() as patch:
        for name in _CONNECTING_METHODS:
            patch.setattr(socket.socket, name, blocked(name), raising=False)
        patch.setattr(socket, "getaddrinfo", blocked("getaddrinfo"))
        yield
    assert attempts == []
