"""Leases in memory at the very end of their time, which no test on a real clock can meet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deerflow_mongo.contract import times
from deerflow_mongo.contract.errors import ActiveRunError
from deerflow_mongo.memory import data
from deerflow_mongo.memory.storage import MemoryStorage

START = datetime(2026, 4, 22, tzinfo=UTC)


class StoppedClock:
    """Both clocks, that of the caller and that of the database; a test sets them forward."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.elapsed_ms = 0.0
        patch.setattr(data, "database_time_ms", lambda: 1_000_000 + self.elapsed_ms)
        patch.setattr(times, "system_clock_us", self._system_clock_us)

    def _system_clock_us(self) -> int:
        return round(START.timestamp() * 10**6 + self.elapsed_ms * 1_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    return StoppedClock(monkeypatch)


@pytest.mark.parametrize("grace_seconds", [0, 2, 2.5, 3_600])
async def test_lease_that_ended_exactly_a_grace_period_ago_is_valid(
    clock: StoppedClock, grace_seconds: float
) -> None:
    async with MemoryStorage() as storage:
        runs = storage.runs
        given: dict[str, Any] = {"thread_id": "thread-1", "user_id": None, "owner_worker_id": "worker-1"}
        await runs.put("run-1", **given, lease_expires_at=START + timedelta(seconds=5))
        clock.elapsed_ms = 5_000 + 1_000 * grace_seconds
        expired = runs.list_inflight_with_expired_lease
        assert await expired(before="2999-01-01", grace_seconds=grace_seconds) == []
        assert not await runs.claim_for_takeover("run-1", grace_seconds=grace_seconds, error="gone")
        with pytest.raises(ActiveRunError) as refused:
            await runs.create_thread_operation_atomic(
                "run-2",
                thread_id="thread-1",
                owner_worker_id="worker-2",
                lease_expires_at=None,
                user_id=None,
                multitask_strategy="interrupt",
                grace_seconds=grace_seconds,
            )
        assert refused.value.is_protected
        clock.elapsed_ms += 1
        assert len(await expired(before="2999-01-01", grace_seconds=grace_seconds)) == 1
        assert await runs.claim_for_takeover("run-1", grace_seconds=grace_seconds, error="gone")
