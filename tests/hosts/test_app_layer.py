"""DeerFlow's app layer: its registrar's `app.state` on a real server, used as its routes use it."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from deerflow_mongo import (
    LifecycleEvent,
    MongoStorage,
    StorageConfigError,
    StorageError,
    StorageRunObserver,
    StorageUnavailableError,
    create_storage,
)
from deerflow_mongo.hosts import app_layer
from deerflow_mongo.hosts.app_layer import app_state, storage_lifespan
from deerflow_mongo.testing.contract import ALICE, BOB, acting_as

needs_saver = pytest.mark.skipif(
    importlib.util.find_spec("langgraph") is None or importlib.util.find_spec("langgraph.checkpoint") is None,
    reason="langgraph-checkpoint is not installed (the extra `checkpointer`)",
)

KEYS = {
    "persistence",
    "checkpointer",
    "store",
    "session_factory",
    "run_store",
    "run_read_repo",
    "run_write_repo",
    "run_delete_repo",
    "feedback_repo",
    "thread_meta_repo",
    "thread_meta_storage",
    "run_event_store",
}
CHECKPOINTER = object()
"""A placeholder for tests that are not about checkpoints."""

LifespanFunc = Callable[[Any], AbstractAsyncContextManager[dict[str, Any] | None]]


class LifespanManager:
    """As a host's: enters the registered lifespans in order and puts what they yield on `app.state`."""

    def __init__(self) -> None:
        self._registered: list[LifespanFunc] = []

    def register(self, lifespan: LifespanFunc) -> LifespanFunc:
        if lifespan not in self._registered:
            self._registered.append(lifespan)
        return lifespan

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncGenerator[dict[str, Any]]:
        state: dict[str, Any] = {}
        async with AsyncExitStack() as stack:
            for lifespan in self._registered:
                yielded = await stack.enter_async_context(lifespan(app))
                if isinstance(yielded, dict):
                    state.update(yielded)
            for name, part in state.items():
                setattr(app.state, name, part)
            yield state


class RunStatus(StrEnum):
    """As a host's: an enum whose members are text."""

    PENDING = "pending"


class HostThread(BaseModel):
    """A host's own model of a new thread."""

    thread_id: str
    assistant_id: str | None = None
    user_id: str | None = None
    display_name: str | None = None
    status: str = "idle"
    metadata: dict[str, Any] = {}


@dataclass
class EventBuffer:
    """A run's callback in the host: stores events in batches, by tasks that are not awaited immediately."""

    store: Any
    thread_id: str
    run_id: str
    tasks: list[asyncio.Task[Any]] = field(default_factory=lambda: list[asyncio.Task[Any]]())

    def add(self, *texts: str) -> None:
        batch = [
            {
                "thread_id": self.thread_id,
                "run_id": self.run_id,
                "event_type": "ai_message",
                "category": "message",
                "content": {"type": "ai", "content": text},
                "metadata": {"finish_reason": "stop"},
                "created_at": "2026-04-22T03:26:38+00:00",
            }
            for text in texts
        ]
        self.tasks.append(asyncio.get_running_loop().create_task(self.store.put_batch(batch)))


def _new_app() -> Any:
    return SimpleNamespace(state=SimpleNamespace())


@asynccontextmanager
async def _running(*lifespans: LifespanFunc) -> AsyncGenerator[Any]:
    """The `app.state` of an app whose lifespan manager has these registered."""
    manager, app = LifespanManager(), _new_app()
    for lifespan in lifespans:
        manager.register(lifespan)
    async with manager.lifespan(app):
        yield app.state


@pytest.fixture
def config(mongodb_url: str, database_name: str) -> dict[str, Any]:
    return {"backend": "mongodb", "url": mongodb_url, "database": database_name}


@pytest.fixture
async def state(config: dict[str, Any]) -> AsyncIterator[Any]:
    """The `app.state` of a running app, without real checkpoints."""
    async with _running(storage_lifespan(config, checkpointer=CHECKPOINTER)) as running:
        yield running


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[MongoStorage]:
    """The storages that lifespans have opened."""
    storages: list[MongoStorage] = []

    def counted(config: Any) -> Any:
        storage = create_storage(config)
        assert isinstance(storage, MongoStorage)
        storages.append(storage)
        return storage

    monkeypatch.setattr(app_layer, "create_storage", counted)
    return storages


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def _is_closed(storage: MongoStorage) -> bool:
    with pytest.raises(StorageError, match="closed"):
        await storage.runs.get("r", user_id=None)
    return True


# -- the state -----------------------------------------------------------------------------------------


async def test_state_has_every_key_of_the_registrar(state: Any) -> None:
    parts: dict[str, Any] = state.__dict__
    assert set(parts) == KEYS
    assert parts["store"] is parts["session_factory"] is None
    assert parts["run_store"] is parts["run_read_repo"] is parts["run_write_repo"] is parts["run_delete_repo"]
    assert parts["thread_meta_repo"] is parts["thread_meta_storage"]
    # A host tests `if run_write_repo or thread_meta_storage`: every part must be true.
    assert all(bool(part) for name, part in parts.items() if name not in ("store", "session_factory"))


async def test_lifespan_yields_a_plain_dict_and_assigns_nothing(config: dict[str, Any]) -> None:
    app = _new_app()
    async with storage_lifespan(config, checkpointer=CHECKPOINTER)(app) as yielded:
        assert type(yielded) is dict
        assert vars(app.state) == {}


async def test_persistence_has_what_the_hosts_routes_read(state: Any) -> None:
    persistence = state.persistence
    assert persistence.checkpointer is state.checkpointer is CHECKPOINTER
    assert persistence.session_factory is persistence.engine is None
    await persistence.setup()
    await persistence.aclose()
    await persistence.aclose()
    with pytest.raises(StorageError, match="closed"):
        await state.run_store.get("r", user_id=None)


@needs_saver
async def test_default_checkpointer_is_the_storages(config: dict[str, Any]) -> None:
    base: Any = importlib.import_module("langgraph.checkpoint.base")
    in_thread: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    async with _running(storage_lifespan(config)) as state:
        saver = state.persistence.checkpointer
        assert saver is state.checkpointer
        assert type(saver).__name__ == "MongoCheckpointSaver"
        checkpoint = base.empty_checkpoint()
        await saver.aput(in_thread, checkpoint, {"source": "update", "step": 1}, {})
        assert (await saver.aget_tuple(in_thread)).checkpoint["id"] == checkpoint["id"]
        assert [found.metadata["step"] async for found in saver.alist(in_thread, limit=10)] == [1]
        await saver.adelete_thread("t")
        assert await saver.aget_tuple(in_thread) is None


async def test_storage_without_checkpointer_needs_a_given_one() -> None:
    bare: Any = SimpleNamespace(
        runs=object(), feedback=object(), threads=object(), run_events=object(), setup=None, aclose=None
    )
    with pytest.raises(
        StorageConfigError, match=r"without a `checkpointer=`.* needs checkpoints .*SimpleNamespace does not"
    ):
        await app_state(bare)
    assert (await app_state(bare, checkpointer=CHECKPOINTER))["checkpointer"] is CHECKPOINTER


async def test_mongomock_needs_a_given_checkpointer() -> None:
    pytest.importorskip("mongomock_motor")
    mock = {"backend": "mongodb", "driver": "mongomock"}
    with pytest.raises(StorageConfigError, match="needs a MongoDB server"):
        async with _running(storage_lifespan(mock)):
            pass
    async with _running(storage_lifespan(mock, checkpointer=CHECKPOINTER)) as state:
        await state.run_store.create("r", "t", user_id=ALICE)
        assert (await state.run_store.get("r", user_id=ALICE))["run_id"] == "r"


# -- used as the host uses it --------------------------------------------------------------------------


async def _create_run(state: Any, run_id: str, thread_id: str, **fields: Any) -> Any:
    """As the host does: the run, then its thread, then the thread's assistant if it differs."""
    await state.run_write_repo.create(
        run_id=run_id,
        thread_id=thread_id,
        assistant_id="lead_agent",
        status=str(RunStatus.PENDING),
        metadata={"source": "test"},
        follow_up_to_run_id=None,
        created_at="2026-04-22T03:26:38.123456+00:00",
        **fields,
    )
    thread = await state.thread_meta_storage.ensure_thread(thread_id=thread_id, assistant_id="lead_agent")
    if thread.assistant_id != "lead_agent":
        await state.thread_meta_storage.sync_thread_assistant_id(
            thread_id=thread_id, assistant_id="lead_agent"
        )
    return await state.thread_meta_storage.get_thread(thread_id)


async def test_runs_are_created_read_and_deleted_by_the_three_repositories(state: Any) -> None:
    with acting_as(ALICE):
        await state.thread_meta_storage.ensure_thread(thread_id="t", metadata={"a": 1})
        thread = await _create_run(state, "r", "t")
        assert (thread.thread_id, thread.assistant_id, thread.user_id) == ("t", "lead_agent", ALICE)
        [row] = await state.run_read_repo.list_by_thread("t", limit=100)
        assert row == await state.run_read_repo.get("r")
        assert (row["run_id"], row["thread_id"], row["user_id"]) == ("r", "t", ALICE)
        assert (row["status"], row["metadata"]) == ("pending", {"source": "test"})
        assert row["created_at"] == "2026-04-22T03:26:38.123456+00:00"
        assert row.get("error", "no such key") is None
    with acting_as(BOB):
        assert await state.run_store.get("r") is None
        assert await state.run_delete_repo.delete("r") is False
    with acting_as(ALICE):
        assert await state.run_delete_repo.delete("r") is True
        assert await state.run_store.list_by_thread("t", limit=1) == []


async def test_observer_of_these_repositories_stores_a_runs_lifecycle(state: Any) -> None:
    observer = StorageRunObserver(
        run_write_repo=state.run_write_repo, thread_meta_storage=state.thread_meta_storage
    )
    with acting_as(ALICE):
        await _create_run(state, "r", "t")

    async def happens(event_type: str, **payload: Any) -> None:
        await observer.on_event(
            LifecycleEvent(event_type=event_type, run_id="r", thread_id="t", payload=payload)
        )

    await happens("run_started")
    await happens("thread_status_updated", status="running")
    assert (await state.run_store.get("r", user_id=ALICE))["status"] == "running"
    assert (await state.thread_meta_storage.get_thread("t", user_id=ALICE)).status == "running"
    counts = {"total_tokens": 3, "llm_call_count": 1, "last_ai_message": "hello"}
    await happens("run_completed", completion_data=counts, title="A title")
    await happens("thread_status_updated")
    row = await state.run_store.get("r", user_id=ALICE)
    assert (row["status"], row["total_tokens"], row["last_ai_message"]) == ("success", 3, "hello")
    assert row["started_at"] < row["ended_at"]
    thread = await state.thread_meta_storage.get_thread("t", user_id=ALICE)
    assert (thread.status, thread.display_name) == ("idle", "A title")


async def test_thread_repository_takes_the_hosts_own_models(state: Any) -> None:
    new: Any = HostThread(thread_id="t", user_id=ALICE, metadata={"a": 1})
    made = await state.thread_meta_repo.create_thread_meta(new)
    assert made == await state.thread_meta_repo.get_thread_meta("t")
    await state.thread_meta_repo.update_thread_meta("t", metadata={"b": 2}, status=None, assistant_id="x")
    [found] = await state.thread_meta_repo.search_threads(
        metadata={"b": 2}, status=None, user_id=None, assistant_id="x", limit=10, offset=0
    )
    assert (found.metadata, found.status, found.created_time.isoformat()) == (
        {"b": 2},
        "idle",
        made.created_time.isoformat(),
    )
    assert found.updated_time > found.created_time
    await state.thread_meta_repo.delete_thread("t")
    assert await state.thread_meta_storage.get_thread("t", user_id=None) is None


async def test_another_users_thread_is_hidden_and_errors_reveal_nothing(state: Any) -> None:
    threads = state.thread_meta_storage
    with acting_as(ALICE):
        await threads.ensure_thread(thread_id="t", metadata={"secret": "deer"})
    with acting_as(BOB):
        assert await threads.get_thread("t") is None
        assert await threads.search_threads(metadata=None, status=None, assistant_id=None) == []
        with pytest.raises(PermissionError) as refused:
            await threads.ensure_thread(thread_id="t", assistant_id=None, metadata={})
    assert "deer" not in str(refused.value)
    assert ALICE not in str(refused.value)


async def test_unawaited_batches_are_numbered_in_the_order_of_the_calls(state: Any) -> None:
    store = state.run_event_store
    with acting_as(ALICE):
        await _create_run(state, "r", "t")
        buffer = EventBuffer(store, "t", "r")
        for number in range(20):
            buffer.add(f"{number}a", f"{number}b")
        await asyncio.gather(*buffer.tasks)
        rows = await store.list_messages_by_run("t", "r", limit=51, before_seq=None, after_seq=None)
        assert [row["seq"] for row in rows] == list(range(1, 41))
        assert [row["content"]["content"] for row in rows] == [f"{n}{x}" for n in range(20) for x in "ab"]
        assert {row["created_at"] for row in rows} == {"2026-04-22T03:26:38+00:00"}
        page = await store.list_messages_by_run("t", "r", limit=11, after_seq=30)
        assert [row["seq"] for row in page] == list(range(31, 41))
        assert await store.count_messages("t") == 40
        first = await store.list_events("t", "r", event_types=["ai_message"], limit=2)
        assert [row["seq"] for row in first] == [1, 2]
    with acting_as(BOB):
        assert await store.list_messages("t") == []
        with pytest.raises(PermissionError, match="not allowed to append events"):
            await store.put_batch([_event("t", "r")])
    with acting_as(ALICE):
        assert await store.delete_by_run("t", "r") == 40


def _event(thread_id: str, run_id: str) -> dict[str, Any]:
    return {"thread_id": thread_id, "run_id": run_id, "event_type": "ai_message", "category": "message"}


async def test_feedback_rows_have_the_keys_of_the_hosts_answers(state: Any) -> None:
    feedback = state.feedback_repo
    first = await feedback.upsert(run_id="r", thread_id="t", rating=1, user_id=ALICE, comment="good")
    again = await feedback.upsert(run_id="r", thread_id="t", rating=-1, user_id=ALICE, comment=None)
    assert again["feedback_id"] == first["feedback_id"]
    beside = await feedback.create(
        run_id="r", thread_id="t", rating=1, user_id=BOB, message_id="m", comment=None
    )
    listed = await feedback.list_by_run("t", "r", user_id=None)
    assert [row["feedback_id"] for row in listed] == [beside["feedback_id"], first["feedback_id"]]
    assert {row["owner_id"] for row in listed} == {ALICE, BOB}
    assert [row["rating"] for row in await feedback.list_by_run("t", "r", user_id=ALICE)] == [-1]
    totals = {"run_id": "r", "total": 2, "positive": 1, "negative": 1}
    assert await feedback.aggregate_by_run("t", "r") == totals
    assert set(await feedback.list_by_thread_grouped("t", user_id=ALICE)) == {"r"}
    assert await feedback.delete_by_run(thread_id="t", run_id="r", user_id=ALICE) is True
    found = await feedback.get(beside["feedback_id"])
    assert (found.get("thread_id"), found.get("run_id")) == ("t", "r")
    assert await feedback.delete(beside["feedback_id"]) is True
    assert await feedback.get(beside["feedback_id"]) is None


# -- starting and stopping -----------------------------------------------------------------------------


async def test_storage_is_closed_when_the_app_ends(
    config: dict[str, Any], opened: list[MongoStorage]
) -> None:
    async with _running(storage_lifespan(config, checkpointer=CHECKPOINTER)) as state:
        await state.run_store.create("r", "t", user_id=ALICE)
    [storage] = opened
    assert await _is_closed(storage)


async def test_restarted_app_has_a_new_storage_and_the_same_data(
    config: dict[str, Any], opened: list[MongoStorage]
) -> None:
    lifespan = storage_lifespan(config, checkpointer=CHECKPOINTER)
    async with _running(lifespan) as state:
        await state.run_store.create("r", "t", user_id=ALICE)
    async with _running(lifespan) as state:
        assert (await state.run_store.get("r", user_id=ALICE))["thread_id"] == "t"
    assert len(opened) == 2


async def test_two_apps_on_one_database_see_each_others_writes_immediately(config: dict[str, Any]) -> None:
    lifespans = (storage_lifespan(config, checkpointer=CHECKPOINTER) for _ in range(2))
    async with AsyncExitStack() as stack:
        one, two = await asyncio.gather(
            *(stack.enter_async_context(_running(lifespan)) for lifespan in lifespans)
        )
        for number in range(20):
            run_id = f"r{number}"
            with acting_as(ALICE):
                await _create_run(one, run_id, "t")
                await one.run_event_store.put_batch([_event("t", run_id)])
                assert (await two.run_store.get(run_id))["run_id"] == run_id
                assert await two.run_event_store.count_messages("t") == number + 1
            await two.feedback_repo.upsert(run_id=run_id, thread_id="t", rating=1, user_id=ALICE)
            assert (await one.feedback_repo.aggregate_by_run("t", run_id))["total"] == 1
        await one.persistence.aclose()
        with acting_as(ALICE):
            assert len(await two.run_store.list_by_thread("t")) == 20


async def test_missing_server_fails_the_start_and_leaves_nothing_open(
    closed_port: int, opened: list[MongoStorage]
) -> None:
    config = {"backend": "mongodb", "url": f"mongodb://127.0.0.1:{closed_port}", "timeout_ms": 300}
    with pytest.raises(StorageUnavailableError):
        async with _running(storage_lifespan(config)):
            pytest.fail("the app started")
    [storage] = opened
    assert await _is_closed(storage)


def test_invalid_configuration_is_reported_at_the_start_and_not_before() -> None:
    lifespan = storage_lifespan({"backend": "mongodb", "url": "$NO_SUCH_VARIABLE_HERE"})

    async def start() -> None:
        async with _running(lifespan):
            pass

    with pytest.raises(StorageConfigError, match="NO_SUCH_VARIABLE_HERE"):
        asyncio.run(start())


async def test_failing_checkpointer_leaves_no_server_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[MongoStorage]
) -> None:
    async def refuse(self: MongoStorage) -> Any:
        raise StorageError("no checkpoints today")

    monkeypatch.setattr(MongoStorage, "checkpointer", refuse)
    folder = tmp_path / "data"
    config = {"backend": "mongodb", "url": "embedded", "data_dir": str(folder)}
    with pytest.raises(StorageError, match="no checkpoints today"):
        async with _running(storage_lifespan(config)):
            pytest.fail("the app started")
    assert folder.exists()
    assert not (folder / "server.json").exists()
    assert await _is_closed(opened[0])


async def test_later_lifespan_that_fails_closes_the_storage(
    config: dict[str, Any], opened: list[MongoStorage]
) -> None:
    @asynccontextmanager
    async def no_bridge(app: Any) -> AsyncGenerator[dict[str, Any]]:
        raise OSError("no stream bridge")
        yield {}

    with pytest.raises(OSError, match="no stream bridge"):
        async with _running(storage_lifespan(config, checkpointer=CHECKPOINTER), no_bridge):
            pytest.fail("the app started")
    assert await _is_closed(opened[0])


async def test_cancelled_start_leaves_nothing_open(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, opened: list[MongoStorage]
) -> None:
    reached = asyncio.Event()

    async def never(self: MongoStorage) -> Any:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(MongoStorage, "checkpointer", never)

    async def start() -> None:
        async with _running(storage_lifespan(config)):
            pytest.fail("the app started")

    starting = asyncio.create_task(start())
    await reached.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await _is_closed(opened[0])
