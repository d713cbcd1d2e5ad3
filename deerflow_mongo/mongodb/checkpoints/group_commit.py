"""Concurrent inserts that share commands: while one command is under way, the next one collects.

It knows documents and their sizes, and nothing of checkpoints.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ...contract.errors import StorageClosedError, StorageError
from ..documents.encoding import Document
from ..drivers.errors import DuplicateKeyError
from ..observation import BackgroundObserver, current_operation, unobserved

MAX_COMMAND_DOCUMENTS: Final = 1_000
MAX_COMMAND_BYTES: Final = 8 * 1024 * 1024
WRITE_GROUP: Final = "checkpointer.write_group"

_STEPS_BEFORE_COMMAND: Final = 4
"""Of the event loop. A graph puts the writes of a step and the next checkpoint in steps that follow each
other, the latter once it knows that the checkpoint before it is stored: then both are in one command."""


class _Call:
    __slots__ = ("documents", "done", "operation", "size_bytes")

    def __init__(self, documents: Sequence[Document], size_bytes: int) -> None:
        self.documents = documents
        self.size_bytes = size_bytes
        self.operation = current_operation.get()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class GroupCommit:
    """Inserts the documents of each call in their order, and those of several calls by one command."""

    def __init__(self, insert_many: Callable[[list[Document]], Awaitable[None]]) -> None:
        self._insert_many = insert_many
        self._waiting: deque[_Call] = deque()
        self._command: asyncio.Task[None] | None = None
        self._closed = False
        self.observe: BackgroundObserver = unobserved

    async def insert(self, documents: Sequence[Document], size_bytes: int) -> None:
        """Insert all of them, or raise.

        Raises `DuplicateKeyError`, whose `stored` counts this call's documents before the refused one.
        """
        if self._closed:
            raise StorageClosedError
        call = _Call(documents, size_bytes)
        self._waiting.append(call)
        self._start()
        await call.done

    async def close(self) -> None:
        """Accept nothing more, and return once everything accepted is stored or has failed."""
        self._closed = True
        while self._command is not None:
            await asyncio.wait({self._command})

    def _start(self) -> None:
        if self._command is None:
            # A context of its own: a caller's time limit is not that of the others in the command.
            self._command = asyncio.create_task(self._run(), context=contextvars.Context())
            self._command.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._command = None
        if any(not call.done.done() for call in self._waiting):
            self._start()  # for a call that came after the task's last look

    async def _run(self) -> None:
        """One command at a time, with all calls that there are when it starts."""
        while True:
            for _ in range(_STEPS_BEFORE_COMMAND):
                await asyncio.sleep(0)
            calls = self._next_calls()
            if not calls:
                return
            try:
                with self.observe(WRITE_GROUP, calls):
                    await self._insert(calls)
            except BaseException as error:
                for call in calls:
                    _fail(call, error)
                if not isinstance(error, Exception):
                    raise

    def _next_calls(self) -> list[_Call]:
        calls: list[_Call] = []
        documents = size_bytes = 0
        while self._waiting:
            call = self._waiting[0]
            if call.done.done():  # cancelled
                self._waiting.popleft()
                continue
            documents += len(call.documents)
            size_bytes += call.size_bytes
            if calls and (documents > MAX_COMMAND_DOCUMENTS or size_bytes > MAX_COMMAND_BYTES):
                break
            calls.append(self._waiting.popleft())
        return calls

    async def _insert(self, calls: list[_Call]) -> None:
        while calls:
            try:
                await self._insert_many([document for call in calls for document in call.documents])
            except DuplicateKeyError as error:
                calls = _settle(calls, error)
            else:
                for call in calls:
                    _succeed(call)
                return


def _settle(calls: list[_Call], error: DuplicateKeyError) -> list[_Call]:
    """End the calls up to the refused document's; returns the others."""
    stored = error.stored
    for position, call in enumerate(calls):
        count = len(call.documents)
        if stored < count:
            _fail(call, DuplicateKeyError(str(error), stored, error.keys))
            return calls[position + 1 :]
        stored -= count
        _succeed(call)
    return []


def _succeed(call: _Call) -> None:
    if not call.done.done():
        call.done.set_result(None)


def _fail(call: _Call, error: BaseException) -> None:
    if not call.done.done():
        call.done.set_exception(copy.copy(error) if isinstance(error, StorageError) else error)
