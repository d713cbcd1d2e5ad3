"""Access to run events: which threads a call may read and write (CONTRACT sections 2 and 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import pytest

from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as
from .run_events import all_events, event, seqs

_UNOWNED = "thread-without-owner"
_UNKNOWN = "unknown-thread"
_STRANGERS = (BOB, None)
"""Another user, and an actor without an id, such as that of an anonymous request."""


async def _given(storage: Storage) -> None:
    """A thread of alice, one without an owner and one that is not stored, with two messages each."""
    await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
    await storage.threads.ensure_thread(thread_id=_UNOWNED, user_id=None)
    for thread_id in (THREAD, _UNOWNED, _UNKNOWN):
        await storage.run_events.put_batch([event(thread_id=thread_id), event(thread_id=thread_id)])


def _writes(storage: Storage, thread_id: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    events, own = storage.run_events, event(thread_id=thread_id, event_type="more")
    return {
        "put": lambda: events.put(**own),
        "put_if_absent": lambda: events.put_if_absent(**own),
        "put_batch": lambda: events.put_batch([own]),
        "put_batch of several threads": lambda: events.put_batch([event(thread_id="new"), own]),
    }


async def _seen(storage: Storage, thread_id: str) -> set[int]:
    """The number of events that each list returns, as a set."""
    events = storage.run_events
    return {
        len(await events.list_messages(thread_id)),
        len(await events.list_messages(thread_id, after_seq=0)),
        len(await events.list_messages_by_run(thread_id, RUN)),
        len(await events.list_events(thread_id, RUN)),
        await events.count_messages(thread_id),
    }


class EventAccessContract(Contract):
    async def test_events_of_another_users_thread_are_hidden(self, storage: Storage) -> None:
        await _given(storage)
        for stranger in _STRANGERS:
            with case(stranger), acting_as(stranger):
                assert await _seen(storage, THREAD) == {0}
                assert await storage.run_events.delete_by_run(THREAD, RUN) == 0
                assert await storage.run_events.delete_by_thread(THREAD) == 0
        assert await _seen(storage, THREAD) == {2}

    async def test_writing_to_another_users_thread_is_rejected(self, storage: Storage) -> None:
        """A `PermissionError`; none of the batch is written."""
        await _given(storage)
        for stranger, (name, write) in product(_STRANGERS, _writes(storage, THREAD).items()):
            with (
                case(stranger, name),
                acting_as(stranger),
                pytest.raises(PermissionError, match="not allowed to append events"),
            ):
                await write()
        assert await _seen(storage, THREAD) == {2}
        assert await all_events(storage, "new") == []

    async def test_put_if_absent_never_returns_an_event_of_another_users_thread(
        self, storage: Storage
    ) -> None:
        """It raises as `put` does where the run already has an event of this type."""
        await _given(storage)
        for stranger in _STRANGERS:
            with (
                case(stranger),
                acting_as(stranger),
                pytest.raises(PermissionError, match="not allowed to append events"),
            ):
                await storage.run_events.put_if_absent(**event())

    async def test_put_if_absent_stores_one_event_for_all_users(self, storage: Storage) -> None:
        stored, _ = await storage.run_events.put_if_absent(**event(user_id=ALICE))
        for other in ({"user_id": BOB}, {}, {"user_id": ALICE, "category": "trace"}):
            with case(other):
                assert await storage.run_events.put_if_absent(**event(**other)) == (stored, False)

    async def test_own_and_unowned_threads_are_open(self, storage: Storage) -> None:
        await _given(storage)
        for user, thread_id in (
            (ALICE, THREAD),
            (BOB, _UNOWNED),
            (BOB, _UNKNOWN),
            ("", _UNOWNED),
            (None, _UNOWNED),
        ):
            with case(user, thread_id), acting_as(user):
                before = len(await all_events(storage, thread_id))
                assert before >= 2
                for write in _writes(storage, thread_id).values():
                    await write()
                assert len(await all_events(storage, thread_id)) >= before + 3
        with acting_as(ALICE):
            assert await storage.run_events.delete_by_run(THREAD, RUN) == 5
            assert await storage.run_events.delete_by_thread(_UNKNOWN) == 5

    async def test_every_thread_is_open_without_an_actor(self, storage: Storage) -> None:
        """As for a host's own code; an actor without an id is an actor."""
        await _given(storage)
        await storage.run_events.put(**event())
        assert await _seen(storage, THREAD) == {3}
        assert await storage.run_events.delete_by_thread(THREAD) == 3

    async def test_change_of_owner_applies_to_events_immediately(self, storage: Storage) -> None:
        """Every call reads the owner again; permissions are not cached."""
        await _given(storage)
        for owner, other in ((BOB, ALICE), (ALICE, BOB), (BOB, ALICE)):
            with case(owner):
                await storage.threads.delete_thread(THREAD)
                await storage.threads.ensure_thread(thread_id=THREAD, user_id=owner)
                with acting_as(other):
                    assert await _seen(storage, THREAD) == {0}
                    with pytest.raises(PermissionError):
                        await storage.run_events.put(**event())
                with acting_as(owner):
                    await storage.run_events.put(**event())
                    assert await _seen(storage, THREAD) != {0}

    async def test_concurrent_writers_are_authorized_individually(self, storage: Storage) -> None:
        await _given(storage)

        async def write(user: str) -> list[int]:
            with acting_as(user):
                return seqs(await storage.run_events.put_batch([event(content=user)] * 2))

        users = [ALICE, BOB] * 20
        answers = await asyncio.gather(*map(write, users), return_exceptions=True)
        for user, answer in zip(users, answers, strict=True):
            assert isinstance(answer, list if user == ALICE else PermissionError)
        rows = await all_events(storage)
        assert seqs(rows) == list(range(1, 2 + 40 + 1))
        assert BOB not in [row["content"] for row in rows]

    async def test_named_user_sees_only_own_events(self, storage: Storage) -> None:
        """Also in a thread that is not stored, which is otherwise open to all."""
        events = storage.run_events
        await events.put_batch([event(user_id=ALICE), event(user_id=BOB), event()])
        assert await _seen(storage, THREAD) == {3}
        for user_id, seqs_seen in ((ALICE, [1]), (BOB, [2]), ("carol", []), ("", [])):
            seen = await events.list_messages(THREAD, user_id=user_id)
            with case(user_id):
                assert seqs(seen) == seqs_seen
                assert [row.get("user_id") for row in seen] == [user_id] * len(seen)
                assert seqs(await events.list_events(THREAD, RUN, user_id=user_id)) == seqs_seen
                of_run = await events.list_messages_by_run(THREAD, RUN, after_seq=0, user_id=user_id)
                assert seqs(of_run) == seqs_seen
                assert await events.count_messages(THREAD, user_id=user_id) == len(seqs_seen)
        assert "user_id" not in (await events.list_messages(THREAD))[2]

    async def test_delete_with_a_user_id_removes_only_that_users_events(self, storage: Storage) -> None:
        events = storage.run_events
        await events.put_batch([event(user_id=ALICE), event(user_id=BOB), event(), event(user_id=ALICE)])
        assert await events.delete_by_run(THREAD, RUN, user_id=BOB) == 1
        assert await events.delete_by_thread(THREAD, user_id=ALICE) == 2
        assert seqs(await events.list_messages(THREAD)) == [3]
        new, _ = await events.put_if_absent(**event(event_type="more", user_id=BOB))
        assert (new["seq"], new.get("user_id")) == (5, BOB)

    async def test_deleting_events_covers_every_category(self, storage: Storage) -> None:
        events = storage.run_events
        for delete in (lambda: events.delete_by_run(THREAD, RUN), lambda: events.delete_by_thread(THREAD)):
            await events.put_batch([event(), event(category="trace")])
            assert await delete() == 2
            assert await all_events(storage) == []
