"""A run that could not be stored is not acknowledged."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio

from deerflow_mongo import MongoStorage, StorageUnavailableError, create_storage

from .gateway_process import needs_deerflow

pytestmark = needs_deerflow


@pytest_asyncio.fixture
async def manager(mongodb_url: str, database_name: str) -> AsyncGenerator[Any]:
    """DeerFlow's run manager as our gateway makes it."""
    threads = importlib.import_module("deerflow_mongo.hosts.adapters.threads")
    manager_class = importlib.import_module("deerflow_mongo.hosts.run_manager").OwnRunsManager
    async with create_storage(
        {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    ) as storage:
        assert isinstance(storage, MongoStorage)
        yield manager_class(storage.runs, threads.ThreadMetaStoreAdapter(storage.threads, storage.runs))


async def test_a_run_that_could_not_be_stored_is_refused_and_not_kept(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    http_error = importlib.import_module("fastapi").HTTPException
    context = importlib.import_module("deerflow.runtime.user_context")

    async def unavailable(*_: Any, **__: Any) -> None:
        raise StorageUnavailableError("no server")

    class User:
        id = "alice"

    token = context.set_current_user(User())
    try:
        with monkeypatch.context() as patched:
            patched.setattr("deerflow_mongo.stores.runs.MongoRunStore.create", unavailable)
            with pytest.raises(http_error, match="could not be stored") as refused:
                await manager.create_or_reject("thread-1")
        assert refused.value.status_code == 503
        assert not await manager.has_inflight("thread-1")
        assert await manager.list_by_thread("thread-1") == []
        run = await manager.create_or_reject("thread-1")
        assert (await manager.get(run.run_id)).thread_id == "thread-1"
    finally:
        context.reset_current_user(token)
