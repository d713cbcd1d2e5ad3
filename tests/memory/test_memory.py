"""What the suite does not cover of `backend: memory`: options, closing, checkpoints, the missing driver."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
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
    create_storage,
)
from deerflow_mongo.contract.capabilities import max_payload_bytes
from deerflow_mongo.memory.storage import MemoryStorage

from ..child_processes import run_child

RUN: dict[str, Any] = {"run_id": "run-1", "thread_id": "thread-1"}


@pytest_asyncio.fixture
async def storage() -> AsyncIterator[MemoryStorage]:
    async with MemoryStorage() as opened:
        yield opened


async def test_payload_of_any_size_is_stored(storage: MemoryStorage) -> None:
    assert max_payload_bytes(storage) is None
    text = "x" * (17 * 1024 * 1024)
    await storage.runs.create(**RUN, user_id=None, metadata={"text": text}, error=text)
    row = await storage.runs.get("run-1", user_id=None)
    assert row is not None
    assert (row["metadata"], row["error"]) == ({"text": text}, text)


async def test_unknown_keyword_is_refused_and_nothing_is_written(storage: MemoryStorage) -> None:
    runs: Any = storage.runs
    users: Any = storage.users
    with pytest.raises(TypeError, match="unknown keyword argument 'modelname'"):
        await runs.create(**RUN, user_id=None, modelname="model")
    assert await runs.get("run-1", user_id=None) is None
    await runs.create(**RUN, user_id=None)
    before = await runs.get("run-1", user_id=None)
    for call in (runs.update_status, runs.update_run_completion):
        with pytest.raises(TypeError, match="unknown keyword argument 'errors'"):
            await call("run-1", status="error", errors="broken")
    assert await runs.get("run-1", user_id=None) == before
    account = await users.create("user-1", email="a@example.org")
    fields = {name: value for name, value in account.items() if name not in ("user_id", "created_at")}
    for wrong in ({**fields, "mail": "b@example.org"}, {"email": "b@example.org"}):
        with pytest.raises(TypeError):
            await users.update("user-1", **wrong)
    assert await users.get("user-1") == account


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
