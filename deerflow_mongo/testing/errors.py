"""Errors: which class each failure raises, and that errors pickle and copy (CONTRACT section 8).

That invalid input is rejected, and changes nothing, is tested where the input belongs; here is what a caller
may catch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from ..contract.actor import AUTO
from ..contract.errors import (
    ActorMissingError,
    InvalidArgumentError,
    InvalidPayloadError,
    PayloadTooLargeError,
    RunExistsError,
    StorageClosedError,
    StorageError,
    ThreadAccessError,
    ThreadExistsError,
)
from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, snapshot
from .identifiers import invalid_calls
from .limits import oversized_text
from .methods import LIMITED, METHODS, OWNED
from .payload_values import self_referencing
from .payloads import payload_error_of
from .run_events import event
from .values import assert_pickles_and_copies

Call = Callable[[], Awaitable[object]]


def _invalid_arguments(storage: Storage) -> dict[str, Call]:
    """Calls with one invalid argument each, of every kind except identifiers; name -> the call."""
    runs, feedback, threads, events = storage.runs, storage.feedback, storage.threads, storage.run_events
    on_run: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD}
    wrong: Any = {"$ne": None}
    calls: dict[str, Call] = {
        "status": lambda: runs.update_status(RUN, wrong),
        "empty status": lambda: runs.create("new", THREAD, user_id=None, status=""),
        "thread status": lambda: threads.update_thread_meta(THREAD, status=wrong),
        "status filter": lambda: threads.search_threads(status=wrong, user_id=None),
        "error": lambda: runs.set_error(RUN, wrong),
        "model_name": lambda: runs.update_model_name(RUN, wrong),
        "created_at": lambda: runs.create("new", THREAD, user_id=None, created_at="yesterday"),
        "started_at": lambda: runs.update_status(RUN, "running", started_at=wrong),
        "ended_at": lambda: runs.update_run_completion(RUN, status="success", ended_at="2026-13-01"),
        "before": lambda: runs.list_pending(before=wrong),
        "count of another type": lambda: runs.update_run_completion(
            RUN, status="success", total_tokens=wrong
        ),
        "negative count": lambda: runs.update_run_completion(RUN, status="success", message_count=-1),
        "negative tokens": lambda: runs.record_token_usage(RUN, caller="subagent", input_tokens=-1),
        "caller": lambda: runs.record_token_usage(RUN, caller=wrong),
        "statuses": lambda: runs.token_usage_by_thread(THREAD, user_id=None, statuses=wrong),
        "rating": lambda: feedback.create(**on_run, rating=5),
        "rating of another type": lambda: feedback.upsert(**on_run, rating=wrong, user_id=ALICE),
        "comment": lambda: feedback.create(**on_run, rating=1, comment=wrong),
        "feedback order": lambda: feedback.list_by_thread(THREAD, order=wrong),
        "feedback order of a run": lambda: feedback.list_by_run(THREAD, RUN, order=wrong),
        "thread order": lambda: threads.search_threads(user_id=None, order=wrong),
        "title": lambda: threads.sync_thread_title(thread_id=THREAD, title=wrong),
        "missing event field": lambda: events.put_batch([{"thread_id": THREAD}]),  # pyright: ignore[reportArgumentType]
        "unknown event field": lambda: events.put(**event(unknown_field=1)),
        "event that is not a mapping": lambda: events.put_batch([wrong, "text"]),  # pyright: ignore[reportArgumentType]
        "events that are not a list": lambda: events.put_batch("text"),  # pyright: ignore[reportArgumentType]
        "event_type": lambda: events.put_if_absent(**event(event_type=wrong)),
        "category": lambda: events.put(**event(category="")),
        "event time": lambda: events.put(**event(created_at="yesterday")),
        "event_types": lambda: events.list_events(THREAD, RUN, event_types=wrong),
        "before_seq": lambda: events.list_messages(THREAD, before_seq=wrong),
        "after_seq": lambda: events.list_messages_by_run(THREAD, RUN, after_seq=wrong),
    }
    for method, name in LIMITED:
        for value in (-1, "5", None, {"$gt": 0}):
            calls[f"{method.path} {method.arguments} {name}={value!r}"] = partial(
                method, storage, **{name: value}
            )
    return calls


def _writes_to_another_users_thread(storage: Storage) -> dict[str, Call]:
    events = storage.run_events
    return {
        "put": lambda: events.put(**event()),
        "put_if_absent": lambda: events.put_if_absent(**event()),
        "put_batch": lambda: events.put_batch([event(thread_id="new"), event()]),
        "ensure_thread": lambda: storage.threads.ensure_thread(thread_id=THREAD, user_id=BOB),
    }


class ErrorContract(Contract):
    async def test_identifier_errors_are_storage_errors(self, storage: Storage) -> None:
        """An `InvalidArgumentError`, which is a `StorageError`, and also a `TypeError` or `ValueError`."""
        for method, name, value in invalid_calls():
            with case(method.path, name, repr(value)[:60]):
                with pytest.raises(InvalidArgumentError) as raised:
                    await method(storage, **{name: value})
                assert isinstance(raised.value, TypeError | ValueError)

    async def test_argument_errors_are_storage_errors(self, storage: Storage) -> None:
        """Limits, ratings, statuses, times, orders, callers, counts, texts, event fields."""
        await given_run(storage)
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        before = await snapshot(storage)
        for name, call in _invalid_arguments(storage).items():
            with case(name):
                with pytest.raises(InvalidArgumentError) as raised:
                    await call()
                assert isinstance(raised.value, TypeError | ValueError)
        assert await snapshot(storage) == before

    async def test_auto_without_an_actor_raises_actor_missing_error(self, storage: Storage) -> None:
        """A `StorageError` and a `RuntimeError`; the same for an actor without an id."""
        for method in OWNED:
            with case(method.path):
                with pytest.raises(ActorMissingError) as no_actor:
                    await method(storage, user_id=AUTO)
                with acting_as(None), pytest.raises(ActorMissingError) as no_id:
                    await method(storage, user_id=AUTO)
                for error in (no_actor.value, no_id.value):
                    assert isinstance(error, RuntimeError)
                    assert method.name in error.method_name
                    assert error.method_name in str(error)

    async def test_another_users_thread_raises_thread_access_error(self, storage: Storage) -> None:
        """A `StorageError` and a `PermissionError` that names the thread and reveals nothing of it."""
        secrets: dict[str, Any] = {
            "user_id": "secret-owner",
            "assistant_id": "secret-assistant",
            "display_name": "secret-title",
            "status": "secret-status",
            "metadata": {"secret-key": "secret-value"},
        }
        thread = await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **secrets))
        for name, write in _writes_to_another_users_thread(storage).items():
            with case(name):
                with acting_as(BOB), pytest.raises(ThreadAccessError) as raised:
                    await write()
                error = raised.value
                assert isinstance(error, PermissionError)
                assert error.thread_id == THREAD
                assert error.action in str(error)
                shown = f"{error!s} {error!r} {vars(error)!r} {error.__cause__!r}"
                assert "secret" not in shown
                assert str(thread.created_time.year) not in shown

    async def test_every_method_of_a_closed_storage_raises_storage_closed_error(
        self, storage: Storage
    ) -> None:
        await storage.aclose()
        calls: dict[str, Call] = {
            f"{method.path} {sorted(method.arguments)}": partial(method, storage) for method in METHODS
        }
        calls["run_events.put_batch"] = lambda: storage.run_events.put_batch([event()])
        calls["setup"], calls["ping"] = storage.setup, storage.ping
        for name, call in calls.items():
            with case(name), pytest.raises(StorageClosedError):
                await call()

    async def test_errors_pickle_and_copy(self, storage: Storage) -> None:
        """With type, text and attributes, so that a process pool or a task queue can pass them on."""
        await given_run(storage)
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        runs, threads = storage.runs, storage.threads
        wrong: Any = 5
        failures: tuple[tuple[type[StorageError], Call], ...] = (
            (RunExistsError, lambda: runs.create(RUN, THREAD, user_id=None)),
            (ThreadExistsError, lambda: threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD))),
            (ThreadAccessError, lambda: threads.ensure_thread(thread_id=THREAD, user_id=BOB)),
            (ActorMissingError, lambda: runs.get(RUN)),
            (InvalidArgumentError, lambda: runs.get(wrong, user_id=None)),
            (InvalidArgumentError, lambda: runs.list_by_thread(THREAD, limit=-1, user_id=None)),
            (
                InvalidPayloadError,
                lambda: runs.update_status(RUN, "running", metadata={"k": self_referencing(list)}),
            ),
        )
        for expected, call in failures:
            with case(expected.__name__):
                with pytest.raises(expected) as raised:
                    await call()
                assert_pickles_and_copies(raised.value)
        too_large = oversized_text(storage)
        error = await payload_error_of(runs.update_status(RUN, "running", metadata={"k": too_large}))
        if isinstance(error, PayloadTooLargeError):  # a backend without a limit stores it
            assert_pickles_and_copies(error)
        await storage.aclose()
        with pytest.raises(StorageClosedError) as closed:
            await runs.get(RUN, user_id=None)
        assert_pickles_and_copies(closed.value)
