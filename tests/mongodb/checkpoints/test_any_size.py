"""States, values and writes larger than a document of MongoDB, where savers with one document fail."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langgraph.checkpoint.serde.types import ERROR

from .rows import config_of, id_of, put, values_of
from .scenarios import answering

MIB = 1024 * 1024
SOURCE = random.Random(5)  # noqa: S311 - data, not secrets


@pytest.fixture
def driver() -> str:
    """Only one: the sizes of commands are bounded above the drivers."""
    return "pymongo"


async def test_run_goes_on_when_its_state_exceeds_a_document(saver: Any, thread_id: str) -> None:
    config: Any = {"configurable": {"thread_id": thread_id}}
    item = SOURCE.randbytes(5 * MIB)
    graph = answering(saver, item)
    for turn in range(1, 5):
        result = await graph.ainvoke({"items": [f"turn {turn}"]}, config)
        assert len(result["items"]) == 2 * turn
    state = await graph.aget_state(config)
    assert state.values["items"] == [part for turn in range(1, 5) for part in (f"turn {turn}", item)]
    assert state.next == ()


@pytest.mark.parametrize("kind", [bytes, str, dict])
async def test_one_value_may_exceed_a_document(saver: Any, thread_id: str, kind: type) -> None:
    data = SOURCE.randbytes(17 * MIB)
    text = data[: 9 * MIB].hex()
    value: Any = {bytes: data, str: text, dict: {"image": data, "name": "a.png"}}[kind]
    config = await put(saver, config_of(thread_id), {"value": value, "small": 1})
    assert await values_of(saver, config) == {"value": value, "small": 1}


async def test_writes_may_exceed_a_document(saver: Any, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {})
    large, other = SOURCE.randbytes(17 * MIB), SOURCE.randbytes(200 * 1024)
    writes = [("one", large), ("two", "small"), *(("more", other) for _ in range(90))]
    await saver.aput_writes(config, writes, "task-1", "path")
    await saver.aput_writes(config, [(ERROR, other.hex())], "task-2", "path")
    await saver.aput_writes(config, [(ERROR, large[: 9 * MIB].hex())], "task-2", "path")
    found = await saver.aget_tuple(config)
    expected = [("task-1", *write) for write in writes] + [("task-2", ERROR, large[: 9 * MIB].hex())]
    assert found.pending_writes == expected
    listed = [row async for row in saver.alist(config)]
    assert listed == [found]


async def test_many_values_exceed_a_document_together(saver: Any, thread_id: str) -> None:
    values: Any = {f"channel {number}": SOURCE.randbytes(2 * MIB) for number in range(10)}
    config = await put(saver, config_of(thread_id), values)
    assert await values_of(saver, config) == values


async def test_ten_images_and_a_small_edit_store_the_images_once(
    saver: Any, storage: Any, raw_client: Any, thread_id: str
) -> None:
    images = [{"id": str(number), "data": SOURCE.randbytes(2 * MIB)} for number in range(10)]
    config = await put(saver, config_of(thread_id), {"messages": images})
    for version in range(2, 5):
        images = [*images[:4], {**images[4], "note": version}, *images[5:], {"id": f"new {version}"}]
        config = await put(saver, config, {"messages": images}, version)
    assert (await values_of(saver, config))["messages"] == images
    collection = raw_client[storage.config.database]["checkpoint_data"]
    stored = collection.aggregate(
        [
            {"$match": {"_id.thread": thread_id}},
            {"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}},
        ]
    )
    # The edited one is stored again, each time with the pieces beside it.
    assert next(stored)["bytes"] < (20 + 3 * 6) * MIB


async def test_busy_default_executor_stops_no_checkpoint(saver: Any, thread_id: str) -> None:
    """Synchronous tools fill asyncio's default threads for as long as they run."""
    released = threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2) as pool:
        loop.set_default_executor(pool)
        tools = [asyncio.to_thread(released.wait) for _ in range(6)]
        busy = asyncio.gather(*tools)
        try:
            async with asyncio.timeout(20):
                await asyncio.sleep(0)
                config = await put(saver, config_of(thread_id), {"a": SOURCE.randbytes(MIB)})
                await saver.aput_writes(config, [("a", SOURCE.randbytes(MIB))], "task")
                assert (await saver.aget_tuple(config)).pending_writes
                assert [id_of(row.config) async for row in saver.alist(config)] == [id_of(config)]
        finally:
            released.set()
            await busy
