"""PyMongo's own asyncio client: the default, and the fastest of the three."""

from __future__ import annotations

from typing import Any

from pymongo import AsyncMongoClient

from .base import DRIVER_INFO, Document, Driver, DriverOptions


class PyMongoDriver(Driver):
    name = "pymongo"

    def connect(self, options: DriverOptions) -> Any:
        client: AsyncMongoClient[Document] = AsyncMongoClient(
            options.url, driver=DRIVER_INFO, **client_settings(options)
        )
        return client

    async def close_client(self, client: Any) -> None:
        await client.close()

    async def aggregate(self, handle: Any, pipeline: list[Document], batch_size: int) -> Any:
        return await handle.aggregate(pipeline, batchSize=batch_size)


def client_settings(options: DriverOptions) -> dict[str, Any]:
    """Settings beyond the URI, for PyMongo and for Motor, which is built on it."""
    return {} if options.timeout_ms is None else {"timeoutMS": options.timeout_ms}
