"""Closed storages, other event loops, cancelled calls, and two processes on one thread of conversation."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, StorageClosedError, StorageError

from ...child_processes import run_child
from .rows import checkpoint_with, config_of, id_of, listed, metadata, put, values_of

ROOT = Path(__file__).parents[3]
SOURCE = random.Random(13)  # noqa: S311 - data, not secrets


def _calls(saver: Any, thread_id: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    config, checkpoint = config_of(thread_id, checkpoint_id="1"), checkpoint_with({"a": 1})
    return {
        "aput": lambda: saver.aput(config, checkpoint, metadata(), {}),
        "aput_writes": lambda: saver.aput_writes(config, [("a", 1)], "task"),
        "aget_tuple": lambda: saver.aget_tuple(config),
        "alist": lambda: listed(saver, config),
        "aget_delta_channel_history": lambda: saver.aget_delta_channel_history(config=config, channels=["a"]),
        "adelete_thread": lambda: saver.adelete_thread(thread_id),
        "adelete_for_runs": lambda: saver.adelete_for_runs(["run"]),
        "acopy_thread": lambda: saver.acopy_thread(thread_id, thread_id + "x"),
        "aprune": lambda: saver.aprune([thread_id]),
    }


async def test_every_method_reports_a_closed_storage(
    new_storage: Callable[..., MongoStorage], driver: str, thread_id: str
) -> None:
    async with new_storage(driver=driver) as storage:
        saver = await storage.checkpointer()
    for call in _calls(saver, thread_id).values():
        with pytest.raises(StorageClosedError):
            await call()
    with pytest.raises(StorageClosedError):
        await storage.checkpointer()


async def test_every_method_refuses_another_event_loop(saver: Any, thread_id: str) -> None:
    await put(saver, config_of(thread_id), {"a": 1})

    def elsewhere() -> list[str]:
        errors: list[str] = []
        for name, call in _calls(saver, thread_id).items():
            try:
                asyncio.run(_awaited(call))
            except StorageError as error:
                errors.append(f"{name}: {error}")
        return errors

    errors = await asyncio.to_thread(elsewhere)
    assert len(errors) == len(_calls(saver, thread_id)), errors
    assert all("one storage per event loop" in error for error in errors)
    assert await values_of(saver, config_of(thread_id)) == {"a": 1}


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


async def test_saver_is_one_object_for_a_storage(storage: MongoStorage) -> None:
    savers = await asyncio.gather(*(storage.checkpointer() for _ in range(5)))
    assert all(saver is savers[0] for saver in savers)


async def test_cancelled_puts_leave_whole_checkpoints_or_none(saver: Any, thread_id: str) -> None:
    config, whole = config_of(thread_id), dict[str, Any]()
    messages: list[bytes] = []
    for number in range(30):
        messages = [*messages, SOURCE.randbytes(20_000)]
        checkpoint = checkpoint_with({"messages": messages}, number + 1)
        whole[checkpoint["id"]] = messages
        call = asyncio.create_task(saver.aput(config, checkpoint, metadata(), checkpoint["channel_versions"]))
        await asyncio.sleep(SOURCE.random() * 0.004)
        call.cancel()
        await asyncio.wait({call})
        config = config_of(thread_id, checkpoint_id=checkpoint["id"])
    await asyncio.sleep(0.1)  # what was sent is stored all the same
    for row in await listed(saver, config_of(thread_id)):
        assert row.checkpoint["channel_values"]["messages"] == whole[id_of(row.config)]
    last = await put(saver, config, {"messages": messages}, 99)
    assert await values_of(saver, last) == {"messages": messages}


async def test_cancelled_writes_stop_no_others(saver: Any, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {})
    calls = [
        asyncio.create_task(saver.aput_writes(config, [("a", number)], f"task {number:02}"))
        for number in range(20)
    ]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(result is None for result in done[1::2])
    stored = {value for _, _, value in (await saver.aget_tuple(config)).pending_writes}
    assert stored >= set(range(1, 20, 2))


async def test_close_waits_for_accepted_checkpoints(
    new_storage: Callable[..., MongoStorage], driver: str, thread_id: str
) -> None:
    storage = new_storage(driver=driver)
    saver = await storage.checkpointer()
    config = await put(saver, config_of(thread_id), {"a": 1})
    calls = [asyncio.create_task(put(saver, config, {"a": number}, number)) for number in range(2, 8)]
    await asyncio.sleep(0)
    await storage.aclose()
    done = await asyncio.gather(*calls, return_exceptions=True)
    acknowledged = {id_of(result) for result in done if isinstance(result, dict)}
    assert all(isinstance(result, dict | StorageError) for result in done), done
    async with new_storage() as other:
        rows = await listed(await other.checkpointer(), config_of(thread_id))
    assert {id_of(row.config) for row in rows} >= acknowledged | {id_of(config)}


WRITER = """
import asyncio, json, random, sys
from deerflow_mongo import create_storage
from tests.mongodb.checkpoints.rows import config_of, id_of, put

async def main(url, database, thread, seed):
    source = random.Random(int(seed))
    async with create_storage({"backend": "mongodb", "url": url, "database": database}) as storage:
        saver = await storage.checkpointer()
        shared = [random.Random(1).randbytes(9_000) for _ in range(4)]
        stored, config = {}, config_of(thread)
        for number in range(60):
            if number % 5 == 0:
                newest = await saver.aget_tuple(config_of(thread))
                config = newest.config if newest else config_of(thread)
            messages = [*shared, source.randbytes(3_000).hex(), number]
            config = await put(saver, config, {"messages": messages}, number + 1)
            await saver.aput_writes(config, [("messages", number)], f"task {seed}")
            stored[id_of(config)] = messages[-2:]
    sys.stdout.write(json.dumps(stored))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_write_one_thread(
    saver: Any, mongodb_url: str, storage: Any, thread_id: str
) -> None:
    """Also pieces that both store at once, and numbers that both take at once."""
    command = [sys.executable, "-c", WRITER, mongodb_url, storage.config.database, thread_id]
    done = await asyncio.gather(
        *(asyncio.to_thread(run_child, [*command, str(seed)], cwd=ROOT) for seed in (1, 2))
    )
    assert [child.stderr for child in done] == ["", ""]
    expected = {key: value for child in done for key, value in json.loads(child.stdout).items()}
    rows = await listed(saver, config_of(thread_id))
    found = {id_of(row.config): row.checkpoint["channel_values"]["messages"][-2:] for row in rows}
    assert len(expected) == 120
    assert found == expected
    assert all(len(row.pending_writes) == 1 for row in rows)
