"""Motor, for hosts that use it already. Its maintenance has ended: new hosts should use PyMongo."""

from __future__ import annotations

import asyncio
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import MongoClient

from .changes import max_await_ms
from .collection import Document
from .driver import DRIVER_INFO, Driver, DriverOptions
from .pymongo_async import client_settings, watched
from .threads import in_thread


class MotorDriver(Driver):
    name = "motor"

    async def connect(self, options: DriverOptions) -> Any:
        settings = client_settings(options)
        # Motor joins its name to ours with a "|", which PyMongo refuses since it takes names one by one.
        if not hasattr(MongoClient, "append_metadata"):
            settings["driver"] = DRIVER_INFO
        loop = asyncio.get_running_loop()

        def build() -> AsyncIOMotorClient[Document]:
            return AsyncIOMotorClient(options.url, io_loop=loop, **settings)

        # The lookup of a mongodb+srv name blocks.
        client = await in_thread(build) if options.url.startswith("mongodb+srv:") else build()
        self.introduce(client)
        return client

    def introduce(self, client: Any) -> None:
        super().introduce(client.delegate)

    async def close_client(self, client: Any) -> None:
        client.close()

    async def session(self) -> Any:
        return await (await super().session())  # Motor's own function is a coroutine

    async def watch(self, database: Any, pipeline: list[Document]) -> Any:
        await_ms = max_await_ms(database.delegate.client.options, self.time_limit.timeout_ms)
        stream = watched(database).watch(pipeline, max_await_time_ms=await_ms)
        # The first read opens it. What this one returns happened before the caller's own first read.
        try:
            await stream.try_next()
        except BaseException:
            await stream.close()
            raise
        return stream
