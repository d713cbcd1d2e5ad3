"""Rows are copies: no object that a method takes or returns is shared with the storage.

Each case changes such an object, nested values included, and reads everything again.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast

from ..contract.capabilities import Accounts, Following
from ..contract.protocols import Storage
from ..contract.rows import ThreadMeta
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, snapshot
from .payloads import NEW_EVENT, payload_writes
from .values import exactly

_VOTE: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD, "rating": 1, "user_id": ALICE}
_ACCOUNT: dict[str, Any] = {
    "email": "alice@example.org",
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": "github",
    "oauth_id": "4711",
    "needs_setup": False,
    "token_version": 0,
}

Call = Callable[[], Awaitable[object]]


def _payload() -> dict[str, Any]:
    return {"steps": [{"n": 1, "deep": {"list": [1, [2]]}}], "text": "given"}


def _event_of(run_id: str) -> Any:
    return {**NEW_EVENT, "run_id": run_id}


def _spoil(value: object) -> None:
    """Change every list and dict in a result or an argument, the innermost first."""
    if isinstance(value, ThreadMeta):
        _spoil(value.metadata)
    elif isinstance(value, dict):
        items = cast("dict[object, Any]", value)
        for key, item in list(items.items()):
            _spoil(item)
            if not isinstance(item, dict | list):
                items[key] = "spoilt"
        items["spoilt"] = True
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            _spoil(item)
        cast("list[object]", value).append("spoilt")
    elif isinstance(value, tuple):
        for item in cast("tuple[object, ...]", value):
            _spoil(item)


def _comparable(value: object) -> object:
    """`value`, copied, in a form in which types count; a thread as the dict of its fields."""
    if isinstance(value, ThreadMeta):
        fields = {name: getattr(value, name) for name in ThreadMeta.__annotations__}
        return _comparable(fields)
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in cast("dict[Any, object]", value).items()}
    return exactly(copy.deepcopy(value))


async def _everything(storage: Storage) -> object:
    """All that is stored of the runs, threads, events, votes and accounts of these tests."""
    found = await snapshot(storage)
    found.append(await storage.runs.list_pending())
    found.append(await storage.runs.token_usage_by_thread(THREAD, user_id=None))
    for run_id in (RUN, "new"):
        found.append(await storage.run_events.list_events(THREAD, run_id))
        found.append(await storage.runs.get(run_id, user_id=None))
    for thread_id in (THREAD, "new"):
        found.append(await storage.threads.get_thread_meta(thread_id))
    if isinstance(storage, Accounts):
        found.append(await storage.users.list_by_role("user"))
    return _comparable(found)


async def _given(storage: Storage) -> str:
    """One row of each kind, with nested payloads; returns the id of the vote."""
    await storage.runs.create(RUN, THREAD, user_id=ALICE, metadata=_payload(), kwargs=_payload())
    await storage.runs.record_token_usage(RUN, caller="subagent", model_name="m", input_tokens=1)
    await storage.threads.ensure_thread(thread_id=THREAD, metadata=_payload(), user_id=ALICE)
    await storage.run_events.put(**_event_of(RUN), content=_payload(), metadata=_payload())
    if isinstance(storage, Accounts):
        await storage.users.create("user-1", **_ACCOUNT)
    return (await storage.feedback.upsert(**_VOTE, comment="given"))["feedback_id"]


def _reads(storage: Storage, feedback_id: str) -> dict[str, Call]:
    """Every method that reads."""
    runs, feedback, threads, events = storage.runs, storage.feedback, storage.threads, storage.run_events
    return {
        "runs.get": lambda: runs.get(RUN, user_id=ALICE),
        "runs.list_by_thread": lambda: runs.list_by_thread(THREAD, user_id=ALICE),
        "runs.list_pending": lambda: runs.list_pending(),
        "runs.token_usage_by_thread": lambda: runs.token_usage_by_thread(THREAD, user_id=ALICE),
        "feedback.get": lambda: feedback.get(feedback_id),
        "feedback.list_by_run": lambda: feedback.list_by_run(THREAD, RUN),
        "feedback.list_by_thread": lambda: feedback.list_by_thread(THREAD),
        "feedback.list_by_thread_grouped": lambda: feedback.list_by_thread_grouped(THREAD, user_id=ALICE),
        "feedback.aggregate_by_run": lambda: feedback.aggregate_by_run(THREAD, RUN),
        "threads.get_thread_meta": lambda: threads.get_thread_meta(THREAD),
        "threads.get_thread": lambda: threads.get_thread(THREAD, user_id=ALICE),
        "threads.ensure_thread": lambda: threads.ensure_thread(thread_id=THREAD, user_id=ALICE),
        "threads.search_threads": lambda: threads.search_threads(user_id=ALICE),
        "threads.search_threads by metadata": lambda: threads.search_threads(
            metadata={"text": "given"}, user_id=ALICE
        ),
        "run_events.list_messages": lambda: events.list_messages(THREAD),
        "run_events.list_messages_by_run": lambda: events.list_messages_by_run(THREAD, RUN),
        "run_events.list_events": lambda: events.list_events(THREAD, RUN),
        "run_events.put_if_absent": lambda: events.put_if_absent(**_event_of(RUN)),
    }


def _reads_of_capabilities(storage: Storage) -> dict[str, Call]:
    """The same for the optional parts that the storage has."""
    calls: dict[str, Call] = {}
    events = storage.run_events
    if isinstance(events, Following):
        calls["run_events.list_thread_events"] = lambda: events.list_thread_events(THREAD)
    if isinstance(storage, Accounts):
        users = storage.users
        calls["users.get"] = lambda: users.get("user-1")
        calls["users.get_by_email"] = lambda: users.get_by_email("alice@example.org")
        calls["users.get_by_oauth"] = lambda: users.get_by_oauth("github", "4711")
        calls["users.list_by_role"] = lambda: users.list_by_role("user")
    return calls


def _writes_that_return_rows(storage: Storage) -> dict[str, Call]:
    feedback, threads, events = storage.feedback, storage.threads, storage.run_events
    new_event: dict[str, Any] = {**NEW_EVENT, "content": _payload(), "metadata": _payload()}
    calls: dict[str, Call] = {
        "feedback.create": lambda: feedback.create(**_VOTE),
        "feedback.upsert": lambda: feedback.upsert(**_VOTE),
        "feedback.upsert of a new vote": lambda: feedback.upsert(
            run_id="new", thread_id=THREAD, rating=1, user_id=ALICE
        ),
        "threads.ensure_thread": lambda: threads.ensure_thread(
            thread_id="new", metadata=_payload(), user_id=ALICE
        ),
        "threads.ensure_thread_running": lambda: threads.ensure_thread_running(thread_id=THREAD),
        "threads.ensure_thread_running of a new thread": lambda: threads.ensure_thread_running(
            thread_id="thread-2", metadata=_payload()
        ),
        "run_events.put": lambda: events.put(**new_event),
        "run_events.put_batch": lambda: events.put_batch([new_event, new_event]),  # pyright: ignore[reportArgumentType]
        "run_events.put_if_absent": lambda: events.put_if_absent(**new_event),
    }
    if isinstance(storage, Accounts):
        users = storage.users
        calls["users.create"] = lambda: users.create("user-2", email="bob@example.org")
    return calls


def _writes_of_objects(storage: Storage) -> dict[str, Callable[[Any], Awaitable[object]]]:
    """Every method that takes a payload, an event or another mapping."""
    events, runs = storage.run_events, storage.runs
    return {
        **payload_writes(storage),
        "content of put": lambda value: events.put(**NEW_EVENT, content=value),
        "content of put_if_absent": lambda value: events.put_if_absent(**NEW_EVENT, content=value),
        "event of put_batch": lambda value: events.put_batch([value, value]),
        "token_usage_by_model of update_run_completion": lambda value: runs.update_run_completion(
            RUN, status="success", token_usage_by_model=value
        ),
    }


def _object_for(write: str) -> dict[str, Any]:
    if write.startswith("event"):
        return {**NEW_EVENT, "content": _payload(), "metadata": _payload()}
    if write.startswith("token_usage"):
        return {"m": {"input_tokens": 3, "output_tokens": 4}}
    return _payload()


async def _delete_new(storage: Storage) -> None:
    await storage.runs.delete("new", user_id=None)
    await storage.threads.delete_thread("new")
    await storage.run_events.delete_by_run(THREAD, "new")


class CopyContract(Contract):
    async def test_changing_what_a_read_returned_changes_nothing_stored(self, storage: Storage) -> None:
        """The next call of the same method returns the stored values too."""
        reads: Mapping[str, Call] = _reads(storage, await _given(storage)) | _reads_of_capabilities(storage)
        before = await _everything(storage)
        for name, read in reads.items():
            with case(name):
                returned, other = await read(), await read()
                expected = _comparable(other)
                _spoil(returned)
                assert _comparable(other) == expected, "two calls returned the same object"
                assert _comparable(await read()) == expected
                assert await _everything(storage) == before

    async def test_changing_what_a_write_returned_changes_nothing_stored(self, storage: Storage) -> None:
        await _given(storage)
        for name, write in _writes_that_return_rows(storage).items():
            with case(name):
                await _delete_new(storage)
                returned = await write()
                before = await _everything(storage)
                _spoil(returned)
                assert await _everything(storage) == before

    async def test_changing_what_a_write_was_given_changes_nothing_stored(self, storage: Storage) -> None:
        await _given(storage)
        for name, write in _writes_of_objects(storage).items():
            with case(name):
                await _delete_new(storage)
                given = _object_for(name)
                returned = await write(given)
                expected, before = _comparable(returned), await _everything(storage)
                _spoil(given)
                assert _comparable(returned) == expected
                assert await _everything(storage) == before

    async def test_writes_do_not_change_what_they_were_given(self, storage: Storage) -> None:
        await _given(storage)
        for name, write in _writes_of_objects(storage).items():
            with case(name):
                await _delete_new(storage)
                given = _object_for(name)
                await write(given)
                assert exactly(given) == exactly(_object_for(name))

    async def test_changing_a_followed_row_changes_nothing_stored(self, storage: Storage) -> None:
        """Where run events can be followed; `follow` first yields what is stored."""
        events = storage.run_events
        if not isinstance(events, Following) or "following" in self.lacks:
            return
        await _given(storage)
        before = await _everything(storage)
        async with aclosing(events.follow(THREAD)) as rows:
            async for row in rows:
                _spoil(row)
                break
        assert await _everything(storage) == before

    async def test_events_given_as_one_object_are_rows_of_their_own(self, storage: Storage) -> None:
        given: Any = {**NEW_EVENT, "content": _payload(), "metadata": _payload()}
        first, second = await storage.run_events.put_batch([given, given])
        _spoil(first)
        assert exactly(second["content"]) == exactly(second["metadata"]) == exactly(_payload())
