"""Our run manager: a run that is not stored is not acknowledged."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
import pytest_asyncio

from deerflow_mongo import (
    ActorContext,
    MongoStorage,
    StorageUnavailableError,
    bind_actor_context,
    create_storage,
    reset_actor_context,
)

from .gateway_process import needs_deerflow

pytestmark = needs_deerflow

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
    manager_class = importlib.import_module("deerflow_mongo.hosts.run_manager").OwnerCheckingRunManager
    async with create_storage(
        {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    ) as storage:
        assert isinstance(storage, MongoStorage)
        yield manager_class(storage.runs, threads.ThreadMetaStoreAdapter(storage.threads, storage.runs))


async def test_run_that_could_not_be_stored_is_refused_with_503(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: Any, **__: Any) -> None:
        raise StorageUnavailableError("no server")

    with monkeypatch.context() as patched:
        patched.setattr("deerflow_mongo.mongodb.stores.runs.MongoRunStore.create", unavailable)
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


def _http_error() -> Any:
    return importlib.import_module("fastapi").HTTPException


async def _assert_no_runs(manager: Any) -> None:
    assert not await manager.has_inflight(THREAD)
    assert await manager.list_by_thread(THREAD) == []
