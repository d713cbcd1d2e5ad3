"""Erasing a thread or a user: the promises of `erasure.Erasure`, skipped for a storage without it.

Checkpoints need a saver, which not every backend has; whoever has one tests their erasure beside this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from ..contract.capabilities import Accounts
from ..contract.erasure import Erased, Erasure
from ..contract.errors import InvalidArgumentError
from ..contract.protocols import Storage
from ..contract.rows import ThreadMeta, ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, THREAD, Contract, acting_as, given_run, snapshot
from .values import exactly

_OTHER_THREAD = "thread-2"
_INVALID_IDS: tuple[Any, ...] = (None, "", 5, {"$ne": None}, ["x"], "a\ud800", "é" * 512 + "x")


async def _given_thread(storage: Storage, thread_id: str = THREAD, user_id: str | None = ALICE) -> Erased:
    """A thread with a run, two events and the votes of two users; what erasing it removes."""
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=thread_id, user_id=user_id))
    await given_run(storage, f"run-of-{thread_id}", thread_id, user_id=user_id)
    await _put_events(storage, thread_id, user_id)
    for voter in (ALICE, BOB):
        await storage.feedback.upsert(
            run_id=f"run-of-{thread_id}", thread_id=thread_id, rating=1, user_id=voter
        )
    return Erased(threads=1, runs=1, run_events=2, feedback=2)


async def _put_events(storage: Storage, thread_id: str, user_id: str | None = None) -> list[int]:
    """The numbers of two new events."""
    event = {"thread_id": thread_id, "run_id": f"run-of-{thread_id}", "user_id": user_id}
    messages: Any = [{**event, "event_type": "ai_message", "category": "message"} for _ in range(2)]
    return [row["seq"] for row in await storage.run_events.put_batch(messages)]


def _erasure_of(storage: Storage) -> Erasure:
    if not isinstance(storage, Erasure):
        pytest.skip(f"{type(storage).__name__} cannot erase threads and users")
    return storage


class ErasureContract(Contract):
    @pytest.fixture
    def erasing(self, storage: Storage) -> Erasure:
        return _erasure_of(storage)

    # A thread.

    async def test_purged_thread_leaves_nothing(self, storage: Storage, erasing: Erasure) -> None:
        empty = await snapshot(storage, THREAD)
        there = await _given_thread(storage)
        assert await erasing.count_thread(THREAD) == there
        assert await erasing.purge_thread(THREAD) == there
        assert await snapshot(storage, THREAD) == empty
        assert await erasing.count_thread(THREAD) == Erased()

    async def test_purge_leaves_other_threads_as_they_are(self, storage: Storage, erasing: Erasure) -> None:
        await _given_thread(storage)
        await _given_thread(storage, _OTHER_THREAD)
        _, *before = await snapshot(storage, _OTHER_THREAD)
        await erasing.purge_thread(THREAD)
        threads, *after = await snapshot(storage, _OTHER_THREAD)
        assert exactly(after) == exactly(before)
        assert [thread.thread_id for thread in cast("list[ThreadMeta]", threads)] == [_OTHER_THREAD]

    async def test_purge_is_repeatable_and_accepts_a_missing_thread(
        self, storage: Storage, erasing: Erasure
    ) -> None:
        assert await erasing.purge_thread(THREAD) == Erased()
        await _given_thread(storage)
        await erasing.purge_thread(THREAD)
        assert await erasing.purge_thread(THREAD) == Erased()

    async def test_purge_erases_a_thread_without_metadata(self, storage: Storage, erasing: Erasure) -> None:
        there = await _given_thread(storage)
        await storage.threads.delete_thread(THREAD)
        there.threads = 0
        assert await erasing.purge_thread(THREAD) == there
        assert await storage.run_events.list_messages(THREAD) == []

    async def test_purge_gives_no_event_number_again(self, storage: Storage, erasing: Erasure) -> None:
        await _given_thread(storage)
        last = (await storage.run_events.list_messages(THREAD))[-1]["seq"]
        await erasing.purge_thread(THREAD)
        assert min(await _put_events(storage, THREAD)) > last

    async def test_purge_and_counts_need_no_actor_and_ignore_one(
        self, storage: Storage, erasing: Erasure
    ) -> None:
        there = await _given_thread(storage)
        for user_id in (BOB, None):
            with acting_as(user_id):
                assert await erasing.count_thread(THREAD) == there
        with acting_as(BOB):
            assert await erasing.purge_thread(THREAD) == there

    async def test_concurrent_purges_of_one_thread_erase_it(self, storage: Storage, erasing: Erasure) -> None:
        there = await _given_thread(storage)
        outcomes = await asyncio.gather(*(erasing.purge_thread(THREAD) for _ in range(4)))
        assert sum(erased.runs for erased in outcomes) == there.runs
        assert sum(erased.threads for erased in outcomes) == there.threads
        assert await erasing.count_thread(THREAD) == Erased()

    async def test_counting_changes_nothing(self, storage: Storage, erasing: Erasure) -> None:
        await _given_thread(storage)
        before = await snapshot(storage, THREAD)
        await erasing.count_thread(THREAD)
        await erasing.count_user(ALICE)
        assert exactly(await snapshot(storage, THREAD)) == exactly(before)

    # A user.

    async def test_erased_user_leaves_nothing(self, storage: Storage, erasing: Erasure) -> None:
        empty = await snapshot(storage, THREAD, _OTHER_THREAD)
        there = await _given_thread(storage)
        there.add(await _given_thread(storage, _OTHER_THREAD))
        if isinstance(storage, Accounts):
            await storage.users.create(ALICE, email="alice@example.org")
            there.accounts = 1
        assert await erasing.count_user(ALICE) == there
        assert await erasing.erase_user(ALICE) == there
        assert await snapshot(storage, THREAD, _OTHER_THREAD) == empty
        assert await erasing.count_user(ALICE) == Erased()
        if isinstance(storage, Accounts):
            assert await storage.users.get(ALICE) is None
            await storage.users.create("alice-2", email="alice@example.org")

    async def test_erasure_of_a_user_leaves_others_as_they_are(
        self, storage: Storage, erasing: Erasure
    ) -> None:
        await _given_thread(storage, user_id=BOB)
        await storage.feedback.delete_by_run(thread_id=THREAD, run_id=f"run-of-{THREAD}", user_id=ALICE)
        await _given_thread(storage, _OTHER_THREAD)
        before = await storage.runs.list_by_thread(THREAD, user_id=None)
        votes, events = (
            await storage.feedback.list_by_thread(THREAD),
            await storage.run_events.list_messages(THREAD),
        )
        await erasing.erase_user(ALICE)
        assert await storage.runs.list_by_thread(THREAD, user_id=None) == before
        assert await storage.feedback.list_by_thread(THREAD) == votes
        assert await storage.run_events.list_messages(THREAD) == events
        assert await storage.threads.get_thread_meta(THREAD) is not None

    async def test_erased_user_has_nothing_in_threads_of_others(
        self, storage: Storage, erasing: Erasure
    ) -> None:
        """Neither runs with their events and votes, nor own votes, nor events that were written for them."""
        await _given_thread(storage, user_id=BOB)
        await given_run(storage, "of-alice", THREAD, user_id=ALICE)
        event: Any = {"thread_id": THREAD, "event_type": "ai_message", "category": "message"}
        await storage.run_events.put(**event, run_id="of-alice")
        await storage.run_events.put(**event, run_id=f"run-of-{THREAD}", user_id=ALICE)
        await storage.feedback.upsert(run_id="of-alice", thread_id=THREAD, rating=-1, user_id=BOB)
        there = Erased(runs=1, run_events=2, feedback=2)
        assert await erasing.count_user(ALICE) == there
        assert await erasing.erase_user(ALICE) == there
        assert [row["user_id"] for row in await storage.runs.list_by_thread(THREAD, user_id=None)] == [BOB]
        assert [row["user_id"] for row in await storage.feedback.list_by_thread(THREAD)] == [BOB]
        assert [row.get("user_id") for row in await storage.run_events.list_messages(THREAD)] == [BOB, BOB]

    async def test_thread_without_owner_belongs_to_the_only_user_of_its_runs(
        self, storage: Storage, erasing: Erasure
    ) -> None:
        owners: Mapping[str, tuple[str | None, ...]] = {
            "own": (ALICE, ALICE),
            "shared": (ALICE, BOB),
            "partly nobody's": (ALICE, None),
        }
        for thread_id, users in owners.items():
            await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=thread_id))
            for number, user_id in enumerate(users):
                await given_run(storage, f"{thread_id}-{number}", thread_id, user_id=user_id)
        assert await erasing.erase_user(ALICE) == Erased(threads=1, runs=4)
        for thread_id, users in owners.items():
            with case(thread_id):
                is_there = await storage.threads.get_thread_meta(thread_id) is not None
                assert is_there is (thread_id != "own")
                rows = await storage.runs.list_by_thread(thread_id, user_id=None)
                assert {row["user_id"] for row in rows} == set(users) - {ALICE}

    async def test_purge_and_erasure_refuse_invalid_ids(self, storage: Storage, erasing: Erasure) -> None:
        await _given_thread(storage)
        before = await snapshot(storage, THREAD)
        for invalid in _INVALID_IDS:
            for method in (
                erasing.purge_thread,
                erasing.erase_user,
                erasing.count_thread,
                erasing.count_user,
            ):
                with case(method.__name__, invalid), pytest.raises(InvalidArgumentError, match="_id"):
                    await method(invalid)
        assert exactly(await snapshot(storage, THREAD)) == exactly(before)
