"""LangGraph's checkpoints in the storage's database: opens and closes langgraph-checkpoint-mongodb's saver.

That package defines how a checkpoint is stored, written and read; there is no saver of our own here. It is
synchronous and has a client of its own: its constructor creates indexes, and its `a...` methods run in
threads. It is therefore imported and built at the first use, in a thread. It has no type information and is
`Any` here.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from pymongo import MongoClient, timeout

from ..contract.errors import (
    MissingDependencyError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from .drivers.driver import CLOSE_LIMIT_S, CLOSE_TIMEOUT_S, DRIVER_INFO, DriverOptions, write_concern_of
from .drivers.errors import copied, no_answer, translating
from .drivers.pymongo_async import client_settings
from .drivers.threads import in_thread
from .drivers.time_limit import GRACE_S

CHECKPOINTS = "checkpoints"
CHECKPOINT_WRITES = "checkpoint_writes"
"""The collections after the prefix, named as the saver names them by default."""

_OPERATION = "createIndexes"
"""What the saver's constructor does."""

_logger = logging.getLogger(__name__)


class Checkpointer:
    """The one saver of a storage and its client, within one event loop."""

    def __init__(
        self,
        options: Callable[[], Awaitable[DriverOptions]],
        collection_prefix: str,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        """`options` and then `prepare`, which may refuse the database, are called at the first use."""
        self._options = options
        self._prepare = prepare
        self._prefix = collection_prefix
        self._opening: asyncio.Task[Any] | None = None
        self._lock = threading.Lock()
        self._client: MongoClient[Any] | None = None
        self._closed = False

    async def saver(self) -> Any:
        """The saver. Concurrent first calls open it once; if that fails, all of them raise the error."""
        self._check_open()
        if self._opening is None or _has_failed(self._opening):
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        # Not awaited itself: cancelling one caller must not cancel the others.
        await asyncio.wait({opening})
        if opening.cancelled():
            raise StorageUnavailableError("the opening of the checkpoint saver was cancelled")
        try:
            saver = opening.result()
        except StorageError as error:
            raise copied(error) from error.__cause__  # the other callers get it too
        self._check_open()
        return saver

    async def close(self) -> None:
        """Idempotent. Pending calls of `saver` raise `StorageClosedError`."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            with translating(), timeout(CLOSE_TIMEOUT_S):
                await _bounded_close(client)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError

    async def _open(self) -> Any:
        saver_class = await in_thread(_saver_class)
        options = await self._options()
        await self._prepare()
        try:
            async with asyncio.timeout(options.timeout_ms / 1000 + GRACE_S):
                return await in_thread(lambda: self._build(saver_class, options))
        except TimeoutError as error:
            raise no_answer(_OPERATION, self._namespace(options), options.timeout_ms) from error

    def _namespace(self, options: DriverOptions) -> str:
        return f"{options.database}.{self._prefix}{CHECKPOINTS}"

    def _build(self, saver_class: Any, options: DriverOptions) -> Any:
        """Connect and create the indexes. Runs in a thread; `close` ends it by closing its client."""
        with translating(_OPERATION, self._namespace(options)):
            client = self._client_for(options)
            try:
                return saver_class(
                    client,
                    options.database,
                    checkpoint_collection_name=self._prefix + CHECKPOINTS,
                    writes_collection_name=self._prefix + CHECKPOINT_WRITES,
                )
            finally:
                if self._closed:
                    client.close()  # the first close has no effect on a client that was not connected yet
                self._check_open()

    def _client_for(self, options: DriverOptions) -> MongoClient[Any]:
        """The client. It is reused after a failed connection, since it goes on trying to connect."""
        with self._lock:
            self._check_open()
            if self._client is None:
                self._client = _connect(options)
            return self._client


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _saver_class() -> Any:
    try:
        return importlib.import_module("langgraph.checkpoint.mongodb").MongoDBSaver
    except ImportError as error:
        raise MissingDependencyError(
            "storage.checkpointer()", "langgraph-checkpoint-mongodb", "checkpointer"
        ) from error


def _connect(options: DriverOptions) -> MongoClient[Any]:
    """A client that connects at its first use, with the write concern that the stores have."""
    settings: dict[str, Any] = {
        "driver": DRIVER_INFO,
        "connect": False,
        "readConcernLevel": "local",
        **client_settings(options),
    }
    try:
        client: MongoClient[Any] = MongoClient(options.url, **settings)
        concern = write_concern_of(client.write_concern)
        if concern == client.write_concern:
            return client
        client.close()
        return MongoClient(options.url, **settings, w=concern.document["w"])
    except (ValueError, TypeError) as error:
        raise StorageConfigError(f"the MongoDB client refused its settings: {error}") from error


async def _bounded_close(client: MongoClient[Any]) -> None:
    try:
        await asyncio.wait_for(in_thread(client.close), CLOSE_LIMIT_S)
    except TimeoutError:
        _logger.warning("the checkpointer's client did not close in time; it is no longer waited for")
