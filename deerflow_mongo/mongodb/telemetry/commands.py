"""The commands of operations, as a driver's events report them, or timed around the call of the driver."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Final, cast

from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from ..observation import Run
from .metrics import Metrics
from .operation import FAILED, OK, Operation, open_operation, reset

DRIVER: Final = "driver"
"""The source of retries by the driver itself."""

_TRANSACTION_NUMBER: Final = "txnNumber"


class _Call:
    """One call of the driver: as a rule one command, and more where a driver repeats or divides it."""

    __slots__ = ("collection", "has_failed", "last", "operation")

    def __init__(self, operation: Operation | None, collection: str) -> None:
        self.operation = operation
        self.collection = collection
        self.last: tuple[str, object] | None = None
        self.has_failed = False

    def is_repeated(self, command: str, number: object) -> bool:
        """Whether the command is the last one again; a driver repeats a write under the same number."""
        is_same = self.last == (command, number)
        return is_same and (self.has_failed or number is not None)


_current_call: ContextVar[_Call | None] = ContextVar("current_call", default=None)


class Commands:
    """The `CommandObserver` of one storage."""

    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics
        self.has_events = False
        """Whether the driver's events reach `CommandEvents`; else calls of the driver are timed."""

    def observed(self, collection: str, command: str, run: Run) -> Run:
        async def observed_run(target: Any) -> Any:
            call = _Call(open_operation(self), collection)
            token = _current_call.set(call)
            began, outcome = time.perf_counter(), FAILED
            try:
                result = await run(target)
                outcome = OK
                return result
            finally:
                reset(_current_call, token)
                if not self.has_events:
                    self.note(call, command, time.perf_counter() - began, outcome)

        return observed_run

    def note(self, call: _Call, command: str, seconds: float, outcome: str) -> None:
        if call.operation is not None:
            call.operation.note_command(call.collection, seconds)
        if self._metrics is not None:
            self._metrics.record("command_duration_seconds", seconds, command, outcome)

    def note_started(self, call: _Call, command: str, number: object) -> None:
        if self._metrics is not None and call.is_repeated(command, number):
            self._metrics.add("retries", DRIVER)
        call.last, call.has_failed = (command, number), False


class CommandEvents(CommandListener):
    """Reports each command that the driver sends for a store; others, as of change streams, are left out."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def started(self, event: CommandStartedEvent) -> None:
        call = _current_call.get()
        if call is not None:
            command = cast("dict[str, Any]", event.command)
            self._commands.note_started(call, event.command_name, command.get(_TRANSACTION_NUMBER))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        call = _current_call.get()
        if call is not None:
            self._commands.note(call, event.command_name, event.duration_micros / 1e6, OK)

    def failed(self, event: CommandFailedEvent) -> None:
        call = _current_call.get()
        if call is not None:
            call.has_failed = True
            self._commands.note(call, event.command_name, event.duration_micros / 1e6, FAILED)
