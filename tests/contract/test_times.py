"""Times: every accepted form, microseconds, and a clock that never stands still."""

from __future__ import annotations

import datetime
import threading
import time
from typing import Any

import pytest

from deerflow_mongo.contract.times import Clock, parse_time

UTC = datetime.UTC


@pytest.mark.parametrize(
    ("given", "row"),
    [
        ("2026-04-22T03:26:38.123456+00:00", "2026-04-22T03:26:38.123456+00:00"),
        ("2026-04-22T11:26:38+08:00", "2026-04-22T03:26:38+00:00"),
        ("2026-04-22T03:26:38Z", "2026-04-22T03:26:38+00:00"),
        ("2026-04-22T03:26:38", "2026-04-22T03:26:38+00:00"),
        ("2026-04-22T03:26:38.5", "2026-04-22T03:26:38.500000+00:00"),
        ("0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00+00:00"),
        (datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), "9999-12-31T23:59:59.999999+00:00"),
        (datetime.datetime(2026, 4, 22, 3, 26, 38), "2026-04-22T03:26:38+00:00"),  # noqa: DTZ001 - naive
        (
            datetime.datetime(
                2026, 4, 22, tzinfo=datetime.timezone(datetime.timedelta(hours=-7, minutes=-30))
            ),
            "2026-04-22T07:30:00+00:00",
        ),
    ],
)
def test_every_accepted_form_is_parsed_to_utc(given: Any, row: str) -> None:
    assert parse_time("t", given).isoformat() == row


@pytest.mark.parametrize(
    "given",
    ["", "yesterday", "2026-13-01", 5, 1.5, b"2026-04-22", True, {"$gt": ""}, datetime.date(2026, 4, 22)],
)
def test_any_other_value_raises_value_error_naming_the_argument(given: Any) -> None:
    with pytest.raises(ValueError, match="started_at must be an ISO-8601"):
        parse_time("started_at", given)


def test_time_outside_the_years_of_utc_raises_value_error() -> None:
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        parse_time("t", "0001-01-01T00:00:00+10:00")


def test_clock_is_strictly_increasing_across_threads_and_when_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", iter(range(now, now - 10**9, -100)).__next__)
    stamps: list[int] = []

    def take() -> None:
        own = [clock.stamp_us() for _ in range(500)]
        assert own == sorted(own)
        stamps.extend(own)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(stamps)) == 4_000
