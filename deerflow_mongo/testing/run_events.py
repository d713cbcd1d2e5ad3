"""Run events: writing, numbering, deleting (CONTRACT section 6)."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from ..contract.errors import InvalidPayloadError, PayloadTooLargeError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import RunEventRow
from .cases import case
from .contract import RUN, THREAD, Contract, needs
from .limits import must_raise, oversized_text
from .payload_values import CONVERSIONS, ROUND_TRIPS, self_referencing, with_own_keys
from .values import assert_is_now, assert_plain, assert_row_time, exactly, now

_KEYS = {"thread_id", "run_id", "event_type", "category", "content", "metadata", "created_at", "seq"}


def event(**fields: Any) -> Any:
    """An event to be stored; by default a message of the default run."""
    return {"thread_id": THREAD, "run_id": RUN, "event_type": "ai_message", "category": "message", **fields}


def seqs(rows: list[RunEventRow]) -> list[int]:
    return [row["seq"] for row in rows]


async def all_events(storage: Storage, thread_id: str = THREAD, *run_ids: str) -> list[RunEventRow]:
    """All events of these runs, by `seq`."""
    rows: list[RunEventRow] = []
    for run_id in run_ids or (RUN,):
        rows += await storage.run_events.list_events(thread_id, run_id, limit=100_000)
    return sorted(rows, key=lambda row: row["seq"])


class _EventType(enum.Enum):
    AI_MESSAGE = "ai_message"


class RunEventContract(Contract):
    async def test_events_of_a_thread_are_numbered_from_1(self, storage: Storage) -> None:
        first = await storage.run_events.put_batch([event(content=f"{n}") for n in range(3)])
        assert seqs(first) == [1, 2, 3]
        assert [row["content"] for row in first] == ["0", "1", "2"]
        assert seqs(await storage.run_events.put_batch([event(), event()])) == [4, 5]
        assert (await storage.run_events.put(**event()))["seq"] == 6

    async def test_put_batch_returns_the_same_rows_as_the_lists(self, storage: Storage) -> None:
        rows = await storage.run_events.put_batch(
            [event(content={"a": 1}, metadata={"b": [2]}), event(event_type="tool_call", content="text")]
        )
        assert exactly(await all_events(storage)) == exactly(rows)
        assert exactly(await storage.run_events.list_messages(THREAD)) == exactly(rows)
        for row in rows:
            assert set(row) == _KEYS
            assert_plain(row)

    async def test_event_fields_have_the_documented_defaults(self, storage: Storage) -> None:
        since = now()
        for fields in ({}, {"content": None, "metadata": None, "created_at": None}):
            with case(fields):
                row = await storage.run_events.put(**event(**fields))
                assert (row["content"], row["metadata"]) == ("", {})
                assert_is_now(assert_row_time(row["created_at"]), since=since)

    async def test_event_time_is_stored_in_utc(self, storage: Storage) -> None:
        """To the microsecond."""
        moment = datetime(2026, 4, 22, 3, 26, 38, 123456, tzinfo=UTC)
        elsewhere = moment.astimezone(timezone(timedelta(hours=8)))
        times = [moment, elsewhere, elsewhere.isoformat(), "2026-04-22T03:26:38.123456"]
        rows = await storage.run_events.put_batch([event(created_at=value) for value in times])
        assert {row["created_at"] for row in rows} == {"2026-04-22T03:26:38.123456+00:00"}
        for wrong in ("yesterday", 5, ""):
            with case(wrong), pytest.raises(ValueError, match="created_at"):
                await storage.run_events.put(**event(created_at=wrong))

    async def test_enum_event_type_is_stored_as_its_value(self, storage: Storage) -> None:
        row = await storage.run_events.put(**event(event_type=_EventType.AI_MESSAGE))
        assert row["event_type"] == "ai_message"
        assert await storage.run_events.list_events(THREAD, RUN, event_types=[_EventType.AI_MESSAGE]) == [row]  # pyright: ignore[reportArgumentType]

    async def test_empty_batch_stores_nothing(self, storage: Storage) -> None:
        assert await storage.run_events.put_batch([]) == []
        assert await all_events(storage) == []

    async def test_batch_may_mix_threads_and_runs(self, storage: Storage) -> None:
        """Rows come in the order of the input; each thread is numbered separately."""
        places = [("a", "r1"), ("b", "r1"), ("a", "r2"), ("a", "r1"), ("c", "r3"), ("b", "r1")]
        rows = await storage.run_events.put_batch([event(thread_id=t, run_id=r) for t, r in places])
        assert [(row["thread_id"], row["run_id"]) for row in rows] == places
        assert seqs(rows) == [1, 1, 2, 3, 1, 2]
        assert seqs(await all_events(storage, "a", "r1", "r2")) == [1, 2, 3]

    async def test_seq_rises_in_the_order_of_the_calls(self, storage: Storage) -> None:
        """In one process, also for concurrent calls; the seqs of a batch are consecutive."""
        calls = [
            storage.run_events.put_batch([event(content=f"{n}") for _ in range(n % 7)]) for n in range(60)
        ]
        batches = await asyncio.gather(*calls)
        given = [number for rows in batches for number in seqs(rows)]
        assert given == list(range(1, len(given) + 1))
        assert [row["content"] for row in await all_events(storage)] == [
            f"{n}" for n in range(60) for _ in range(n % 7)
        ]

    async def test_concurrent_batches_of_any_size_have_consecutive_seqs(self, storage: Storage) -> None:
        """Some have more events, or more bytes, than a database may store as one unit."""
        sizes = [1, 300, 2, 70, 5, 3]
        texts = ["x", "x", "x" * 100_000, "x" * 3_000, "x", "x" * 200_000]
        calls = [
            storage.run_events.put_batch([event(content=text)] * size)
            for size, text in zip(sizes, texts, strict=True)
        ]
        batches = await asyncio.gather(*calls)
        for rows, size in zip(batches, sizes, strict=True):
            assert seqs(rows) == list(range(rows[0]["seq"], rows[0]["seq"] + size))
        assert seqs(await all_events(storage)) == list(range(1, sum(sizes) + 1))

    async def test_concurrent_writes_to_many_threads_are_numbered_separately(self, storage: Storage) -> None:
        calls = [storage.run_events.put_batch([event(thread_id=f"thread-{n % 20}")] * 2) for n in range(100)]
        await asyncio.gather(*calls)
        for n in range(20):
            with case(n):
                assert seqs(await all_events(storage, f"thread-{n}")) == list(range(1, 11))

    # Content and invalid input.

    async def test_event_content_round_trips(self, storage: Storage) -> None:
        """A dict comes back as a dict, text as text, a list as a list."""
        for name, value in ROUND_TRIPS.items():
            contents = [with_own_keys(value), [value], {"content": value, "_json": value}]
            with case(name):
                rows = await storage.run_events.put_batch(
                    [event(thread_id=name, content=c, metadata={"k": c}) for c in contents]
                )
                assert exactly([row["content"] for row in rows]) == exactly(contents)
                assert exactly([row["metadata"]["k"] for row in rows]) == exactly(contents)
                assert exactly(await storage.run_events.list_events(name, RUN)) == exactly(rows)
        for text in ("", " ", "a\0b", "$x", "é💬\u2028", '{"_json":"1"}', "x" * 500_000):
            with case(text[:20]):
                assert (await storage.run_events.put(**event(content=text)))["content"] == text

    async def test_objects_in_event_content_are_converted_to_json(self, storage: Storage) -> None:
        for name, given, expected in CONVERSIONS:
            with case(name):
                row = await storage.run_events.put(**event(content={"k": given}))
                assert exactly(row["content"]) == exactly({"k": expected})
                assert exactly((await all_events(storage))[-1]) == exactly(row)

    async def test_invalid_event_raises_and_writes_nothing(self, storage: Storage) -> None:
        wrong: list[tuple[Any, str]] = [
            ({name: value for name, value in event().items() if name != absent}, absent)
            for absent in ("thread_id", "run_id", "event_type", "category")
        ]
        wrong += [(event(**{name: {"$ne": None}}), name) for name in ("thread_id", "run_id", "event_type")]
        wrong += [(event(category=""), "category"), (event(run_id=5), "run_id")]
        wrong += [(event(unknown_field=1), "unknown_field"), (event(metadata=["a"]), "metadata")]
        wrong += [("text", "events"), (None, "events"), ([("thread_id", THREAD)], "events")]
        for value, named in wrong:
            with case(named, repr(value)[:60]):
                with pytest.raises((TypeError, ValueError), match=named) as raised:
                    await storage.run_events.put_batch([event(), value, event()])
                assert "events[1]" in str(raised.value)
        for value in ("text", {"thread_id": THREAD}, 5, None):
            with case(value), pytest.raises(TypeError):
                await storage.run_events.put_batch(value)  # pyright: ignore[reportArgumentType]
        assert await all_events(storage) == []
        assert (await storage.run_events.put(**event()))["seq"] == 1

    async def test_invalid_event_content_fails_only_its_own_caller(self, storage: Storage) -> None:
        """Whether or not the calls are written together."""
        invalid: dict[int, Any] = {0: self_referencing(dict), 11: {"k": self_referencing(list)}}
        too_large = oversized_text(storage)
        if must_raise(storage, len(too_large)):
            invalid[25] = too_large
        calls = [storage.run_events.put_batch([event(content="good")] * 3) for _ in range(30)]
        for position, content in invalid.items():
            calls[position].close()
            calls[position] = storage.run_events.put_batch([event(), event(content=content)])
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for position, answer in enumerate(answers):
            if position in invalid:
                assert isinstance(answer, InvalidPayloadError | PayloadTooLargeError)
                assert "content" in str(answer)
            else:
                assert isinstance(answer, list)
        assert seqs(await all_events(storage)) == list(range(1, (30 - len(invalid)) * 3 + 1))

    async def test_cancelled_put_does_not_affect_other_callers(self, storage: Storage) -> None:
        calls = [asyncio.create_task(storage.run_events.put_batch([event()] * 2)) for _ in range(40)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        acknowledged = [answer for answer in answers if isinstance(answer, list)]
        assert len(acknowledged) >= 26
        assert all(isinstance(answer, list | asyncio.CancelledError) for answer in answers)
        await asyncio.wait_for(storage.run_events.put(**event()), 30)
        stored = seqs(await all_events(storage))
        assert {number for rows in acknowledged for number in seqs(rows)} <= set(stored)
        assert stored == list(range(1, len(stored) + 1))

    # One event per run and type.

    async def test_put_if_absent_stores_one_event_per_run_and_type(self, storage: Storage) -> None:
        first, is_new = await storage.run_events.put_if_absent(**event(content="first"))
        assert (is_new, first["seq"], first["content"]) == (True, 1, "first")
        again, is_new = await storage.run_events.put_if_absent(**event(content="second"))
        assert (is_new, again) == (False, first)
        for other in ({"run_id": "run-2"}, {"event_type": "ended"}, {"thread_id": "thread-2"}):
            with case(other):
                assert (await storage.run_events.put_if_absent(**event(**other)))[1] is True

    async def test_put_if_absent_finds_an_event_stored_by_put(self, storage: Storage) -> None:
        stored = await storage.run_events.put(**event())
        await storage.run_events.put(**event())
        assert await storage.run_events.put_if_absent(**event()) == (stored, False)

    async def test_concurrent_put_if_absent_calls_store_one_event(self, storage: Storage) -> None:
        calls = [storage.run_events.put_if_absent(**event(content=f"{n}")) for n in range(30)]
        others = [storage.run_events.put(**event(event_type="other")) for _ in range(30)]
        answers = await asyncio.gather(*calls)
        await asyncio.gather(*others)
        assert sum(is_new for _, is_new in answers) == 1
        [stored] = await storage.run_events.list_events(THREAD, RUN, event_types=["ai_message"])
        assert all(row == stored for row, _ in answers)
        assert seqs(await all_events(storage)) == list(range(1, 32))

    async def test_put_if_absent_stores_again_after_a_delete(self, storage: Storage) -> None:
        await storage.run_events.put_if_absent(**event())
        assert await storage.run_events.delete_by_run(THREAD, RUN) == 1
        row, is_new = await storage.run_events.put_if_absent(**event())
        assert (is_new, row["seq"]) == (True, 2)

    # Deleting.

    async def test_deleting_the_events_of_a_run_leaves_other_runs(self, storage: Storage) -> None:
        places = [(THREAD, RUN), (THREAD, "run-2"), ("thread-2", RUN)]
        for _ in range(3):
            await storage.run_events.put_batch([event(thread_id=t, run_id=r) for t, r in places])
        assert await storage.run_events.delete_by_run(THREAD, RUN) == 3
        assert await all_events(storage) == []
        assert await storage.run_events.list_messages_by_run(THREAD, RUN) == []
        assert seqs(await storage.run_events.list_messages(THREAD)) == [2, 4, 6]
        assert await storage.run_events.count_messages(THREAD) == 3
        assert len(await all_events(storage, "thread-2")) == 3
        assert await storage.run_events.delete_by_run(THREAD, RUN) == 0

    async def test_deleting_the_events_of_a_thread_leaves_other_threads(self, storage: Storage) -> None:
        for thread_id in (THREAD, "thread-2"):
            await storage.run_events.put_batch([event(thread_id=thread_id), event(thread_id=thread_id)])
        assert await storage.run_events.delete_by_thread(THREAD) == 2
        assert await all_events(storage) == await storage.run_events.list_messages(THREAD) == []
        assert await storage.run_events.count_messages(THREAD) == 0
        assert len(await all_events(storage, "thread-2")) == 2
        assert await storage.run_events.delete_by_thread(THREAD) == 0
        assert await storage.run_events.delete_by_thread("unknown thread") == 0
        assert await storage.run_events.delete_by_run("unknown thread", RUN) == 0

    async def test_seq_is_never_reused_after_a_delete(self, storage: Storage) -> None:
        put = storage.run_events.put_batch
        await put([event(), event(run_id="run-2"), event()])
        assert await storage.run_events.delete_by_run(THREAD, RUN) == 2
        assert seqs(await put([event()])) == [4]
        assert await storage.run_events.delete_by_thread(THREAD) == 2
        assert seqs(await put([event(), event()])) == [5, 6]
        assert seqs(await storage.run_events.list_messages(THREAD, after_seq=4)) == [5, 6]

    @needs("durability")
    async def test_seq_is_never_reused_by_another_storage(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        """By a new storage, and by one that wrote to the thread before others wrote and deleted."""
        async with create_storage(storage_config) as old:
            assert seqs(await old.run_events.put_batch([event()])) == [1]
            assert seqs(await storage.run_events.put_batch([event()] * 4)) == [2, 3, 4, 5]
            assert await storage.run_events.delete_by_thread(THREAD) == 5
            assert seqs(await old.run_events.put_batch([event()] * 2)) == [6, 7]
            assert await old.run_events.delete_by_thread(THREAD) == 2
            assert seqs(await storage.run_events.put_batch([event()])) == [8]
            assert await storage.run_events.delete_by_thread(THREAD) == 1
        async with create_storage(storage_config) as new:
            assert seqs(await new.run_events.put_batch([event()])) == [9]

    @needs("durability")
    async def test_two_storages_share_one_seq_per_thread(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        async with create_storage(storage_config) as other:
            stores = [storage.run_events, other.run_events]
            calls = [stores[n % 2].put_batch([event(content=f"{n}")] * 3) for n in range(60)]
            for rows in await asyncio.gather(*calls):
                assert seqs(rows) == list(range(rows[0]["seq"], rows[0]["seq"] + 3))
        assert seqs(await all_events(storage)) == list(range(1, 181))
