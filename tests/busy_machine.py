"""Storages with a short timeout, where a test needs one, on a machine that has other work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from deerflow_mongo import MongoStorage, StorageUnavailableError

_LIMIT_S = 60.0

Answer = TypeVar("Answer")


async def until_answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What the call returns, made again until the machine lets it end within its storage's timeout."""
    async with asyncio.timeout(_LIMIT_S):
        while True:
            with contextlib.suppress(StorageUnavailableError):
                return await call()


@contextlib.asynccontextmanager
async def connected(storage: MongoStorage) -> AsyncGenerator[MongoStorage]:
    """The storage once it has a connection, and closed afterwards.

    It sets up nothing: that takes longer than a short timeout allows, and is done with the default one.
    """
    async with contextlib.aclosing(storage):
        await until_answered(storage.ping)
        yield storage
