"""What the proxy does to a command, seen from both sides of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pymongo
import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, NetworkTimeout

from .proxy import FaultProxy

Raw = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture
async def stored(proxy: FaultProxy, raw_client: Raw, database_name: str) -> AsyncIterator[Any]:
    """A collection behind the proxy, whose driver retries nothing and waits for 1.5 s."""
    options = "&retryWrites=false&retryReads=false&timeoutMS=1500"
    for name in ("stored", "other"):  # creating a collection may take longer than the timeout
        raw_client[database_name].create_collection(name)
    async with AsyncMongoClient[dict[str, Any]](proxy.url + options) as client:
        await client.admin.command("ping")
        yield client[database_name]["stored"]


@pytest.mark.parametrize(
    ("harm", "error", "arrives"),
    [
        ("cut_before", AutoReconnect, False),
        ("cut_after", AutoReconnect, True),
        ("drop_reply", NetworkTimeout, True),
        ("stall", NetworkTimeout, False),
    ],
)
async def test_harmed_command_fails_and_only_then_is_executed_where_it_should(
    proxy: FaultProxy,
    stored: Any,
    raw_client: Raw,
    database_name: str,
    harm: Any,
    error: type[Exception],
    arrives: bool,
) -> None:
    rule = proxy.harm(harm, {"insert"}, 1, collection="stored")
    await stored.database["other"].insert_one({"_id": 0})
    with pytest.raises(error):
        await stored.insert_one({"_id": 1})
    await stored.insert_one({"_id": 2})
    assert rule.hits == proxy.lost == 1
    ids = [item["_id"] for item in raw_client[database_name]["stored"].find(sort=[("_id", 1)])]
    assert ids == ([1, 2] if arrives else [2])


async def test_delayed_command_is_answered_later(proxy: FaultProxy, stored: Any) -> None:
    proxy.delay("find", 0.2, times=1)
    began = time.monotonic()
    assert await stored.find_one() is None
    assert time.monotonic() - began >= 0.2


async def test_stalled_proxy_answers_nothing_until_it_is_cleared(proxy: FaultProxy, stored: Any) -> None:
    await stored.insert_many([{"_id": number} for number in range(5)])
    cursor = stored.find(batch_size=2)
    assert await anext(cursor) == {"_id": 0}
    proxy.stall("getMore")
    assert proxy.connections > 0
    with pytest.raises(NetworkTimeout):
        await cursor.to_list()
    proxy.clear()
    assert await stored.count_documents({}) == 5


async def test_proxy_that_is_down_refuses_and_comes_back(proxy: FaultProxy, stored: Any) -> None:
    proxy.go_down()
    with pytest.raises(AutoReconnect):
        await stored.find_one()
    proxy.is_down = False
    async with asyncio.timeout(30):
        while True:
            try:
                await stored.find_one()
            except AutoReconnect:
                continue
            break
