"""A proxy in front of the server that closes connections on request: after a command has arrived, or before.

It listens on a unix socket, as the embedded server does. A command is recognised by its name, the first key
of an OP_MSG's document.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote


class LossyProxy:
    """Drops the answers (or the requests) of the next commands with one name."""

    def __init__(self, server_url: str, folder: Path) -> None:
        self._server_socket = unquote(server_url.removeprefix("mongodb://").partition("/?")[0])
        self._socket = folder / "proxy.sock"
        self.url = f"mongodb://{quote(str(self._socket), safe='')}/?directConnection=true"
        self.lost = 0
        self.is_down = False
        self._to_lose: tuple[bytes, int, bool] = (b"", 0, True)
        self._open: set[asyncio.StreamWriter] = set()

    def lose(self, command: str, times: int = 1, *, after_it_arrived: bool = True) -> None:
        """Close the connection instead of answering; the server executes the request, or never gets it."""
        self._to_lose = (b"\x02" + command.encode() + b"\0", times, after_it_arrived)

    def go_down(self) -> None:
        """Close every connection, also each new one, until `is_down` is reset."""
        self.is_down = True
        for writer in self._open:
            writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[Self]:
        server = await asyncio.start_unix_server(self._serve, str(self._socket))
        try:
            yield self
        finally:
            self.go_down()
            server.close()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.is_down:
            to_client.close()
            return
        from_server, to_server = await asyncio.open_unix_connection(self._server_socket)
        self._open |= {to_client, to_server}
        answers = asyncio.create_task(self._answer(from_server, to_client))
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = await from_client.readexactly(4)
                request = length + await from_client.readexactly(int.from_bytes(length, "little") - 4)
                name, times, after_it_arrived = self._to_lose
                if times and name in request[:64]:
                    self._to_lose = (name, times - 1, after_it_arrived)
                    self.lost += 1
                    answers.cancel()
                    await asyncio.wait({answers})
                    if after_it_arrived:
                        to_server.write(request)
                        await from_server.readexactly(4)  # the server has executed it
                    break
                to_server.write(request)
                await to_server.drain()
        answers.cancel()
        for writer in (to_client, to_server):
            writer.close()
        self._open -= {to_client, to_server}

    async def _answer(self, from_server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await from_server.read(65_536):
                to_client.write(data)
                await to_client.drain()
        to_client.close()
