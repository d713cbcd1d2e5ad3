"""Leases on the runs of a release of DeerFlow whose run manager has none.

Such a release stores a run without an owner, so nobody can see whether its worker lives. Here this process
gets an owner id, with which the adapter stores its runs, and one task renews their leases with one command. A
run whose lease has expired was a dead worker's: it is ended as an error, at the start and then once in every
lease. DeerFlow main does all this itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, cast

from ..contract.capabilities import RunOwnership
from ..contract.errors import StorageConfigError, StorageError

LEASE_SECONDS: Final = 30
GRACE_SECONDS: Final = 10
"""DeerFlow main's own numbers, also the defaults here."""

ORPHANED: Final = "The worker that executed this run ended before the run did."

_MIN_LEASE_SECONDS: Final = 5
_SECTION: Final = "run_ownership"

logger = logging.getLogger(__name__)


class RunLeases:
    """The leases of this process; `async with` renews them and ends the runs of dead workers."""

    def __init__(
        self,
        runs: RunOwnership,
        *,
        lease_seconds: float = LEASE_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        recovers_at_start: bool = True,
    ) -> None:
        """`recovers_at_start` is False where DeerFlow itself does so."""
        self.owner_worker_id = f"{socket.gethostname()}:{uuid.uuid4().hex}"
        self.grace_seconds = grace_seconds
        self.lease_seconds = lease_seconds
        self._runs = runs
        self._recovers_at_start = recovers_at_start
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def configured(cls, runs: RunOwnership, section: object, *, recovers_at_start: bool) -> RunLeases:
        """With the numbers of the section `run_ownership:`, which DeerFlow keeps but does not know."""
        given: Mapping[str, Any] = cast("Any", section) if isinstance(section, Mapping) else {}
        return cls(
            runs,
            lease_seconds=_number(given, "lease_seconds", LEASE_SECONDS, _MIN_LEASE_SECONDS),
            grace_seconds=_number(given, "grace_seconds", GRACE_SECONDS, 0),
            recovers_at_start=recovers_at_start,
        )

    async def __aenter__(self) -> Self:
        if self._recovers_at_start:
            await self._recover()
        self._task = asyncio.create_task(self._renew(), name="deerflow-mongo-run-leases")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def expiry(self) -> datetime:
        """When a lease that is given now ends."""
        return datetime.now(UTC) + timedelta(seconds=self.lease_seconds)

    async def _renew(self) -> None:
        """Three renewals in one lease; the third one is followed by a search for runs of dead workers."""
        beat = 0
        while True:
            await asyncio.sleep(self.lease_seconds / 3)
            beat += 1
            try:
                await self._runs.renew_leases_of_worker(self.owner_worker_id, lease_expires_at=self.expiry())
                if beat % 3 == 0:
                    await self._recover()
            except StorageError as error:
                logger.warning("the leases of this worker's runs are not renewed: %s", error)

    async def _recover(self) -> None:
        """End the runs whose owner has died; a run without an owner is another program's."""
        expired = await self._runs.list_inflight_with_expired_lease(grace_seconds=self.grace_seconds)
        for row in expired:
            owner = row.get("owner_worker_id")
            if owner is None or owner == self.owner_worker_id:
                continue
            ended = await self._runs.claim_for_takeover(
                row["run_id"], grace_seconds=self.grace_seconds, error=ORPHANED
            )
            if ended:
                logger.warning("run %r of a dead worker is ended as an error", row["run_id"])


def _number(section: Mapping[str, Any], name: str, default: float, minimum: float) -> float:
    value = section.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= 86_400:
        raise StorageConfigError(
            f"`{name}` in the section `{_SECTION}:` must be a number of seconds from {minimum} to 86400"
        )
    return value
