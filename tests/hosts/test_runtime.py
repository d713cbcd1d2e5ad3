"""What the runtime of DeerFlow is given: its configuration, the storage it may share, the end of its runs."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from deerflow_mongo import StorageConfigError, StorageUnavailableError, create_storage
from deerflow_mongo.hosts import runtime
from deerflow_mongo.hosts.releases import RELEASES, Release
from deerflow_mongo.hosts.runtime import STOPPED, StoredRuntime, check_workers

MAIN, TWO, OLDEST = RELEASES


class Section:
    """A model of DeerFlow's configuration, with what is used of pydantic's."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def model_copy(self, *, update: Mapping[str, Any]) -> Section:
        return Section(**{**vars(self), **update})


CACHE = Section(type="redis", max_entries=7, key_prefix="operators")


def settings(**sections: Any) -> Section:
    defaults = {
        "database": Section(backend="memory", checkpoint_channel_mode="delta", checkpoint_cache=CACHE),
        "run_events": Section(backend="memory", max_trace_content=77),
        "run_ownership": Section(heartbeat_enabled=False, lease_seconds=9, grace_seconds=3),
        "agent_storage": Section(backend="file"),
        "scheduler": Section(enabled=True),
    }
    return Section(**{**defaults, **sections})


def built(release: Release, storage: Any = None, leases: Any = None) -> Any:
    """A runtime of which only the given parts are used."""
    absent: Any = None
    return StoredRuntime(
        storage, release, leases, absent, absent, absent, absent, absent, absent, lambda: None
    )


def config_of(release: Release, given: Section) -> Any:
    return built(release)._runtime_config(given)


# -- the configuration -----------------------------------------------------------------------------


def test_runtime_config_keeps_all_other_fields_of_its_sections() -> None:
    given = settings()
    seen = config_of(MAIN, given)
    assert vars(seen.database) == {**vars(given.database), "backend": "postgres"}
    assert vars(seen.run_events) == {"backend": "db", "max_trace_content": 77}
    assert vars(seen.run_ownership) == {"heartbeat_enabled": True, "lease_seconds": 9, "grace_seconds": 3}
    assert seen.scheduler is given.scheduler


def cache_prefix(storage: Any, given: Section = CACHE) -> str:
    seen = built(MAIN, storage)._runtime_config(settings(database=Section(checkpoint_cache=given)))
    assert (seen.database.checkpoint_cache.type, seen.database.checkpoint_cache.max_entries) == ("redis", 7)
    return seen.database.checkpoint_cache.key_prefix


def test_each_database_has_its_own_prefix_in_a_shared_checkpoint_cache() -> None:
    unset = CACHE.model_copy(update={"key_prefix": ""})
    urls = ["mongodb://ann:secret@h/x", "mongodb://bob:other@H:27017/x?w=1", "mongodb://h/y", "mongodb://i/x"]
    first, same, *others = [
        cache_prefix(create_storage({"backend": "mongodb", "url": url}), unset) for url in urls
    ]
    assert first == same
    assert len({first, *others}) == 3
    in_memory = create_storage({"backend": "memory"})
    assert cache_prefix(in_memory, unset) != cache_prefix(in_memory, unset)
    assert cache_prefix(in_memory) == "operators"


def test_operators_configuration_is_not_changed() -> None:
    given = settings()
    config_of(MAIN, given)
    assert (given.database.backend, given.run_ownership.heartbeat_enabled) == ("memory", False)


def test_heartbeat_that_is_forced_on_is_logged_once_with_its_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        config_of(MAIN, settings())
    [line] = caplog.messages
    assert "heartbeat_enabled is on" in line
    assert "leases of 9 s, grace 3 s" in line


def test_heartbeat_that_is_on_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        config_of(MAIN, settings(run_ownership=Section(heartbeat_enabled=True)))
    assert caplog.messages == []


def test_release_without_leases_recovers_at_its_start_as_on_sqlite() -> None:
    seen = config_of(TWO, settings())
    assert (seen.database.backend, seen.run_events.backend) == ("sqlite", "memory")


def test_agents_in_sql_are_refused_before_an_engine_is_made() -> None:
    with pytest.raises(StorageConfigError, match=r"`agent_storage.backend: db` stores agents in SQL"):
        config_of(MAIN, settings(agent_storage=Section(backend="db")))


@pytest.mark.parametrize("options", [{"backend": "memory"}, {"backend": "mongodb", "url": "mongomock://"}])
def test_storage_in_each_workers_memory_is_refused_for_several_workers(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_WORKERS", "4")
    with pytest.raises(StorageConfigError, match="GATEWAY_WORKERS=4 needs a storage that the workers share"):
        check_workers(options)


@pytest.mark.parametrize("workers", ["1", "many", ""])
def test_one_worker_may_have_its_storage_in_memory(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WORKERS", workers)
    check_workers({"backend": "memory"})


def test_several_workers_may_share_an_embedded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WORKERS", "4")
    check_workers({"backend": "mongodb", "url": "embedded"})


# -- the end of a worker ---------------------------------------------------------------------------


@pytest.fixture
async def storage() -> AsyncGenerator[Any]:
    async with create_storage({"backend": "memory"}) as opened:
        yield opened


def app_of(manager: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(run_manager=manager))


async def stored(storage: Any, run_id: str, owner: str, status: str) -> None:
    await storage.runs.put(
        run_id, thread_id=run_id, status=status, user_id="u", owner_worker_id=owner, lease_expires_at=None
    )


async def test_pending_run_without_a_task_is_ended_and_other_workers_runs_are_not(storage: Any) -> None:
    await stored(storage, "mine", "worker", "pending")
    await stored(storage, "done", "worker", "success")
    await stored(storage, "theirs", "other", "running")
    await built(MAIN, storage)._end_runs(app_of(SimpleNamespace(worker_id="worker")))
    rows = {run_id: await storage.runs.get(run_id, user_id="u") for run_id in ("mine", "done", "theirs")}
    assert [row["status"] for row in rows.values()] == ["interrupted", "success", "running"]
    assert rows["mine"]["error"] == STOPPED


async def test_runs_of_a_manager_without_a_drain_are_cancelled_first(storage: Any) -> None:
    task = asyncio.create_task(asyncio.Event().wait())

    async def cancel(run_id: str) -> None:
        task.cancel()

    manager = SimpleNamespace(_runs={"r": SimpleNamespace(run_id="r", task=task)}, cancel=cancel)
    await stored(storage, "r", "worker", "running")
    leases: Any = SimpleNamespace(owner_worker_id="worker")
    await built(OLDEST, storage, leases)._end_runs(app_of(manager))
    assert task.cancelled()
    assert (await storage.runs.get("r", user_id="u"))["status"] == "interrupted"


async def test_start_that_failed_before_its_manager_ends_nothing(storage: Any) -> None:
    await built(MAIN, storage)._end_runs(app_of(None))


@pytest.mark.parametrize("hangs", [True, False], ids=["frozen", "gone"])
async def test_unavailable_storage_delays_a_stop_for_a_bounded_time(
    hangs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def end_runs_of_worker(owner: str, **fields: Any) -> int:
        if hangs:
            await asyncio.Event().wait()
        raise StorageUnavailableError("gone")

    monkeypatch.setattr(runtime, "END_TIMEOUT_S", 0.05)
    storage = SimpleNamespace(runs=SimpleNamespace(end_runs_of_worker=end_runs_of_worker))
    async with asyncio.timeout(5):
        await built(MAIN, storage)._end_runs(app_of(SimpleNamespace(worker_id="worker")))
    assert "may be left until their leases expire" in caplog.text
