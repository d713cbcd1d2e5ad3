"""A proxy in front of one server that reads the wire protocol and harms the commands that a test names.

    async with FaultProxy(server_url).running() as proxy:
        storage = create_storage({"backend": "mongodb", "url": proxy.url})
        proxy.lose("update")                                  # executed, and the connection is cut
        proxy.lose("insert", 2, after_it_arrived=False)       # cut before the server gets it, twice
        proxy.drop_reply("find")                              # executed, never answered, connection open
        proxy.stall()                                         # no command is answered until `clear()`
        proxy.delay("insert", 0.2, collection="runs")

It runs in the test's event loop. A driver connects to it with `directConnection=true`, as it would otherwise
go on to the addresses that the server gives of itself. Not for TLS or compressed messages, which it cannot
read. What the driver does on its own account (`hello`, `ping` of its monitors) is passed on unharmed, unless
it is named.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias
from urllib.parse import unquote

Harm: TypeAlias = Literal["delay", "stall", "cut_before", "cut_after", "drop_reply"]

WRITES = frozenset({"insert", "update", "delete", "findAndModify", "commitTransaction"})
"""The commands by which something is stored."""

_OWN_COMMANDS = frozenset(
    {"hello", "isMaster", "ismaster", "ping", "endSessions", "saslStart", "saslContinue"}
)
_HEADER_BYTES = 16
_OP_MSG = 2013
_NAME_OFFSET = 26
"""Of an OP_MSG: after its header, flags, the section's kind, the document's length and the value's type."""
_TEXT_VALUE = 2


@dataclass(frozen=True)
class Message:
    """One message of the wire protocol, as bytes, and what its header says."""

    data: bytes

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Message:
        length = await reader.readexactly(4)
        return cls(length + await reader.readexactly(int.from_bytes(length, "little") - 4))

    @property
    def id(self) -> int:
        return int.from_bytes(self.data[4:8], "little")

    @property
    def replies_to(self) -> int:
        return int.from_bytes(self.data[8:12], "little")

    @property
    def command(self) -> str:
        """The name of the command; "" of what is not an OP_MSG, which is a handshake."""
        if int.from_bytes(self.data[12:_HEADER_BYTES], "little") != _OP_MSG:
            return ""
        return self.data[_NAME_OFFSET : self.data.index(b"\0", _NAME_OFFSET)].decode()

    @property
    def collection(self) -> str:
        """The collection that the command names, as a rule by its first value."""
        name = self.command
        value = _NAME_OFFSET + len(name.encode()) + 1
        if name == "getMore":
            marker = b"\x02collection\0"
            value = self.data.index(marker) + len(marker)
        elif not name or self.data[_NAME_OFFSET - 1] != _TEXT_VALUE:
            return ""
        length = int.from_bytes(self.data[value : value + 4], "little")
        return self.data[value + 4 : value + 3 + length].decode()


@dataclass
class Rule:
    """What happens to the next `remaining` commands of these names; None: to every one."""

    harm: Harm
    commands: Collection[str] | None
    remaining: int | None
    collection: str | None = None
    delay_s: float = 0.0
    hits: int = 0
    """How many commands it has harmed."""

    def applies_to(self, message: Message) -> bool:
        name = message.command
        if self.remaining == 0 or not name:
            return False
        if name in _OWN_COMMANDS if self.commands is None else name not in self.commands:
            return False
        return self.collection in (None, message.collection)

    def apply(self) -> None:
        self.hits += 1
        if self.remaining is not None:
            self.remaining -= 1


@dataclass(eq=False)
class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    unanswered: dict[int, Harm] = field(default_factory=lambda: dict[int, Harm]())
    """What happens to the replies of these requests."""

    def close(self) -> None:
        for writer in (self.to_client, self.to_server):
            writer.close()


class FaultProxy:
    """A proxy of the server at a `mongodb://` URL: one host and port, or a socket file."""

    def __init__(self, server_url: str) -> None:
        self._server = unquote(server_url.removeprefix("mongodb://").partition("/?")[0])
        self._port = 0
        self._rules: list[Rule] = []
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost_before = 0
        self.is_down = False
        """Whether each new connection is closed at once."""
        self.seen: Counter[str] = Counter()
        """The commands that clients sent, by name."""

    @property
    def url(self) -> str:
        """Its address, to which options can be added with `&`."""
        return f"mongodb://127.0.0.1:{self._port}/?directConnection=true"

    @property
    def lost(self) -> int:
        """How many commands were harmed so far."""
        return self._lost_before + sum(rule.hits for rule in self._rules)

    @property
    def connections(self) -> int:
        return len(self._connections)

    # What is to happen.

    def harm(
        self,
        harm: Harm,
        commands: Collection[str] | None,
        times: int | None = None,
        *,
        collection: str | None = None,
        delay_s: float = 0.0,
    ) -> Rule:
        """Add a rule; the first one that applies to a command is the one that counts."""
        rule = Rule(harm, commands, times, collection, delay_s)
        self._rules.append(rule)
        return rule

    def lose(self, command: str, times: int = 1, *, after_it_arrived: bool = True) -> Rule:
        """Cut the connection instead of answering; the server executes the request, or never gets it.

        In place of every earlier rule.
        """
        self.clear()
        return self.harm("cut_after" if after_it_arrived else "cut_before", {command}, times)

    def drop_reply(self, *commands: str, times: int = 1) -> Rule:
        """The server executes the request; its reply never comes, and the connection stays open."""
        return self.harm("drop_reply", commands or None, times)

    def stall(self, *commands: str, times: int | None = None) -> Rule:
        """The server never gets the request; the connection stays open."""
        return self.harm("stall", commands or None, times)

    def delay(
        self, command: str, delay_s: float, times: int | None = None, *, collection: str | None = None
    ) -> Rule:
        """Send the request on later."""
        return self.harm("delay", {command}, times, collection=collection, delay_s=delay_s)

    def clear(self) -> None:
        """Harm nothing any more; what was stalled stays unanswered."""
        self._lost_before = self.lost
        self._rules.clear()

    def go_down(self) -> None:
        """Close every connection, also each new one, until `is_down` is reset."""
        self.is_down = True
        for connection in self._connections:
            connection.close()

    # Relaying.

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
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

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._server.startswith("/"):
            return await asyncio.open_unix_connection(self._server)
        host, _, port = self._server.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _relay(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.is_down:
            return
        try:
            from_server, to_server = await self._connect()
        except OSError:
            return  # no server: the client sees a closed connection
        connection = _Connection(to_client, to_server)
        self._connections.add(connection)
        directions = {
            asyncio.ensure_future(self._forward(from_client, connection)),
            asyncio.ensure_future(self._answer(from_server, connection)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.wait(directions)
            connection.close()
            self._connections.discard(connection)

    async def _forward(self, from_client: asyncio.StreamReader, connection: _Connection) -> None:
        """Requests to the server; returns when the connection is to be cut."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                request = await Message.read(from_client)
                self.seen[request.command] += 1
                rule = next((rule for rule in self._rules if rule.applies_to(request)), None)
                if rule is not None:
                    rule.apply()
                    if rule.harm == "cut_before":
                        return
                    if rule.harm == "stall":
                        continue
                    if rule.harm == "delay":
                        await asyncio.sleep(rule.delay_s)
                    else:
                        connection.unanswered[request.id] = rule.harm
                connection.to_server.write(request.data)
                await connection.to_server.drain()

    async def _answer(self, from_server: asyncio.StreamReader, connection: _Connection) -> None:
        """Replies to the client; returns when the connection is to be cut."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                reply = await Message.read(from_server)
                harm = connection.unanswered.pop(reply.replies_to, None)
                if harm == "cut_after":
                    return
                if harm is None:
                    connection.to_client.write(reply.data)
                    await connection.to_client.drain()
