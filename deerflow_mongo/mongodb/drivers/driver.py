"""A client of one server and one database: options, opening and closing, commands, collections and indexes.

The adapters for the drivers, in the modules beside this one, derive from `Driver`. What a store calls is in
`collection.py`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakSet

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import ReadPreference, WriteConcern, timeout
from pymongo.driver_info import DriverInfo
from pymongo.read_concern import ReadConcern

from ... import __version__
from ...contract.errors import StorageClosedError, StorageConfigError, StorageError, StorageUnavailableError
from ..observation import BackgroundObserver, CommandObserver, Run, unobserved
from .collection import Collection, Document
from .errors import INDEX_NOT_FOUND_CODE, code_of, no_answer, translating
from .event_loop import Owner, error_of_other_loop
from .groups.lane import GroupCounts, no_calls
from .groups.places import Places
from .time_limit import LONG_RUNNING_TIMEOUT_S as LONG_RUNNING_TIMEOUT_S
from .time_limit import TimeLimit, long_running

CLOSE_TIMEOUT_S = 0.3
"""A driver's close waits for a dead server without a limit of its own."""

CLOSE_LIMIT_S = 0.9
"""How long a client's close is waited for where the driver's timeout does not end it."""

DEFAULT_WRITE_CONCERN = WriteConcern(w="majority")
"""Used where neither the URI nor the caller's client sets `w`: acknowledged writes survive a failover.

`j` is left to the server: sent as false it makes a write wait for the journal's next flush.
"""

MAJORITY_READ = ReadConcern("majority")
LOCAL_READ = ReadConcern("local")
"""Of the primary: the last write, acknowledged by a majority or not. Sent, for a server has a default too."""

READ_COMMITTED: Document = {"read_concern": MAJORITY_READ}
"""Options of a collection whose reads return only what no failover can roll back.

Where writes are acknowledged before a majority has them on disk, such a read would not show a process what it
has just written: there it is a local one.
"""

CODEC_OPTIONS: CodecOptions[Document] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
"""Whatever a caller's client has: documents are dicts, dates are naive and in UTC.

By the driver's defaults, one date after the year 9999 or one broken text makes a whole list fail.
"""

DRIVER_INFO = DriverInfo("deerflow-mongo", __version__)
"""The name of our clients in the server's log."""

_LIST_BATCH = 10_000

logger = logging.getLogger(__name__)


def write_concern_of(concern: WriteConcern) -> WriteConcern:
    """A client's write concern, with a majority where it does not set `w`; the server's default may be 1."""
    document = concern.document
    if "w" in document:
        return concern
    return WriteConcern(
        w=DEFAULT_WRITE_CONCERN.document["w"],
        wtimeout=document.get("wtimeout"),
        j=document.get("j"),
        fsync=document.get("fsync"),
    )


def is_committed(concern: WriteConcern) -> bool:
    """Whether an acknowledged write is at once visible to reads of what a majority has."""
    document = concern.document
    return document.get("w") == "majority" and document.get("j") is not False


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """What a driver needs to open its client. `url` may contain a password and is not in the repr."""

    url: str = field(repr=False)
    database: str
    timeout_ms: int
    event_listeners: Sequence[Any] = ()
    """Of the driver's commands and its pool of connections."""


class Driver(ABC):
    """A client of one server and one database, opened at the first use, within one event loop."""

    name: str
    can_group = True
    """Whether calls may share commands; see `groups/`."""
    changes_pause_s = 0.0
    """How long a change stream rests after a read of the server that brought a change."""

    def __init__(
        self,
        options: Callable[[], Awaitable[DriverOptions]],
        timeout_ms: int,
        client: Any = None,
        *,
        groups: bool = True,
    ) -> None:
        """`options` is awaited at the first use; a `client` that is passed in is used and never closed.

        With `groups`, calls that wait share commands.
        """
        self._options = options
        self.owner = Owner()
        self.time_limit = TimeLimit(timeout_ms)
        self.observer: CommandObserver | None = None
        self.observe_background: BackgroundObserver = unobserved
        self.has_groups = groups and self.can_group
        self.places = Places(self._round_trip_s)
        self._round_trips_s: dict[tuple[str, int | None], float] = {}
        """The shortest one, by the server's address."""
        self._reads_committed = True
        self.database_name = ""
        self._own_client = client is None
        self._client: Any = client
        self._database: Any = None
        self._collections: WeakSet[Collection] = WeakSet()
        self._group_counts: dict[str, dict[str, GroupCounts]] = {}
        self._opening = asyncio.Lock()
        self._closed = False

    # What differs between drivers.

    @abstractmethod
    async def connect(self, options: DriverOptions) -> Any:
        """A new client; connects to nothing, but may look up the name of a `mongodb+srv` URL."""

    @abstractmethod
    async def close_client(self, client: Any) -> None: ...

    def introduce(self, client: Any) -> None:
        """Add our name to a client that the caller made, for the server's log."""
        # Read from the class: an instance returns a database for any unknown attribute.
        if hasattr(cast("type[Any]", type(client)), "append_metadata"):
            client.append_metadata(DRIVER_INFO)

    async def rows(self, cursor: Any) -> list[Document]:
        return await cursor.to_list(None)

    async def session(self) -> Any:
        """A new session, whose reads wait for the time that it is advanced to."""
        await self.opened()
        return self._client.start_session(causal_consistency=True)

    async def aggregate(self, handle: Any, pipeline: list[Document], options: Document) -> Any:
        return handle.aggregate(pipeline, **options)

    @abstractmethod
    async def watch(self, database: Any, pipeline: list[Document]) -> Any:
        """The driver's own change stream of the database, open; raises the driver's error without one."""

    # What is the same for all.

    def collection(
        self, name: str, options: Document | None = None, *, shares_lists: bool = True
    ) -> Collection:
        """`options` are the driver's own, such as `READ_COMMITTED`; see `Collection` for `shares_lists`."""
        return self.adopt(Collection(self, name, options, shares_lists=shares_lists))

    def adopt(self, collection: Collection) -> Collection:
        """Register a collection, whose handle is dropped when the driver is closed.

        As long as it is in use: an erasure or a report has some of its own.
        """
        self._collections.add(collection)
        return collection

    @property
    def is_closed(self) -> bool:
        return self._closed

    def check_open(self) -> None:
        if self._closed:
            raise StorageClosedError

    async def opened(self) -> Any:
        """The driver's own database object."""
        self.check_open()
        self.owner.check()
        if self._database is None:
            async with self._opening:
                if self._database is None:
                    self._database = await self._open()
        self.check_open()
        return self._database

    async def _open(self) -> Any:
        options = await self._options()
        self.database_name = options.database
        with translating("connect", options.database):
            if self._client is None:
                self._client = await self._connected(options)
            elif not self._own_client:
                self.introduce(self._client)
            return self.database_of(self._client, options)

    async def _connected(self, options: DriverOptions) -> Any:
        try:
            with self.time_limit.call():
                return await self.connect(options)
        except TimeoutError as error:
            raise no_answer("connect", options.database, self.time_limit.timeout_ms) from error
        except (ValueError, TypeError, OSError) as error:
            raise StorageConfigError(f"the MongoDB client refused its settings: {error}") from error

    def database_of(self, client: Any, options: DriverOptions) -> Any:
        concern = write_concern_of(client.write_concern)
        self._reads_committed = is_committed(concern)
        return client.get_database(
            options.database,
            codec_options=CODEC_OPTIONS,
            write_concern=concern,
            read_concern=LOCAL_READ,
            read_preference=ReadPreference.PRIMARY,  # every read returns the last write
        )

    def handle_options(self, options: Document) -> Document:
        """A collection's options, under which a process reads its own acknowledged writes."""
        if options.get("read_concern") == MAJORITY_READ and not self._reads_committed:
            return {**options, "read_concern": LOCAL_READ}
        return options

    async def command(self, document: Document, *, database: str | None = None) -> Document:
        """Run one command, on the storage's database unless another is named."""
        target = await self.opened()
        if database is not None:
            target = self._client[database]
        operation, collection = next(iter(document.items()))
        namespace = database or self.database_name
        if isinstance(collection, str):
            namespace += f".{collection}"
        run: Run = _sender(document)
        if self.observer is not None:
            run = self.observer.observed(collection if isinstance(collection, str) else "", operation, run)
        try:
            with translating(operation, namespace), self.time_limit.call():
                return await run(target)
        except StorageUnavailableError as error:
            if self._closed:  # the driver reports what its close interrupted as a lost connection
                raise StorageClosedError from error.__cause__
            raise
        except TimeoutError as error:
            raise no_answer(operation, namespace, self.time_limit.effective_ms) from error
        except RuntimeError as error:
            refused = error_of_other_loop(error)
            if refused is None:
                raise
            raise refused from error

    async def list_collections(self, names: Sequence[str]) -> dict[str, Document]:
        """`type` and `options` of those of these collections and views that exist, by name."""
        wanted = {"name": {"$in": list(names)}}
        answer = await self.command(
            {"listCollections": 1, "filter": wanted, "cursor": {"batchSize": _LIST_BATCH}}
        )
        return {item["name"]: item for item in answer["cursor"]["firstBatch"]}

    async def create_collection(self, name: str, validator: Document) -> None:
        await self.command({"create": name, "validator": validator})

    async def set_validator(self, name: str, validator: Document, level: str) -> None:
        await self.command({"collMod": name, "validator": validator, "validationLevel": level})

    async def list_indexes(self, name: str) -> list[Document]:
        answer = await self.command({"listIndexes": name, "cursor": {"batchSize": _LIST_BATCH}})
        return answer["cursor"]["firstBatch"]

    async def create_indexes(self, name: str, indexes: Sequence[Document]) -> None:
        """All of them, or none where the server refuses one."""
        with long_running():
            await self.command({"createIndexes": name, "indexes": list(indexes)})

    async def count_documents(self, name: str, query: Document | None = None) -> int:
        """How many documents match; without a query from the collection's metadata, about how many it has."""
        return (await self.command({"count": name, "query": query or {}}))["n"]

    async def has_results(self, name: str, pipeline: Sequence[Document]) -> bool:
        """Whether an aggregation over the whole collection, of any size, returns a document."""
        command: Document = {
            "aggregate": name,
            "pipeline": list(pipeline),
            "allowDiskUse": True,
            "cursor": {},
        }
        with long_running():
            answer = await self.command(command)
        return bool(answer["cursor"]["firstBatch"])

    async def set_expiry(self, name: str, index: Document) -> None:
        """Change the lifetime of documents under an existing TTL index."""
        change = {"name": index["name"], "expireAfterSeconds": index["expireAfterSeconds"]}
        await self.command({"collMod": name, "index": change})

    async def drop_index(self, name: str, index_name: str) -> None:
        try:
            await self.command({"dropIndexes": name, "index": index_name})
        except StorageError as error:
            if code_of(error) != INDEX_NOT_FOUND_CODE:
                raise  # else another process was first

    async def close(self) -> None:
        """Idempotent; a client that the caller made is left open."""
        if self._closed:
            return
        self._closed = True
        for collection in self._collections:
            collection.drop_handle()
        groups = set[asyncio.Task[None]]().union(*(each.end_groups() for each in self._collections))
        client, self._client, self._database = self._client, None, None
        if client is not None and self._own_client:
            with translating(), timeout(CLOSE_TIMEOUT_S):
                await self._bounded_close(client)
        # Those of a caller's client, which goes on with them, are not waited for longer than a moment.
        if groups:
            await asyncio.wait(groups, timeout=CLOSE_TIMEOUT_S)

    def _round_trip_s(self) -> float:
        """The shortest round trip ever to the server that takes writes; 0 while it is not known.

        As the driver measures it every few seconds, with commands that only ask for the server's state. A
        busy event loop makes these longer than the link is, so that only the shortest counts.
        """
        if self._client is None:
            return 0.0
        shortest_s = self._round_trips_s
        for server in self._client.topology_description.server_descriptions().values():
            if server.is_writable:
                measured_s: float = server.min_round_trip_time  # 0 until there are two
                if measured_s:
                    shortest_s[server.address] = min(measured_s, shortest_s.get(server.address, measured_s))
                return shortest_s.get(server.address, 0.0)
        return 0.0

    def counts_of(self, collection: str, kind: str) -> GroupCounts:
        """What all objects of one collection count together."""
        return self._group_counts.setdefault(collection, {}).setdefault(kind, no_calls())

    def group_counts(self) -> dict[str, dict[str, GroupCounts]]:
        """How often calls shared a command, up to now: by collection, and by kind."""
        return copy.deepcopy(self._group_counts)

    async def _bounded_close(self, client: Any) -> None:
        # The driver's own timeout does not cover its locks, which a cancelled operation may have left locked.
        closing = asyncio.ensure_future(self.close_client(client))
        try:
            await asyncio.wait({closing}, timeout=CLOSE_LIMIT_S)
        except asyncio.CancelledError:
            closing.cancel()
            raise
        if closing.done():
            closing.result()
            return
        # Not cancelled: it would leave the client half closed, with its connections open.
        closing.add_done_callback(_ignore_outcome)
        logger.warning(
            "the %s client did not close within %.2f s; it is no longer waited for",
            self.name,
            CLOSE_LIMIT_S,
            extra={"operation": "close"},
        )


def _sender(command: Document) -> Run:
    return lambda database: database.command(command)


def _ignore_outcome(closing: asyncio.Future[None]) -> None:
    """An error that nobody waits for any more is not reported by the event loop."""
    if not closing.cancelled():
        closing.exception()
