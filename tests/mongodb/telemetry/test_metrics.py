"""Counters: each counts exactly what its description in the table of metrics states."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pymongo import AsyncMongoClient

from deerflow_mongo import MongoStorage, RunExistsError, StorageConfigError, StorageUnavailableError
from deerflow_mongo.mongodb.telemetry.metrics import METRICS, StorageMetrics, samples_of
from deerflow_mongo.mongodb.telemetry.prometheus import StorageCollector

from ...busy_machine import connected
from ...faults.proxy import FaultProxy
from ..checkpoints.puts import put
from ..drivers.fixtures import event
from .conftest import OpenObserved
from .reports import Reports


def _count(metrics: StorageMetrics, operation: str, outcome: str = "ok") -> int:
    found = metrics["operation_duration_seconds"].get((operation, outcome))
    return 0 if found is None else found.count


async def _get(storage: MongoStorage, times: int = 1) -> None:
    await asyncio.gather(*(storage.runs.get("run-1", user_id="alice") for _ in range(times)))


async def test_operations_are_counted_by_name_and_outcome(observed: MongoStorage) -> None:
    await observed.runs.create("run-1", "thread-1", user_id="alice")
    for _ in range(2):
        with pytest.raises(RunExistsError):
            await observed.runs.create("run-1", "thread-1", user_id="alice")
    await _get(observed, 30)
    metrics = observed.metrics()
    assert _count(metrics, "runs.create") == 1
    assert _count(metrics, "runs.create", "RunExistsError") == 2
    assert _count(metrics, "runs.get") == 30
    assert metrics["command_duration_seconds"]["insert", "ok"].count >= 3
    assert metrics["open_operations"] == 0


async def test_histogram_has_cumulative_buckets(observed: MongoStorage) -> None:
    await _get(observed, 10)
    found = observed.metrics()["operation_duration_seconds"]["runs.get", "ok"]
    counts = list(found.buckets.values())
    assert counts == sorted(counts)
    assert (counts[-1], found.count) == (10, 10)
    assert list(found.buckets)[-1] == float("inf")
    assert 0 < found.sum < 60


@pytest.mark.parametrize(
    ("command", "driver"), [("find", "pymongo"), ("update", "pymongo"), ("find", "motor")]
)
async def test_commands_that_the_driver_repeats_are_retries(
    open_observed: OpenObserved, proxy: FaultProxy, command: str, driver: str
) -> None:
    async with open_observed(proxy.url, driver=driver) as storage:
        await storage.runs.create("run-1", "thread-1", user_id="alice")
        proxy.lose(command)
        if command == "find":
            await _get(storage)
        else:
            await storage.runs.update_status("run-1", "running")
        metrics = storage.metrics()
        assert metrics["retries"]["driver"] == 1
        assert metrics["command_duration_seconds"][command, "failed"].count == 1


async def test_events_whose_number_was_taken_are_one_retry(open_observed: OpenObserved) -> None:
    async with open_observed() as first, open_observed() as second:
        await first.run_events.put(**event())
        await second.run_events.put(**event())
        await first.run_events.put(**event())
        assert first.metrics()["retries"]["run_events.write"] == 1
        assert second.metrics()["retries"]["run_events.write"] == 0


async def test_checkpoints_of_two_writers_are_one_retry(open_observed: OpenObserved) -> None:
    async with open_observed() as first, open_observed() as second:
        savers = [await first.checkpointer(), await second.checkpointer()]
        for saver in (*savers, savers[0]):
            await put(saver, "thread-1", "text")
        assert first.metrics()["retries"]["checkpointer.put"] == 1
        assert second.metrics()["retries"]["checkpointer.put"] == 0


async def test_group_commits_are_counted_by_calls_and_documents(observed: MongoStorage) -> None:
    await asyncio.gather(*(observed.run_events.put_batch([event(), event()]) for _ in range(6)))
    saver = await observed.checkpointer()
    await asyncio.gather(*(put(saver, f"thread-{n}", "text") for n in range(3)))
    metrics = observed.metrics()
    assert (metrics["group_calls"]["run_events"].count, metrics["group_calls"]["run_events"].sum) == (1, 6)
    assert metrics["group_documents"]["run_events"].sum == 12
    assert metrics["group_calls"]["checkpointer"].sum == 3


async def test_backlog_is_what_was_accepted_and_is_not_stored(
    open_observed: OpenObserved, proxy: FaultProxy
) -> None:
    async with open_observed(proxy.url) as storage:
        proxy.delay("insert", 1, times=1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(storage.run_events.put_batch([event() for _ in range(7)]))
            await asyncio.sleep(0.1)
            assert storage.metrics()["backlog_events"] == 7
            assert storage.metrics()["backlog_size_bytes"] > 0
            assert storage.metrics()["open_operations"] == 1
        assert storage.metrics()["backlog_events"] == storage.metrics()["backlog_size_bytes"] == 0


async def test_followers_are_those_that_are_open(observed: MongoStorage) -> None:
    await observed.run_events.put(**event())
    async with aclosing(observed.run_events.follow("t")) as rows:
        await anext(rows)
        assert observed.metrics()["followers"] == 1
    assert observed.metrics()["followers"] == 0


async def test_calls_that_wait_for_a_connection_are_counted(
    open_observed: OpenObserved, proxy: FaultProxy
) -> None:
    async with open_observed(f"{proxy.url}&maxPoolSize=1", groups=False) as storage:
        before = storage.metrics()["pool_wait_seconds"]
        proxy.delay("find", 0.1, times=1)
        await _get(storage, 3)
        found = storage.metrics()
        assert found["pool_wait_seconds"].count - before.count == 3
        assert found["pool_wait_seconds"].sum - before.sum > 0.15  # two calls wait for the first one's answer
        assert found["pool_connections"] == {"idle": 1, "in_use": 0}


async def test_calls_that_get_no_connection_are_pool_failures(
    open_observed: OpenObserved, proxy: FaultProxy
) -> None:
    async with connected(open_observed(f"{proxy.url}&maxPoolSize=1", timeout_ms=2_000)) as storage:
        proxy.stall("find")
        results = await asyncio.gather(_get(storage), _get(storage), return_exceptions=True)
        assert [type(result) for result in results] == [StorageUnavailableError] * 2
        assert sum(storage.metrics()["pool_failures"].values()) == 1


async def test_callers_client_is_timed_from_outside(open_observed: OpenObserved, mongodb_url: str) -> None:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongodb_url)
    async with client, open_observed(client=client, groups=False) as storage:
        before = storage.metrics()["command_duration_seconds"]["find", "ok"].count
        await _get(storage, 4)
        metrics = storage.metrics()
        assert metrics["command_duration_seconds"]["find", "ok"].count - before == 4
        assert (metrics["pool_connections"], metrics["pool_wait_seconds"].count) == ({}, 0)


async def test_storage_without_the_option_names_it() -> None:
    async with MongoStorage.open({"driver": "mongomock", "slow_ms": 1_000}) as storage:
        with pytest.raises(StorageConfigError, match="metrics: true"):
            storage.metrics()
        with pytest.raises(StorageConfigError, match="metrics: true"):
            StorageCollector(storage)
    with pytest.raises(StorageConfigError, match="telemetry: otel"):
        MongoStorage.open({"driver": "mongomock"}, tracer_provider=object())


# -- exporters -------------------------------------------------------------------------------------


async def test_opentelemetry_reports_every_metric_with_the_database(
    observed: MongoStorage, reports: Reports
) -> None:
    await asyncio.gather(_get(observed, 5), observed.run_events.put(**event()))
    snapshot = observed.metrics()
    for metric in METRICS:
        points = reports.points(metric.otel_name)
        assert len(points) == len(samples_of(metric, snapshot)), metric.name
        for point in points:
            assert set(point.attributes) == {"db.namespace", *metric.labels}, metric.name
    [reads] = [p for p in reports.points("deerflow.storage.operation_duration") if _is_read(p)]
    assert (reads.count, reads.attributes["outcome"]) == (5, "ok")


def _is_read(point: Any) -> bool:
    return point.attributes["operation"] == "runs.get"


async def test_closed_storage_is_reported_no_more(open_observed: OpenObserved, reports: Reports) -> None:
    async with open_observed():
        assert len(reports.points("deerflow.storage.followers")) == 1
    assert reports.points("deerflow.storage.followers") == []


async def test_prometheus_collects_the_same_numbers(observed: MongoStorage) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(StorageCollector(observed))
    await _get(observed, 5)
    database = observed.config.database
    labels = {"database": database, "operation": "runs.get", "outcome": "ok"}
    assert registry.get_sample_value("deerflow_storage_operation_duration_seconds_count", labels) == 5
    assert registry.get_sample_value("deerflow_storage_followers", {"database": database}) == 0
    for source, number in observed.metrics()["retries"].items():
        labels = {"database": database, "source": source}
        assert registry.get_sample_value("deerflow_storage_retries_total", labels) == number
    text = generate_latest(registry).decode()
    assert all(f"# TYPE {metric.prometheus_name} " in text for metric in METRICS)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(StorageCollector(observed))


async def test_prometheus_collects_all_open_storages_where_none_is_named(open_observed: OpenObserved) -> None:
    registry = CollectorRegistry()
    registry.register(StorageCollector())
    name = "deerflow_storage_open_operations"
    async with open_observed() as storage:
        assert registry.get_sample_value(name, {"database": storage.config.database}) == 0
    assert registry.get_sample_value(name, {"database": storage.config.database}) is None
