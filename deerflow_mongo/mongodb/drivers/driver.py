"""A client of one server and one database: options, opening and closing, commands, collections and indexes.

The adapters for the drivers, in the modules beside this one, derive from `Driver`. What a store calls is in
`collection.py`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

from bson.codec_options import CodecOptions
from pymongo import ReadPreference, WriteConcern, timeout
from pymongo.driver_info import DriverInfo
from pymongo.read_concern import ReadConcern

from ... import __version__
from ...contract.errors import StorageClosedError, StorageError
from .collection import Collection, Document
from .errors import INDEX_NOT_FOUND_CODE, code_of, translating

CLOSE_TIMEOUT_S = 1.0
"""A driver's close waits for a dead server without a limit of its own."""

LONG_RUNNING_TIMEOUT_S = 3_600.0
"""An index on a large collection is built in minutes, far beyond the timeout of an operation."""

DEFAULT_WRITE_CONCERN = WriteConcern(w="majority")
"""Used where neither the URI nor the caller's client sets one: acknowledged writes survive a failover.

`j` is left to the server: sent as false it makes a write wait for the journal's next flush.
"""

READ_COMMITTED: Document = {"read_concern": ReadConcern("majority")}
"""Options of a collection whose reads return only what no failover can roll back."""

READ_FROM_PRIMARY: Document = {"read_preference": ReadPreference.PRIMARY}
"""Options of a collection whose reads return the last write, whatever the URI prefers."""

CODEC_OPTIONS: CodecOptions[Document] = CodecOptions()
"""The driver's defaults, whatever a caller's client has: documents are dicts, dates are naive and in UTC."""

DRIVER_INFO = DriverInfo("deerflow-mongo", __version__)
"""The name of our clients in the server's log."""

_LIST_BATCH = 10_000

logger = logging.getLogger(__name__)


def long_running() -> AbstractContextManager[object]:
    """The time that a command of `setup()` may take, in place of the timeout of an operation."""
    return timeout(LONG_RUNNING_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """What a driver needs to open its client. `url` may contain a password and is not in the repr."""

    url: str = field(repr=False)
    database: str
    timeout_ms: int | None = None


class Driver(ABC):
    """A client of one server and one database, opened at the first use, within one event loop."""

    name: str
    has_transactions = True
    """Assumed until the server reports that it has none."""

    def __init__(self, options: Callable[[], Awaitable[DriverOptions]], client: Any = None) -> None:
        """`options` is awaited at the first use; a `client` that is passed in is used and never closed."""
        self._options = options
        self.database_name = ""
        self._own_client = client is None
        self._client: Any = client
        self._database: Any = None
        self._collections: list[Collection] = []
        self._opening = asyncio.Lock()
        self._closed = False

    # What differs between drivers.

    @abstractmethod
    def connect(self, options: DriverOptions) -> Any:
        """A new client; connects to nothing."""

    @abstractmethod
    async def close_client(self, client: Any) -> None: ...

    def introduce(self, client: Any) -> None:
        """Add our name to a client that the caller made, for the server's log."""
        # Read from the class: an instance returns a database for any unknown attribute.
        if hasattr(cast("type[Any]", type(client)), "append_metadata"):
            client.append_metadata(DRIVER_INFO)

    async def rows(self, cursor: Any) -> list[Document]:
        return await cursor.to_list(None)

    async def aggregate(self, handle: Any, pipeline: list[Document], batch_size: int) -> Any:
        return handle.aggregate(pipeline, batchSize=batch_size)

    @abstractmethod
    async def insert_in_transaction(self, handle: Any, documents: list[Document]) -> None: ...

    @abstractmethod
    async def watch(self, handle: Any, pipeline: list[Document]) -> Any:
        """The driver's own change stream; raises the driver's error where the server has none."""

    # What is the same for all.

    def collection(self, name: str, options: Document | None = None) -> Collection:
        """`options` are the driver's own, such as `READ_COMMITTED`."""
        return self.adopt(Collection(self, name, options))

    def adopt(self, collection: Collection) -> Collection:
        """Register a collection, whose handle is dropped when the driver is closed."""
        self._collections.append(collection)
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
        if self._database is None:
            async with self._opening:
                if self._database is None:
                    self._database = await self._open()
        self.check_open()
        return self._database

    async def _open(self) -> Any:
        options = await self._options()
        self.database_name = options.database
        with translating():
            if self._client is None:
                self._client = self.connect(options)
            elif not self._own_client:
                self.introduce(self._client)
            return self.database_of(self._client, options)

    def database_of(self, client: Any, options: DriverOptions) -> Any:
        concern = client.write_concern if client.write_concern.document else DEFAULT_WRITE_CONCERN
        return client.get_database(options.database, codec_options=CODEC_OPTIONS, write_concern=concern)

    async def command(self, document: Document, *, database: str | None = None) -> Document:
        """Run one command, on the storage's database unless another is named."""
        target = await self.opened()
        if database is not None:
            target = self._client[database]
        operation, collection = next(iter(document.items()))
        namespace = database or self.database_name
        if isinstance(collection, str):
            namespace += f".{collection}"
        with translating(operation, namespace):
            return await target.command(document)

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
        client, self._client, self._database = self._client, None, None
        if client is not None and self._own_client:
            with translating(), timeout(CLOSE_TIMEOUT_S):
                await self._bounded_close(client)

    async def _bounded_close(self, client: Any) -> None:
        # The driver's own timeout does not cover its locks, which a cancelled operation may have left locked.
        try:
            await asyncio.wait_for(self.close_client(client), 2 * CLOSE_TIMEOUT_S)
        except TimeoutError:
            logger.warning(
                "the %s client did not close within %.0f s and was abandoned",
                self.name,
                2 * CLOSE_TIMEOUT_S,
                extra={"operation": "close"},
            )
