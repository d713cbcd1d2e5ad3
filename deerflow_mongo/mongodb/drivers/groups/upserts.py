"""Upserts that return their document: what waits is one read, and one write of what changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

from pymongo import InsertOne, UpdateOne

from .command import VERSION, CommandLane, Document, Sort, Update, all_alone, encoded, is_plain
from .lane import Call
from .writes import refusing_inserts

MAX_CANDIDATES: Final = 1_000
"""Documents that are read for a group of upserts; where there are more, each goes alone."""

_WHOLE_FIELDS: Final = frozenset({"$set", "$setOnInsert"})


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
    pays_from = 6
    """Measured near the server: a group is two commands, one after the other."""

    def can_group(self, given: UpsertQuery) -> bool:
        update = given.update
        if not isinstance(update, dict) or not update.keys() <= _WHOLE_FIELDS:
            return False
        # What only an insert sets may have changed since in a document that exists.
        return "$set" not in update or update.get("$setOnInsert", {}).keys() <= {"_id", VERSION}

    def measure(self, call: Call[UpsertQuery, Document]) -> int | None:
        data = encoded({"q": call.given.query, "u": call.given.update})
        return None if data is None else len(data)

    async def send(self, calls: Sequence[Call[UpsertQuery, Document]]) -> None:
        by_key, query = _by_key(calls)
        sort = calls[0].given.sort or (("_id", 1),)
        documents = await self.read(self._collection.find_candidates(query, sort, MAX_CANDIDATES))
        first = None if documents is None else _first_by_key(documents, next(iter(by_key)), by_key)
        if first is None:
            all_alone(calls)
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
        key: _Key = tuple((name, value) for name, value in query.items() if is_plain(value))
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
        if not all(is_plain(value) for _, value in key):
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
    elif existing.keys() <= {"_id", VERSION, *equalities, *fields}:
        query = {**call.given.query, "_id": existing["_id"]}
        operation = UpdateOne(query, refusing_inserts({"$set": fields}), upsert=True)
        changes.append((call, {**existing, **fields}, operation))
    else:
        call.go_alone()
