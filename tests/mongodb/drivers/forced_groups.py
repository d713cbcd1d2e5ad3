"""Every call that may share a command waits for one tick of the event loop and goes as a group, also alone.

So what tests one call tests a group of one, and wherever two calls wait they share a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from deerflow_mongo.mongodb.drivers.groups import lane as groups
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT
from deerflow_mongo.mongodb.drivers.time_limit import has_longer_limit


@contextmanager
def forced_groups() -> Generator[None]:
    """For all storages, until the context ends."""
    of_all: Any = groups.Lane
    at_once: Callable[..., Awaitable[Any]] = of_all.run

    async def run(self: Any, given: Any, alone: Callable[[Any], Awaitable[Any]]) -> Any:
        self._driver.owner.check()
        if has_longer_limit() or not self.can_group(given):
            return await at_once(self, given, alone)
        if self._in_flight < LEAST_IN_FLIGHT:
            # As a command whose answer comes behind the calls that other tasks make now.
            self._in_flight += 1
            asyncio.get_running_loop().call_soon(self._next)
        return await self._wait(given, alone)

    def whole(_: Any) -> int:
        return groups.MAX_CALLS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_all, "run", run)
        patch.setattr(of_all, "_share", whole)
        patch.setattr(groups, "SMALLEST_GROUP", 1)
        yield
