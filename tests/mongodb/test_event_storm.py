"""Nothing lost, nothing twice, nothing missed: four processes write to one thread and four readers page."""

from __future__ import annotations

from typing import Any

from .event_storm import READERS, storm


def _assert_nothing_went_wrong(found: dict[str, Any]) -> None:
    assert found["acknowledged_and_missing"] == 0
    assert found["stored_twice"] == 0
    assert found["batches_stored_in_part"] == 0
    assert found["readers_missed"] == [0] * READERS
    assert found["readers_saw"] == [found["events_stored"]] * READERS
    assert found["events_stored"] >= found["events_acknowledged"] > 100


def test_four_readers_miss_no_event_of_four_writing_processes() -> None:
    found = storm(5.0)
    _assert_nothing_went_wrong(found)
    assert found["gaps"] == 0
    assert found["events_stored"] == found["events_acknowledged"]


def test_kills_of_writers_and_of_the_server_lose_and_double_nothing() -> None:
    found = storm(13.0, (2.0, 4.0))
    assert found["killed"] == {"writers": 6, "servers": 3}
    _assert_nothing_went_wrong(found)
