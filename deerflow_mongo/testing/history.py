"""What a host's history of a thread reads: some runs, their votes and last answers, pinned threads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ..contract.actor import AUTO
from ..contract.errors import ActorMissingError, InvalidArgumentError
from ..contract.protocols import Storage
from ..contract.rows import PINNED, ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, stored_run, stored_thread
from .run_events import event, seqs

_NOT_IDS: tuple[Any, ...] = ("run-1", b"x", {"$ne": None}, 5, [{"$ne": None}], [""], [None])


async def _thread(storage: Storage, thread_id: str, user_id: str | None = ALICE, **metadata: Any) -> None:
    await storage.threads.create_thread_meta(
        ThreadMetaCreate(thread_id=thread_id, user_id=user_id, metadata=metadata)
    )


async def _pinned_first(storage: Storage, **arguments: Any) -> list[str]:
    search: dict[str, Any] = {"user_id": None, "order": "pinned_first", **arguments}
    found = await storage.threads.search_threads(**search)
    return [thread.thread_id for thread in found]


class HistoryContract(Contract):
    # Runs.

    async def test_get_many_by_thread_returns_these_runs_by_id(self, storage: Storage) -> None:
        for number in range(4):
            await given_run(storage, f"r{number}", user_id=ALICE if number else BOB)
        await given_run(storage, "elsewhere", "thread-2")
        wanted = {"r0", "r1", "r3", "elsewhere", "unknown"}
        found = await storage.runs.get_many_by_thread(THREAD, wanted, user_id=None)
        assert found == {name: await stored_run(storage, name) for name in ("r0", "r1", "r3")}
        with acting_as(ALICE):
            assert set(await storage.runs.get_many_by_thread(THREAD, wanted)) == {"r1", "r3"}
        assert await storage.runs.get_many_by_thread(THREAD, [], user_id=None) == {}
        assert await storage.runs.get_many_by_thread("unknown", wanted, user_id=None) == {}

    async def test_lists_of_ids_are_checked(self, storage: Storage) -> None:
        for wrong in _NOT_IDS:
            with case(repr(wrong)):
                with pytest.raises(InvalidArgumentError):
                    await storage.runs.get_many_by_thread(THREAD, wrong, user_id=None)
                with pytest.raises(InvalidArgumentError):
                    await storage.feedback.list_by_run_ids(THREAD, wrong, user_id=ALICE)
                with pytest.raises(InvalidArgumentError):
                    await storage.run_events.get_last_visible_ai_seq_by_run(THREAD, wrong)

    async def test_runs_of_a_history_need_an_actor(self, storage: Storage) -> None:
        for call in (
            storage.runs.get_many_by_thread(THREAD, ["r"], user_id=AUTO),
            storage.runs.list_successful_regenerate_sources(THREAD),
            storage.runs.list_edit_regenerate_runs(THREAD),
        ):
            with pytest.raises(ActorMissingError):
                await call

    async def test_regenerated_sources_are_those_of_successful_runs(self, storage: Storage) -> None:
        texts: list[Any] = ["source", "source", "other", "", None, 5, ["x"], {"a": "b"}]
        for number, value in enumerate(texts):
            await given_run(
                storage, f"r{number}", status="success", metadata={"regenerate_from_run_id": value}
            )
        await given_run(storage, "none", status="success", metadata={"other": "key"})
        await given_run(storage, "failed", status="error", metadata={"regenerate_from_run_id": "failed"})
        await given_run(
            storage, "bobs", user_id=BOB, status="success", metadata={"regenerate_from_run_id": "of bob"}
        )
        await given_run(
            storage, "far", "thread-2", status="success", metadata={"regenerate_from_run_id": "elsewhere"}
        )
        sources = storage.runs.list_successful_regenerate_sources
        assert await sources(THREAD, user_id=None) == {"source", "other", "of bob"}
        with acting_as(ALICE):
            assert await sources(THREAD) == {"source", "other"}
        assert await sources("unknown", user_id=None) == set()

    async def test_edited_regenerations_are_listed_oldest_first(self, storage: Storage) -> None:
        edit: dict[str, Any] = {"replay_kind": "edit", "regenerate_from_run_id": "source"}
        for number, status in ((2, "error"), (0, "success"), (1, "interrupted")):
            await given_run(
                storage, f"r{number}", metadata=edit, status=status, created_at=f"2026-01-0{number + 1}"
            )
        wrong = ({"replay_kind": "retry"}, {"regenerate_from_run_id": ""}, {"regenerate_from_run_id": 5})
        for number, change in enumerate(wrong):
            await given_run(storage, f"wrong {number}", metadata={**edit, **change})
        await given_run(storage, "bobs", user_id=BOB, metadata=edit, created_at="2026-02-01")
        rows = await storage.runs.list_edit_regenerate_runs(THREAD, user_id=None)
        assert rows == [await stored_run(storage, name) for name in ("r0", "r1", "r2", "bobs")]
        with acting_as(ALICE):
            mine = await storage.runs.list_edit_regenerate_runs(THREAD)
        assert [row["run_id"] for row in mine] == ["r0", "r1", "r2"]

    async def test_from_statuses_guard_an_update(self, storage: Storage) -> None:
        await given_run(storage, status="success")
        before = await stored_run(storage)
        active = ("pending", "running", "interrupted")
        assert not await storage.runs.update_status(
            RUN, "error", error="no", metadata={"a": 1}, from_statuses=active
        )
        assert not await storage.runs.update_run_completion(
            RUN, status="error", total_tokens=1, from_statuses=active
        )
        assert await stored_run(storage) == before
        assert await storage.runs.update_run_completion(
            RUN, status="success", total_tokens=1, from_statuses=(*active, "success")
        )
        assert (await stored_run(storage))["total_tokens"] == 1
        assert await storage.runs.update_status(RUN, "error", from_statuses=["success"])
        assert not await storage.runs.update_status("unknown", "error", from_statuses=active)
        assert not await storage.runs.update_status("unknown", "error")
        assert not await storage.runs.update_run_completion("unknown", status="success")
        assert not await storage.runs.update_status(RUN, "success", from_statuses=[])

    async def test_of_racing_guarded_updates_one_changes_the_run(self, storage: Storage) -> None:
        await given_run(storage)
        updates = [
            storage.runs.update_status(RUN, f"state-{number}", from_statuses=("pending",))
            for number in range(20)
        ]
        assert (await asyncio.gather(*updates)).count(True) == 1

    # Feedback.

    async def test_votes_on_some_runs_are_the_users_newest(self, storage: Storage) -> None:
        create = storage.feedback.create
        await create(run_id="r0", thread_id=THREAD, rating=1, user_id=ALICE, message_id="m")
        newest = await create(run_id="r0", thread_id=THREAD, rating=-1, user_id=ALICE)
        second = await create(run_id="r1", thread_id=THREAD, rating=1, user_id=ALICE)
        await create(run_id="r2", thread_id=THREAD, rating=1, user_id=ALICE)
        await create(run_id="r1", thread_id=THREAD, rating=1, user_id=BOB)
        await create(run_id="r1", thread_id="thread-2", rating=1, user_id=ALICE)
        nobodys = await create(run_id="r1", thread_id=THREAD, rating=1)
        by_run = storage.feedback.list_by_run_ids
        found = await by_run(THREAD, {"r0", "r1", "unknown"}, user_id=ALICE)
        assert found == {"r0": newest, "r1": second}
        assert await by_run(THREAD, ["r0", "r1"], user_id=None) == {"r1": nobodys}
        assert await by_run(THREAD, [], user_id=ALICE) == {}

    # Run events.

    async def test_events_of_a_task_are_selected_before_the_limit(self, storage: Storage) -> None:
        tasks: list[Any] = ["a", "b", None, 5, "a", "a.b", "a"]
        await storage.run_events.put_batch([event(metadata={"task_id": task}) for task in tasks])
        await storage.run_events.put(**event(run_id="run-2", metadata={"task_id": "a"}))
        pages: dict[str, tuple[dict[str, Any], list[int]]] = {
            "all": ({}, [1, 5, 7]),
            "limit": ({"limit": 2}, [1, 5]),
            "after": ({"after_seq": 1}, [5, 7]),
            "after and limit": ({"after_seq": 1, "limit": 1}, [5]),
            "types": ({"event_types": ["other"]}, []),
            "dots": ({"task_id": "a.b"}, [6]),
            "unknown": ({"task_id": "$ne"}, []),
        }
        for name, (arguments, expected) in pages.items():
            with case(name):
                page: dict[str, Any] = {"task_id": "a", **arguments}
                rows = await storage.run_events.list_events(THREAD, RUN, **page)
                assert seqs(rows) == expected
        with pytest.raises(InvalidArgumentError):
            await storage.run_events.list_events(THREAD, RUN, task_id={"$ne": None})  # pyright: ignore[reportArgumentType]

    async def test_pages_of_a_runs_events_follow_after_seq(self, storage: Storage) -> None:
        await storage.run_events.put_batch([event(run_id=f"run-{n % 2}") for n in range(12)])
        seen: list[int] = []
        while True:
            after = seen[-1] if seen else None
            page = await storage.run_events.list_events(THREAD, "run-1", limit=2, after_seq=after)
            if not page:
                break
            seen += seqs(page)
        assert seen == [2, 4, 6, 8, 10, 12]

    async def test_last_visible_answer_of_each_run(self, storage: Storage) -> None:
        answers: list[dict[str, Any]] = [
            {"run_id": "r0"},
            {"run_id": "r0", "event_type": "llm.ai.response"},
            {"run_id": "r0", "metadata": {"caller": "middleware:title"}},
            {"run_id": "r0", "event_type": "llm.human.input"},
            {"run_id": "r0", "category": "trace"},
            {"run_id": "r1", "metadata": {"caller": "lead_agent"}},
            {"run_id": "r1", "metadata": {"caller": "middleware:"}},
            {"run_id": "r2", "metadata": {"caller": "middleware:x"}},
            {"run_id": "r3", "metadata": {"caller": 5}},
            {"run_id": "r3", "thread_id": "thread-2"},
            {"run_id": "r4", "metadata": {"caller": "a middleware:"}, "user_id": ALICE},
        ]
        for answer in answers:
            await storage.run_events.put(**event(**answer))
        wanted = {"r0", "r1", "r2", "r3", "r4", "unknown"}
        last = storage.run_events.get_last_visible_ai_seq_by_run
        assert await last(THREAD, wanted) == {"r0": 2, "r1": 6, "r3": 9, "r4": 10}
        assert await last(THREAD, ["r1"]) == {"r1": 6}
        assert await last(THREAD, wanted, user_id=ALICE) == {"r4": 10}
        assert await last(THREAD, []) == {}
        await _thread(storage, THREAD)
        with acting_as(BOB):
            assert await last(THREAD, wanted) == {}

    # Threads.

    async def test_pinned_threads_come_first_then_the_last_updated(self, storage: Storage) -> None:
        pins: dict[str, Any] = {"a": True, "b": False, "c": True, "d": 1, "e": "true", "f": None}
        for name, pin in pins.items():
            await _thread(storage, name, **{PINNED: pin})
        await _thread(storage, "g", other=True)
        await _thread(storage, "bobs", BOB, **{PINNED: True})
        await storage.threads.merge_thread_metadata("a", {"touched": 1})
        expected = ["a", "bobs", "c", "g", "f", "e", "d", "b"]
        assert await _pinned_first(storage) == expected
        assert await _pinned_first(storage, user_id=ALICE) == [name for name in expected if name != "bobs"]
        assert await _pinned_first(storage, limit=3, offset=2) == expected[2:5]
        assert await _pinned_first(storage, metadata={PINNED: True}) == ["a", "bobs", "c"]
        assert await _pinned_first(storage, metadata={"touched": 1}) == ["a"]

    async def test_every_write_of_metadata_pins_and_unpins(self, storage: Storage) -> None:
        threads = storage.threads
        await threads.ensure_thread(thread_id="a", metadata={PINNED: True}, user_id=ALICE)
        await _thread(storage, "b")
        await threads.ensure_thread_running(thread_id="c", metadata={PINNED: True})
        assert await _pinned_first(storage) == ["c", "a", "b"]
        await threads.merge_thread_metadata("b", {PINNED: True})
        await threads.update_thread_meta("c", metadata={"other": 1})
        assert await _pinned_first(storage) == ["b", "a", "c"]
        await threads.merge_thread_metadata("b", {"other": 1})
        await threads.merge_thread_metadata("a", {PINNED: 1})
        assert await _pinned_first(storage) == ["b", "a", "c"]
        await threads.sync_thread_metadata(thread_id="c", metadata={PINNED: True})
        await threads.merge_thread_metadata("b", {PINNED: False})
        assert await _pinned_first(storage) == ["c", "b", "a"]

    async def test_merge_without_touch_leaves_updated_time(self, storage: Storage) -> None:
        await _thread(storage, THREAD)
        before = await stored_thread(storage)
        await storage.threads.merge_thread_metadata(THREAD, {"a": 1}, touch=False)
        after = await stored_thread(storage)
        assert (after.metadata, after.updated_time) == ({"a": 1}, before.updated_time)
        await storage.threads.merge_thread_metadata(THREAD, {"b": 1})
        assert (await stored_thread(storage)).updated_time > before.updated_time

    async def test_owner_of_a_thread_is_replaced(self, storage: Storage) -> None:
        await _thread(storage, THREAD)
        before = await stored_thread(storage)
        await storage.threads.update_thread_meta(THREAD, owner_id=BOB, user_id="stranger")
        assert await stored_thread(storage) == before
        await storage.threads.update_thread_meta(THREAD, owner_id=BOB, user_id=ALICE)
        after = await stored_thread(storage)
        assert (after.user_id, after.metadata, after.status) == (BOB, before.metadata, before.status)
        assert after.updated_time > before.updated_time
        assert await storage.threads.get_thread(THREAD, user_id=ALICE) is None
