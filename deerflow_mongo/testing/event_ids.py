"""Run events with an `event_id` of the caller's, which are stored once (CONTRACT section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest

from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import RunEventRow
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, needs
from .processes import TASKS, run_in_processes
from .run_events import all_events, event, seqs

_PROCESSES = 4


def _events(*event_ids: str | None, **fields: Any) -> list[Any]:
    """An event for each id, whose content is its place."""
    return [event(event_id=name, content=f"{n}", **fields) for n, name in enumerate(event_ids)]


class EventIdContract(Contract):
    async def test_event_id_is_in_the_rows_of_events_that_have_one(self, storage: Storage) -> None:
        rows = await storage.run_events.put_batch(_events("a", None))
        assert [row.get("event_id") for row in rows] == ["a", None]
        assert "event_id" not in rows[1]
        assert await all_events(storage) == rows

    async def test_invalid_event_id_raises_and_stores_nothing(self, storage: Storage) -> None:
        for wrong in ("", 5, {"$ne": None}, b"a", "x" * 1_025):
            with case(wrong), pytest.raises((TypeError, ValueError), match="event_id"):
                await storage.run_events.put_batch([event(), event(event_id=wrong)])
        assert await all_events(storage) == []

    async def test_repeated_batch_is_stored_once_and_returns_the_first_rows(self, storage: Storage) -> None:
        """Whatever else the events have: the first ones stay as they are."""
        for size in (1, 3, 70):
            ids = [f"{size}/{n}" for n in range(size)]
            first = await storage.run_events.put_batch(_events(*ids))
            with case(size):
                assert await storage.run_events.put_batch(_events(*ids)) == first
                assert await storage.run_events.put_batch(_events(*ids, run_id="other")) == first
        assert len(await all_events(storage, THREAD, RUN, "other")) == 74

    async def test_rest_of_a_batch_that_was_stored_in_part_is_stored(self, storage: Storage) -> None:
        """Each row is at the place of its event; the new ones are numbered in their order."""
        [a, c] = await storage.run_events.put_batch(_events("a", "c"))
        given: Mapping[str, tuple[list[str | None], list[int]]] = {
            "the first": (["a", "b"], [1, 3]),
            "in the middle": (["d", "a", "e"], [4, 1, 5]),
            "the last": ([None, "f", "c"], [6, 7, 2]),
            "all but one": (["a", "b", "c", "g"], [1, 3, 2, 8]),
            "nothing new": (["c", "a"], [2, 1]),
        }
        for name, (ids, expected) in given.items():
            rows = await storage.run_events.put_batch(_events(*ids))
            with case(name):
                assert seqs(rows) == expected
                assert [row.get("event_id") for row in rows] == ids
                assert all(row in (a, c) for row in rows if row["seq"] <= 2)
        assert seqs(await all_events(storage)) == list(range(1, 9))

    async def test_rest_of_a_large_batch_that_was_stored_in_part_is_stored(self, storage: Storage) -> None:
        ids = [f"{n}" for n in range(150)]
        await storage.run_events.put_batch(_events(*ids[:70], *ids[110:120]))
        rows = await storage.run_events.put_batch(_events(*ids))
        assert [row.get("event_id") for row in rows] == ids
        stored = await all_events(storage)
        assert seqs(stored) == list(range(1, 151))
        assert {row["seq"]: row for row in rows} == {row["seq"]: row for row in stored}

    async def test_event_id_twice_in_a_batch_is_stored_once(self, storage: Storage) -> None:
        rows = await storage.run_events.put_batch(_events("a", None, "a", "b", "a", "b"))
        assert seqs(rows) == [1, 2, 1, 3, 1, 3]
        assert [row["content"] for row in rows] == ["0", "1", "0", "3", "0", "3"]
        assert rows[0] is not rows[2]
        assert seqs(await all_events(storage)) == [1, 2, 3]

    async def test_rows_of_one_event_share_no_value(self, storage: Storage) -> None:
        same = event(event_id="a", content={"k": []}, metadata={"k": []})
        rows = await storage.run_events.put_batch([same, same])
        again, _ = await storage.run_events.put_if_absent(**same)
        changed: Any = rows[0]
        changed["content"]["k"].append(1)
        changed["metadata"]["k"].append(1)
        for row in (rows[1], again, await storage.run_events.put(**same)):
            assert (row["content"], row["metadata"]) == ({"k": []}, {"k": []})

    async def test_concurrent_calls_with_one_event_id_store_one_event(self, storage: Storage) -> None:
        """Events without an id that are put at the same time stay whole and in order."""
        calls = [storage.run_events.put_batch(_events("a", f"own-{n}")) for n in range(20)]
        others = [storage.run_events.put_batch([event(run_id="other")] * 3) for _ in range(20)]
        answers = await asyncio.gather(*[call for pair in zip(calls, others, strict=True) for call in pair])
        stored = await all_events(storage)
        assert [row.get("event_id") for row in stored] == ["a", *(f"own-{n}" for n in range(20))]
        assert all(rows[0] == stored[0] for rows in answers[::2])
        assert all(seqs(rows) == list(range(rows[0]["seq"], rows[0]["seq"] + 3)) for rows in answers[1::2])
        assert seqs(await all_events(storage, THREAD, RUN, "other")) == list(range(1, 82))

    async def test_put_if_absent_returns_the_event_with_the_same_event_id(self, storage: Storage) -> None:
        first, is_new = await storage.run_events.put_if_absent(**event(event_id="a"))
        assert (is_new, first["seq"]) == (True, 1)
        # The run's event of this type; another type, or another run, with an id that is stored.
        for fields in ({"event_id": "b"}, {"event_type": "ended"}, {"run_id": "run-2"}):
            with case(fields):
                same = event(**{"event_id": "a", **fields})
                assert await storage.run_events.put_if_absent(**same) == (first, False)
        put = await storage.run_events.put(**event(event_type="put", event_id="c"))
        assert await storage.run_events.put_if_absent(**event(event_type="x", event_id="c")) == (put, False)
        _, is_new = await storage.run_events.put_if_absent(**event(event_type="x", event_id="d"))
        assert is_new
        assert seqs(await all_events(storage, THREAD, RUN, "run-2")) == [1, 2, 3]

    async def test_new_event_of_put_if_absent_is_the_first_of_its_type_beside_racing_puts(
        self, storage: Storage
    ) -> None:
        events = storage.run_events
        for number in range(30):
            run: dict[str, Any] = {"run_id": f"r{number}", "event_type": "receipt"}
            batch = [event(**run), event(**run)]
            puts: list[Awaitable[Any]] = [events.put_batch(batch), events.put_if_absent(**event(**run))]
            if number % 2:
                puts.reverse()
            await asyncio.gather(events.put(**event(**run, thread_id="thread-2")), *puts)
            stored = await all_events(storage, THREAD, f"r{number}")
            row, is_new = await events.put_if_absent(**event(**run))
            assert (row, is_new) == (stored[0], False)
            assert len(stored) in (2, 3)

    async def test_concurrent_put_if_absent_calls_with_one_event_id_store_one_event(
        self, storage: Storage
    ) -> None:

        async def put_if_absent(number: int) -> tuple[RunEventRow, bool]:
            return await storage.run_events.put_if_absent(
                **event(event_id="a", event_type=f"type-{number % 5}")
            )

        async def put() -> tuple[RunEventRow, bool]:
            return await storage.run_events.put(**event(event_id="a", event_type="put")), False

        answers = await asyncio.gather(*map(put_if_absent, range(20)), *(put() for _ in range(20)))
        [stored] = await all_events(storage)
        assert sum(is_new for _, is_new in answers) <= 1
        assert all(row == stored for row, _ in answers)

    async def test_event_id_is_free_again_after_a_deletion(self, storage: Storage) -> None:
        events = storage.run_events
        assert seqs(await events.put_batch(_events("a", "b"))) == [1, 2]
        assert await events.delete_by_thread(THREAD) == 2
        assert seqs(await events.put_batch(_events("a", "b"))) == [3, 4]
        assert await events.delete_by_run(THREAD, RUN) == 2
        assert seqs(await events.put_batch(_events("b", "a"))) == [5, 6]

    async def test_event_ids_of_threads_are_independent(self, storage: Storage) -> None:
        rows = await storage.run_events.put_batch(
            [event(thread_id=f"thread-{n % 2}", event_id=name) for n, name in enumerate("aabb")]
        )
        assert seqs(rows) == [1, 1, 2, 2]
        again = await storage.run_events.put_batch(
            [event(thread_id=f"thread-{n % 2}", event_id=name) for n, name in enumerate("aabb")]
        )
        assert again == rows

    async def test_repeated_event_of_another_users_thread_is_refused(self, storage: Storage) -> None:
        """Nothing of the stored event is returned."""
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        await storage.run_events.put(**event(event_id="a"))
        with acting_as(BOB):
            with pytest.raises(PermissionError, match="not allowed to append events"):
                await storage.run_events.put(**event(event_id="a"))
            with pytest.raises(PermissionError, match="not allowed to append events"):
                await storage.run_events.put_if_absent(**event(event_id="a"))
        with acting_as(ALICE):
            assert (await storage.run_events.put(**event(event_id="a")))["seq"] == 1

    @needs("durability")
    async def test_event_id_is_recognised_by_another_storage(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        first = await storage.run_events.put_batch(_events("a", "b"))
        async with create_storage(storage_config) as other:
            rows = await other.run_events.put_batch(_events("a", "b", "c"))
        assert rows[:2] == first
        assert await storage.run_events.put(**event(event_id="c")) == rows[2]
        assert seqs(await all_events(storage)) == [1, 2, 3]

    @needs("processes")
    async def test_events_from_four_processes_are_stored_once_by_event_id(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        """Every task of every process puts the same batches, among others without ids."""
        rounds, size = 2, 4
        arguments: dict[str, Any] = {"thread_id": THREAD, "rounds": rounds, "size": size}
        answers = await run_in_processes(storage_config, "put_with_event_ids", **arguments)
        stored = await storage.run_events.list_messages(THREAD, limit=100_000)
        by_id = {row["event_id"]: row["seq"] for row in stored if "event_id" in row}
        assert len(by_id) == rounds * size
        assert seqs(stored) == list(range(1, rounds * size + _PROCESSES * TASKS * rounds + 1))
        for answer in answers:
            assert answer == by_id
