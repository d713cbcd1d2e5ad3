"""The form of every row: exact keys, plain JSON types, times in UTC (CONTRACT sections 1, 3, 4)."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from ..contract.protocols import Storage
from ..contract.rows import FeedbackRow, RunRow, ThreadMeta
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, stored_run, stored_thread
from .values import assert_plain, assert_row_time, now

_IST = timezone(timedelta(hours=5, minutes=30))

# input -> the time in a row
_TIMES: tuple[tuple[str | datetime, str], ...] = (
    ("2026-04-22T03:26:38.123456+00:00", "2026-04-22T03:26:38.123456+00:00"),
    ("2026-04-22T03:26:38.123456Z", "2026-04-22T03:26:38.123456+00:00"),
    ("2026-04-22T03:26:38.123456", "2026-04-22T03:26:38.123456+00:00"),
    ("2026-04-22T08:56:38.123456+05:30", "2026-04-22T03:26:38.123456+00:00"),
    ("2026-04-21T20:26:38.000001-07:00", "2026-04-22T03:26:38.000001+00:00"),
    ("2026-04-22T03:26:38.5Z", "2026-04-22T03:26:38.500000+00:00"),
    ("2026-04-22T03:26:38+00:00", "2026-04-22T03:26:38+00:00"),
    ("2026-04-22T03:26:38.000000+00:00", "2026-04-22T03:26:38+00:00"),
    (datetime(2026, 4, 22, 3, 26, 38, 123456, tzinfo=UTC), "2026-04-22T03:26:38.123456+00:00"),
    (datetime(2026, 4, 22, 3, 26, 38, 123456), "2026-04-22T03:26:38.123456+00:00"),  # noqa: DTZ001
    (datetime(2026, 4, 22, 8, 56, 38, 123456, tzinfo=_IST), "2026-04-22T03:26:38.123456+00:00"),
    (datetime(2026, 4, 22, 3, 26, 38, tzinfo=UTC), "2026-04-22T03:26:38+00:00"),
    (datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "2026-12-31T23:59:59.999999+00:00"),
    (datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "1969-12-31T23:59:59.999999+00:00"),
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
    (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "9999-12-31T23:59:59.999999+00:00"),
)

_INVALID_TIMES: tuple[object, ...] = (
    "",
    "yesterday",
    "2026-13-01T00:00:00Z",
    "2026-04-22T25:00:00Z",
    "1776828398",
    "0001-01-01T00:00:00+05:00",
    "9999-12-31T23:59:59-05:00",
    1776828398,
    1776828398.5,
    True,
    b"2026-04-22T03:26:38Z",
    date(2026, 4, 22),
    timedelta(1),
    ["2026-04-22T03:26:38Z"],
    {"$date": "2026-04-22T03:26:38Z"},
)

_RUN_TIMES = ("created_at", "started_at", "ended_at")


class _Text(str):
    __slots__ = ()


class _Number(int):
    pass


class _Status(enum.StrEnum):
    RUNNING = "running"


class RowContract(Contract):
    async def test_run_row_has_exactly_the_documented_keys(self, storage: Storage) -> None:
        """All keys that every row of a run has, and none of a run with an owner."""
        row = await given_run(storage)
        assert set(row) == RunRow.__required_keys__
        await storage.runs.update_run_completion(RUN, status="success", first_human_message="hi", error="no")
        [listed] = await storage.runs.list_by_thread(THREAD, user_id=None)
        assert set(listed) == RunRow.__required_keys__

    async def test_feedback_row_has_exactly_the_documented_keys(self, storage: Storage) -> None:
        names: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD, "rating": 1}
        rows = [
            await storage.feedback.create(**names, user_id=ALICE, message_id="m", comment="good"),
            await storage.feedback.upsert(**names, user_id=BOB),
            *await storage.feedback.list_by_thread(THREAD),
            *await storage.feedback.list_by_run(THREAD, RUN),
            *(await storage.feedback.list_by_thread_grouped(THREAD, user_id=BOB)).values(),
        ]
        assert len(rows) == 7
        for row in rows:
            assert set(row) == set(FeedbackRow.__annotations__)

    async def test_run_rows_contain_only_plain_json_types(self, storage: Storage) -> None:
        """No type of the driver and no subclass of a plain type appears in a row."""
        odd: dict[str, Any] = {
            "text": _Text("text"),
            "number": _Number(5),
            "big": 2**40,
            "status": _Status.RUNNING,
            "ordered": OrderedDict(a=[1.5, None, True]),
            "pair": (1, 2),
        }
        await given_run(
            storage, _Text(RUN), status=_Status.RUNNING, metadata=odd, kwargs=odd, model_name=_Text("m")
        )
        for caller in ("lead_agent", "subagent"):
            await storage.runs.record_token_usage(RUN, caller=caller, model_name="m", input_tokens=2**35)
        await storage.runs.update_run_completion(RUN, status="error", total_tokens=2**40, error=_Text("e"))
        row = await stored_run(storage)
        assert row["status"] == "error"
        assert row["total_tokens"] == 2**40
        for place, value in {
            "get": row,
            "list_by_thread": await storage.runs.list_by_thread(THREAD, user_id=None),
            "token_usage_by_thread": await storage.runs.token_usage_by_thread(THREAD, user_id=None),
        }.items():
            with case(place):
                assert_plain(value, place)

    async def test_feedback_and_threads_contain_only_plain_json_types(self, storage: Storage) -> None:
        vote: dict[str, Any] = {
            "run_id": _Text(RUN),
            "thread_id": _Text(THREAD),
            "user_id": _Text(ALICE),
            "rating": 1,
            "comment": _Text("good"),
        }
        await storage.threads.ensure_thread(
            thread_id=_Text(THREAD), metadata={"n": 2**40}, user_id=_Text(ALICE)
        )
        thread = await stored_thread(storage)
        for place, value in {
            "create": await storage.feedback.create(**vote, message_id=_Text("m")),
            "upsert": await storage.feedback.upsert(**vote),
            "list_by_thread": await storage.feedback.list_by_thread(THREAD),
            "list_by_thread_grouped": await storage.feedback.list_by_thread_grouped(THREAD, user_id=ALICE),
            "aggregate_by_run": await storage.feedback.aggregate_by_run(THREAD, RUN),
            "metadata": thread.metadata,
            "thread": [thread.thread_id, thread.user_id, thread.status],
        }.items():
            with case(place):
                assert_plain(value, place)
                assert json.loads(json.dumps(value)) == value

    async def test_run_times_round_trip_to_the_microsecond(self, storage: Storage) -> None:
        """Any offset or `Z`, or a datetime; a naive one means UTC; a fraction of zero is not written."""
        for number, (given, expected) in enumerate(_TIMES):
            with case("create", given):
                row = await given_run(storage, f"run-{number}", **dict.fromkeys(_RUN_TIMES, given))
                assert {name: row[name] for name in _RUN_TIMES} == dict.fromkeys(_RUN_TIMES, expected)

    async def test_updated_times_round_trip_to_the_microsecond(self, storage: Storage) -> None:
        for number, (given, expected) in enumerate(_TIMES):
            with case("update_status", given):
                await given_run(storage, f"updated-{number}")
                await storage.runs.update_status(
                    f"updated-{number}", "running", started_at=given, ended_at=given
                )
                row = await stored_run(storage, f"updated-{number}")
                assert (row["started_at"], row["ended_at"]) == (expected, expected)
            with case("update_run_completion", given):
                await given_run(storage, f"completed-{number}")
                await storage.runs.update_run_completion(
                    f"completed-{number}", status="success", ended_at=given
                )
                assert (await stored_run(storage, f"completed-{number}"))["ended_at"] == expected

    async def test_invalid_time_raises_and_writes_nothing(self, storage: Storage) -> None:
        """An invalid time is a `ValueError`."""
        before = await given_run(storage)
        writes: dict[str, Callable[[Any], Awaitable[object]]] = {
            "create created_at": lambda time: storage.runs.create(
                "new", THREAD, user_id=None, created_at=time
            ),
            "create started_at": lambda time: storage.runs.create(
                "new", THREAD, user_id=None, started_at=time
            ),
            "create ended_at": lambda time: storage.runs.create("new", THREAD, user_id=None, ended_at=time),
            "update_status started_at": lambda time: storage.runs.update_status(
                RUN, "running", started_at=time
            ),
            "update_status ended_at": lambda time: storage.runs.update_status(RUN, "running", ended_at=time),
            "update_run_completion": lambda time: storage.runs.update_run_completion(
                RUN, status="success", ended_at=time
            ),
        }
        for name, write in writes.items():
            for value in _INVALID_TIMES:
                with case(name, value), pytest.raises(ValueError):  # noqa: PT011 - the promise is the type
                    await write(value)
        assert await storage.runs.list_by_thread(THREAD, user_id=None) == [before]

    async def test_every_time_in_a_row_is_iso_8601_in_utc(self, storage: Storage) -> None:
        since = now()
        with acting_as(ALICE):
            await storage.runs.create(RUN, THREAD)
        await storage.runs.update_status(RUN, "running", started_at=since)
        await storage.runs.update_run_completion(RUN, status="success")
        row = await stored_run(storage)
        for name in ("created_at", "updated_at", "started_at", "ended_at"):
            with case(name):
                assert_row_time(row[name])
        vote = await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        assert_row_time(vote["created_at"])

    async def test_threads_are_immutable_and_have_aware_times(self, storage: Storage) -> None:
        """Threads are immutable objects with attributes; their times are aware datetimes."""
        thread = await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        for name in ThreadMeta.__annotations__:
            with case(name), pytest.raises((AttributeError, TypeError)):
                setattr(thread, name, None)
        assert thread.created_time.utcoffset() == timedelta(0)
        assert thread.updated_time.utcoffset() == timedelta(0)
        assert thread == await stored_thread(storage)
