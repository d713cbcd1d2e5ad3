"""Lists of run events: selection, order and pages (CONTRACT section 6)."""

from __future__ import annotations

from typing import Any

import pytest

from ..contract.protocols import Storage
from .cases import case
from .contract import RUN, THREAD, Contract, needs
from .limits import base_bytes
from .run_events import event, seqs

# Every third event is a trace; the two runs alternate every two events.
_EVENTS = 60
_RUNS = ("run-a", "run-b")
_ALL = range(1, _EVENTS + 1)
_MESSAGES = [seq for seq in _ALL if seq % 3]


def _run_of(seq: int) -> str:
    return _RUNS[(seq // 2) % 2]


def _page(of: list[int], limit: int, before: int | None, after: int | None) -> list[int]:
    """The expected page, computed in Python."""
    fit = [seq for seq in of if (before is None or seq < before) and (after is None or seq > after)]
    return fit[:limit] if after is not None else fit[len(fit) - min(limit, len(fit)) :]


_PAGES: list[tuple[int, int | None, int | None]] = [
    (limit, before, after)
    for limit in (0, 1, 7, 1_000)
    for before, after in (
        (None, None),
        (30, None),
        (1, None),
        (10**30, None),
        (None, 0),
        (None, 30),
        (None, 60),
        (None, -5),
        (None, -(10**30)),
        (40, 20),
        (21, 20),
        (20, 40),
    )
]


async def _given(storage: Storage) -> None:
    await storage.run_events.put_batch(
        [
            event(
                run_id=_run_of(seq),
                event_type=f"type-{seq % 4}",
                category="message" if seq % 3 else "trace",
                content=f"{seq}",
            )
            for seq in _ALL
        ]
        + [event(thread_id="thread-2", run_id=_RUNS[0])]
    )


class EventPageContract(Contract):
    async def test_messages_of_a_thread_are_paged_by_seq(self, storage: Storage) -> None:
        await _given(storage)
        for limit, before, after in _PAGES:
            with case(limit, before, after):
                rows = await storage.run_events.list_messages(
                    THREAD, limit=limit, before_seq=before, after_seq=after
                )
                assert seqs(rows) == _page(_MESSAGES, limit, before, after)
                assert all(row["content"] == f"{row['seq']}" for row in rows)
                assert {row["category"] for row in rows} <= {"message"}

    async def test_messages_of_a_run_are_paged_by_seq(self, storage: Storage) -> None:
        await _given(storage)
        for run_id in _RUNS:
            own = [seq for seq in _MESSAGES if _run_of(seq) == run_id]
            for limit, before, after in _PAGES:
                with case(run_id, limit, before, after):
                    rows = await storage.run_events.list_messages_by_run(
                        THREAD, run_id, limit=limit, before_seq=before, after_seq=after
                    )
                    assert seqs(rows) == _page(own, limit, before, after)

    async def test_default_page_is_the_last_50_messages(self, storage: Storage) -> None:
        await storage.run_events.put_batch([event()] * 120)
        assert seqs(await storage.run_events.list_messages(THREAD)) == list(range(71, 121))
        assert seqs(await storage.run_events.list_messages_by_run(THREAD, RUN)) == list(range(71, 121))

    async def test_paging_in_both_directions_covers_every_message_once(self, storage: Storage) -> None:
        await _given(storage)
        seen: list[int] = []
        while rows := await storage.run_events.list_messages(
            THREAD, limit=7, after_seq=seen[-1] if seen else 0
        ):
            seen += seqs(rows)
        assert seen == _MESSAGES
        seen = []
        while rows := await storage.run_events.list_messages(
            THREAD, limit=7, before_seq=seen[0] if seen else None
        ):
            seen = seqs(rows) + seen
        assert seen == _MESSAGES

    async def test_list_events_returns_the_first_events_of_every_category(self, storage: Storage) -> None:
        await _given(storage)
        own = [seq for seq in _ALL if _run_of(seq) == "run-b"]
        list_events = storage.run_events.list_events
        assert seqs(await list_events(THREAD, "run-b")) == own
        assert seqs(await list_events(THREAD, "run-b", limit=5)) == own[:5]
        assert await list_events(THREAD, "run-b", limit=0) == []
        assert await list_events(THREAD, "unknown run") == []
        assert await list_events("unknown thread", "run-b") == []

    @needs("many_rows")
    async def test_list_events_has_a_default_limit_of_500(self, storage: Storage) -> None:
        await storage.run_events.put_batch([event()] * 510)
        assert seqs(await storage.run_events.list_events(THREAD, RUN)) == list(range(1, 501))

    async def test_event_type_filter_applies_before_the_limit(self, storage: Storage) -> None:
        await _given(storage)
        own = [seq for seq in _ALL if _run_of(seq) == "run-a"]
        wanted: list[tuple[Any, set[int]]] = [
            (["type-1"], {1}),
            (["type-1", "type-3"], {1, 3}),
            (("type-3", "type-3"), {3}),
            ([], set()),
            (["unknown type"], set()),
            (None, {0, 1, 2, 3}),
        ]
        for types, remainders in wanted:
            for limit in (4, 500):
                with case(types, limit):
                    rows = await storage.run_events.list_events(
                        THREAD, "run-a", event_types=types, limit=limit
                    )
                    assert seqs(rows) == [seq for seq in own if seq % 4 in remainders][:limit]

    async def test_count_messages_counts_only_messages(self, storage: Storage) -> None:
        assert await storage.run_events.count_messages(THREAD) == 0
        await _given(storage)
        assert await storage.run_events.count_messages(THREAD) == len(_MESSAGES)
        assert await storage.run_events.count_messages("thread-2") == 1

    async def test_invalid_seq_bound_raises(self, storage: Storage) -> None:
        for wrong in ("1", 1.0, True, {"$gt": 0}, [1]):
            for name in ("before_seq", "after_seq"):
                arguments: dict[str, Any] = {name: wrong}
                with case(name, wrong):
                    with pytest.raises((TypeError, ValueError), match=name):
                        await storage.run_events.list_messages(THREAD, **arguments)
                    with pytest.raises((TypeError, ValueError), match=name):
                        await storage.run_events.list_messages_by_run(THREAD, RUN, **arguments)

    async def test_invalid_event_types_raise(self, storage: Storage) -> None:
        for wrong in ("ai_message", 5, [5], [{"$ne": None}], [None], [""]):
            types: Any = wrong
            with case(wrong), pytest.raises((TypeError, ValueError), match="event_types"):
                await storage.run_events.list_events(THREAD, RUN, event_types=types)

    async def test_event_lists_can_be_larger_than_one_row(self, storage: Storage) -> None:
        """Four events in one batch, each of nearly a third of the limit."""
        large = "x" * (base_bytes(storage) * 5 // 16)
        rows = await storage.run_events.put_batch([event(content={"k": large}) for _ in range(4)])
        assert seqs(rows) == [1, 2, 3, 4]
        assert seqs(await storage.run_events.list_messages(THREAD)) == [1, 2, 3, 4]
        assert await storage.run_events.list_events(THREAD, RUN) == rows
