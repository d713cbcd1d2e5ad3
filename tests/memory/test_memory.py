"""What the conformance suite does not cover of `backend: memory`: copies, options, closing, no driver."""

from __future__ import annotations

import asyncio
import copy
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from deerflow_mongo import (
    Accounts,
    Checkpointing,
    Following,
    MissingDependencyError,
    StorageClosedError,
    StorageConfigError,
    ThreadMetaCreate,
    create_storage,
)
from deerflow_mongo.memory.storage import MemoryStorage

from ..child_processes import run_child

RUN: dict[str, Any] = {"run_id": "run-1", "thread_id": "thread-1"}
MESSAGE: dict[str, Any] = {**RUN, "event_type": "ai_message", "category": "message"}
OTHER: dict[str, Any] = {**MESSAGE, "event_type": "other"}


@pytest_asyncio.fixture
async def storage() -> AsyncIterator[MemoryStorage]:
    async with MemoryStorage() as opened:
        yield opened


def spoil(value: Any) -> None:
    """Change everything inside a row or an argument, at every depth."""
    if isinstance(value, dict):
        for item in list(value.values()):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            spoil(item)
        value.clear()  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(value, list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            spoil(item)
        value.append("spoiled")  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(value, tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            spoil(item)
    elif hasattr(value, "metadata"):
        spoil(value.metadata)


async def everything(storage: MemoryStorage) -> list[object]:
    """What every read returns; the second read of what a caller has spoiled must equal the first."""
    runs, events, feedback, threads = storage.runs, storage.run_events, storage.feedback, storage.threads
    votes = await feedback.list_by_thread("thread-1")
    return [
        await runs.get("run-1", user_id=None),
        await runs.list_by_thread("thread-1", user_id=None),
        await runs.list_pending(),
        await runs.token_usage_by_thread("thread-1", user_id=None),
        votes,
        await feedback.get(votes[0]["feedback_id"]),
        await feedback.list_by_run("thread-1", "run-1"),
        await feedback.list_by_thread_grouped("thread-1", user_id="alice"),
        await threads.get_thread_meta("thread-1"),
        await threads.get_thread("thread-1", user_id=None),
        await threads.ensure_thread(thread_id="thread-1", user_id=None),
        await threads.search_threads(user_id=None),
        await events.list_messages("thread-1"),
        await events.list_messages("thread-1", after_seq=0),
        await events.list_messages_by_run("thread-1", "run-1"),
        await events.list_events("thread-1", "run-1"),
        await events.list_thread_events("thread-1"),
        await events.put_if_absent(**MESSAGE),
        await storage.users.get("user-1"),
        await storage.users.get_by_email("alice@example.org"),
        await storage.users.get_by_oauth("github", "4711"),
        await storage.users.list_by_role("user"),
    ]


async def writes(storage: MemoryStorage, payload: dict[str, Any]) -> list[Any]:
    """Every write that takes a payload or returns a row; the last ones leave `payload` stored."""
    feedback, threads = storage.feedback, storage.threads
    await storage.runs.create(**RUN, user_id="alice", metadata=payload, kwargs=payload)
    await storage.runs.update_status("run-1", "pending", metadata=payload)
    created = await threads.create_thread_meta(ThreadMetaCreate(thread_id="thread-1", metadata=payload))
    await threads.update_thread_meta("thread-1", metadata=payload)
    await threads.merge_thread_metadata("thread-1", payload)
    return [
        created,
        await threads.ensure_thread_running(thread_id="thread-1"),
        await threads.ensure_thread(thread_id="thread-2", metadata=payload, user_id=None),
        await feedback.create(**RUN, rating=1, user_id="alice", message_id="m"),
        await feedback.upsert(**RUN, rating=1, user_id="alice"),
        await storage.run_events.put(**MESSAGE, content=payload, metadata=payload),
        await storage.run_events.put_batch([{**MESSAGE, "content": payload}] * 2),  # pyright: ignore[reportArgumentType]
        await storage.run_events.put_if_absent(**OTHER, content=payload),
        await storage.users.create(
            "user-1", email="alice@example.org", oauth_provider="github", oauth_id="4711"
        ),
    ]


async def test_changing_what_was_passed_in_or_returned_changes_nothing_stored(storage: MemoryStorage) -> None:
    payload: dict[str, Any] = {"a": {"b": [1, {"c": [2]}]}}
    returned = await writes(storage, payload)
    before = copy.deepcopy(await everything(storage))
    spoil(payload)
    spoil(returned)
    assert await everything(storage) == before
    spoil(await everything(storage))
    assert await everything(storage) == before


async def test_counts_by_model_are_copied_in(storage: MemoryStorage) -> None:
    by_model: dict[str, Any] = {"m": {"input_tokens": 1}}
    await storage.runs.create(**RUN, user_id=None)
    await storage.runs.update_run_completion("run-1", status="success", token_usage_by_model=by_model)
    spoil(by_model)
    await storage.runs.record_token_usage("run-1", caller="subagent", model_name="m", input_tokens=1)
    usage = await storage.runs.token_usage_by_thread("thread-1", user_id=None)
    assert usage["by_model"]["m"]["input_tokens"] == 2
    assert by_model == {}


async def test_followed_rows_are_copies(storage: MemoryStorage) -> None:
    await storage.run_events.put(**MESSAGE, content={"a": [1]})
    for _ in range(2):
        async with aclosing(storage.run_events.follow("thread-1")) as rows:
            row = await anext(rows)
        assert row["content"] == {"a": [1]}
        spoil(row)


async def test_payload_of_any_size_is_stored(storage: MemoryStorage) -> None:
    assert storage.max_payload_bytes is None
    text = "x" * (17 * 1024 * 1024)
    await storage.runs.create(**RUN, user_id=None, metadata={"text": text}, error=text)
    row = await storage.runs.get("run-1", user_id=None)
    assert row is not None
    assert (row["metadata"], row["error"]) == ({"text": text}, text)


def test_storage_has_every_capability() -> None:
    storage = MemoryStorage()
    assert isinstance(storage, Accounts)
    assert isinstance(storage, Checkpointing)
    assert isinstance(storage.run_events, Following)


def test_two_storages_share_nothing() -> None:
    async def write_and_read() -> None:
        async with create_storage("memory") as one, create_storage("memory") as other:
            await one.runs.create(**RUN, user_id=None)
            assert await other.runs.get("run-1", user_id=None) is None

    asyncio.run(write_and_read())


def test_options_and_clients_are_refused() -> None:
    for options in ({"url": "memory://"}, {"database": "d", "size": 5}):
        with pytest.raises(
            StorageConfigError, match="expected `backend: memory` and nothing else"
        ) as refused:
            create_storage({"backend": "memory", **options})
        assert all(f"`{key}`" in str(refused.value) for key in options)
    with pytest.raises(StorageConfigError, match="takes no client"):
        create_storage({"backend": "memory"}, client=object())


async def test_closing_ends_followers_and_checkpoints() -> None:
    storage = MemoryStorage()

    async def follow() -> None:
        async for _ in storage.run_events.follow("thread-1"):
            pass

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    await storage.aclose()
    with pytest.raises(StorageClosedError):
        await asyncio.wait_for(follower, 10)
    for call in (storage.checkpointer, storage.setup, storage.ping, storage.users.count):
        with pytest.raises(StorageClosedError):
            await call()


async def test_checkpointer_is_langgraphs_saver_in_memory(storage: MemoryStorage) -> None:
    pytest.importorskip("langgraph.checkpoint.memory")
    graphs: Any = pytest.importorskip("langgraph.graph")
    saver = await storage.checkpointer()
    assert await storage.checkpointer() is saver
    graph = graphs.StateGraph(dict)
    graph.add_node("add", lambda state: {"n": state["n"] + 1})  # pyright: ignore[reportUnknownLambdaType]
    graph.set_entry_point("add")
    compiled = graph.compile(checkpointer=saver)
    config = {"configurable": {"thread_id": "thread-1"}}
    await compiled.ainvoke({"n": 1}, config)
    assert (await compiled.aget_state(config)).values == {"n": 2}


async def test_missing_langgraph_is_named(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="langgraph-checkpoint") as raised:
        await storage.checkpointer()
    assert raised.value.extra == "checkpointer"


def test_memory_needs_no_driver() -> None:
    """Neither PyMongo nor pydantic is imported, or needs to be installed."""
    code = """
        import asyncio, sys
        for name in ("pymongo", "bson", "motor", "pydantic", "mongomock"):
            sys.modules[name] = None
        from deerflow_mongo import create_storage

        async def main():
            async with create_storage("memory") as storage:
                await storage.runs.create("run-1", "thread-1", user_id=None, metadata={"a": 1})
                await storage.threads.ensure_thread(thread_id="thread-1", user_id=None)
                await storage.feedback.upsert(run_id="run-1", thread_id="thread-1", rating=1, user_id=None)
                await storage.users.create("user-1", email="a@example.org")
                print((await storage.runs.get("run-1", user_id=None))["metadata"])

        asyncio.run(main())
    """
    done = run_child([sys.executable, "-c", "if True:" + code])
    assert (done.returncode, done.stdout) == (0, "{'a': 1}\n"), done.stderr
