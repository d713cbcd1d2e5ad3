"""Calls that write run events end in time and with an outcome, whatever stops the write behind them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any

import pytest

from deerflow_mongo import (
    ActorContext,
    MongoStorage,
    StorageError,
    StorageUnavailableError,
    bind_actor_context,
    create_storage,
    reset_actor_context,
)
from deerflow_mongo.mongodb.drivers.collection import Collection

T_S = 0.4
"""The timeout of an operation."""
_SLACK_S = 5.0
"""For a busy machine."""


def event(content: Any = "", **fields: Any) -> Any:
    required = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    return {**required, "content": content, **fields}


@pytest.fixture
async def storage() -> AsyncIterator[MongoStorage]:
    config = {"backend": "mongodb", "driver": "mongomock", "timeout_ms": round(T_S * 1000)}
    async with create_storage(config) as opened:
        assert isinstance(opened, MongoStorage)
        yield opened


@contextlib.asynccontextmanager
async def _hanging(*methods: str) -> AsyncGenerator[asyncio.Event]:
    """A driver that does not answer until the event is set, whatever its timeouts."""
    answering = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        for name in methods:
            original = getattr(Collection, name)

            async def hang(*arguments: Any, _original: Any = original, **options: Any) -> Any:
                await answering.wait()
                return await _original(*arguments, **options)

            patch.setattr(Collection, name, hang)
        try:
            yield answering
        finally:
            answering.set()


async def _outcomes(calls: list[Awaitable[Any]], limit_s: float) -> list[Any]:
    began = time.monotonic()
    async with asyncio.timeout(limit_s + _SLACK_S):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - began >= limit_s - 0.1
    return outcomes


@pytest.fixture
def actor() -> Any:
    token = bind_actor_context(ActorContext("alice"))
    yield
    reset_actor_context(token)


async def test_every_batch_ends_within_twice_the_timeout(storage: MongoStorage) -> None:
    """One that is being written, those that wait behind it, and one in parts."""
    events = storage.run_events
    async with _hanging("insert_one", "insert_many") as answering:
        calls: list[Awaitable[Any]] = [events.put_batch([event(n)] * 40) for n in range(3)]
        calls += [events.put_batch([event(thread_id="u")] * 100), events.put(**event(thread_id="u"))]
        outcomes = await _outcomes(calls, 2 * T_S)
        assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}
        texts = [str(outcome) for outcome in outcomes]
        assert ["may be stored or not" in text for text in texts] == [True, False, False, True, False]
        assert ["are not stored" in text for text in texts] == [False, True, True, False, True]
        answering.set()
        async with asyncio.timeout(_SLACK_S):
            await events.flush()
    assert events.backlog == 0
    assert (await events.put(**event()))["seq"] == 41
    assert await events.count_messages("u") == 100


async def test_batch_that_arrives_while_a_write_hangs_has_its_own_time(storage: MongoStorage) -> None:
    events = storage.run_events
    async with _hanging("insert_one", "insert_many"):
        first = asyncio.create_task(events.put_batch([event()] * 2))
        await asyncio.sleep(T_S)
        later = asyncio.create_task(events.put_batch([event()] * 2))
        with pytest.raises(StorageUnavailableError, match=r"within 0\.8 s"):
            await first
        assert not later.done()
        outcomes = await _outcomes([later], 0)
        assert "are not stored" in str(outcomes[0])


@pytest.mark.usefixtures("actor")
async def test_access_check_without_an_answer_ends_within_twice_the_timeout(storage: MongoStorage) -> None:
    async with _hanging("find"):
        calls: list[Awaitable[Any]] = [
            storage.run_events.put(**event()),
            storage.run_events.put_batch([event()] * 100),
        ]
        outcomes = await _outcomes(calls, 2 * T_S)
    assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}


async def test_close_without_an_answer_ends_within_a_second(storage: MongoStorage) -> None:
    """Although the writes are retried meanwhile."""

    async def fail(*arguments: Any) -> None:
        raise StorageUnavailableError("simulated")

    events = storage.run_events
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collection, "insert_many", fail)
        patch.setattr(events._writer, "_timeout_s", 60.0)
        patch.setattr(events._writer, "_retry_budget_s", 60.0)
        calls = [asyncio.create_task(events.put_batch([event(n)] * 40)) for n in range(3)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert await events.aclose() == 120
        assert time.monotonic() - began < 1.0 + _SLACK_S
        assert all("the storage was closed" in str(outcome) for outcome in await _outcomes(list(calls), 0))


async def test_call_waits_for_room_no_longer_than_the_timeout(storage: MongoStorage) -> None:
    """Nothing of it is stored, and calls behind it are admitted as before."""
    events = storage.run_events
    events._backlog._max_events = 10
    async with _hanging("insert_one", "insert_many") as answering:
        held = [asyncio.create_task(events.put_batch([event()] * 5)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting: list[Awaitable[Any]] = [events.put_batch([event(thread_id="u")] * n) for n in (5, 1, 8)]
        outcomes = await _outcomes(waiting, T_S)
        for outcome in outcomes:
            assert isinstance(outcome, StorageUnavailableError)
            assert "no room for these run events within 0.4 s: 10 others wait" in str(outcome)
        answering.set()
        await asyncio.gather(*held, return_exceptions=True)
        await events.flush()
    assert len(await events.put_batch([event(thread_id="u")] * 8)) == 8
    assert await events.count_messages("u") == 8


@pytest.mark.parametrize("has_begun", [True, False], ids=["begun", "before its first step"])
async def test_cancelled_writer_leaves_no_caller_waiting(storage: MongoStorage, has_begun: bool) -> None:
    """Such as by a host that cancels all tasks."""
    events = storage.run_events
    await events.put(**event())
    async with _hanging("insert_one", "insert_many"):
        calls = [asyncio.create_task(events.put_batch([event(n)] * 40)) for n in range(3)]
        for _ in range(5 if has_begun else 1):
            await asyncio.sleep(0)
        writer = events._writer._threads["t"].writer
        assert writer is not None
        writer.cancel()
        outcomes = await _outcomes(list(calls), 0)
    assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}
    assert all("their writer ended" in str(outcome) for outcome in outcomes)
    assert events.backlog == 0
    assert (await events.put(**event()))["seq"] == 2


@pytest.mark.usefixtures("actor")
async def test_cancelled_access_check_fails_only_its_own_caller(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = storage.run_events
    check = events._check_access

    async def check_access(thread_ids: Any, actor: Any) -> None:
        if thread_ids == ["t", "u"]:
            raise asyncio.CancelledError
        await check(thread_ids, actor)

    monkeypatch.setattr(events, "_check_access", check_access)
    calls: list[Awaitable[Any]] = [
        events.put(**event()),
        events.put_batch([event(), event(thread_id="u")]),
        events.put(**event()),
    ]
    first, cancelled, last = await _outcomes(calls, 0)
    assert isinstance(cancelled, StorageError)
    assert (first["seq"], last["seq"]) == (1, 2)
    assert events.backlog == 0


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The error that the writer ends with; the loop would log it."""


async def test_failing_writer_fails_the_batches_that_wait(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it fails with: here a log handler of the host raises while a failure is logged."""
    events = storage.run_events

    async def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    def fail_to_log(*arguments: Any, **options: Any) -> None:
        raise KeyError("simulated")

    monkeypatch.setattr(Collection, "insert_many", fail)
    monkeypatch.setattr("deerflow_mongo.mongodb.events.writer.logger.exception", fail_to_log)
    calls: list[Awaitable[Any]] = [events.put_batch([event(n)] * 40) for n in range(3)]
    asyncio.get_running_loop().set_exception_handler(_ignore)
    outcomes = await _outcomes(calls, 0)
    assert all(isinstance(outcome, StorageError) for outcome in outcomes)
    assert events.backlog == 0


class _BrokenActor:
    @property
    def user_id(self) -> str:
        raise ZeroDivisionError


async def test_call_whose_actor_cannot_be_read_takes_no_room(storage: MongoStorage) -> None:
    token = bind_actor_context(_BrokenActor())
    try:
        with pytest.raises(ZeroDivisionError):
            await storage.run_events.put(**event())
    finally:
        reset_actor_context(token)
    assert storage.run_events.backlog == 0
