"""Proof that something is done without a connection: the socket's own methods refuse while it is watched."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

_WAYS_OUT = ("connect", "connect_ex", "sendto")


@contextmanager
def no_connections() -> Generator[None]:
    """Fail if a connection is tried inside, also by another thread or by code that hides the error."""
    tried: list[str] = []

    def refuse(name: str) -> Any:
        def refused(*arguments: object, **_: object) -> None:
            tried.append(f"{name}{arguments[1:]!r}")
            raise ConnectionRefusedError("a connection was tried where none was promised")

        return refused

    with pytest.MonkeyPatch.context() as patch:
        for name in _WAYS_OUT:
            patch.setattr(socket.socket, name, refuse(name), raising=False)
        patch.setattr(socket, "getaddrinfo", refuse("getaddrinfo"))
        yield
    assert tried == []
