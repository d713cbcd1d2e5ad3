"""Records of slow operations: one for each, with where its time went, and the ids beside the text."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, RunExistsError

from ...faults.proxy import FaultProxy
from ..drivers.fixtures import event
from .conftest import OpenObserved
from .reports import Reports

SLOW_MS = 150


@pytest.fixture
def open_observed(mongodb_url: str, emptied_database: str, reports: Reports) -> OpenObserved:
    """Replaces the one with OpenTelemetry."""

    def build(url: str = mongodb_url, **options: Any) -> MongoStorage:
        return MongoStorage.open({"url": url, "database": emptied_database, "slow_ms": SLOW_MS, **options})

    return build


async def test_slow_operation_is_one_record(
    open_observed: OpenObserved, proxy: FaultProxy, reports: Reports
) -> None:
    async with open_observed(proxy.url) as storage:
        reports.clear()
        proxy.delay("find", 0.2, times=1)
        await storage.runs.get("run-1", user_id="alice")
        await storage.runs.get("run-1", user_id="alice")
    [record] = reports.slow
    assert record.levelno == logging.WARNING
    fields = vars(record)
    assert (fields["operation"], fields["outcome"], fields["collections"]) == ("runs.get", "ok", ["runs"])
    assert (fields["commands"], fields["run_id"]) == (1, "run-1")
    assert fields["duration_ms"] > fields["command_ms"] >= 200
    assert record.getMessage().startswith("runs.get took ")
    assert ": 1 command on runs, " in record.getMessage()
    assert "run-1" not in record.getMessage()


async def test_slow_call_that_shares_its_command_is_one_record_with_that_command(
    open_observed: OpenObserved, proxy: FaultProxy, reports: Reports
) -> None:
    async with open_observed(proxy.url) as storage:
        reports.clear()
        proxy.delay("find", 0.2)
        await asyncio.gather(*(storage.runs.get(f"run-{number}", user_id="alice") for number in range(9)))
    found = {vars(record)["run_id"]: vars(record) for record in reports.slow}
    assert found.keys() == {f"run-{number}" for number in range(9)}
    assert {(fields["operation"], fields["commands"]) for fields in found.values()} == {("runs.get", 1)}
    assert all(fields["command_ms"] >= 200 for fields in found.values())
    assert found["run-8"]["duration_ms"] >= 400  # it waited for a command that it did not share


async def test_slow_group_commit_is_one_record_per_call_with_the_groups_commands(
    open_observed: OpenObserved, proxy: FaultProxy, reports: Reports
) -> None:
    async with open_observed(proxy.url) as storage:
        await storage.run_events.put(**event())
        reports.clear()
        proxy.delay("insert", 0.2, times=1)
        await asyncio.gather(*(storage.run_events.put(**event()) for _ in range(3)))
    found = [(vars(record)["commands"], vars(record)["collections"]) for record in reports.slow]
    assert found == [(1, ["run_events"])] * 3
    assert all(vars(record)["command_ms"] >= 200 for record in reports.slow)


async def test_slow_failure_is_recorded_with_its_class(
    open_observed: OpenObserved, proxy: FaultProxy, reports: Reports
) -> None:
    async with open_observed(proxy.url) as storage:
        await storage.runs.create("run-1", "thread-1", user_id="alice")
        reports.clear()
        proxy.delay("insert", 0.2, times=1)
        with pytest.raises(RunExistsError):
            await storage.runs.create("run-1", "thread-1", user_id="alice")
    [record] = reports.slow
    assert vars(record)["outcome"] == "RunExistsError"


async def test_follower_that_waits_is_not_slow(open_observed: OpenObserved, reports: Reports) -> None:
    async with open_observed() as storage:
        reports.clear()
        followed = asyncio.create_task(anext(storage.run_events.follow("t")))
        await asyncio.sleep(SLOW_MS * 2 / 1000)
        await storage.run_events.put(**event("late"))
        assert (await followed)["content"] == "late"
    assert [record for record in reports.slow if vars(record)["operation"] == "run_events.follow"] == []


async def test_mock_counts_the_calls_of_its_driver(reports: Reports) -> None:
    async with MongoStorage.open({"driver": "mongomock", "slow_ms": 1}) as storage:
        reports.clear()
        rows = [event({"text": "x" * 1_000}) for _ in range(60)]
        await storage.run_events.put_batch(rows)
    [record] = reports.slow
    assert vars(record)["commands"] == 2  # the last number of the thread, and the insert
