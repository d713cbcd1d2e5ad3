"""No event is lost, doubled or missed while four processes write to one thread and four readers page."""

from __future__ import annotations

from typing import Any

from .event_storm import READERS, storm


def _assert_exact(found: dict[str, Any]) -> None:
    assert found["acknowledged_and_missing"] == 0
    assert found["stored_twice"] == 0
    assert found["batches_stored_in_part"] == 0
    assert found["large_batches_without_their_beginning"] == 0
    assert found["large_batches"] > 4
    assert found["readers_missed"] == [0] * READERS
    assert found["readers_saw"] == [found["events_stored"]] * READERS
    assert found["events_stored"] >= found["events_acknowledged"] > 100


def test_four_readers_miss_no_event_of_four_writing_processes() -> None:
    found = storm(5.0)
    _assert_exact(found)
    assert found["gaps"] == 0
    assert found["events_stored"] == found["events_acknowledged"]


def test_killed_writers_and_servers_lose_and_double_no_event() -> None:
    found = storm(13.0, (2.0, 4.0))
    assert found["killed"] == {"writers": 6, "servers": 3}
    _assert_exact(found)
