"""Thread metadata: every method of the store except the search and the merge (CONTRACT section 5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..contract.actor import AUTO
from ..contract.errors import ActorMissingError, ThreadExistsError
from ..contract.protocols import Storage
from ..contract.rows import ThreadMeta, ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, snapshot, stored_thread
from .values import assert_is_now, exactly, now

_FIELDS: dict[str, Any] = {
    "assistant_id": "lead_agent",
    "user_id": ALICE,
    "display_name": "A title",
    "status": "busy",
    "metadata": {"a": 1, "$b.c": {"d": [None]}},
}
_UPDATES: dict[str, Any] = {
    "assistant_id": "other",
    "display_name": "Another title",
    "status": "running",
    "metadata": {"z": 26},
}


def _fields(thread: ThreadMeta) -> dict[str, Any]:
    return {name: getattr(thread, name) for name in _FIELDS}


class ThreadStoreContract(Contract):
    async def test_create_thread_meta_stores_every_field(self, storage: Storage) -> None:
        since = now()
        thread = await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **_FIELDS))
        assert thread.thread_id == THREAD
        assert exactly(_fields(thread)) == exactly(_FIELDS)
        assert_is_now(thread.created_time, since=since)
        assert_is_now(thread.updated_time, since=since)
        assert await storage.threads.get_thread_meta(THREAD) == thread
        assert await storage.threads.get_thread(THREAD, user_id=ALICE) == thread

    async def test_new_thread_has_the_documented_defaults(self, storage: Storage) -> None:
        with acting_as(BOB):
            thread = await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD))
        unset = {"assistant_id": None, "user_id": None, "display_name": None}
        assert exactly(_fields(thread)) == exactly({**unset, "status": "idle", "metadata": {}})
        assert await stored_thread(storage) == thread

    async def test_second_create_raises_and_leaves_the_first_thread_unchanged(self, storage: Storage) -> None:
        """Of the same `thread_id`, for any owner: `ThreadExistsError`."""
        first = await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **_FIELDS))
        for user_id in (ALICE, BOB, None):
            with case(user_id), pytest.raises(ThreadExistsError, match=THREAD):
                await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, user_id=user_id))
        assert await stored_thread(storage) == first

    async def test_exactly_one_of_a_hundred_concurrent_thread_creates_succeeds(
        self, storage: Storage
    ) -> None:
        creates = (
            storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, user_id=f"user-{number}"))
            for number in range(100)
        )
        results = await asyncio.gather(*creates, return_exceptions=True)
        [made] = [result for result in results if isinstance(result, ThreadMeta)]
        assert sum(isinstance(result, ThreadExistsError) for result in results) == 99
        assert await stored_thread(storage) == made

    async def test_get_of_unknown_thread_returns_none(self, storage: Storage) -> None:
        assert await storage.threads.get_thread_meta("unknown") is None
        assert await storage.threads.get_thread("unknown", user_id=None) is None
        assert await storage.threads.get_thread("unknown", user_id=ALICE) is None
        assert await storage.threads.delete_thread("unknown") is False

    async def test_thread_update_changes_only_the_given_field(self, storage: Storage) -> None:
        for name, value in _UPDATES.items():
            with case(name):
                before = await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=name, **_FIELDS))
                since = now()
                await storage.threads.update_thread_meta(name, **{name: value})
                after = await stored_thread(storage, name)
                assert exactly(_fields(after)) == exactly({**_FIELDS, name: value})
                assert after.created_time == before.created_time
                assert after.updated_time > before.updated_time
                assert_is_now(after.updated_time, since=since)

    async def test_thread_update_sets_several_fields(self, storage: Storage) -> None:
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **_FIELDS))
        await storage.threads.update_thread_meta(THREAD, **_UPDATES)
        assert exactly(_fields(await stored_thread(storage))) == exactly({**_FIELDS, **_UPDATES})

    async def test_thread_update_stores_empty_texts(self, storage: Storage) -> None:
        """Only None leaves a field as it is."""
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **_FIELDS))
        await storage.threads.update_thread_meta(THREAD, assistant_id="", display_name="")
        expected = {**_FIELDS, "assistant_id": "", "display_name": ""}
        assert exactly(_fields(await stored_thread(storage))) == exactly(expected)

    async def test_thread_update_replaces_metadata_as_a_whole(self, storage: Storage) -> None:
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **_FIELDS))
        replacements: list[dict[str, Any]] = [{"a.b": 1, "$c": {"": 2}}, {"d": {}}, {}, {"e": None}]
        for metadata in replacements:
            with case(metadata):
                await storage.threads.update_thread_meta(THREAD, metadata=metadata)
                assert exactly((await stored_thread(storage)).metadata) == exactly(metadata)
                found = await storage.threads.search_threads(metadata={"a": 1}, user_id=None)
                assert found == []
                found = await storage.threads.search_threads(metadata=metadata, user_id=None)
                assert [thread.metadata for thread in found] == [metadata]

    async def test_each_sync_method_sets_its_field(self, storage: Storage) -> None:
        syncs: dict[str, Callable[[], Awaitable[None]]] = {
            "display_name": lambda: storage.threads.sync_thread_title(
                thread_id="display_name", title="Another title"
            ),
            "status": lambda: storage.threads.sync_thread_status(thread_id="status", status="running"),
            "assistant_id": lambda: storage.threads.sync_thread_assistant_id(
                thread_id="assistant_id", assistant_id="other"
            ),
            "metadata": lambda: storage.threads.sync_thread_metadata(
                thread_id="metadata", metadata={"z": 26}
            ),
        }
        for name, sync in syncs.items():
            with case(name):
                await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=name, **_FIELDS))
                await sync()
                after = await stored_thread(storage, name)
                assert exactly(_fields(after)) == exactly({**_FIELDS, name: _UPDATES[name]})

    async def test_update_of_a_missing_thread_only_logs_a_warning(
        self, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=None)
        before = await snapshot(storage)
        threads = storage.threads
        missing: dict[str, Callable[[str], Awaitable[None]]] = {
            "update": lambda name: threads.update_thread_meta(name, display_name="x", metadata={"a": 1}),
            "merge": lambda name: threads.merge_thread_metadata(name, {"a": 1}),
            "title": lambda name: threads.sync_thread_title(thread_id=name, title="x"),
            "status": lambda name: threads.sync_thread_status(thread_id=name, status="busy"),
            "assistant": lambda name: threads.sync_thread_assistant_id(thread_id=name, assistant_id="x"),
            "metadata": lambda name: threads.sync_thread_metadata(thread_id=name, metadata={"a": 1}),
        }
        for name, update in missing.items():
            with case(name), caplog.at_level(logging.WARNING):
                caplog.clear()
                await update(f"missing {name}")
                warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
                assert [f"missing {name}" in record.getMessage() for record in warnings] == [True]
        assert await snapshot(storage) == before

    async def test_delete_removes_only_the_named_thread(self, storage: Storage) -> None:
        """For the host's own code: no actor is needed."""
        for thread_id in ("thread-1", "thread-11"):
            await storage.threads.ensure_thread(thread_id=thread_id, user_id=ALICE)
        assert await storage.threads.delete_thread("thread-1") is True
        assert await storage.threads.get_thread_meta("thread-1") is None
        assert await storage.threads.get_thread_meta("thread-11") is not None
        deletes = (storage.threads.delete_thread("thread-11") for _ in range(100))
        assert sorted(await asyncio.gather(*deletes)) == [False] * 99 + [True]

    async def test_deleting_a_thread_leaves_its_runs_feedback_and_events(self, storage: Storage) -> None:
        """Only its metadata is deleted."""
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        await given_run(storage)
        await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        await storage.run_events.put(
            thread_id=THREAD, run_id=RUN, event_type="ai_message", category="message"
        )
        _, *before = await snapshot(storage)
        assert await storage.threads.delete_thread(THREAD) is True
        assert await snapshot(storage) == [[], *before]
        assert [] not in before

    async def test_updating_another_users_thread_only_logs_a_warning(
        self, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also of a thread without an owner; nothing is changed."""
        threads = storage.threads
        for owner in (BOB, None, ""):
            fields: dict[str, Any] = {**_FIELDS, "user_id": owner, "thread_id": f"of {owner}"}
            before = await threads.create_thread_meta(ThreadMetaCreate(**fields))
            with case(owner), caplog.at_level(logging.WARNING):
                caplog.clear()
                await threads.update_thread_meta(before.thread_id, user_id=ALICE, **_UPDATES)
                await threads.merge_thread_metadata(before.thread_id, {"z": 26}, user_id=ALICE)
                assert await stored_thread(storage, before.thread_id) == before
                warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
                assert [before.thread_id in record.getMessage() for record in warnings] == [True] * 2
                await threads.update_thread_meta(before.thread_id, user_id=owner, **_UPDATES)
                after = await stored_thread(storage, before.thread_id)
                assert exactly(_fields(after)) == exactly({**_FIELDS, **_UPDATES, "user_id": owner})

    async def test_deleting_another_users_thread_returns_false_and_deletes_nothing(
        self, storage: Storage
    ) -> None:
        for owner in (BOB, None, ""):
            with case(owner):
                thread = await storage.threads.ensure_thread(thread_id=f"of {owner}", user_id=owner)
                assert await storage.threads.delete_thread(thread.thread_id, user_id=ALICE) is False
                assert await stored_thread(storage, thread.thread_id) == thread
                assert await storage.threads.delete_thread(thread.thread_id, user_id=owner) is True
                assert await storage.threads.get_thread_meta(thread.thread_id) is None

    async def test_auto_updates_and_deletes_only_the_actors_thread(self, storage: Storage) -> None:
        threads = storage.threads
        other = await threads.ensure_thread(thread_id="bob's", user_id=BOB)
        with acting_as(ALICE):
            await threads.ensure_thread(thread_id=THREAD)
            for thread_id in (THREAD, "bob's"):
                await threads.update_thread_meta(thread_id, status="busy", user_id=AUTO)
                await threads.merge_thread_metadata(thread_id, {"a": 1}, user_id=AUTO)
            own = await stored_thread(storage)
            assert (own.status, own.metadata) == ("busy", {"a": 1})
            assert await threads.delete_thread("bob's", user_id=AUTO) is False
            assert await threads.delete_thread(THREAD, user_id=AUTO) is True
        assert await stored_thread(storage, "bob's") == other

    async def test_ensure_thread_creates_a_missing_thread(self, storage: Storage) -> None:
        since = now()
        arguments: dict[str, Any] = {"assistant_id": "lead_agent", "metadata": {"$a.b": 1}}
        with acting_as(ALICE):
            thread = await storage.threads.ensure_thread(thread_id=THREAD, **arguments)
        expected = {**arguments, "user_id": ALICE, "display_name": None, "status": "idle"}
        assert exactly(_fields(thread)) == exactly(expected)
        assert_is_now(thread.created_time, since=since)
        assert await stored_thread(storage) == thread

    async def test_ensure_thread_returns_an_existing_thread_unchanged(self, storage: Storage) -> None:
        for owner in (ALICE, "", None):
            with case(owner):
                fields: dict[str, Any] = {**_FIELDS, "thread_id": f"thread of {owner}", "user_id": owner}
                thread = await storage.threads.create_thread_meta(ThreadMetaCreate(**fields))
                again = await storage.threads.ensure_thread(
                    thread_id=thread.thread_id, assistant_id="x", metadata={"x": 1}, user_id=owner
                )
                assert again == thread
                assert await storage.threads.ensure_thread(thread_id=thread.thread_id, user_id=None) == thread
                assert await stored_thread(storage, thread.thread_id) == thread

    async def test_a_hundred_concurrent_ensure_thread_calls_create_one_thread(self, storage: Storage) -> None:
        """All calls return it. Repeated, because a race shows only sometimes."""
        for attempt in range(20):
            for owner in (ALICE, None):
                thread_id = f"{attempt} of {owner}"
                with case(thread_id):
                    calls = (
                        storage.threads.ensure_thread(thread_id=thread_id, metadata={"n": n}, user_id=owner)
                        for n in range(100)
                    )
                    threads = await asyncio.gather(*calls)
                    made = await stored_thread(storage, thread_id)
                    assert made.user_id == owner
                    assert threads == [made] * 100

    async def test_concurrent_ensure_thread_of_two_users_gives_one_owner(self, storage: Storage) -> None:
        for attempt in range(5):
            thread_id = f"thread-{attempt}"
            calls = (
                storage.threads.ensure_thread(thread_id=thread_id, user_id=ALICE if number % 2 else BOB)
                for number in range(100)
            )
            results = await asyncio.gather(*calls, return_exceptions=True)
            owner = (await stored_thread(storage, thread_id)).user_id
            for number, result in enumerate(results):
                with case(attempt, number):
                    if (ALICE if number % 2 else BOB) == owner:
                        assert isinstance(result, ThreadMeta), result
                    else:
                        assert isinstance(result, PermissionError), result

    async def test_ensure_thread_on_another_users_thread_raises_and_reveals_nothing(
        self, storage: Storage
    ) -> None:
        """A `PermissionError`, also for a thread without an owner, which a named user cannot see."""
        secrets: dict[str, Any] = {
            "assistant_id": "secret-assistant",
            "display_name": "secret-title",
            "status": "secret-status",
            "metadata": {"secret-key": "secret-value"},
        }
        for owner in ("secret-owner", None, ""):
            fields: dict[str, Any] = {"thread_id": THREAD, "user_id": owner, **secrets}
            await storage.threads.create_thread_meta(ThreadMetaCreate(**fields))
            before = await stored_thread(storage)
            for user_id in (ALICE, "Secret-owner", "secret-owner "):
                with case(owner, user_id):
                    with pytest.raises(PermissionError) as raised:
                        await storage.threads.ensure_thread(
                            thread_id=THREAD, metadata={"x": 1}, user_id=user_id
                        )
                    shown = f"{raised.value!s} {raised.value!r} {raised.value.__cause__!r}".replace(
                        user_id, ""
                    )
                    assert "secret" not in shown
                    assert str(before.created_time.year) not in shown
            assert await stored_thread(storage) == before
            await storage.threads.delete_thread(THREAD)

    async def test_named_user_cannot_get_another_users_thread(self, storage: Storage) -> None:
        for owner in (BOB, None, ""):
            with case(owner):
                thread = await storage.threads.ensure_thread(thread_id=f"of {owner}", user_id=owner)
                assert await storage.threads.get_thread(thread.thread_id, user_id=ALICE) is None
                assert await storage.threads.get_thread(thread.thread_id, user_id=owner) == thread
                assert await storage.threads.get_thread(thread.thread_id, user_id=None) == thread

    async def test_ensure_thread_running_creates_a_running_thread(self, storage: Storage) -> None:
        """The actor, if one is bound, becomes the owner; no actor is needed."""
        arguments: dict[str, Any] = {"assistant_id": "lead_agent", "metadata": {"$a.b": 1}}
        for actor in (ALICE, ""):
            with case(actor), acting_as(actor):
                thread = await storage.threads.ensure_thread_running(thread_id=f"of {actor}", **arguments)
                expected = {**arguments, "user_id": actor, "display_name": None, "status": "running"}
                assert exactly(_fields(thread)) == exactly(expected)
                assert await stored_thread(storage, f"of {actor}") == thread
        assert (await storage.threads.ensure_thread_running(thread_id=THREAD)).user_id is None

    async def test_actor_without_an_id_creates_no_thread(self, storage: Storage) -> None:
        """The thread would belong to nobody, and its events would be open to all."""
        with acting_as(None), pytest.raises(ActorMissingError, match="ensure_thread_running"):
            await storage.threads.ensure_thread_running(thread_id=THREAD)
        assert await storage.threads.get_thread(THREAD, user_id=None) is None

    async def test_ensure_thread_running_changes_only_the_status(self, storage: Storage) -> None:
        """Of an existing thread, whoever owns it: one without an owner does not get one."""
        for owner in (ALICE, "", None):
            with case(owner), acting_as(BOB):
                fields: dict[str, Any] = {**_FIELDS, "thread_id": f"of {owner}", "user_id": owner}
                before = await storage.threads.create_thread_meta(ThreadMetaCreate(**fields))
                after = await storage.threads.ensure_thread_running(
                    thread_id=before.thread_id, assistant_id="x", metadata={"x": 1}
                )
                assert exactly(_fields(after)) == exactly({**_FIELDS, "user_id": owner, "status": "running"})
                assert after.created_time == before.created_time
                assert await stored_thread(storage, before.thread_id) == after

    async def test_a_hundred_concurrent_ensure_thread_running_calls_create_one_thread(
        self, storage: Storage
    ) -> None:
        calls = (storage.threads.ensure_thread_running(thread_id=THREAD) for _ in range(100))
        threads = await asyncio.gather(*calls)
        assert len({thread.created_time for thread in threads}) == 1
        assert {thread.status for thread in threads} == {"running"}
        assert len(await storage.threads.search_threads(user_id=None)) == 1

    async def test_any_title_text_round_trips(self, storage: Storage) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        for title in (" ", "a\0b", "$status", "{'$set': 1}", "💬 x", "x" * 100_000, '{"_json":"1"}'):
            with case(title[:20]):
                await storage.threads.sync_thread_title(thread_id=THREAD, title=title)
                assert (await stored_thread(storage)).display_name == title
