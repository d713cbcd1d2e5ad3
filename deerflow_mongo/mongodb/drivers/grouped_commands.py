"""How calls of one kind share a command, and what each of them is told.

Each call is told what a command of its own would have told it. Where the shared answer does not say, the call
was not carried out and goes alone: what the driver cannot encode, what the server refuses of several updates,
a document that only the server can compare with the query."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from ...contract.errors import (
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from .errors import DRIVER_ERRORS, Outcome, outcome_of, with_cause
from .groups import Call, GroupDriver, Lane

Document: TypeAlias = dict[str, Any]
Update: TypeAlias = "Document | list[Document]"

ID_INDEX: Final = "_id_"
SHARD_KEY_NOT_FOUND_CODE: Final = 61
NO_DOCUMENT: Final[Document] = {}
"""The answer of a read that found none."""

_VERSION: Final = "schema_version"
"""A field that every document of ours has."""
_NO_ID: Final = None
"""No document of ours has this id."""
_Value = TypeVar("_Value")
_OF_THE_CALL = (StorageAccessError, StorageClosedError, StorageConfigError, StorageUnavailableError)


class GroupedCollection(Protocol):
    """What the lanes need of their collection; see `Collection`."""

    async def run(self, operation: str, call: Callable[[Any], Awaitable[Any]]) -> Any: ...
    async def find_by_ids(self, query: Document, count: int) -> list[Document]: ...
    def translate(self, error: Exception, operation: str, written: object = None) -> StorageError: ...


def is_by_id(query: Document) -> bool:
    """Whether the query names one document by its `_id`."""
    return type(query.get("_id")) in (str, ObjectId) and not any(name.startswith("$") for name in query)


def is_plain_by_id(query: Document) -> bool:
    """Whether, in addition, each condition is equality with a text or null, which can be tested here."""
    return is_by_id(query) and all(
        name == "_id" or ((value is None or type(value) is str) and "." not in name)
        for name, value in query.items()
    )


# -- reads -----------------------------------------------------------------------------------------


class Reads(Lane[Document, Document]):
    """Reads by id. A document goes to the calls whose whole query it fulfils, to each as its own object."""

    name = "find.group"

    def __init__(self, driver: GroupDriver, collection: GroupedCollection) -> None:
        super().__init__(driver)
        self._collection = collection

    async def send(self, calls: Sequence[Call[Document, Document]]) -> None:
        by_id: dict[Any, list[Call[Document, Document]]] = {}
        for call in calls:
            by_id.setdefault(call.given["_id"], []).append(call)
        query, clauses = _either([call.given for call in calls])
        try:
            documents = await self._collection.find_by_ids(query, clauses)
        except StorageError as error:
            if isinstance(error, _OF_THE_CALL):
                raise
            documents, by_id = [], {}
            for call in calls:
                call.go_alone()
        for document in documents:
            _hand_out(document, by_id.pop(document["_id"], []))
        for missing in by_id.values():
            for call in missing:
                call.answer(NO_DOCUMENT)


def _either(queries: Sequence[Document]) -> tuple[Document, int]:
    """One query for the documents of any of these, and how many there can be.

    The ids of equal conditions are one clause.
    """
    ids_of: dict[tuple[tuple[str, Any], ...], dict[Any, None]] = {}
    for query in queries:
        conditions = tuple(item for item in query.items() if item[0] != "_id")
        ids_of.setdefault(conditions, {})[query["_id"]] = None
    clauses: list[Document] = [
        {"_id": {"$in": list(ids)}, **dict(conditions)} for conditions, ids in ids_of.items()
    ]
    return clauses[0] if len(clauses) == 1 else {"$or": clauses}, len({query["_id"] for query in queries})


def _hand_out(document: Document, calls: Sequence[Call[Document, Document]]) -> None:
    """Give each call of the document's id the document, if it is the caller's; each an object of its own."""
    names = {name for call in calls for name in call.given if name != "_id"}
    if any(not (document.get(name) is None or type(document[name]) is str) for name in names):
        for call in calls:
            call.go_alone()  # a broken document, which only the server compares as the server does
        return
    is_given = False
    for call in calls:
        if all(document.get(name) == value for name, value in call.given.items()):
            call.answer(copy_of(document) if is_given else document)
            is_given = True
        else:
            call.answer(NO_DOCUMENT)


def copy_of(value: _Value) -> _Value:
    """Without the cost of `copy.deepcopy`: all other types of BSON's values cannot be changed."""
    if isinstance(value, dict):
        fields = cast("Document", value)
        return cast("_Value", {name: copy_of(field) for name, field in fields.items()})
    if isinstance(value, list):
        return cast("_Value", [copy_of(item) for item in cast("list[Any]", value)])
    return value


# -- writes ----------------------------------------------------------------------------------------


class Inserts(Lane[Document, bool]):
    """Inserts, in any order: what the server refuses reaches its own caller only."""

    name = "insert.group"

    def __init__(self, driver: GroupDriver, collection: GroupedCollection) -> None:
        super().__init__(driver)
        self._collection = collection

    def measure(self, call: Call[Document, bool]) -> int | None:
        try:
            data = bson.encode(call.given)
        except DRIVER_ERRORS:
            return None
        call.written = RawBSONDocument(data)
        return len(data)

    async def send(self, calls: Sequence[Call[Document, bool]]) -> None:
        documents = [call.written for call in calls]
        outcome = await _sent_write(
            self._collection, "insert", lambda handle: handle.insert_many(documents, ordered=False)
        )
        for position, call in enumerate(calls):
            error = outcome.refused.get(position, outcome.unconfirmed)
            if error is None:
                call.answer(True)
            else:
                call.fail(with_cause(self._collection.translate(error, "insert", call.given), error))


class Updates(Lane[tuple[Document, Update], int]):
    """Updates of one document each, by id and any conditions.

    The server answers with the number of matches only. So each update is sent as an upsert whose insert cannot
    succeed, because it would change the `_id` that the query has (ImmutableField): the answer then names the
    updates that matched nothing. These, and all that were refused, have changed nothing, and go alone. A
    document that matches is updated as without `upsert`.
    """

    name = "update.group"

    def __init__(self, driver: GroupDriver, collection: GroupedCollection) -> None:
        super().__init__(driver)
        self._collection = collection
        self._is_sharded = False

    def measure(self, call: Call[tuple[Document, Update], int]) -> int | None:
        if self._is_sharded:
            return None
        query, update = call.given
        try:
            size = len(bson.encode({"q": query, "u": update}))
        except DRIVER_ERRORS:
            return None
        call.written = never_inserting(query, update)
        return size

    async def send(self, calls: Sequence[Call[tuple[Document, Update], int]]) -> None:
        operations = [call.written for call in calls]
        outcome = await _sent_write(
            self._collection, "update", lambda handle: handle.bulk_write(operations, ordered=False)
        )
        for position, call in enumerate(calls):
            refused = outcome.refused.get(position)
            if refused is not None:
                # A cluster refuses an upsert without the shard key.
                self._is_sharded = self._is_sharded or refused.code == SHARD_KEY_NOT_FOUND_CODE
                call.go_alone()
            elif outcome.unconfirmed is not None:
                error = outcome.unconfirmed
                call.fail(with_cause(self._collection.translate(error, "update", call.given[1]), error))
            else:
                call.answer(1)


def never_inserting(query: Document, update: Update) -> UpdateOne:
    """The update as an upsert that the server refuses where nothing matches."""
    if isinstance(update, list):
        is_new: Document = {"$eq": [{"$type": f"${_VERSION}"}, "missing"]}
        refused: Document = {"$set": {"_id": {"$cond": [is_new, _NO_ID, "$_id"]}}}
        return UpdateOne(query, [refused, *update], upsert=True)
    on_insert: Document = {**update.get("$setOnInsert", {}), "_id": _NO_ID}
    return UpdateOne(query, {**update, "$setOnInsert": on_insert}, upsert=True)


async def _sent_write(
    collection: GroupedCollection, operation: str, write: Callable[[Any], Awaitable[object]]
) -> Outcome:
    """Send an unordered write of several documents."""

    async def send(handle: Any) -> Outcome:
        try:
            await write(handle)
        except BulkWriteError as error:
            return outcome_of(error)
        return Outcome({}, None)

    return await collection.run(operation, send)
