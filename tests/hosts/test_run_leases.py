"""Leases of releases whose manager has none: renewed while the process lives, taken over when it is dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deerflow_mongo import StorageConfigError, StorageUnavailableError, create_storage
from deerflow_mongo.hosts.run_leases import ORPHANED, RunLeases

LEASE_S = 0.3


@pytest.fixture
async def runs() -> AsyncGenerator[Any]:
    async with create_storage({"backend": "memory"}) as storage:
        yield storage.runs


async def stored(runs: Any, owner: str | None, lease_s: float = LEASE_S) -> str:
    """A running run of this owner."""
    run_id = f"run-of-{owner}"
    expiry = RunLeases(runs, lease_seconds=lease_s).expiry() if owner else None
    await runs.put(
        run_id,
        thread_id="t",
        status="running",
        operation_kind=None,
        user_id="u",
        owner_worker_id=owner,
        lease_expires_at=expiry,
    )
    return run_id


async def status(runs: Any, run_id: str) -> str:
    return (await runs.get(run_id, user_id="u"))["status"]


async def test_run_stays_active_for_longer_than_its_lease(runs: Any) -> None:
    async with RunLeases(runs, lease_seconds=LEASE_S, grace_seconds=0) as leases:
        run_id = await stored(runs, leases.owner_worker_id)
        async with RunLeases(runs, lease_seconds=LEASE_S, grace_seconds=0):
            await asyncio.sleep(3 * LEASE_S)
        assert await status(runs, run_id) == "running"


async def test_run_of_a_dead_worker_is_ended_within_two_leases(runs: Any) -> None:
    run_id = await stored(runs, "dead")
    async with RunLeases(runs, lease_seconds=LEASE_S, grace_seconds=0):
        assert await status(runs, run_id) == "running"  # its lease is still valid
        await asyncio.sleep(3 * LEASE_S)
    row = await runs.get(run_id, user_id="u")
    assert (row["status"], row["error"]) == ("error", ORPHANED)


async def test_run_whose_lease_has_expired_is_ended_at_the_start(runs: Any) -> None:
    dead, unowned = await stored(runs, "dead", -1), await stored(runs, None)
    async with RunLeases(runs, grace_seconds=0):
        assert await status(runs, dead) == "error"
        assert await status(runs, unowned) == "running"  # another program's


async def test_start_leaves_recovery_to_a_release_that_does_it(runs: Any) -> None:
    dead = await stored(runs, "dead", -1)
    async with RunLeases(runs, grace_seconds=0, recovers_at_start=False):
        assert await status(runs, dead) == "running"


async def test_renewals_go_on_after_an_outage(
    runs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renew = runs.renew_leases_of_worker
    calls: list[str] = []

    async def fail_once(owner: str, **options: Any) -> int:
        calls.append(owner)
        if len(calls) == 1:
            raise StorageUnavailableError("gone")
        return await renew(owner, **options)

    monkeypatch.setattr(runs, "renew_leases_of_worker", fail_once)
    async with RunLeases(runs, lease_seconds=LEASE_S) as leases:
        await asyncio.sleep(LEASE_S)
    assert len(calls) >= 2
    assert set(calls) == {leases.owner_worker_id}
    assert "are not renewed: gone" in caplog.text


def test_each_process_has_its_own_owner_id(runs: Any) -> None:
    assert RunLeases(runs).owner_worker_id != RunLeases(runs).owner_worker_id


def test_numbers_come_from_the_section_that_deerflow_does_not_know(runs: Any) -> None:
    leases = RunLeases.configured(runs, {"lease_seconds": 9, "grace_seconds": 0}, recovers_at_start=True)
    assert (leases.lease_seconds, leases.grace_seconds) == (9, 0)
    assert RunLeases.configured(runs, None, recovers_at_start=True).lease_seconds == 30


@pytest.mark.parametrize(
    "section", [{"lease_seconds": 4}, {"lease_seconds": "30"}, {"grace_seconds": -1}, {"grace_seconds": True}]
)
def test_unusable_number_is_refused_by_name(runs: Any, section: dict[str, Any]) -> None:
    with pytest.raises(StorageConfigError, match=rf"`{next(iter(section))}` in the section `run_ownership:`"):
        RunLeases.configured(runs, section, recovers_at_start=True)
