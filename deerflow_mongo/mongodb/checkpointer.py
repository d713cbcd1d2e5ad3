"""LangGraph's checkpoints beside the stores: opens and closes langgraph-checkpoint-mongodb's saver.

What a checkpoint looks like, and how it is written and read, is that package's affair; there is no saver of
our own here. Theirs is synchronous, on a client of its own: its constructor makes indexes, its `a...` methods
run in threads. So it is built in a thread, at the first use, and nothing of it is imported before. It comes
without type information and is `Any` here.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from pymongo import MongoClient, timeout

from ..contract.errors import MissingDependencyError, StorageClosedError
from .drivers.base import CLOSE_TIMEOUT_S, DEFAULT_WRITE_CONCERN, DRIVER_INFO, DriverOptions, translating
from .drivers.pymongo_async import client_settings

CHECKPOINTS = "checkpoints"
CHECKPOINT_WRITES = "checkpoint_writes"
"""The collections, after the prefix; the names are the saver's own."""

_logger = logging.getLogger(__name__)


class Checkpointer:
    """The one saver of a storage and its client, within one event loop."""

    def __init__(self, options: Callable[[], Awaitable[DriverOptions]], collection_prefix: str) -> None:
        """`options` is awaited at the first use."""
        self._options = options
        self._prefix = collection_prefix
        self._opening: asyncio.Task[Any] | None = None
        self._lock = threading.Lock()
        self._client: MongoClient[Any] | None = None
        self._closed = False

    async def saver(self) -> Any:
        """The saver, opened by the first of many callers; where that fails they all hear of it."""
        self._check_open()
        if self._opening is None or _has_failed(self._opening):
            self._opening = asyncio.create_task(self._open())
        # A caller that is cancelled takes it from nobody else.
        saver = await asyncio.shield(self._opening)
        self._check_open()
        return saver

    async def close(self) -> None:
        """Idempotent. Calls of `saver` under way end with the error that the storage is closed."""
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
        saver_class = await asyncio.to_thread(_saver_class)
        options = await self._options()
        return await asyncio.to_thread(self._build, saver_class, options)

    def _build(self, saver_class: Any, options: DriverOptions) -> Any:
        """Connect and make the indexes; runs in a thread, which a close ends by closing its client."""
        with translating():
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
                    client.close()  # the first close passes over a client that was not connected yet
                self._check_open()

    def _client_for(self, options: DriverOptions) -> MongoClient[Any]:
        """The client, kept where a caller has been told that it cannot connect: it goes on trying."""
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
    """A client that connects at its first use; its write concern is the URI's, or else the stores' own."""
    settings: dict[str, Any] = {"driver": DRIVER_INFO, "connect": False, **client_settings(options)}
    client: MongoClient[Any] = MongoClient(options.url, **settings)
    if client.write_concern.document:
        return client
    client.close()
    settings.update(DEFAULT_WRITE_CONCERN.document)
    return MongoClient(options.url, **settings)


async def _bounded_close(client: MongoClient[Any]) -> None:
    try:
        await asyncio.wait_for(asyncio.to_thread(client.close), 2 * CLOSE_TIMEOUT_S)
    except TimeoutError:
        _logger.warning("the checkpointer's client did not close in time and was left alone")
