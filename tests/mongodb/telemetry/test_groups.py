"""Calls that share a command: counted by kind, with a span of the group that all of them are linked to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, RunExistsError
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT

from .conftest import OpenObserved
from .reports import Reports

pytestmark = pytest.mark.usefixtures("nearby")

CALLS = 10
GROUPED = CALLS - LEAST_IN_FLIGHT

Call = Callable[[MongoStorage, int], Awaitable[Any]]

KINDS: dict[str, tuple[str, list[str], int, Call]] = {
    "insert": (
        "runs.create",
        ["insert"],
        GROUPED,
        lambda s, n: s.runs.create(f"run-{n}", f"thread-{n}", user_id="alice"),
    ),
    "find": ("runs.get", ["find"], 0, lambda s, n: s.runs.get(f"run-{n}", user_id="alice")),
    "list": (
        "runs.list_by_thread",
        ["aggregate"],
        0,
        lambda s, n: s.runs.list_by_thread(f"thread-{n}", limit=5, user_id="alice"),
    ),
    "aggregate": (
        "feedback.aggregate_by_run",
        ["aggregate"],
        0,
        lambda s, n: s.feedback.aggregate_by_run(f"thread-{n}", f"run-{n}"),
    ),
    "update": (
        "runs.update_model_name",
        ["update"],
        GROUPED,
        lambda s, n: s.runs.update_model_name(f"run-{n}", "m"),
    ),
}
"""Operation, commands of a group, documents that it writes, call."""


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_group_is_counted_and_has_a_span_that_its_calls_are_linked_to(
    open_observed: OpenObserved, reports: Reports, driver: str
) -> None:
    async with open_observed(driver=driver) as storage:
        for kind, (operation, commands, documents, call) in KINDS.items():
            reports.clear()
            await asyncio.gather(*(call(storage, number) for number in range(CALLS)))
            [group] = reports.named(f"{kind}.group")
            contexts = [span.get_span_context() for span in reports.named(operation)]
            calls = {context.span_id for context in contexts if context is not None}
            assert group.parent is not None
            above = {group.parent.span_id, *(link.context.span_id for link in group.links)}
            assert above < calls
            assert len(above) == GROUPED
            assert (group.attributes or {}).get("deerflow.documents", 0) == documents
            names = [f"{storage.config.database}.{command}" for command in commands]
            assert reports.children_of(group) == names
            metrics = storage.metrics()
            grouped = metrics["group_calls"][kind]
            assert (grouped.count, grouped.sum) == (1, GROUPED)
            assert metrics["operation_duration_seconds"][operation, "ok"].count == CALLS
        [point] = [
            point
            for point in reports.points("deerflow.storage.group_calls")
            if point.attributes["writer"] == "find"
        ]
        assert (point.count, point.sum) == (1, GROUPED)


async def test_refused_call_of_a_group_is_an_error_of_its_own_operation(
    observed: MongoStorage, reports: Reports
) -> None:
    await observed.runs.create("run-5", "thread-5", user_id="alice")
    reports.clear()
    answers = await asyncio.gather(
        *(observed.runs.create(f"run-{n}", "t", user_id="alice") for n in range(CALLS)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers if answer is not None] == [RunExistsError]
    failed = [span for span in reports.named("runs.create") if "error.type" in (span.attributes or {})]
    assert [dict(span.attributes or {})["deerflow.run_id"] for span in failed] == ["run-5"]
    [group] = reports.named("insert.group")
    assert "error.type" not in (group.attributes or {})
