"""A cancelled call raises `CancelledError`, and the storage goes on as if it had not been made, or had."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, RunExistsError, ThreadMetaCreate

from .fixtures import BATCH, DriverFixtures, Opener, contents, event

DELAYS_S = (0.0, 0.0003, 0.0006, 0.001, 0.002, 0.004)
"""Before the call is sent, while it is under way, after its answer is there."""

_CALLS: dict[str, Callable[[MongoStorage, str], Awaitable[Any]]] = {
    "find_one": lambda s, _: s.runs.get("r", user_id=None),
    "find": lambda s, _: s.runs.list_by_thread("t", user_id=None),
    "aggregate": lambda s, _: s.runs.token_usage_by_thread("t", user_id=None),
    "insert_one": lambda s, name: s.threads.create_thread_meta(ThreadMetaCreate(thread_id=name)),
    "update_one": lambda s, _: s.runs.update_status("r", "running", metadata={"k": 1}),
    "update_many": lambda s, name: s.run_events.delete_by_thread(name),
    "find_one_and_upsert": lambda s, name: s.feedback.upsert(
        run_id="r", thread_id="t", rating=1, user_id=name
    ),
    "find_one_and_delete": lambda s, name: s.feedback.delete_by_run(run_id="r", thread_id="t", user_id=name),
    "insert_many": lambda s, name: s.run_events.put_batch([event(thread_id=name)] * 3),
    "insert_many, large": lambda s, name: s.run_events.put_batch([event(thread_id=name)] * BATCH),
    "changes": lambda s, name: anext(s.run_events.follow(name)),
    "command": lambda s, _: s.inspect(),
}


async def _cancel_after(call: Awaitable[Any], delay_s: float) -> bool:
    """Whether the call was cancelled; else its answer was there before."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(delay_s)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=30)
    assert done, "the cancelled call goes on"
    assert task.cancelled() or task.exception() is None
    return task.cancelled()


class CancellationContract(DriverFixtures):
    @pytest.fixture(autouse=True)
    def collected(self) -> Iterator[None]:
        """Collect here what the driver left, and not during another test."""
        yield
        gc.collect()

    @pytest.mark.parametrize("name", _CALLS)
    async def test_cancelled_call_leaves_the_storage_usable(
        self, name: str, new_storage: Opener, new_database: str
    ) -> None:
        call, names = _CALLS[name], (f"name-{number}" for number in count())
        async with new_storage(database=new_database) as storage:
            await storage.runs.create("r", "t", user_id=None)
            delays_s = (0.01,) if name == "changes" else DELAYS_S  # it takes seconds to open and to close
            cancelled = [await _cancel_after(call(storage, next(names)), delay_s) for delay_s in delays_s * 2]
            assert any(cancelled)
            if name != "changes":  # nothing comes
                await asyncio.wait_for(call(storage, next(names)), 30)
            await asyncio.wait_for(storage.runs.update_status("r", "success"), 30)
            row = await storage.runs.get("r", user_id=None)
            assert row is not None
            assert row["status"] == "success"

    async def test_cancelled_creates_are_stored_whole_or_not_at_all(
        self, new_storage: Opener, new_database: str
    ) -> None:
        ids = [f"run-{number}" for number in range(60)]
        async with new_storage(database=new_database) as storage:
            tasks = [
                asyncio.create_task(storage.runs.create(run_id, "t", user_id="u", metadata={"k": run_id}))
                for run_id in ids
            ]
            for position, task in enumerate(tasks):
                if position % 2:
                    await asyncio.sleep(0.001)
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for run_id, task in zip(ids, tasks, strict=True):
                if task.cancelled():
                    try:
                        await storage.runs.create(run_id, "t", user_id="u", metadata={"k": run_id})
                    except RunExistsError:
                        continue  # the write had arrived before its cancellation
            rows = await storage.runs.list_by_thread("t", limit=1_000, user_id="u")
        assert {row["run_id"]: row["metadata"] for row in rows} == {run_id: {"k": run_id} for run_id in ids}

    @pytest.mark.parametrize("size", [5, BATCH])
    async def test_cancelled_batches_leave_no_gap_and_no_part(
        self, size: int, new_storage: Opener, new_database: str
    ) -> None:
        async with new_storage(database=new_database) as storage:
            tasks = [
                asyncio.create_task(storage.run_events.put_batch([event(number)] * size))
                for number in range(30)
            ]
            for position, task in enumerate(tasks):
                if position % 3 == 0:
                    await asyncio.sleep(0.001)
                    task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            await storage.run_events.put(**event("last"))
            stored = await contents(storage)
        written = [number for number, answer in enumerate(answers) if isinstance(answer, list)]
        assert len(written) == sum(not isinstance(answer, asyncio.CancelledError) for answer in answers)
        assert set(written) <= set(stored[:-1])
        assert all(stored.count(number) == size for number in set(stored[:-1]))
        assert stored[-1] == "last"

    async def test_cancelled_setup_can_be_repeated(self, new_storage: Opener, new_database: str) -> None:
        storage = new_storage(database=new_database)
        for delay_s in (*DELAYS_S, 0.02, 0.1):
            await _cancel_after(storage.setup(), delay_s)
        async with storage:
            assert (await storage.inspect()).missing_collections == []
            await storage.runs.create("r", "t", user_id=None)
