"""The driver's pool of connections, counted by its events."""

from __future__ import annotations

from typing import Final

from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionPoolListener,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
)

from .metrics import Metrics

IDLE: Final = "idle"
IN_USE: Final = "in_use"

_CONNECTIONS: Final = "pool_connections"


class PoolEvents(ConnectionPoolListener):
    """Counts the connections of one client, to all of its servers together."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def connection_created(self, event: ConnectionCreatedEvent) -> None:
        self._metrics.add(_CONNECTIONS, IDLE)

    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        self._metrics.add(_CONNECTIONS, IDLE, -1)

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        self._metrics.add(_CONNECTIONS, IDLE, -1)
        self._metrics.add(_CONNECTIONS, IN_USE)
        self._metrics.record("pool_wait_seconds", event.duration or 0.0)

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        self._metrics.add(_CONNECTIONS, IN_USE, -1)
        self._metrics.add(_CONNECTIONS, IDLE)

    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        self._metrics.add("pool_failures", event.reason)

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """Counted when it ends."""

    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """Counted when it was made."""

    def pool_created(self, event: PoolCreatedEvent) -> None:
        """Has no connection yet."""

    def pool_ready(self, event: PoolReadyEvent) -> None:
        """Has no connection yet."""

    def pool_cleared(self, event: PoolClearedEvent) -> None:
        """Each connection is counted when it is closed."""

    def pool_closed(self, event: PoolClosedEvent) -> None:
        """Each connection is counted when it is closed."""
