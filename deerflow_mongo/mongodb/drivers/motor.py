"""Motor, for hosts that use it already. Its maintenance has ended: new hosts should use PyMongo."""

from __future__ import annotations

from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import MongoClient

from .collection import Document
from .driver import DRIVER_INFO, Driver, DriverOptions
from .pymongo_async import client_settings


class MotorDriver(Driver):
    name = "motor"

    def connect(self, options: DriverOptions) -> Any:
        settings = client_settings(options)
        # Motor joins its name to ours with a "|", which PyMongo refuses since it takes names one by one.
        if not hasattr(MongoClient, "append_metadata"):
            settings["driver"] = DRIVER_INFO
        client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(options.url, **settings)
        self.introduce(client)
        return client

    def introduce(self, client: Any) -> None:
        super().introduce(client.delegate)

    async def close_client(self, client: Any) -> None:
        client.close()

    async def insert_in_transaction(self, handle: Any, documents: list[Document]) -> None:
        async with (
            await self._client.start_session() as session,
            session.start_transaction(write_concern=handle.write_concern),
        ):
            await handle.insert_many(documents, session=session)

    async def watch(self, handle: Any, pipeline: list[Document]) -> Any:
        return handle.watch(pipeline)
