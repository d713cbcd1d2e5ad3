"""A proxy in front of the server that closes connections on request: after a command has arrived, or before.

It also withholds the answers of commands, and of all that follows them on the same connection.

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

_NAME_OFFSET = 26
"""Of an OP_MSG: after its header, flags, the section's kind, the document's length and the value's type."""


class LossyProxy:
    """Drops the answers (or the requests) of the next commands with one name."""

    def __init__(self, server_url: str, folder: Path) -> None:
        self._server_socket = unquote(server_url.removeprefix("mongodb://").partition("/?")[0])
        self._socket = folder / "proxy.sock"
        self.url = f"mongodb://{quote(str(self._socket), safe='')}/?directConnection=true"
        self.lost = 0
        self.stalled: set[bytes] = set()
        """Names of commands that are forwarded and never answered."""
        self.is_down = False
        self._to_lose: tuple[bytes, int, bool] = (b"", 0, True)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def lose(self, command: str, times: int = 1, *, after_it_arrived: bool = True) -> None:
        """Close the connection instead of answering; the server executes the request, or never gets it."""
        self._to_lose = (command.encode() + b"\0", times, after_it_arrived)

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
            server.close()
            self.go_down()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        # In a task of its own: asyncio reports a cancelled handler as an error.
        task = asyncio.ensure_future(self._relay(from_client, to_client))
        self._tasks.add(task)
        await asyncio.wait({task})
        self._tasks.discard(task)
        to_client.close()

    async def _relay(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.is_down:
            return
        from_server, to_server = await asyncio.open_unix_connection(self._server_socket)
        self._open |= {to_client, to_server}
        answers = asyncio.create_task(self._answer(from_server, to_client))
        try:
            await self._forward(from_client, from_server, to_server, answers)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            answers.cancel()
            for writer in (to_client, to_server):
                writer.close()
            self._open -= {to_client, to_server}

    async def _forward(
        self,
        from_client: asyncio.StreamReader,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        """Requests to the server, until one is to be lost."""
        while True:
            length = await from_client.readexactly(4)
            request = length + await from_client.readexactly(int.from_bytes(length, "little") - 4)
            name, times, after_it_arrived = self._to_lose
            if times and request.startswith(name, _NAME_OFFSET):
                self._to_lose = (name, times - 1, after_it_arrived)
                self.lost += 1
                answers.cancel()
                await asyncio.wait({answers})
                if after_it_arrived:
                    to_server.write(request)
                    await from_server.readexactly(4)  # the server has executed it
                return
            if any(request.startswith(stalled + b"\0", _NAME_OFFSET) for stalled in self.stalled):
                answers.cancel()
            to_server.write(request)
            await to_server.drain()

    async def _answer(self, from_server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await from_server.read(65_536):
                to_client.write(data)
                await to_client.drain()
        to_client.close()
