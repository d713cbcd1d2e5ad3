"""What the kinds of shared commands have in common, and what they need of their collection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import bson
from pymongo.errors import BulkWriteError

from ....contract.errors import (
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from ..errors import DRIVER_ERRORS, Outcome, outcome_of, with_cause
from .lane import Call, GroupDriver, Lane

Document: TypeAlias = dict[str, Any]
Update: TypeAlias = "Document | list[Document]"
Sort: TypeAlias = Sequence[tuple[str, int]]

VERSION: Final = "schema_version"
"""A field that every document of ours has."""

_OF_THE_CALL = (StorageAccessError, StorageClosedError, StorageConfigError, StorageUnavailableError)

_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")


class GroupedCollection(Protocol):
    """What the lanes need of their collection; see `Collection`."""

    @property
    def name(self) -> str: ...
    async def run(self, operation: str, call: Callable[[Any], Awaitable[Any]]) -> Any: ...
    async def aggregate(self, pipeline: list[Document], *, batch_size: int) -> list[Document]: ...
    async def find_candidates(self, query: Document, sort: Sort, limit: int) -> list[Document]: ...
    async def find_by_ids(self, query: Document, count: int) -> list[Document]: ...
    def translate(self, error: Exception, operation: str, written: object = None) -> StorageError: ...
    def no_answer(self, operation: str) -> StorageError: ...


class CommandLane(Lane[_Given, _Answer]):
    """The calls of one kind on one collection, with what the kinds have in common."""

    write_command = "update"
    """The server's command of a group that writes, for the text of an error."""

    def __init__(self, driver: GroupDriver, collection: GroupedCollection) -> None:
        super().__init__(driver, driver.counts_of(collection.name, self.kind), collection.no_answer)
        self._collection = collection

    async def read(self, reading: Awaitable[list[Document]]) -> list[Document] | None:
        """What is read for a group; None where the reason why it cannot be may lie in one of the calls."""
        try:
            return await reading
        except _OF_THE_CALL:
            raise
        except StorageError:
            return None

    async def write(self, write: Callable[[Any], Awaitable[object]]) -> Outcome:
        """Send an unordered write of several documents."""

        async def send(handle: Any) -> Outcome:
            try:
                await write(handle)
            except BulkWriteError as error:
                return outcome_of(error)
            return Outcome({}, None)

        return await self._collection.run(self.write_command, send)

    def refuse(self, call: Call[_Given, _Answer], error: Exception, written: object) -> None:
        """Tell the call the driver's error of what it was to write."""
        translated = self._collection.translate(error, self.write_command, written)
        call.fail(with_cause(translated, error))


def all_alone(calls: Sequence[Call[Any, Any]]) -> None:
    for call in calls:
        call.go_alone()


def is_plain(value: object) -> bool:
    """Whether equality with a value in a document means what it means for the server."""
    return value is None or type(value) is str


def encoded(document: Document) -> bytes | None:
    """As the server gets it; None if the driver cannot encode it."""
    try:
        return bson.encode(document)
    except DRIVER_ERRORS:
        return None
