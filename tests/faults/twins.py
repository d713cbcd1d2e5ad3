"""Two storages that get the same calls at the same times: the backend under test, and `memory` as the model.

The clock stands still during a call, so that both give the same times; ids of feedback, which each storage
makes itself, are compared by the order in which they appeared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from deerflow_mongo import (
    ActorMissingError,
    InvalidPayloadError,
    Storage,
    StorageError,
    ThreadMeta,
    create_storage,
)
from deerflow_mongo.contract.errors import InvalidArgumentError

from .random_calls import NOBODY, THREADS, Call, FeedbackId

FIRST_STAMP_US = 1_790_000_000_000_000
STEP_US = 377
"""Between two calls; several of them are within one millisecond, which is what a BSON date can tell apart."""

_REFUSALS = (InvalidArgumentError, InvalidPayloadError, ActorMissingError)
_OF_ALL_RUNS = (
    "runs.token_usage_by_thread",
    "runs.list_successful_regenerate_sources",
    "runs.list_edit_regenerate_runs",
)
_NO_ID = "00000000-0000-4000-8000-000000000000"


class StandingClock:
    """The contract's clock, which moves between calls only."""

    def __init__(self) -> None:
        self.now_us = FIRST_STAMP_US

    def stamp_us(self) -> int:
        return self.now_us

    def advance(self) -> None:
        self.now_us += STEP_US


class Warnings(logging.Handler):
    """Counts the package's records at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@dataclass(slots=True)
class Twin:
    """One of the two storages, and the ids of feedback that it has given."""

    storage: Storage
    feedback_ids: list[str] = field(default_factory=list[str])

    async def outcome(self, call: Call, warnings: Warnings) -> tuple[str, Any, list[str]]:
        """What the call gave, in values that are the same for both storages."""
        warnings.texts.clear()
        try:
            result = await call.with_arguments(**self._own_ids(call.arguments)).on(self.storage)
        except StorageError as error:
            return "error", error, list(warnings.texts)
        return "result", self._common(result), list(warnings.texts)

    def _own_ids(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self.feedback_ids[value.number] if value.number < len(self.feedback_ids) else _NO_ID
            for name, value in arguments.items()
            if isinstance(value, FeedbackId)
        }

    def _common(self, value: Any) -> Any:
        """The result with each id of feedback as its place in the order of appearance."""
        if isinstance(value, list):
            return [self._common(item) for item in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        row = cast("dict[str, Any]", value)
        if "feedback_id" in row and "rating" in row:
            return {**row, "feedback_id": self._place(row["feedback_id"])}
        return {name: self._common(item) for name, item in row.items()}

    def _place(self, feedback_id: str) -> int:
        if feedback_id not in self.feedback_ids:
            self.feedback_ids.append(feedback_id)
        return self.feedback_ids.index(feedback_id)


class Twins:
    """Makes a call of both storages and compares what they gave."""

    def __init__(self, tested: Storage, clock: StandingClock) -> None:
        self.tested, self.model = Twin(tested), Twin(create_storage({"backend": "memory"}))
        self._clock = clock
        self._warnings = Warnings()
        self.calls = 0

    async def compare(self, call: Call) -> None:
        """Raise `AssertionError` where the two differ in the result, the error or the warnings."""
        self._clock.advance()
        self.calls += 1
        logger = logging.getLogger("deerflow_mongo")
        logger.addHandler(self._warnings)
        try:
            found = await self.tested.outcome(call, self._warnings)
            wanted = await self.model.outcome(call, self._warnings)
        finally:
            logger.removeHandler(self._warnings)
        assert is_same(found[:2], wanted[:2]), f"{call}\n  gives   {found[:2]!r}\n  model   {wanted[:2]!r}"
        assert len(found[2]) == len(wanted[2]), f"{call}\n  logs    {found[2]}\n  model   {wanted[2]}"

    async def compare_everything(self) -> None:
        """The whole of what both have stored, as a caller without a user reads it."""
        for call in everything():
            await self.compare(call)

    async def aclose(self) -> None:
        await asyncio.gather(self.tested.storage.aclose(), self.model.storage.aclose())


def everything() -> list[Call]:
    """The calls that read all that the random calls may have stored."""
    many = 10_000
    return [
        Call("threads.search_threads", {"user_id": None, "limit": many}, NOBODY),
        Call("threads.search_threads", {"user_id": None, "limit": many, "order": "pinned_first"}, NOBODY),
        Call("runs.list_pending", {"before": "9999-12-31T23:59:59.999999+00:00"}, NOBODY),
        *(
            call
            for thread_id in THREADS
            for call in (
                Call("runs.list_by_thread", {"thread_id": thread_id, "user_id": None, "limit": many}, NOBODY),
                *(Call(method, {"thread_id": thread_id, "user_id": None}, NOBODY) for method in _OF_ALL_RUNS),
                Call("feedback.list_by_thread", {"thread_id": thread_id, "limit": many}, NOBODY),
                Call("run_events.list_thread_events", {"thread_id": thread_id, "limit": many}, NOBODY),
            )
        ),
    ]


def is_same(found: tuple[str, Any], wanted: tuple[str, Any]) -> bool:
    """Whether two outcomes are the same; which of two faults of a call is reported is not promised."""
    if found[0] != wanted[0]:
        return False
    if found[0] == "result":
        return _is_same_value(found[1], wanted[1])
    errors = found[1], wanted[1]
    if any(isinstance(error, ActorMissingError) for error in errors):
        return all(isinstance(error, _REFUSALS) for error in errors)
    return type(errors[0]) is type(errors[1]) and str(errors[0]) == str(errors[1])


def _is_same_value(found: Any, wanted: Any) -> bool:
    """Equal in type and content, all the way down: 1 is neither True nor 1.0, and -0.0 is not 0.0."""
    if type(found) is not type(wanted):
        return False
    if isinstance(found, dict):
        one, other = cast("dict[str, Any]", found), cast("dict[str, Any]", wanted)
        return one.keys() == other.keys() and all(_is_same_value(one[key], other[key]) for key in one)
    if isinstance(found, list | tuple):
        items, others = cast("list[Any]", found), cast("list[Any]", wanted)
        return len(items) == len(others) and all(map(_is_same_value, items, others))
    if isinstance(found, float):
        return repr(found) == repr(wanted)
    if isinstance(found, ThreadMeta):
        return _is_same_value(asdict(found), asdict(cast("ThreadMeta", wanted)))
    return bool(found == wanted)
