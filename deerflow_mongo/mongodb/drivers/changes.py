"""The database's change stream, read one change at a time; who is interested in a change is not decided here.

A stream occupies one connection while it waits. It is of the database and not of a collection, so that one is
enough for all collections; its pipeline selects what the server sends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

from bson import Timestamp

from ...contract.errors import StorageClosedError, StorageUnavailableError
from .collection import Document, end_if_cancelled
from .errors import DRIVER_ERRORS, WATCH, no_answer, translate
from .time_limit import TimeLimit

MAX_AWAIT_MS = 1_000
"""How long the server waits for a change before it answers without one."""
PAUSE_S = 0.005
"""Between two reads of a busy stream: changes arrive together, and a read costs as much as a store's call."""
_IDLE_PAUSE_S = 0.001
"""Between two reads without a change: else a driver takes its connection back before calls that wait."""
_BUFFERED_S = 0.000_1
"""A change that came more quickly was received with one before it."""

NextChange: TypeAlias = Callable[[], Awaitable[Document | None]]


class Changes(NamedTuple):
    """An open change stream."""

    opened_at: Timestamp | None
    """A time of the cluster at which it was open; None from a server that has no keys yet to sign times."""
    next_change: NextChange
    """Returns the next change, or None if there was none for about a second."""


class ChangesDriver(Protocol):
    """What a change stream needs of its driver; see `Driver`."""

    database_name: str
    time_limit: TimeLimit
    changes_pause_s: float

    @property
    def is_closed(self) -> bool: ...
    async def opened(self) -> Any: ...
    async def watch(self, database: Any, pipeline: list[Document]) -> Any: ...
    async def command(self, document: Document) -> Document: ...


@asynccontextmanager
async def changes(driver: ChangesDriver, pipeline: list[Document]) -> AsyncGenerator[Changes]:
    """A change stream that is open on the server: no change is missed that comes after `opened_at`.

    That includes lost connections. A change from before may be missed even where no majority has it yet, and
    reads of what a majority has do not show it: read by `Collection.find_as_of`.
    """
    database = await driver.opened()
    pause_s = 0.0
    try:
        with driver.time_limit.call():
            opened = await driver.watch(database, pipeline)
        async with opened as stream:

            async def next_change() -> Document | None:
                nonlocal pause_s
                if pause_s:
                    await asyncio.sleep(pause_s)
                began = time.monotonic()
                with driver.time_limit.call():
                    change = await stream.try_next()
                if change is None:
                    pause_s = _IDLE_PAUSE_S
                else:
                    pause_s = driver.changes_pause_s if time.monotonic() - began > _BUFFERED_S else 0.0
                end_if_cancelled()
                if change is None and not stream.alive:
                    raise StorageUnavailableError("the change stream ended: its database is gone")
                return change

            yield Changes((await driver.command({"ping": 1})).get("operationTime"), next_change)
    except TimeoutError as error:
        raise no_answer(WATCH, driver.database_name, driver.time_limit.timeout_ms) from error
    except DRIVER_ERRORS as error:
        translated = translate(error, WATCH, driver.database_name)
        if isinstance(translated, StorageUnavailableError) and driver.is_closed:
            raise StorageClosedError from error
        raise translated from error


def max_await_ms(options: Any, timeout_ms: int) -> int:
    """How long a read of a stream may wait on the server: less than an operation may take.

    `options` are those of PyMongo's client, with its own limits in seconds.
    """
    limits_s = (options.timeout, options.pool_options.socket_timeout, timeout_ms / 1000)
    return max(1, min([MAX_AWAIT_MS, *(int(limit_s * 500) for limit_s in limits_s if limit_s)]))
