"""Events that DeerFlow's journal sends again after an error are stored once, by the id of their first try."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from deerflow_mongo import StorageUnavailableError

from .gateway_process import needs_deerflow
from .host_stores import RUN_EVENTS, acting, named

pytestmark = needs_deerflow


class LostReplies:
    """A store that stores each `event_id` once, as a backend does, and whose answer is lost `lost` times."""

    def __init__(self, lost: int = 0, error: BaseException | None = None) -> None:
        self.lost = lost
        self.error = error or StorageUnavailableError("the answer was lost")
        self.stored: dict[str, dict[str, Any]] = {}

    async def put_batch(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [self.stored.setdefault(event["event_id"], event) for event in events]
        if self.lost:
            self.lost -= 1
            raise self.error
        return rows

    @property
    def texts(self) -> list[Any]:
        return [event["content"] for event in self.stored.values()]


@pytest.fixture(autouse=True)
def alice() -> Iterator[None]:
    with acting("alice"):
        yield


def event(content: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {
        "thread_id": "t",
        "run_id": "r",
        "event_type": "e",
        "category": "message",
        "content": content,
        **fields,
    }


def adapter(store: Any) -> Any:
    return named(RUN_EVENTS.ours)(store)


def ids_of(run_events: Any) -> int:
    """The number of events whose ids are remembered."""
    return len(run_events._event_ids)


async def test_repeated_batch_is_stored_once_in_any_composition() -> None:
    store = LostReplies(lost=2)
    events = [event(), event(), event("other")]
    run_events = adapter(store)
    with pytest.raises(StorageUnavailableError):
        await run_events.put_batch(events)
    more = [*events[1:], event("later")]
    with pytest.raises(StorageUnavailableError):
        await run_events.put_batch(more)
    await run_events.put_batch([*events[:1], *more])
    assert store.texts == ["hello", "hello", "other", "later"]
    assert ids_of(run_events) == 0


async def test_equal_events_of_calls_that_succeed_are_all_stored() -> None:
    store = LostReplies()
    run_events, same = adapter(store), event()
    for _ in range(2):
        await run_events.put_batch([event(), same])
    assert len(store.stored) == 4


async def test_cancelled_batch_is_remembered() -> None:
    store = LostReplies(lost=1, error=asyncio.CancelledError())
    run_events, events = adapter(store), [event()]
    with pytest.raises(asyncio.CancelledError):
        await run_events.put_batch(events)
    await run_events.put_batch(events)
    assert len(store.stored) == 1


async def test_hosts_events_and_rows_have_no_id_of_ours() -> None:
    store = LostReplies(lost=1)
    run_events, given = adapter(store), event()
    before = dict(given)
    with pytest.raises(StorageUnavailableError):
        await run_events.put_batch([given])
    [row] = await run_events.put_batch([given])
    assert given == before
    assert "event_id" not in row


@pytest.mark.parametrize("given", ["own-id", None, 5, "", "x" * 2_000])
async def test_valid_id_of_the_host_is_stored(given: Any) -> None:
    store = LostReplies()
    await adapter(store).put_batch([event(event_id=given)])
    [stored] = store.stored
    assert (stored == "own-id") == (given == "own-id")
    assert stored


async def test_journal_that_repeats_a_batch_stores_its_events_once() -> None:
    store = LostReplies(lost=2)
    journal = named("deerflow.runtime.journal:RunJournal")(
        run_id="r", thread_id="t", event_store=adapter(store), flush_threshold=2
    )
    for number in range(4):
        journal.record_middleware("tag", name=str(number), hook="h", action="a", changes={})
        await asyncio.sleep(0)
    for _ in range(3):
        try:
            await journal.flush()
        except StorageUnavailableError:
            continue
    assert [content["name"] for content in store.texts] == ["0", "1", "2", "3"]


def test_ids_are_remembered_for_a_bounded_number_of_events_and_time() -> None:
    ids_class = named("deerflow_mongo.hosts.adapters.event_ids:EventIds")
    now = [0.0]
    ids = ids_class(max_events=3, max_age_s=10, clock=lambda: now[0])
    events = [event(number) for number in range(5)]
    ids.failed(events, [str(number) for number in range(5)])
    assert len(ids) == 3
    assert ids.of_batch(events[2:]) == ["2", "3", "4"]
    assert ids.of_batch(events[:2]) != ["0", "1"]
    now[0] = 11.0
    ids.failed(events[4:], ["4"])
    assert len(ids) == 1
    ids.stored([event()])
    assert len(ids) == 1
    ids.stored(events[4:])
    assert len(ids) == 0
