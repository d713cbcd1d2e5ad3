"""PyMongo's own asyncio client: the default, and the fastest of the three."""

from __future__ import annotations

from typing import Any

from pymongo import AsyncMongoClient

from ..uri_options import CLIENT_DEFAULTS, read_uri
from .changes import PAUSE_S, max_await_ms
from .collection import Document
from .driver import DRIVER_INFO, MAJORITY_READ, Driver, DriverOptions


class PyMongoDriver(Driver):
    name = "pymongo"
    changes_pause_s = PAUSE_S

    async def connect(self, options: DriverOptions) -> Any:
        client: AsyncMongoClient[Document] = AsyncMongoClient(
            options.url, driver=DRIVER_INFO, **client_settings(options)
        )
        return client

    async def close_client(self, client: Any) -> None:
        await client.close()

    async def aggregate(self, handle: Any, pipeline: list[Document], options: Document) -> Any:
        return await handle.aggregate(pipeline, **options)

    async def watch(self, database: Any, pipeline: list[Document]) -> Any:
        await_ms = max_await_ms(database.client.options, self.time_limit.timeout_ms)
        return await watched(database).watch(pipeline, max_await_time_ms=await_ms)


def client_settings(options: DriverOptions) -> dict[str, Any]:
    """Settings beside the URI, for PyMongo and for Motor, which is built on it."""
    uri, timeout_ms = read_uri(options.url), options.timeout_ms
    settings: dict[str, Any] = {
        name: value if (given := uri.ms(name)) is None else given for name, value in CLIENT_DEFAULTS.items()
    }
    if options.event_listeners:
        settings["event_listeners"] = list(options.event_listeners)
    if "serverselectiontimeoutms" not in uri.options:
        return {**settings, "timeoutMS": timeout_ms}
    # PyMongo ignores it where timeoutMS is set, and has no limit for a reply where that is not set.
    limits = {name: timeout_ms for name in ("socketTimeoutMS", "waitQueueTimeoutMS") if uri.ms(name) is None}
    return {**settings, "timeoutMS": None, **limits}


def watched(database: Any) -> Any:
    """The database for a change stream, which the server reads with read concern "majority" only."""
    return database.with_options(read_concern=MAJORITY_READ)
