"""The limit of a call's time: what it ends, what it leaves to the caller, and what it leaves behind."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from deerflow_mongo.mongodb.drivers import time_limit
from deerflow_mongo.mongodb.drivers.threads import in_thread
from deerflow_mongo.mongodb.drivers.time_limit import TimeLimit, long_running


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "GRACE_S", 0.02)


async def _wait(limit: TimeLimit, seconds: float) -> str:
    with limit.call():
        await asyncio.sleep(seconds)
    return "done"


async def test_only_calls_beyond_the_limit_end() -> None:
    limit = TimeLimit(600)
    calls = [_wait(limit, seconds) for seconds in (0, 0.01, 10, 0.03, 10)]
    began = time.monotonic()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - began < 5
    assert [answer if answer == "done" else type(answer) for answer in answers] == [
        "done",
        "done",
        TimeoutError,
        "done",
        TimeoutError,
    ]
    with pytest.raises(TimeoutError):
        await _wait(limit, 10)
    assert await _wait(limit, 0) == "done"


async def test_callers_cancellation_and_timeout_stay_theirs() -> None:
    limit = TimeLimit(500)
    call = asyncio.create_task(_wait(limit, 10))
    await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await _wait(limit, 10)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_cancellation_at_the_moment_of_the_limit_is_a_cancellation() -> None:
    limit = TimeLimit(10)
    call = asyncio.create_task(_wait(limit, 10))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.03, call.cancel)
    time.sleep(0.06)  # noqa: ASYNC251 - both are due in the same turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_ended_call_leaves_the_task_usable() -> None:
    limit = TimeLimit(10)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await _wait(limit, 10)
    await asyncio.sleep(0.05)


async def test_long_running_command_has_its_own_limit() -> None:
    limit = TimeLimit(10)
    assert limit.effective_ms == 10
    with long_running(0.6):
        assert limit.effective_ms == 600
        assert await _wait(limit, 0.05) == "done"
        with pytest.raises(TimeoutError):
            await _wait(limit, 10)
    with pytest.raises(TimeoutError):
        await _wait(limit, 0.2)


async def test_shorter_call_ends_first_beside_a_longer_one() -> None:
    limit = TimeLimit(10)
    with long_running(5):
        longer = asyncio.create_task(_wait(limit, 0.2))
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await _wait(limit, 10)
    assert await longer == "done"


async def test_thread_of_its_own_does_not_wait_for_the_default_executor() -> None:
    loop, released = asyncio.get_running_loop(), threading.Event()
    busy = [loop.run_in_executor(None, released.wait) for _ in range(64)]
    try:
        async with asyncio.timeout(20):
            assert await in_thread(lambda: 5) == 5
            with pytest.raises(ZeroDivisionError):
                await in_thread(lambda: 1 // 0)
        assert not any(future.done() for future in busy)
    finally:
        released.set()
        await asyncio.gather(*busy)
