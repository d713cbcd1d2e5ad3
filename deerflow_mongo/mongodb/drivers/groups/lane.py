"""Calls that wait while commands of their kind are in flight go together in the next one.

A lane has the calls of one kind on one collection. While fewer commands are in flight than may be, a call
goes out at once, as if there were no lane. Others wait, and the next answer sends what waits as one command:
nothing waits for a timer, or for more calls to come. A call only joins a command that has not been sent, so a
read sees every write that was acknowledged before it began.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence, Sized
from contextvars import Context
from typing import Any, Final, Generic, Protocol, TypedDict, TypeVar

from ....contract.errors import StorageClosedError, StorageError, StorageUnavailableError
from ...observation import BackgroundObserver, current_operation
from ..errors import copied
from ..event_loop import Owner
from ..time_limit import TimeLimit, has_longer_limit, seconds_left
from .places import LEAST_IN_FLIGHT, Places

SMALLEST_GROUP: Final = 2
"""One call alone costs less as a command of its own."""
MAX_CALLS: Final = 128
"""Calls of one command."""
MAX_BYTES: Final = 1024 * 1024
"""What the calls of one command write or read together; a call of more goes alone."""

_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")


class GroupCounts(TypedDict):
    """Of the calls of one kind on one collection, since the storage was made."""

    alone: int
    """Calls that were sent as a command of their own."""
    groups: int
    """Commands that several calls shared."""
    grouped: int
    """Calls that shared a command."""
    largest: int
    """Calls of the largest group."""
    waited_seconds: float
    """How long calls have waited, together, until they were sent."""


class GroupDriver(Protocol):
    """What a lane needs of its driver; see `Driver`."""

    owner: Owner
    time_limit: TimeLimit
    observe_background: BackgroundObserver
    places: Places

    @property
    def is_closed(self) -> bool: ...
    def counts_of(self, collection: str, kind: str) -> GroupCounts: ...


def no_calls() -> GroupCounts:
    return {"alone": 0, "groups": 0, "grouped": 0, "largest": 0, "waited_seconds": 0.0}


class Call(Generic[_Given, _Answer]):
    """A call that waits; its future has the answer, or is done without one where it goes alone."""

    __slots__ = ("asked", "done", "given", "has_turn", "operation", "since", "written")

    def __init__(self, given: _Given) -> None:
        self.given = given
        self.done: asyncio.Future[_Answer | None] = asyncio.get_running_loop().create_future()
        self.operation = current_operation.get()
        self.since = time.monotonic()
        self.written: Any = None
        """What it writes, as it is sent; see `Lane.measure`."""
        self.asked: Any = None
        """What it reads, encoded and as the stages of a pipeline; see `unions.py`."""
        self.has_turn = False
        """Whether a place in flight is this call's own."""

    @property
    def documents(self) -> Sized:
        return () if self.written is None else (self.written,)

    def answer(self, answer: _Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)

    def go_alone(self) -> None:
        """Let the caller send it as a command of its own."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: StorageError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # of a caller that does not wait any more: else it would be logged


class Lane(ABC, Generic[_Given, _Answer]):
    """The calls of one kind on one collection. An answer is never None: that is "go alone"."""

    kind: str
    """For statistics, spans and metrics."""
    command: str
    """The server's command of a call alone, for the text of an error."""
    pays_from: int = SMALLEST_GROUP
    """As many calls must wait for waiting to pay; fewer are faster as commands of their own."""

    def __init__(
        self, driver: GroupDriver, counts: GroupCounts, no_answer: Callable[[str], StorageError]
    ) -> None:
        """`counts` are added to; `no_answer` makes the error of a call to a command whose time is over."""
        self._driver = driver
        self._counts = counts
        self._no_answer = no_answer
        self._in_flight = 0
        self._unanswered = 0
        """Calls of the commands in flight."""
        self._spare = 0
        """Places for calls that waited in too small a number: see `_keep_from_waiting`."""
        self._is_lasting = False
        """Whether calls have waited ever since the lane had nothing in flight."""
        self._waiting: deque[Call[_Given, _Answer]] = deque()
        self._groups: set[asyncio.Task[None]] = set()

    # What differs between kinds.

    @abstractmethod
    async def send(self, calls: Sequence[Call[_Given, _Answer]]) -> None:
        """Send one command for these calls and tell each its answer or error, or to go alone.

        A `StorageError` that it raises is told to every call that has no answer yet.
        """

    def can_group(self, given: _Given) -> bool:
        """Whether the call may share a command; one that may not goes out at once."""
        return True

    def measure(self, call: Call[_Given, _Answer]) -> int | None:
        """The bytes that the call writes; None if it goes alone, as what the driver cannot encode."""
        return 0

    # What a collection calls.

    async def run(self, given: _Given, alone: Callable[[_Given], Awaitable[_Answer]]) -> _Answer:
        """The answer of the server; `alone` sends the call as a command of its own."""
        self._driver.owner.check()
        # In this order, the first of which is the cheapest and decides for most calls.
        if (
            self._in_flight >= LEAST_IN_FLIGHT
            and self._in_flight >= self._places()
            and self.can_group(given)
            and not has_longer_limit()
        ):
            return await self._wait(given, alone)
        self._in_flight += 1
        self._unanswered += 1
        self._counts["alone"] += 1
        try:
            return await alone(given)
        finally:
            self._unanswered -= 1
            self._next()

    async def _wait(self, given: _Given, alone: Callable[[_Given], Awaitable[_Answer]]) -> _Answer:
        if self._driver.is_closed:
            raise StorageClosedError
        call: Call[_Given, _Answer] = Call(given)
        self._waiting.append(call)
        try:
            # From here on, also where it goes alone in the end.
            with self._driver.time_limit.call(seconds_left()):
                answer = await call.done
                if answer is not None:
                    return answer
                self._counts["alone"] += 1
                return await alone(given)
        except TimeoutError as error:
            raise self._no_answer(self.command) from error
        finally:
            if call.has_turn:
                self._unanswered -= 1
                self._next()

    def close(self) -> set[asyncio.Task[None]]:
        """End what waits; the groups that are under way. To be called once the driver is closed."""
        for call in self._waiting:
            call.fail(StorageClosedError())
        self._waiting.clear()
        return self._groups

    # Sending.

    def _places(self) -> int:
        """How many commands may be in flight."""
        return self._driver.places.number() + self._spare

    def _next(self) -> None:
        """Give the place of a command that was answered to those that wait."""
        is_free = self._waiting and self._in_flight <= self._places()
        group = self._take() if is_free else []
        if not group:
            self._in_flight -= 1
            self._is_lasting = self._is_lasting and self._in_flight > 0
            return
        self._keep_from_waiting(len(group))
        self._unanswered += len(group)
        now = time.monotonic()
        self._counts["waited_seconds"] += sum(now - call.since for call in group)
        if len(group) < SMALLEST_GROUP:
            group[0].has_turn = True
            group[0].go_alone()
            return
        self._is_lasting = True
        self._counts["groups"] += 1
        self._counts["grouped"] += len(group)
        self._counts["largest"] = max(self._counts["largest"], len(group))
        # In a context of its own: the time limit or the actor of one caller is not that of the others.
        task = asyncio.create_task(self._send(group), context=Context())
        self._groups.add(task)
        task.add_done_callback(self._sent)

    def _take(self) -> list[Call[_Given, _Answer]]:
        """The next calls that go together; those that nobody waits for any more are dropped."""
        waiting = self._waiting
        group: list[Call[_Given, _Answer]] = []
        left, share = MAX_BYTES, self._share()
        while waiting and len(group) < share:
            call = waiting[0]
            if call.done.done():
                waiting.popleft()
                continue
            size = self.measure(call)
            if size is None or size > MAX_BYTES:
                waiting.popleft()
                call.go_alone()
                continue
            if size > left:
                break
            left -= size
            group.append(waiting.popleft())
        return group

    def _keep_from_waiting(self, waited: int) -> None:
        """Give callers that wait in too small a number places of their own, until there are more of them.

        A third caller that waits for one of two commands each time has lost that time: nobody shares the next
        one. Where so many wait that it pays, they need no such places.
        """
        callers = self._spare + waited
        self._spare = callers if callers < self.pays_from else 0

    def _share(self) -> int:
        """How many calls the next command may carry.

        A burst goes as one command. Under a load that lasts, that would leave the other places unused: the
        callers of a large command call again all at once. So each place gets its part of all calls, and the
        server works on one command while the callers of another read its answers.
        """
        if not self._is_lasting:
            return MAX_CALLS
        part = -(-(len(self._waiting) + self._unanswered) // self._driver.places.number())
        return min(max(part, SMALLEST_GROUP), MAX_CALLS)

    async def _send(self, group: list[Call[_Given, _Answer]]) -> None:
        try:
            with self._driver.observe_background(f"{self.kind}.group", group):
                await self.send(group)
        except StorageError as error:
            for call in group:
                call.fail(copied(error))
        except BaseException as error:
            for call in group:
                failure = StorageUnavailableError(
                    "the command's task ended; it may have been carried out or not"
                )
                failure.__cause__ = error
                call.fail(failure)
            raise
        finally:
            self._unanswered -= len(group)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        if not task.cancelled():
            task.exception()  # its calls were told
        # Behind the callers that were answered: what they call next goes into the same command.
        task.get_loop().call_soon(self._next)
