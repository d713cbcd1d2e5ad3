"""How calls of one kind share a command, and what each of them is told.

Each call is told what a command of its own would have told it. Where the shared answer does not say, the call
was not carried out and goes alone: what the driver cannot encode, what the server refuses of several updates,
a document that only the server can compare with the query.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError

from ...contract.errors import (
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from .errors import DRIVER_ERRORS, Outcome, outcome_of, with_cause
from .groups import MAX_BYTES, Call, GroupDriver, Lane

Document: TypeAlias = dict[str, Any]
Update: TypeAlias = "Document | list[Document]"
Sort: TypeAlias = Sequence[tuple[str, int]]

ID_INDEX: Final = "_id_"
SHARD_KEY_NOT_FOUND_CODE: Final = 61
NO_DOCUMENT: Final[Document] = {}
"""The answer of a read that found none."""

_ID_TYPES: Final = (str, ObjectId)
_VERSION: Final = "schema_version"
"""A field that every document of ours has."""
_LIST: Final = "list"
"""No document of ours has this field."""
MAX_LISTED: Final = 1_000
"""Documents that the lists of a group may have together: decoding them blocks the event loop."""
MAX_CANDIDATES: Final = 1_000
"""Documents that are read for a group of upserts; where there are more, each goes alone."""
_WHOLE_FIELDS: Final = frozenset({"$set", "$setOnInsert"})
_NO_ID: Final = None
"""No document of ours has this id."""
_Value = TypeVar("_Value")
_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")
_OF_THE_CALL = (StorageAccessError, StorageClosedError, StorageConfigError, StorageUnavailableError)


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


def is_by_id(query: Document) -> bool:
    """Whether the query names one document by its `_id`."""
    if type(query.get("_id")) not in _ID_TYPES:
        return False
    for name in query:  # noqa: SIM110 - a third of the time that `any` takes, before each call
        if name.startswith("$"):
            return False
    return True


def is_plain_by_id(query: Document) -> bool:
    """Whether, in addition, each condition is equality with a text or null, which can be tested here."""
    if type(query.get("_id")) not in _ID_TYPES:
        return False
    for name, value in query.items():
        if value is not None and type(value) is not str and name != "_id":
            return False
        if name.startswith("$") or "." in name:
            return False
    return True


def _is_plain(value: object) -> bool:
    """Whether equality with a value in a document means what it means for the server."""
    return value is None or type(value) is str


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


def _all_alone(calls: Sequence[Call[Any, Any]]) -> None:
    for call in calls:
        call.go_alone()


def _encoded_bytes(query: Document, update: Update) -> int | None:
    """The size of an update; None if the driver cannot encode it."""
    try:
        return len(bson.encode({"q": query, "u": update}))
    except DRIVER_ERRORS:
        return None


# -- reads -----------------------------------------------------------------------------------------


class Reads(CommandLane[Document, Document]):
    """Reads by id. A document goes to the calls whose whole query it fulfils, to each as its own object."""

    kind = "find"
    command = "find"

    def can_group(self, given: Document) -> bool:
        return is_plain_by_id(given)

    async def send(self, calls: Sequence[Call[Document, Document]]) -> None:
        by_id: dict[Any, list[Call[Document, Document]]] = {}
        for call in calls:
            by_id.setdefault(call.given["_id"], []).append(call)
        query, clauses = _either([call.given for call in calls])
        documents = await self.read(self._collection.find_by_ids(query, clauses))
        if documents is None:
            _all_alone(calls)
            return
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
    if not all(_is_plain(document.get(name)) for name in names):
        _all_alone(calls)  # a broken document, which only the server compares as the server does
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


# -- lists -----------------------------------------------------------------------------------------


class ListQuery(NamedTuple):
    """The arguments of one `find`."""

    query: Document
    sort: Sort
    limit: int
    skip: int
    projection: Sequence[str] | None


class Lists(CommandLane[ListQuery, list[Document]]):
    """Reads of several documents, in their order, as the parts of one aggregation."""

    kind = "list"
    command = "find"

    def can_group(self, given: ListQuery) -> bool:
        return given.limit <= MAX_LISTED and bool(given.sort)

    def measure(self, call: Call[ListQuery, list[Document]]) -> int | None:
        return call.given.limit * (MAX_BYTES // MAX_LISTED)

    async def send(self, calls: Sequence[Call[ListQuery, list[Document]]]) -> None:
        first, *others = [_stages(position, call.given) for position, call in enumerate(calls)]
        source = self._collection.name
        pipeline = first + [{"$unionWith": {"coll": source, "pipeline": stages}} for stages in others]
        rows = sum(call.given.limit for call in calls)
        documents = await self.read(self._collection.aggregate(pipeline, batch_size=rows + 1))
        if documents is None:
            _all_alone(calls)
            return
        found: list[list[Document]] = [[] for _ in calls]
        for document in documents:
            position: int = document.pop(_LIST)
            found[position].append(document)
        for call, of_call in zip(calls, found, strict=True):
            call.answer(of_call)


def _stages(position: int, given: ListQuery) -> list[Document]:
    """The `find` as stages; each document gets the position of its list."""
    stages: list[Document] = [{"$match": given.query}, {"$sort": dict(given.sort)}]
    if given.skip:
        stages.append({"$skip": given.skip})
    stages.append({"$limit": given.limit})
    if given.projection is not None:
        stages.append({"$project": dict.fromkeys(given.projection, 1)})
    stages.append({"$set": {_LIST: {"$literal": position}}})
    return stages


# -- writes ----------------------------------------------------------------------------------------


class Inserts(CommandLane[Document, bool]):
    """Inserts, in any order: what the server refuses reaches its own caller only."""

    kind = "insert"
    command = write_command = "insert"

    def measure(self, call: Call[Document, bool]) -> int | None:
        try:
            data = bson.encode(call.given)
        except DRIVER_ERRORS:
            return None
        call.written = RawBSONDocument(data)
        return len(data)

    async def send(self, calls: Sequence[Call[Document, bool]]) -> None:
        documents = [call.written for call in calls]
        outcome = await self.write(lambda handle: handle.insert_many(documents, ordered=False))
        for position, call in enumerate(calls):
            error = outcome.refused.get(position, outcome.unconfirmed)
            if error is None:
                call.answer(True)
            else:
                self.refuse(call, error, call.given)


class Updates(CommandLane[tuple[Document, Update], int]):
    """Updates of one document each, by id and any conditions.

    The server answers with the number of matches only. So each update is sent as an upsert whose insert can
    never succeed, because it would change the `_id` that the query has (ImmutableField): the answer then
    names the updates that matched nothing. These, and all that were refused, have changed nothing, and go
    alone. A document that matches is updated as without `upsert`.
    """

    kind = "update"
    command = "update"
    _is_sharded = False

    def can_group(self, given: tuple[Document, Update]) -> bool:
        return not self._is_sharded and is_by_id(given[0])

    def measure(self, call: Call[tuple[Document, Update], int]) -> int | None:
        call.written = never_inserting(*call.given)
        return _encoded_bytes(*call.given)

    async def send(self, calls: Sequence[Call[tuple[Document, Update], int]]) -> None:
        operations = [call.written for call in calls]
        outcome = await self.write(lambda handle: handle.bulk_write(operations, ordered=False))
        for position, call in enumerate(calls):
            refused = outcome.refused.get(position)
            if refused is not None:
                # A cluster refuses an upsert without the shard key.
                self._is_sharded = self._is_sharded or refused.code == SHARD_KEY_NOT_FOUND_CODE
                call.go_alone()
            elif outcome.unconfirmed is not None:
                self.refuse(call, outcome.unconfirmed, call.given[1])
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


# -- upserts ---------------------------------------------------------------------------------------


class UpsertQuery(NamedTuple):
    """The arguments of a find-and-modify that updates the first match, or inserts."""

    query: Document
    update: Update
    sort: Sort | None


class Upserts(CommandLane[UpsertQuery, Document]):
    """Upserts that return the document: one read of those that exist, and one write of all that change.

    For updates that set whole fields, where the document afterwards is known without a second read: nothing
    is set, or all that is neither set nor a condition never changes. An existing document is updated by its
    `_id` and under the same conditions, a new one is inserted. Where another writer was faster, the server
    refuses that, and the call goes alone.
    """

    kind = "upsert"
    command = "findAndModify"

    def can_group(self, given: UpsertQuery) -> bool:
        update = given.update
        if not isinstance(update, dict) or not update.keys() <= _WHOLE_FIELDS:
            return False
        # What only an insert sets may have changed since in a document that exists.
        return "$set" not in update or update.get("$setOnInsert", {}).keys() <= {"_id", _VERSION}

    def measure(self, call: Call[UpsertQuery, Document]) -> int | None:
        return _encoded_bytes(call.given.query, call.given.update)

    async def send(self, calls: Sequence[Call[UpsertQuery, Document]]) -> None:
        by_key, query = _by_key(calls)
        sort = calls[0].given.sort or (("_id", 1),)
        documents = await self.read(self._collection.find_candidates(query, sort, MAX_CANDIDATES))
        first = None if documents is None else _first_by_key(documents, next(iter(by_key)), by_key)
        if first is None:
            _all_alone(calls)
            return
        changes: list[tuple[Call[UpsertQuery, Document], Document, InsertOne[Document] | UpdateOne]] = []
        for key, call in by_key.items():
            _decide(call, dict(key), first.get(key), changes)
        if not changes:
            return
        operations = [operation for _, _, operation in changes]
        outcome = await self.write(lambda handle: handle.bulk_write(operations, ordered=False))
        for position, (call, document, _) in enumerate(changes):
            if position in outcome.refused:
                call.go_alone()
            elif outcome.unconfirmed is not None:
                self.refuse(call, outcome.unconfirmed, call.given.update)
            else:
                call.answer(document)


_Key: TypeAlias = tuple[tuple[str, str | None], ...]
"""The equalities of a query."""


def _by_key(
    calls: Sequence[Call[UpsertQuery, Document]],
) -> tuple[dict[_Key, Call[UpsertQuery, Document]], Document]:
    """The calls whose queries only differ in the values of the same equalities, and one query for all.

    The others go alone, and those that ask for what an earlier one asks for.
    """
    by_key: dict[_Key, Call[UpsertQuery, Document]] = {}
    shape: tuple[Any, ...] | None = None
    for call in calls:
        query = call.given.query
        key: _Key = tuple((name, value) for name, value in query.items() if _is_plain(value))
        equal = {name for name, _ in key}
        others = [(name, value) for name, value in query.items() if name not in equal]
        own = ([name for name, _ in key], others, call.given.sort)
        shape = shape or own
        if own != shape or key in by_key:
            call.go_alone()
        else:
            by_key[key] = call
    names, others, _ = cast("tuple[list[str], list[tuple[str, Any]], Any]", shape)
    values = {name: list({dict(key)[name]: None for key in by_key}) for name in names}
    return by_key, {**{name: {"$in": values[name]} for name in names}, **dict(others)}


def _first_by_key(
    documents: Sequence[Document], names: _Key, wanted: Mapping[_Key, object]
) -> dict[_Key, Document] | None:
    """The first document of each key; None where it cannot be told."""
    if len(documents) >= MAX_CANDIDATES:
        return None
    found: dict[_Key, Document] = {}
    for document in documents:
        key = tuple((name, document.get(name)) for name, _ in names)
        if not all(_is_plain(value) for _, value in key):
            return None  # a broken document, which only the server compares as the server does
        if key in wanted:
            found.setdefault(key, document)
    return found


def _decide(
    call: Call[UpsertQuery, Document],
    equalities: Document,
    existing: Document | None,
    changes: list[tuple[Call[UpsertQuery, Document], Document, InsertOne[Document] | UpdateOne]],
) -> None:
    """Answer the call, let it go alone, or add its change and the document afterwards."""
    update = cast("Document", call.given.update)
    fields: Document = update.get("$set", {})
    if existing is None:
        document = {**update.get("$setOnInsert", {}), **equalities, **fields}
        if "_id" in document:
            changes.append((call, document, InsertOne(document)))
        else:
            call.go_alone()
    elif not fields:
        call.answer(existing)
    elif existing.keys() <= {"_id", _VERSION, *equalities, *fields}:
        query = {**call.given.query, "_id": existing["_id"]}
        changes.append((call, {**existing, **fields}, never_inserting(query, {"$set": fields})))
    else:
        call.go_alone()
