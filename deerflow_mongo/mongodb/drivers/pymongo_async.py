"""PyMongo's own asyncio client: the default, and the fastest of the three."""

from __future__ import annotations

from typing import Any

from pymongo import AsyncMongoClient

from .collection import Document
from .driver import DRIVER_INFO, Driver, DriverOptions


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

    async def insert_in_transaction(self, handle: Any, documents: list[Document]) -> None:
        async with (
            self._client.start_session() as session,
            await session.start_transaction(write_concern=handle.write_concern),
        ):
            await handle.insert_many(documents, session=session)

    async def watch(self, handle: Any, pipeline: list[Document]) -> Any:
        return await handle.watch(pipeline)


def client_settings(options: DriverOptions) -> dict[str, Any]:
    """Settings beyond the URI, for PyMongo and for Motor, which is built on it."""
    return {} if options.timeout_ms is None else {"timeoutMS": options.timeout_ms}
