"""Spans: names and parents, work that several calls share, and clients that are instrumented already."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from opentelemetry.trace import StatusCode
from pymongo import AsyncMongoClient, monitoring

from deerflow_mongo import MongoStorage, RunExistsError, ThreadMetaCreate
from deerflow_mongo.mongodb.observation import current_operation

from ...faults.proxy import FaultProxy
from ..checkpoints.puts import listed, put
from ..drivers.fixtures import event
from .conftest import OpenObserved
from .reports import Reports

DRIVERS = ("pymongo", "motor")


def _command(storage: MongoStorage, name: str) -> str:
    return f"{storage.config.database}.{name}"


@pytest.mark.parametrize("driver", DRIVERS)
async def test_operation_is_the_parent_of_its_commands(
    open_observed: OpenObserved, reports: Reports, driver: str
) -> None:
    async with open_observed(driver=driver) as storage:
        await storage.runs.create("run-1", "thread-1", user_id="alice")
        await storage.runs.get("run-1", user_id="alice")
        [created], [read] = reports.named("runs.create"), reports.named("runs.get")
        assert reports.children_of(created) == [_command(storage, "insert")]
        assert reports.children_of(read) == [_command(storage, "find")]
        assert dict(created.attributes or {}) == {
            "db.system.name": "mongodb",
            "db.namespace": storage.config.database,
            "deerflow.thread_id": "thread-1",
            "deerflow.run_id": "run-1",
        }


async def test_operation_is_a_child_of_the_callers_span(observed: MongoStorage, reports: Reports) -> None:
    tracer = trace.get_tracer("host", tracer_provider=reports.tracers)
    with tracer.start_as_current_span("request") as request:
        await observed.runs.get("run-1", user_id="alice")
        assert trace.get_current_span() is request
    [operation] = reports.named("runs.get")
    assert operation.parent == request.get_span_context()


async def test_group_commit_is_below_the_first_call_and_linked_to_the_others(
    observed: MongoStorage, reports: Reports
) -> None:
    await asyncio.gather(*(observed.run_events.put(**event()) for _ in range(5)))
    puts = [span.get_span_context() for span in reports.named("run_events.put")]
    [group] = reports.named("run_events.write_group")
    assert len(puts) == 5
    above = [group.parent, *(link.context for link in group.links)]
    assert all(context in above for context in puts)
    assert len(above) == 5
    assert (group.attributes or {})["deerflow.documents"] == 5
    assert reports.children_of(group)[-1] == _command(observed, "insert")


async def test_follower_has_one_span_and_its_reads_have_theirs(
    observed: MongoStorage, reports: Reports
) -> None:
    await observed.run_events.put(**event())
    reports.clear()
    async with aclosing(observed.run_events.follow("t")) as rows:
        async for _ in rows:
            # The host's own code between two events is not part of the operation.
            assert current_operation.get() is None
            assert not trace.get_current_span().get_span_context().is_valid
            break
    [followed] = reports.named("run_events.follow")
    assert followed.status.status_code is StatusCode.UNSET
    [page] = reports.named("run_events.read_page")
    assert reports.children_of(page) == [_command(observed, "find")]
    assert {span.name for span in reports.spans} == {followed.name, page.name, _command(observed, "find")}


async def test_checkpointer_has_operations_named_as_langgraph_names_them(
    observed: MongoStorage, reports: Reports
) -> None:
    saver = await observed.checkpointer()
    reports.clear()
    await put(saver, "thread-1", "text")
    await listed(saver, "thread-1")
    clone = saver.with_allowlist([("a", "B")])
    await put(clone, "thread-2", "text")
    names = [span.name for span in reports.spans if span.name.startswith("checkpointer.")]
    written = ["checkpointer.write_group", "checkpointer.put"]
    assert names == [*written, "checkpointer.list", *written]
    stored = reports.named("checkpointer.put")
    assert [(span.attributes or {})["deerflow.thread_id"] for span in stored] == ["thread-1", "thread-2"]


async def test_method_that_calls_another_is_one_operation(observed: MongoStorage, reports: Reports) -> None:
    await observed.threads.create_thread_meta(ThreadMetaCreate(thread_id="thread-1", user_id="alice"))
    reports.clear()
    await observed.threads.ensure_thread_running(thread_id="thread-1")
    ours = [span.name for span in reports.spans if not span.name.startswith(observed.config.database)]
    assert ours == ["threads.ensure_thread_running"]


async def test_error_is_recorded_by_its_class_only(observed: MongoStorage, reports: Reports) -> None:
    await observed.runs.create("run-1", "thread-1", user_id="alice")
    with pytest.raises(RunExistsError):
        await observed.runs.create("run-1", "thread-1", user_id="alice")
    span = reports.named("runs.create")[-1]
    assert (span.attributes or {})["error.type"] == "RunExistsError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert list(span.events) == []


async def test_cancelled_call_is_no_error(
    open_observed: OpenObserved, proxy: FaultProxy, reports: Reports
) -> None:
    async with open_observed(proxy.url) as storage:
        proxy.stall("find")
        call = asyncio.create_task(storage.runs.get("run-1", user_id="alice"))
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.wait({call})
    [span] = reports.named("runs.get")
    assert (span.attributes or {})["error.type"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


async def test_mock_has_operations_without_commands(reports: Reports) -> None:
    config = {"driver": "mongomock", "telemetry": "otel"}
    async with MongoStorage.open(config, tracer_provider=reports.tracers) as storage:
        await storage.runs.get("run-1", user_id="alice")
    assert [span.name for span in reports.spans] == ["storage.setup", "runs.get"]


@pytest.fixture
def instrumented_process(reports: Reports) -> Iterator[None]:
    """A host that has instrumented PyMongo as a whole."""
    listeners: list[object] = vars(monitoring)["_LISTENERS"].command_listeners
    before = list(listeners)
    instrumentor = PymongoInstrumentor()
    instrumentor.instrument(tracer_provider=reports.tracers)
    yield
    instrumentor.uninstrument()
    # It leaves its listener to every later client of the process.
    listeners[:] = before
    vars(instrumentor).pop("_commandtracer_instance", None)


@pytest.mark.usefixtures("instrumented_process")
async def test_client_of_an_instrumented_process_has_one_span_per_command(
    open_observed: OpenObserved, reports: Reports, mongodb_url: str
) -> None:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongodb_url)
    async with client, open_observed(client=client) as given, open_observed() as own:
        for storage in (given, own):
            reports.clear()
            await storage.runs.get("run-1", user_id="alice")
            assert [span.name for span in reports.spans] == [_command(storage, "find"), "runs.get"]
            assert reports.children_of(reports.spans[-1]) == [_command(storage, "find")]


async def test_erasure_is_one_operation_whatever_it_calls(observed: MongoStorage, reports: Reports) -> None:
    await observed.runs.create("run-1", "thread-1", user_id="alice")
    reports.clear()
    await observed.purge_thread("thread-1")
    ours = [span for span in reports.spans if not span.name.startswith(observed.config.database)]
    assert [span.name for span in ours if span.parent is None] == ["storage.purge_thread"]
    assert {span.name for span in ours} <= {"storage.purge_thread", "run_events.write_group"}


async def test_rows_that_are_read_between_calls_of_another_storage_are_its_own_operation(
    open_observed: OpenObserved, reports: Reports
) -> None:
    async with open_observed() as source, open_observed(collection_prefix="copy_") as target:
        await source.runs.create("run-1", "thread-1", user_id="alice")
        reports.clear()
        async with aclosing(source.export_rows("runs")) as batches:
            async for rows in batches:
                await target.import_rows("runs", rows)
        [read], [written] = reports.named("storage.export_rows"), reports.named("storage.import_rows")
        assert read.parent is None
        assert written.parent is None
        assert reports.collections_below(read) == {"runs"}
        assert reports.collections_below(written) == {"copy_runs"}
        assert "storage.export_rows" not in {
            name for name, _ in target.metrics()["operation_duration_seconds"]
        }
