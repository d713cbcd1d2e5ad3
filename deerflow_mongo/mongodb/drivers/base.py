"""The small surface that the stores use, and the translation of every driver's errors.

A `Collection` offers one method per server command, so that a store's method that calls one of them is one
round trip. What differs between drivers (cursors, closing, what the mock lacks) is in the modules beside
this one. Nothing here knows what a run or a vote is.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import bson
from bson.codec_options import CodecOptions
from bson.errors import BSONError, InvalidDocument
from pymongo import ReadPreference, ReturnDocument, WriteConcern, errors, timeout
from pymongo.driver_info import DriverInfo
from pymongo.read_concern import ReadConcern

from ... import __version__
from ...contract.errors import (
    InvalidPayloadError,
    PayloadTooLargeError,
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)

Document: TypeAlias = dict[str, Any]
Update: TypeAlias = Document | list[Document]
Sort: TypeAlias = Sequence[tuple[str, int]]

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""What a MongoDB server stores in one document (its limit, "BSON Document Size")."""

CLOSE_TIMEOUT_S = 1.0
"""A driver's close waits for a dead server as long as it may; this bounds it."""

INDEX_BUILD_TIMEOUT_S = 3_600.0
"""An index on a large collection is built in minutes, far beyond the timeout of an operation."""

DEFAULT_WRITE_CONCERN = WriteConcern(w="majority")
"""Where neither the URI nor the caller's client says another: what is acknowledged survives a failover.

`j` is left to the server: spelled out as false it makes a write wait for the journal's next flush.
"""

_LIST_BATCH = 10_000

DRIVER_INFO = DriverInfo("deerflow-mongo", __version__)
"""How the server's log names the clients made here."""


logger = logging.getLogger(__name__)


_NO_TRANSACTIONS_CODE = 20  # IllegalOperation: a standalone server
_TOO_LARGE_FOR_A_TRANSACTION_CODES = (257, 388)  # TransactionTooLarge, TransactionTooLargeForCache

_NO_CHANGE_STREAMS_CODES = (20, 40573)  # IllegalOperation; "only supported on replica sets"
NO_CHANGE_STREAMS = (
    "this server has no change streams, which need a replica set: run it as one, be it of one member"
)

READ_COMMITTED: Document = {"read_concern": ReadConcern("majority")}
"""Options of a collection whose reads see only what no failover can take back."""

READ_FROM_PRIMARY: Document = {"read_preference": ReadPreference.PRIMARY}
"""Options of a collection whose reads see the last write, whatever the URI prefers."""


class DuplicateKeyError(StorageError):
    """A unique index refused a write. For the stores, which give it its meaning.

    Of several documents, the first `stored` ones are stored and no others. `keys` are those of the index,
    where the server tells.
    """

    def __init__(self, text: str, stored: int = 0, keys: Sequence[str] | None = None) -> None:
        super().__init__(text)
        self.stored = stored
        self.keys = None if keys is None else tuple(keys)


CODEC_OPTIONS: CodecOptions[Document] = CodecOptions()
"""The driver's own, whatever a caller's client has: documents are dicts, and dates naive ones in UTC."""


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """What a driver needs to open its client. `url` may hold a password and is kept out of the repr."""

    url: str = field(repr=False)
    database: str
    timeout_ms: int | None = None


# -- errors ----------------------------------------------------------------------------------------

# Codes as in the server's own list (error_codes.yml).
_ACCESS_CODES = frozenset({13, 18, 33, 8000})  # Unauthorized, AuthenticationFailed, ...; 8000 is Atlas' own
_TOO_LARGE_CODES = frozenset({2, 10334, 16493, 17419, 17420, 17280})
_INVALID_CODES = frozenset({15, 22, 52, 55, 56, 57})  # Overflow of depth, invalid field names
_VALIDATION_CODE = 121
_DUPLICATE_KEY_CODE = 11000
_INDEX_NOT_FOUND_CODE = 27
_UNAVAILABLE_CODES = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        50,  # MaxTimeMSExpired
        64,  # WriteConcernFailed
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        100,  # UnsatisfiableWriteConcern
        112,  # WriteConflict
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        262,  # ExceededTimeLimit
        9001,  # SocketException
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11602,  # InterruptedDueToReplStateChange
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
        14031,  # OutOfDiskSpace
    }
)
_UNAVAILABLE: tuple[type[Exception], ...] = (
    errors.ConnectionFailure,
    errors.WaitQueueTimeoutError,
    errors.ExecutionTimeout,
    errors.WTimeoutError,
)
_UNSTORABLE: tuple[type[Exception], ...] = (InvalidDocument, OverflowError, UnicodeEncodeError)
DRIVER_ERRORS: tuple[type[Exception], ...] = (
    errors.PyMongoError,
    BSONError,
    OverflowError,
    UnicodeEncodeError,
)


def _is_too_large(error: Exception, code: int | None) -> bool:
    if isinstance(error, errors.DocumentTooLarge):
        return True
    # Code 2 is BadValue, which is only sometimes about a size.
    return code in _TOO_LARGE_CODES and (code != 2 or "large" in str(error) or "size" in str(error))


def _of_many(error: errors.BulkWriteError) -> errors.OperationFailure:
    """What went wrong with the first document that was refused, or else with the whole write."""
    details = cast("Document", error.details)
    told: list[Document] = details.get("writeErrors") or details.get("writeConcernErrors") or [{}]
    first = told[0]
    return errors.OperationFailure(str(first.get("errmsg")), first.get("code"), first)


def _code_of(error: errors.OperationFailure) -> int | None:
    return _of_many(error).code if isinstance(error, errors.BulkWriteError) else error.code


def translated(error: Exception, written: object = None) -> StorageError:
    """The package's error for a driver's; `written` is what was to be stored, to name its largest part."""
    if isinstance(error, errors.BulkWriteError):
        error = _of_many(error)
        if error.code == _DUPLICATE_KEY_CODE:
            refused = cast("Document", error.details)
            return DuplicateKeyError(
                f"a unique index refused one of the documents: {_reason(error)}",
                refused.get("index", 0),
                refused.get("keyPattern"),
            )
    code = error.code if isinstance(error, errors.OperationFailure) else None
    if isinstance(error, errors.DuplicateKeyError):
        told = cast("Document", error.details or {})
        return DuplicateKeyError("a unique index refused the write", keys=told.get("keyPattern"))
    if _is_too_large(error, code):
        return too_large(written)
    if isinstance(error, _UNAVAILABLE) or code in _UNAVAILABLE_CODES:
        return StorageUnavailableError(
            f"MongoDB cannot be reached or did not answer in time: {_reason(error)}"
        )
    if code in _ACCESS_CODES:
        return StorageAccessError(f"MongoDB refused the login or the operation (code {code})")
    if isinstance(error, errors.InvalidOperation) and "close" in str(error).lower():
        return StorageClosedError()
    if isinstance(error, _UNSTORABLE) or code in _INVALID_CODES:
        return InvalidPayloadError(largest_field(written)[0], type(error).__name__)
    if code == _VALIDATION_CODE:
        return StorageError(
            "the collection's validator refused the document: was it made by another release?"
        )
    if isinstance(error, errors.ConfigurationError):
        return StorageConfigError(f"MongoDB's client refused its settings: {_reason(error)}")
    return StorageError(
        f"MongoDB reported an error{'' if code is None else f' (code {code})'}: {_reason(error)}"
    )


def _reason(error: Exception) -> str:
    """The first sentence of a driver's message; the rest lists every server's state."""
    text = str(error).split(", full error", 1)[0].split(", Timeout:", 1)[0]
    return f"{type(error).__name__}: {text}"[:500]


def too_large(written: object) -> PayloadTooLargeError:
    name, size_bytes = largest_field(written)
    return PayloadTooLargeError(name, size_bytes, MAX_DOCUMENT_BYTES)


def largest_field(written: object) -> tuple[str, int | None]:
    """The name and size of the largest field in a document or an update; the size is None if unknown."""
    sizes = [(size_bytes, name) for name, size_bytes in _sizes(written)]
    size_bytes, name = max(sizes, default=(0, "the document"))
    return name, size_bytes or None


def _sizes(written: object) -> Iterator[tuple[str, int]]:
    if isinstance(written, list):
        for stage in cast("list[object]", written):
            yield from _sizes(stage)
    elif isinstance(written, dict):
        for name, value in cast("Document", written).items():
            if name.startswith("$") and isinstance(value, dict):
                yield from _sizes(cast("Document", value))
            else:
                yield name, _size_bytes(value)


def _size_bytes(value: object) -> int:
    try:
        return len(bson.encode({"": value}))
    except (BSONError, OverflowError, UnicodeEncodeError, ValueError):
        return len(str(value))


def end_if_cancelled() -> None:
    """A driver may swallow a task's cancellation, when its answer is there in the same moment."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@contextmanager
def translating(written: object = None) -> Generator[None]:
    """For what is not on the hot path: errors inside become the package's own."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translated(error, written) from error


# -- operations ------------------------------------------------------------------------------------


class Collection:
    """One collection; each method is one command to the server.

    Raises the package's own errors, and `DuplicateKeyError` where a unique index refuses a write.
    """

    def __init__(self, driver: Driver, name: str, options: Document | None = None) -> None:
        self._driver = driver
        self._name = name
        self._options = options or {}
        self._handle: Any = None

    async def handle(self) -> Any:
        """The driver's own collection object; opens the client at the first use."""
        if self._handle is None:
            self._handle = (await self._driver.opened()).get_collection(self._name, **self._options)
        return self._handle

    def forget(self) -> None:
        """Let go of the handle, so that the next use asks the driver, which may be closed."""
        self._handle = None

    async def find_one(self, query: Document) -> Document | None:
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return await handle.find_one(query)
        except DRIVER_ERRORS as error:
            raise translated(error) from error

    async def find(
        self,
        query: Document,
        *,
        sort: Sort,
        limit: int,
        skip: int = 0,
        projection: Sequence[str] | None = None,
    ) -> list[Document]:
        """At most `limit` (from 1 up) documents, all in one answer unless they exceed what one holds."""
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            # One more than the limit lets the server close the cursor with its first answer.
            cursor = handle.find(
                query, projection, sort=sort, limit=limit, skip=skip, batch_size=min(limit + 1, 2**31 - 1)
            )
            return await self._driver.rows(cursor)
        except DRIVER_ERRORS as error:
            raise translated(error) from error

    async def aggregate(self, pipeline: list[Document], *, batch_size: int = 100) -> list[Document]:
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return await self._driver.rows(await self._driver.aggregate(handle, pipeline, batch_size))
        except DRIVER_ERRORS as error:
            raise translated(error) from error

    async def insert_one(self, document: Document) -> None:
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            await handle.insert_one(document)
        except DRIVER_ERRORS as error:
            raise translated(error, document) from error

    async def insert_many(self, documents: list[Document]) -> None:
        """In their order, up to the first that is refused."""
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            await handle.insert_many(documents)
        except DRIVER_ERRORS as error:
            raise translated(error, documents) from error

    async def insert_all_or_none(self, documents: list[Document]) -> None:
        """In one transaction, two commands; where the server has none, as `insert_many`."""
        handle = self._handle if self._handle is not None else await self.handle()
        if not self._driver.has_transactions:
            return await self.insert_many(documents)
        try:
            await self._driver.insert_in_transaction(handle, documents)
        except DRIVER_ERRORS as error:
            if isinstance(error, errors.OperationFailure) and error.code == _NO_TRANSACTIONS_CODE:
                self._driver.has_transactions = False
                return await self.insert_many(documents)
            if (
                isinstance(error, errors.OperationFailure)
                and _code_of(error) in _TOO_LARGE_FOR_A_TRANSACTION_CODES
            ):
                raise InvalidPayloadError(
                    "the batch",
                    "it is more than this server takes in one transaction: make it several smaller ones",
                ) from error
            reason = translated(error, documents)
            if isinstance(reason, DuplicateKeyError):
                reason.stored = 0  # the transaction took back what came before
            raise reason from error

    async def update_many(self, query: Document, update: Update) -> int:
        """The number of documents that were changed."""
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return (await handle.update_many(query, update)).modified_count
        except DRIVER_ERRORS as error:
            raise translated(error, update) from error

    async def update_one(self, query: Document, update: Update) -> int:
        """The number of documents that matched: 0 or 1."""
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return (await handle.update_one(query, update)).matched_count
        except DRIVER_ERRORS as error:
            raise translated(error, update) from error

    async def find_one_and_upsert(
        self, query: Document, update: Update, *, sort: Sort | None = None
    ) -> Document:
        """Update the first match, or insert; the document as it is afterwards."""
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return await handle.find_one_and_update(
                query, update, sort=sort, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DRIVER_ERRORS as error:
            raise translated(error, update) from error

    async def delete_one(self, query: Document) -> bool:
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return (await handle.delete_one(query)).deleted_count == 1
        except DRIVER_ERRORS as error:
            raise translated(error) from error

    async def find_one_and_delete(self, query: Document, *, sort: Sort) -> Document | None:
        handle = self._handle if self._handle is not None else await self.handle()
        try:
            return await handle.find_one_and_delete(query, sort=sort)
        except DRIVER_ERRORS as error:
            raise translated(error) from error

    @asynccontextmanager
    async def changes(self, pipeline: list[Document]) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        """A change stream; what it gives returns at the first change since its last return, or the start."""
        handle = self._handle if self._handle is not None else await self.handle()
        with translating():
            try:
                stream = await self._driver.watch(handle, pipeline)
                async with stream:
                    # The first look opens the stream, from which on no change is missed.
                    seen = await stream.try_next() is not None

                    async def next_change() -> None:
                        nonlocal seen
                        while not seen:
                            seen = await stream.try_next() is not None
                            end_if_cancelled()
                            if not stream.alive:
                                raise StorageUnavailableError(
                                    "the change stream ended: its collection is gone"
                                )
                        seen = False

                    yield next_change
            except errors.OperationFailure as error:
                if error.code not in _NO_CHANGE_STREAMS_CODES:
                    raise
                raise StorageError(NO_CHANGE_STREAMS) from error


class Driver(ABC):
    """A client of one server and one database, opened at the first use, within one event loop."""

    name: str
    has_transactions = True
    """Taken for granted until a server says that it has none."""

    def __init__(self, options: Callable[[], Awaitable[DriverOptions]], client: Any = None) -> None:
        """`options` is awaited at the first use; a `client` given is used and never closed."""
        self._options = options
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
        """Tell the server's log, by way of a client that the caller made, who uses it."""
        # Asked of the class: a client takes any other attribute for the name of a database.
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
        """The driver's own change stream; raises what the driver raises where the server has none."""

    # What is the same for all.

    def collection(self, name: str, options: Document | None = None) -> Collection:
        """`options` are the driver's own, such as `READ_COMMITTED`."""
        return self.adopt(Collection(self, name, options))

    def adopt(self, collection: Collection) -> Collection:
        """Remember a collection, to end its use when the driver is closed."""
        self._collections.append(collection)
        return collection

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
        with translating():
            return await target.command(document)

    async def list_collections(self) -> dict[str, Document]:
        """The options of every collection, by name."""
        answer = await self.command({"listCollections": 1, "cursor": {"batchSize": _LIST_BATCH}})
        return {item["name"]: item.get("options", {}) for item in answer["cursor"]["firstBatch"]}

    async def create_collection(self, name: str, validator: Document) -> None:
        await self.command({"create": name, "validator": validator})

    async def set_validator(self, name: str, validator: Document) -> None:
        await self.command({"collMod": name, "validator": validator})

    async def list_indexes(self, name: str) -> list[Document]:
        answer = await self.command({"listIndexes": name, "cursor": {"batchSize": _LIST_BATCH}})
        return answer["cursor"]["firstBatch"]

    async def create_index(self, name: str, index: Document) -> None:
        with timeout(INDEX_BUILD_TIMEOUT_S):
            await self.command({"createIndexes": name, "indexes": [index]})

    async def set_expiry(self, name: str, index: Document) -> None:
        """Change how long documents live under a TTL index that is there."""
        change = {"name": index["name"], "expireAfterSeconds": index["expireAfterSeconds"]}
        await self.command({"collMod": name, "index": change})

    async def drop_index(self, name: str, index_name: str) -> None:
        try:
            await self.command({"dropIndexes": name, "index": index_name})
        except StorageError as error:
            if getattr(error.__cause__, "code", None) != _INDEX_NOT_FOUND_CODE:
                raise  # else another process was first

    async def close(self) -> None:
        """Idempotent; a client that the caller made is left open."""
        if self._closed:
            return
        self._closed = True
        for collection in self._collections:
            collection.forget()
        client, self._client, self._database = self._client, None, None
        if client is not None and self._own_client:
            with translating(), timeout(CLOSE_TIMEOUT_S):
                await self._bounded_close(client)

    async def _bounded_close(self, client: Any) -> None:
        # The driver's own timeout does not cover its locks, which a cancelled operation may have left taken.
        try:
            await asyncio.wait_for(self.close_client(client), 2 * CLOSE_TIMEOUT_S)
        except TimeoutError:
            logger.warning("the %s client did not close in time and was left alone", self.name)
