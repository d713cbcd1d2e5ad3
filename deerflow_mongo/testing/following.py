"""Following run events: the promises of `capabilities.Following`, skipped for a store without it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import pytest

from ..contract.capabilities import Following
from ..contract.errors import InvalidArgumentError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, needs
from .run_events import event, seqs

_TIMEOUT_S = 60


async def _follow(events: Following, until_seq: int, **arguments: Any) -> list[int]:
    """The seqs that `follow` yields, up to `until_seq`."""
    seen: list[int] = []
    async with asyncio.timeout(_TIMEOUT_S), aclosing(events.follow(THREAD, **arguments)) as rows:
        async for row in rows:
            assert row["thread_id"] == THREAD
            seen.append(row["seq"])
            if row["seq"] >= until_seq:
                break
    return seen


async def _follow_run(events: Following, run_id: str, after_seq: int) -> list[int]:
    """The seqs that `follow` yields until the run ends."""
    async with asyncio.timeout(_TIMEOUT_S):
        rows = events.follow(THREAD, run_id=run_id, after_seq=after_seq, until_run_ends=True)
        return [row["seq"] async for row in rows]


class FollowingContract(Contract):
    @pytest.fixture
    def following(self, request: pytest.FixtureRequest, storage: Storage) -> Following:
        """The storage's run events; skips the test where they cannot be followed."""
        events = storage.run_events
        if not isinstance(events, Following):
            pytest.skip(f"{request.function.__name__}: {type(events).__name__} does not have `Following`")
        return events

    async def test_list_thread_events_returns_the_first_events_of_every_run(
        self, storage: Storage, following: Following
    ) -> None:
        """Of every category; with `run_id`, of that run."""
        places = [("run-a", "message"), ("run-b", "trace"), ("run-b", "message")] * 10
        rows = await storage.run_events.put_batch([event(run_id=r, category=c) for r, c in places])
        await storage.run_events.put(**event(thread_id="thread-2", run_id="run-a"))
        assert await following.list_thread_events(THREAD) == rows
        for run_id in (None, "run-a", "run-b", "unknown"):
            own = [row for row in rows if run_id in (None, row["run_id"])]
            for after, limit in ((0, 5), (7, 500), (7, 3), (30, 5), (0, 0)):
                with case(run_id, after, limit):
                    expected = [row for row in own if row["seq"] > after][:limit]
                    found = await following.list_thread_events(
                        THREAD, run_id=run_id, after_seq=after, limit=limit
                    )
                    assert found == expected

    async def test_list_thread_events_has_a_default_limit_of_500(
        self, storage: Storage, following: Following
    ) -> None:
        await storage.run_events.put_batch([event()] * 510)
        assert seqs(await following.list_thread_events(THREAD)) == list(range(1, 501))

    async def test_list_thread_events_of_another_users_thread_is_empty(
        self, storage: Storage, following: Following
    ) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        await storage.run_events.put(**event())
        for user_id, visible in ((ALICE, [1]), (BOB, []), ("", [])):
            with case(user_id), acting_as(user_id):
                assert seqs(await following.list_thread_events(THREAD)) == visible

    async def test_invalid_argument_of_list_thread_events_raises(self, following: Following) -> None:
        table: dict[str, tuple[Any, ...]] = {
            "run_id": ("", 5, {"$ne": None}),
            "after_seq": ("1", 1.0, {"$gt": 0}),
            "limit": (-1, "5", None),
        }
        for name, values in table.items():
            for value in values:
                arguments: dict[str, Any] = {name: value}
                with case(name, value), pytest.raises(InvalidArgumentError, match=name):
                    await following.list_thread_events(THREAD, **arguments)

    @needs("following")
    async def test_follow_yields_stored_events_then_new_ones(
        self, storage: Storage, following: Following
    ) -> None:
        """In rising `seq` without gaps, also while several tasks write; other threads do not appear."""
        await storage.run_events.put_batch([event()] * 600)
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow(following, 700))
            for number in range(50):
                group.create_task(storage.run_events.put_batch([event(), event(run_id=f"run-{number}")]))
                group.create_task(storage.run_events.put(**event(thread_id="thread-2")))
        assert follower.result() == list(range(1, 701))

    @needs("following")
    async def test_follow_starts_after_the_given_seq(self, storage: Storage, following: Following) -> None:
        await storage.run_events.put_batch([event()] * 5)
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow(following, 7, after_seq=3))
            group.create_task(storage.run_events.put_batch([event()] * 2))
        assert follower.result() == [4, 5, 6, 7]

    @needs("following")
    async def test_follow_of_a_run_yields_only_its_events(
        self, storage: Storage, following: Following
    ) -> None:
        await storage.run_events.put_batch([event(), event(run_id="run-2")] * 3)
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow(following, 9, run_id=RUN))
            for _ in range(2):
                group.create_task(storage.run_events.put_batch([event(), event(run_id="run-2")]))
        assert follower.result() == [1, 3, 5, 7, 9]

    @needs("following")
    async def test_follow_yields_an_event_stored_while_its_reader_was_busy(
        self, storage: Storage, following: Following
    ) -> None:
        """It is not lost between the read of the stored events and the wait for new ones."""
        await storage.run_events.put(**event())
        async with asyncio.timeout(_TIMEOUT_S), aclosing(following.follow(THREAD)) as rows:
            for seq in (1, 2, 3):
                assert (await anext(rows))["seq"] == seq
                await storage.run_events.put(**event())

    @needs("following")
    async def test_follow_continues_after_a_delete(self, storage: Storage, following: Following) -> None:
        await storage.run_events.put(**event())
        async with asyncio.timeout(_TIMEOUT_S), aclosing(following.follow(THREAD)) as rows:
            assert (await anext(rows))["seq"] == 1
            waiting = asyncio.ensure_future(anext(rows))
            await asyncio.sleep(0.1)
            assert await storage.run_events.delete_by_thread(THREAD) == 1
            await storage.run_events.put(**event())
            assert (await waiting)["seq"] == 2

    @needs("following")
    async def test_follow_of_another_users_thread_yields_nothing(
        self, storage: Storage, following: Following
    ) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        await storage.run_events.put(**event())
        with acting_as(ALICE):
            assert await _follow(following, 1) == [1]
        with acting_as(BOB), pytest.raises(TimeoutError):
            async with asyncio.timeout(1), aclosing(following.follow(THREAD)) as rows:
                await anext(rows)

    @needs("following")
    async def test_many_followers_see_the_same_events(self, storage: Storage, following: Following) -> None:
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(_follow(following, 40)) for _ in range(5)]
            for _ in range(40):
                group.create_task(storage.run_events.put(**event()))
        assert [follower.result() for follower in followers] == [list(range(1, 41))] * 5

    @needs("following")
    async def test_cancelled_follower_ends(self, storage: Storage, following: Following) -> None:
        follower = asyncio.create_task(_follow(following, 1_000))
        await storage.run_events.put(**event())
        await asyncio.sleep(0.1)
        follower.cancel()
        done, _ = await asyncio.wait({follower}, timeout=_TIMEOUT_S)
        assert done
        assert follower.cancelled()
        assert await _follow(following, 1) == [1]

    @needs("following", "durability")
    async def test_follow_yields_events_of_another_storage(
        self, following: Following, storage_config: Mapping[str, Any]
    ) -> None:
        async with create_storage(storage_config) as other, asyncio.TaskGroup() as group:
            follower = group.create_task(_follow(following, 20))
            for _ in range(10):
                group.create_task(other.run_events.put_batch([event()] * 2))
        assert follower.result() == list(range(1, 21))

    async def test_follow_until_the_run_ends_needs_a_run(self, following: Following) -> None:
        for invalid in ({"until_run_ends": True}, {"run_id": RUN, "until_run_ends": 1}):
            arguments: dict[str, Any] = invalid
            with case(invalid), pytest.raises(InvalidArgumentError, match="until_run_ends"):
                await anext(following.follow(THREAD, **arguments))

    @needs("following")
    async def test_follow_until_the_run_ends_yields_all_events_of_before(
        self, storage: Storage, following: Following
    ) -> None:
        """Whichever ending it is, and whichever method sets it; other runs and their endings do not count."""
        runs = storage.runs
        endings: dict[str, Callable[[str], Awaitable[object]]] = {
            "success": lambda run_id: runs.update_status(run_id, "success"),
            "a host's own status": lambda run_id: runs.update_status(run_id, "rolled_back"),
            "error": lambda run_id: runs.set_error(run_id, "broken"),
            "completion": lambda run_id: runs.update_run_completion(run_id, status="timeout"),
        }
        for number, (name, end) in enumerate(endings.items()):
            run_id, other = f"run-{number}", f"other-{number}"
            await runs.create(run_id, THREAD, user_id=None)
            await runs.create(other, THREAD, user_id=None)
            [first] = await storage.run_events.put_batch([event(run_id=run_id)])
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(_follow_run(following, run_id, first["seq"] - 1))
                await asyncio.sleep(0.05)
                await runs.update_status(run_id, "running")
                await runs.update_status(other, "success")
                stored = await storage.run_events.put_batch([event(run_id=run_id)] * 30)
                await end(run_id)
            with case(name):
                assert follower.result() == seqs([first, *stored])
                assert await _follow_run(following, run_id, stored[-2]["seq"]) == [stored[-1]["seq"]]

    @needs("following")
    async def test_follow_until_the_run_ends_yields_every_page(
        self, storage: Storage, following: Following
    ) -> None:
        """Also of a run that ended before it is followed, and of one that was created ended."""
        await storage.run_events.put_batch([event()] * 1_000)
        await storage.runs.create(RUN, THREAD, status="success", user_id=None)
        assert await _follow_run(following, RUN, 0) == list(range(1, 1_001))
        assert await _follow_run(following, RUN, 1_000) == []
        await storage.run_events.put(**event())
        assert await _follow_run(following, RUN, 0) == list(range(1, 1_002))

    @needs("following")
    async def test_follow_until_the_run_ends_waits_for_a_run_to_begin(
        self, storage: Storage, following: Following
    ) -> None:
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow_run(following, RUN, 0))
            await storage.run_events.put(**event())
            await asyncio.sleep(0.2)
            assert not follower.done()
            await storage.runs.create(RUN, THREAD, user_id=None)
            await storage.run_events.put(**event())
            await asyncio.sleep(0.2)
            assert not follower.done()
            await storage.runs.update_status(RUN, "interrupted")
        assert follower.result() == [1, 2]

    @needs("following")
    async def test_follow_until_the_run_ends_ends_with_a_deleted_run(
        self, storage: Storage, following: Following
    ) -> None:
        await storage.runs.create(RUN, THREAD, user_id=None)
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow_run(following, RUN, 0))
            await storage.run_events.put(**event())
            await asyncio.sleep(0.2)
            assert await storage.runs.delete(RUN, user_id=None)
        assert follower.result() == [1]

    @needs("following")
    async def test_follow_without_until_the_run_ends_continues(
        self, storage: Storage, following: Following
    ) -> None:
        await storage.runs.create(RUN, THREAD, status="success", user_id=None)
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow(following, 1, run_id=RUN))
            await asyncio.sleep(0.1)
            await storage.run_events.put(**event())
        assert follower.result() == [1]

    @needs("following")
    async def test_followers_at_the_same_place_share_no_object(
        self, storage: Storage, following: Following
    ) -> None:
        """What one of them does to its rows, another does not see."""
        nested: dict[str, Any] = {"list": [{"n": 1}], "text": "stored"}
        async with asyncio.timeout(_TIMEOUT_S):
            generators = [following.follow(THREAD) for _ in range(5)]
            waiting = [asyncio.ensure_future(anext(rows)) for rows in generators]
            await asyncio.sleep(0.1)
            await storage.run_events.put(**event(content=nested, metadata=nested))
            found = await asyncio.gather(*waiting)
        for row in found:
            content: Any = row["content"]
            assert (content, row["metadata"]) == (nested, nested)
            content["list"][0]["n"] = row["metadata"]["text"] = "spoilt"
            content["list"].append(row)
        for rows in generators:
            await rows.aclose()

    @needs("following")
    async def test_abandoned_followers_leave_the_others_unaffected(
        self, storage: Storage, following: Following
    ) -> None:
        """Those whose task was cancelled, and those that were dropped without `aclose`."""
        await storage.run_events.put(**event())
        for _ in range(3):
            tasks = [asyncio.create_task(_follow(following, 1_000)) for _ in range(20)]
            dropped: list[Any] = [following.follow(THREAD) for _ in range(20)]
            assert [row["seq"] for row in await asyncio.gather(*map(anext, dropped))] == [1] * 20
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            dropped.clear()
            gc.collect()
        assert await _follow(following, 1) == [1]
