"""Stored times: text of one length that sorts in the order of time, and the row's form of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from deerflow_mongo.mongodb.documents.stored_times import row_time, stored_from_input, stored_from_stamp


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 4, 22, 3, 26, 38, 123456, UTC),
        datetime(2026, 4, 22, 3, 26, 38, tzinfo=UTC),
        datetime(2026, 4, 22, 3, 26, 38, 500_000, UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
    ],
)
def test_stored_time_has_six_digits_and_its_row_is_isoformat(moment: datetime) -> None:
    stored = stored_from_input("t", moment)
    assert len(stored) == 32
    assert row_time(stored) == moment.isoformat()


def test_stored_text_sorts_in_the_order_of_time() -> None:
    stamps = [0, 1, 999_999, 1_000_000, 1_745_292_398_123_456, 2**52]
    texts = [stored_from_stamp(stamp) for stamp in stamps]
    assert texts == sorted(texts)
    assert texts[0] == "1970-01-01T00:00:00.000000+00:00"
