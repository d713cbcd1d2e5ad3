"""What a run's document derives from other fields: `duration_ms` and `error_type`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.config import mongo_config

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]

BEGIN = datetime(2026, 4, 22, 3, 26, 38, 999_999, tzinfo=UTC)


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    async with MongoStorage(mongo_config({"url": mongodb_url, "database": database_name})) as opened:
        yield opened


def _at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


@pytest.fixture
def stored(raw_client: Raw, database_name: str) -> Any:
    def read(*names: str) -> list[Any]:
        document = raw_client[database_name]["runs"].find_one({"_id": "r"}) or {}
        return [document[name] for name in names]

    return read


async def test_active_run_has_no_duration(storage: MongoStorage, stored: Any) -> None:
    await storage.runs.create("r", "t", user_id=None, created_at=BEGIN, started_at=_at(1))
    await storage.runs.update_status("r", "running", started_at=_at(2))
    await storage.runs.update_run_completion("r", status="running", ended_at=_at(3))
    assert stored("duration_ms") == [None]


async def test_duration_is_from_the_start_to_the_end(storage: MongoStorage, stored: Any) -> None:
    await storage.runs.create("r", "t", user_id=None, created_at=BEGIN)
    await storage.runs.update_status("r", "running", started_at=_at(1))
    await storage.runs.update_run_completion("r", status="success", ended_at=_at(3.5))
    assert stored("duration_ms") == [2_500]
    # One ending may replace another: the duration follows its times.
    await storage.runs.update_status("r", "error", started_at=_at(2), ended_at=_at(9))
    assert stored("duration_ms") == [7_000]
    # A late update with an active status leaves an ended run's duration.
    await storage.runs.update_status("r", "running", started_at=_at(5))
    assert stored("duration_ms") == [7_000]


async def test_duration_of_a_run_that_never_started_counts_from_its_creation(
    storage: MongoStorage, stored: Any
) -> None:
    await storage.runs.create("r", "t", user_id=None, created_at=BEGIN)
    await storage.runs.update_status("r", "interrupted", ended_at=_at(4))
    assert stored("duration_ms") == [4_000]


async def test_duration_is_never_negative(storage: MongoStorage, stored: Any) -> None:
    await storage.runs.create("r", "t", user_id=None, created_at=BEGIN)
    await storage.runs.update_status("r", "success", ended_at=_at(-60))
    assert stored("duration_ms") == [0]


async def test_ending_without_an_end_takes_the_time_of_the_update(storage: MongoStorage, stored: Any) -> None:
    begin = datetime.now(UTC)
    await storage.runs.create("r", "t", user_id=None, created_at=begin - timedelta(seconds=100))
    await storage.runs.set_error("r", "ValueError: no")
    [duration, ended_at] = stored("duration_ms", "ended_at")
    assert 100_000 <= duration < 200_000
    assert ended_at is None
    await storage.runs.update_run_completion("r", status="error")
    assert stored("duration_ms")[0] >= duration


@pytest.mark.parametrize(
    ("status", "times", "duration_ms"),
    [
        ("pending", {}, None),
        ("success", {}, 0),
        ("success", {"ended_at": _at(2)}, 2_000),
        ("success", {"started_at": _at(1), "ended_at": _at(2)}, 1_000),
        ("done", {"started_at": _at(2), "ended_at": _at(1)}, 0),
    ],
)
async def test_run_created_after_its_end_has_its_duration(
    storage: MongoStorage, stored: Any, status: str, times: Any, duration_ms: int | None
) -> None:
    await storage.runs.create("r", "t", user_id=None, status=status, created_at=BEGIN, **times)
    assert stored("duration_ms") == [duration_ms]


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        ("RateLimitError: busy", "RateLimitError"),
        ("openai.APIError: 500: x", "openai.APIError"),
        ("TimeoutError:", "TimeoutError"),
        ("Error 404: not found", None),
        ("out of luck", None),
        ("", None),
        (": x", None),
        ("é💬: x", "é💬"),
        ("a\0b: x", "a\0b"),
        ("\ud800: x", None),
        ("x" * 129 + ": x", None),
        ("x\n: y", None),
    ],
)
async def test_error_type_is_the_one_word_before_the_first_colon(
    storage: MongoStorage, stored: Any, error: str, error_type: str | None
) -> None:
    await storage.runs.create("r", "t", user_id=None, error=error)
    assert stored("error_type") == [error_type]
    await storage.runs.update_run_completion("r", status="success")
    assert stored("error", "error_type") == [None, None]
    await storage.runs.update_status("r", "error", error=error)
    assert stored("error_type") == [error_type]
    await storage.runs.update_status("r", "error", metadata={"a": 1})
    assert stored("error_type") == [error_type]
    await storage.runs.set_error("r", error)
    assert stored("error_type") == [error_type]
