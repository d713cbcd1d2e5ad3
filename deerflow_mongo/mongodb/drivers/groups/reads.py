"""Reads by id: the documents of all that wait, by one `find`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

from bson import ObjectId

from .command import CommandLane, Document, all_alone, is_plain
from .lane import Call

ID_INDEX: Final = "_id_"
ID_TYPES: Final = (str, ObjectId)
NO_DOCUMENT: Final[Document] = {}
"""The answer of a read that found none."""

_Value = TypeVar("_Value")


def is_plain_by_id(query: Document) -> bool:
    """Whether the query names a document by its `_id`, and its conditions can be tested here.

    These are equality with a text or null.
    """
    if type(query.get("_id")) not in ID_TYPES:
        return False
    for name, value in query.items():
        if value is not None and type(value) is not str and name != "_id":
            return False
        if name.startswith("$") or "." in name:
            return False
    return True


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
            all_alone(calls)
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
    if not all(is_plain(document.get(name)) for name in names):
        all_alone(calls)  # a broken document, which only the server compares as the server does
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
