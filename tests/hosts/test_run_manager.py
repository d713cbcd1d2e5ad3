"""Our run manager: a run that is not stored is not acknowledged."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from deerflow_mongo import (
    ActorContext,
    ActorMissingError,
    MongoStorage,
    PayloadTooLargeError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    bind_actor_context,
    create_storage,
    reset_actor_context,
)

from .gateway_process import needs_deerflow

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

THREAD = "thread-1"


@pytest.fixture(autouse=True)
def bound_user() -> Generator[None]:
    """A user is logged in."""
    token = bind_actor_context(ActorContext(user_id="alice"))
    yield
    reset_actor_context(token)


@pytest_asyncio.fixture
async def manager(mongodb_url: str, database_name: str) -> AsyncGenerator[Any]:
    """DeerFlow's run manager as our gateway builds it."""
    threads = importlib.import_module("deerflow_mongo.hosts.adapters.threads")
    runs = importlib.import_module("deerflow_mongo.hosts.adapters.runs")
    run_manager_class = importlib.import_module("deerflow_mongo.hosts.run_manager").run_manager_class
    async with create_storage(
        {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    ) as storage:
        assert isinstance(storage, MongoStorage)
        checks = _release().checks_thread_owner
        manager_class = run_manager_class(
            None if checks else lambda: threads.ThreadMetaStoreAdapter(storage.threads, storage.runs)
        )
        yield manager_class(runs.RunStoreAdapter(storage.runs))


def _release() -> Any:
    """The installed release of DeerFlow."""
    return importlib.import_module("deerflow_mongo.hosts.deerflow").find_release()


def _refuses_unstored_runs(manager: Any) -> bool:
    """Whether this DeerFlow's own manager raises the error of a run that it could not store."""
    return hasattr(manager, "_persist_new_run_to_store")


def _writes_of_new_runs(write: Callable[..., Awaitable[None]]) -> dict[str, Callable[..., Awaitable[None]]]:
    """The methods with which the releases store a new run."""
    return dict.fromkeys(("put", "create_thread_operation_atomic"), write)


async def test_run_that_could_not_be_stored_is_refused_with_503(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: Any, **__: Any) -> None:
        raise StorageUnavailableError("no server")

    with monkeypatch.context() as patched:
        for name, write in _writes_of_new_runs(unavailable).items():
            patched.setattr(f"deerflow_mongo.mongodb.stores.runs.MongoRunStore.{name}", write)
        with pytest.raises(_http_error(), match="could not be stored, try again") as refused:
            await manager.create_or_reject(THREAD)
    assert refused.value.status_code == 503
    await _assert_no_runs(manager)
    run = await manager.create_or_reject(THREAD)
    assert (await manager.get(run.run_id)).thread_id == THREAD


async def test_run_that_can_never_be_stored_is_refused_with_422(manager: Any) -> None:
    with pytest.raises(_http_error(), match="assistant_id is 3,000 bytes long") as refused:
        await manager.create_or_reject(THREAD, "x" * 3_000)
    assert refused.value.status_code == 422
    await _assert_no_runs(manager)


class FaultyRuns:
    """A run store that stores a new run as given; everything else is a real store's."""

    def __init__(self, runs: Any, write: Callable[..., Awaitable[None]]) -> None:
        self._runs = runs
        vars(self).update(_writes_of_new_runs(write))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runs, name)


def _real_runs(manager: Any) -> Any:
    """The storage's own store of runs."""
    return manager._store._runs


def _faulty(manager: Any, write: Callable[..., Awaitable[None]]) -> Any:
    """A manager on the same stores, but for the writes of new runs."""
    adapter = importlib.import_module("deerflow_mongo.hosts.adapters.runs").RunStoreAdapter
    return type(manager)(adapter(FaultyRuns(_real_runs(manager), write)))


@pytest.mark.parametrize("method", ["create", "create_or_reject"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("any"), 500),
        (KeyError("any"), 500),
        (OSError("any"), 500),
        (ActorMissingError("RunStore.put"), 401),
        (StorageAccessError("not authorized"), 503),
        (PayloadTooLargeError("kwargs", 20, 10), 422),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_run_that_is_not_stored_is_refused_whatever_the_error(
    manager: Any, method: str, error: Exception, status: int
) -> None:
    async def failing(*_: Any, **__: Any) -> None:
        raise error

    faulty = _faulty(manager, failing)
    if not isinstance(error, StorageError) and _refuses_unstored_runs(manager):
        with pytest.raises(type(error)):
            await getattr(faulty, method)(THREAD)
        await _assert_no_runs(faulty)
        return
    with pytest.raises(_http_error()) as refused:
        await getattr(faulty, method)(THREAD)
    assert refused.value.status_code == status
    assert ("Retry-After" in (refused.value.headers or {})) == (status == 503)
    await _assert_no_runs(faulty)


@pytest.mark.parametrize("method", ["create", "create_or_reject"])
async def test_run_without_a_user_is_refused_with_401(manager: Any, method: str) -> None:
    token = bind_actor_context(None)
    try:
        with pytest.raises(_http_error(), match="Authentication required") as refused:
            await getattr(manager, method)(THREAD)
        assert refused.value.status_code == 401
    finally:
        reset_actor_context(token)
    await _assert_no_runs(manager)


async def test_run_that_the_host_never_stores_is_refused(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgetful(*_: Any) -> None:
        """As a release of DeerFlow that stores a run later."""

    step = "_persist_new_run_to_store" if _refuses_unstored_runs(manager) else "_persist_to_store"
    monkeypatch.setattr(manager, step, forgetful)
    with pytest.raises(_http_error(), match="could not be stored") as refused:
        await manager.create(THREAD)
    assert refused.value.status_code == 500
    await _assert_no_runs(manager)


async def test_cancelled_store_leaves_no_run_behind(manager: Any) -> None:
    async def cancelled(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    faulty = _faulty(manager, cancelled)
    with pytest.raises(asyncio.CancelledError):
        await faulty.create_or_reject(THREAD)
    await _assert_no_runs(faulty)


async def test_cancelled_caller_leaves_no_pending_run(manager: Any) -> None:
    real, storing, may_store = _real_runs(manager), asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **fields: Any) -> Any:
        storing.set()
        await may_store.wait()
        name = "create_thread_operation_atomic" if _release().has_run_ownership else "put"
        return await getattr(real, name)(*arguments, **fields)

    faulty = _faulty(manager, slow)
    caller = asyncio.create_task(faulty.create_or_reject(THREAD))
    await storing.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_store.set()
    for _ in range(500):
        stored = await real.list_by_thread(THREAD, user_id="alice")
        if [row["status"] for row in stored] == ["interrupted"]:
            break
        await asyncio.sleep(0.01)
    assert [row["status"] for row in await real.list_by_thread(THREAD, user_id="alice")] == ["interrupted"]
    assert not await faulty.has_inflight(THREAD)
    assert await faulty.create_or_reject(THREAD)


async def test_run_of_a_record_in_memory_can_be_sent_as_json(manager: Any) -> None:
    half = "\ud83d"
    run = await manager.create_or_reject(THREAD, metadata={half: half}, kwargs={"input": [half]})
    assert (run.metadata, run.kwargs) == ({"\ufffd": "\ufffd"}, {"input": ["\ufffd"]})
    await manager.set_status(run.run_id, run.status, error=half)
    assert (await manager.get(run.run_id)).error == "\ufffd"


async def test_actor_without_an_id_creates_and_finds_no_runs(manager: Any) -> None:
    run = await manager.create_or_reject(THREAD)
    token = bind_actor_context(ActorContext(user_id=None))
    try:
        for method in ("create", "create_or_reject"):
            with pytest.raises(_http_error()) as refused:
                await getattr(manager, method)("another thread")
            assert refused.value.status_code == 401
        with pytest.raises(ActorMissingError):
            await manager.get(run.run_id)
        with pytest.raises(ActorMissingError):
            await manager.list_by_thread(THREAD)
    finally:
        reset_actor_context(token)


async def test_empty_user_id_is_a_user_and_not_everybody(manager: Any) -> None:
    run = await manager.create_or_reject(THREAD)
    token = bind_actor_context(None)
    try:
        assert await manager.get(run.run_id, user_id="") is None
        assert await manager.list_by_thread(THREAD, user_id="") == []
        assert await manager.get(run.run_id) is run
    finally:
        reset_actor_context(token)


async def test_run_in_memory_does_not_exist_for_another_user(manager: Any) -> None:
    run = await manager.create_or_reject(THREAD)
    token = bind_actor_context(ActorContext(user_id="bob"))
    try:
        assert await manager.get(run.run_id) is None
        assert await manager.get(run.run_id, user_id="bob") is None
        assert await manager.list_by_thread(THREAD) == []
        assert await manager.get(run.run_id, user_id="alice") is run
    finally:
        reset_actor_context(token)
    assert await manager.get(run.run_id) is run


async def test_stored_run_does_not_exist_for_another_user(manager: Any) -> None:
    run = await manager.create_or_reject(THREAD)
    other_worker = type(manager)(manager._store._store)
    assert (await other_worker.get(run.run_id)).run_id == run.run_id
    token = bind_actor_context(ActorContext(user_id="bob"))
    try:
        assert await other_worker.get(run.run_id) is None
        assert await other_worker.list_by_thread(THREAD) == []
    finally:
        reset_actor_context(token)


async def test_internal_caller_acts_for_the_runs_owner(manager: Any) -> None:
    if not hasattr(importlib.import_module("app.gateway.internal_auth"), "INTERNAL_SYSTEM_ROLE"):
        pytest.skip("in this release of DeerFlow, internal callers have runs of their own only")
    run = await manager.create_or_reject(THREAD)
    other_worker = type(manager)(manager._store._store)
    token = bind_actor_context(SimpleNamespace(id="default", system_role="internal"))
    try:
        assert await manager.get(run.run_id) is run
        assert (await other_worker.get(run.run_id)).run_id == run.run_id
    finally:
        reset_actor_context(token)


async def test_caller_that_is_cancelled_after_admission_leaves_no_active_run(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _release().has_run_ownership:
        pytest.skip("this release of DeerFlow does not close such a run itself")
    await manager.create_or_reject(THREAD)
    reached = asyncio.Event()

    async def slow(*_: Any, **__: Any) -> bool:
        reached.set()
        await asyncio.Event().wait()
        return True

    with monkeypatch.context() as patched:
        patched.setattr(manager, "_persist_status", slow)
        caller = asyncio.create_task(manager.create_or_reject(THREAD, multitask_strategy="interrupt"))
        await reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    runs = await _real_runs(manager).list_by_thread(THREAD, user_id="alice")
    assert [row["status"] for row in runs] == ["interrupted", "interrupted"]


def _http_error() -> Any:
    return importlib.import_module("fastapi").HTTPException


async def _assert_no_runs(manager: Any) -> None:
    assert not await manager.has_inflight(THREAD)
    assert await manager.list_by_thread(THREAD) == []
