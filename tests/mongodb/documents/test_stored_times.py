"""Stored times: a BSON date, what it cannot hold beside it, and the row's form of both."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from deerflow_mongo.mongodb.documents.encoding import UnreadableError
from deerflow_mongo.mongodb.documents.stored_times import (
    aware_time,
    created_fields,
    row_time,
    row_time_of_stamp,
    set_update,
    stamp_from_optional,
    stamp_of,
    time_fields,
    time_of_stamp,
)

MOMENTS = [
    datetime(2026, 4, 22, 3, 26, 38, 123456, UTC),
    datetime(2026, 4, 22, 3, 26, 38, tzinfo=UTC),
    datetime(2026, 4, 22, 3, 26, 38, 500_000, UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
    datetime(1, 1, 1, 0, 0, 0, 1, UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_time_returns_equal_to_the_microsecond(moment: datetime) -> None:
    fields = time_fields("t", stamp_of(moment))
    assert fields["t"].microsecond % 1_000 == 0
    assert ("t_us" in fields) == (moment.microsecond % 1_000 != 0)
    date, below_ms = fields["t"], fields.get("t_us", 0)
    assert aware_time(date, below_ms) == moment
    assert row_time(date, below_ms) == moment.isoformat()


@pytest.mark.parametrize("moment", MOMENTS)
def test_stamp_of_creation_returns_equal_to_the_microsecond(moment: datetime) -> None:
    fields = created_fields(stamp_of(moment))
    assert set(fields) == {"created_at", "order"}
    assert row_time_of_stamp(fields["order"]) == moment.isoformat()
    assert time_of_stamp(fields["order"]) == moment


@pytest.mark.parametrize("to_time", [row_time, aware_time])
def test_value_that_is_no_time_is_refused(to_time: Callable[[Any, Any], object]) -> None:
    now = datetime(2026, 4, 22, 3, 26, 38)  # noqa: DTZ001 - as the driver returns dates
    for date, below_ms in [("2026", 0), (now, None), (now, "5"), (now, 0.5), (now.date(), 0)]:
        with pytest.raises((UnreadableError, AttributeError)):
            to_time(date, below_ms)


def test_given_time_of_creation_has_the_clocks_stamp_beside_it() -> None:
    assert created_fields(1_000, 5_000)["order_tie"] == 5_000


def test_absent_time_is_null() -> None:
    assert time_fields("t", None) == {"t": None}
    assert stamp_from_optional("t", None) is None


@pytest.mark.parametrize(
    ("stamp_us", "operators"),
    [(1_001, {"$set": {"a": 1, "t_us": 1}}), (1_000, {"$set": {"a": 1}, "$unset": {"t_us": ""}})],
)
def test_update_removes_the_microseconds_of_the_time_before(stamp_us: int, operators: dict[str, Any]) -> None:
    update = set_update({"a": 1}, t=stamp_us)
    assert row_time(update["$set"].pop("t"), stamp_us % 1_000).startswith("1970-01-01")
    assert update == operators


def test_stamps_have_the_order_of_time() -> None:
    assert [stamp_of(moment) for moment in sorted(MOMENTS)] == sorted(map(stamp_of, MOMENTS))
