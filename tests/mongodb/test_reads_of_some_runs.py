"""Reads of several runs of a thread at once, and of one task's events, on a server and on the mock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from deerflow_mongo import MongoStorage

pytestmark = pytest.mark.usefixtures("emptied_database")

AI = "llm.ai.response"


@pytest.fixture(params=["pymongo", "mongomock"])
async def either(
    request: pytest.FixtureRequest, mongodb_url: str, database_name: str
) -> AsyncIterator[MongoStorage]:
    config = {"url": mongodb_url, "database": database_name, "driver": request.param}
    async with MongoStorage.open(config) as storage:
        yield storage


def _event(run_id: str, event_type: str = AI, category: str = "message", **fields: Any) -> Any:
    event = {"thread_id": "t", "run_id": run_id, "event_type": event_type, "category": category}
    return {**event, **fields}


def _by(caller: object) -> dict[str, Any]:
    return {"metadata": {"caller": caller}}


async def test_last_visible_answer_of_each_run(either: MongoStorage) -> None:
    await either.run_events.put_batch(
        [
            _event("r-1", **_by("lead_agent")),  # 1
            _event("r-1", **_by("middleware:title")),
            _event("r-2", "ai_message"),  # 3
            _event("r-2", "human_message"),
            _event("r-2", category="trace", **_by("lead_agent")),
            _event("r-3", **_by("middleware:")),
            _event("r-4", **_by("middleware")),  # 7
            _event("r-5", **_by(["middleware:a"])),  # 8
            _event("r-6", **_by(None)),  # 9
            _event("r-7", **_by(7)),  # 10
            _event("r-8", **_by("Middleware:a")),  # 11
            _event("r-1", "other"),
            _event("r-1", thread_id="other"),
        ]
    )
    read = either.run_events.get_last_visible_ai_seq_by_run
    wanted = {f"r-{n}" for n in range(1, 10)}
    seqs = {"r-1": 1, "r-2": 3, "r-4": 7, "r-5": 8, "r-6": 9, "r-7": 10, "r-8": 11}
    assert await read("t", wanted) == seqs
    assert await read("t", ["r-2", "r-2", "none"]) == {"r-2": 3}
    assert await read("t", set()) == await read("none", wanted) == {}
    await either.run_events.put(**_event("r-2", user_id="alice"))
    assert await read("t", {"r-1", "r-2"}, user_id="alice") == {"r-2": 13}
    assert await either.run_events.delete_by_run("t", "r-2") == 4
    assert await read("t", {"r-1", "r-2"}) == {"r-1": 1}


@pytest.mark.parametrize("run_ids", ["r-1", None, {"$ne": None}, [""], [1]], ids=repr)
async def test_run_ids_that_are_no_ids_are_refused(storage: MongoStorage, run_ids: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="run_ids"):
        await storage.run_events.get_last_visible_ai_seq_by_run("t", run_ids)
    with pytest.raises((TypeError, ValueError), match="run_ids"):
        await storage.feedback.list_by_run_ids("t", run_ids, user_id=None)


@pytest.mark.usefixtures("alice")
async def test_answers_of_a_strangers_thread_are_not_visible(storage: MongoStorage) -> None:
    await storage.threads.ensure_thread(thread_id="t", user_id="alice")
    await storage.run_events.put(**_event("r"))
    assert await storage.run_events.get_last_visible_ai_seq_by_run("t", ["r"]) == {"r": 1}
    await storage.threads.update_thread_meta("t", owner_id="bob")
    assert await storage.run_events.get_last_visible_ai_seq_by_run("t", ["r"]) == {}


async def test_events_of_a_task_are_filtered_before_the_limit(either: MongoStorage) -> None:
    tasks: list[Any] = ["a", "b", "a", ["a"], {"a": 1}, None, 1, "a", "", "a"]
    await either.run_events.put_batch(
        [_event("r", "step", "trace", metadata={"task_id": task}) for task in tasks]
    )
    await either.run_events.put(**_event("r", "end", "trace", metadata={"task_id": "a"}))

    async def seqs(**wanted: Any) -> list[int]:
        return [row["seq"] for row in await either.run_events.list_events("t", "r", **wanted)]

    assert await seqs(task_id="a") == [1, 3, 8, 10, 11]
    assert await seqs(task_id="a", limit=2) == [1, 3]
    assert await seqs(task_id="a", limit=2, after_seq=3) == [8, 10]
    assert await seqs(task_id="a", event_types=["end"]) == [11]
    assert await seqs(task_id="") == [9]
    assert await seqs(task_id="none") == await seqs(after_seq=11) == []
    assert await seqs(after_seq=9) == [10, 11]


async def test_users_newest_feedback_on_each_of_some_runs(either: MongoStorage) -> None:
    feedback = either.feedback
    for run_id, rating, user_id in (("r-1", 1, "u"), ("r-1", -1, "u"), ("r-2", 1, "v"), ("r-3", 1, None)):
        await feedback.create(run_id=run_id, thread_id="t", rating=rating, user_id=user_id)
    await feedback.create(run_id="r-4", thread_id="other", rating=1, user_id="u")

    async def ratings(run_ids: Any, user_id: str | None) -> dict[str, int]:
        found = await feedback.list_by_run_ids("t", run_ids, user_id=user_id)
        return {run_id: row["rating"] for run_id, row in found.items()}

    everything = {f"r-{n}" for n in range(1, 5)}
    assert await ratings(everything, "u") == {"r-1": -1}
    assert await ratings(everything, None) == {"r-3": 1}
    assert await ratings(["r-2", "r-2"], "v") == {"r-2": 1}
    assert await ratings(["r-2"], "u") == await ratings([], "u") == {}
