"""Finds what is not ours in collections of our names: another program's data is neither used nor changed.

A collection is ours once a setup has put its validator on it, and in a database with our version document.
Before that, it may exist only if it is empty, or if every document is one that a store of ours has written,
and if it has no option and no index that would refuse or remove our documents. What is not ours is reported
as sentences, which `migrations.py` raises and `inspection.py` lists. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ..contract.errors import StorageConfigError
from . import queries
from .database_state import EXPIRY, DatabaseState, concurrently, state_of
from .documents import version_1
from .documents.encoding import Document
from .drivers.collection import Collection
from .drivers.driver import Driver, long_running
from .schema import COLLECTIONS, VERSIONS, CollectionSchema, Index

WAY_OUT: Final = "Set `collection_prefix`, or use another database"

_FOREIGN_OPTIONS: Final = {
    "viewOn": "is a view",
    "timeseries": "is a time series",
    "capped": "is a capped collection",
    "clusteredIndex": "is a clustered collection",
    "collation": "has a collation, which compares texts in another way",
    "encryptedFields": "has encrypted fields",
}
"""Options that setup never gives a collection and that cannot be removed from it."""

_REFUSING_KINDS: Final = ("text", "2d", "2dsphere", "geoHaystack")
"""Kinds of index that refuse documents whose fields have other values than they expect."""


class Foreign(NamedTuple):
    """A collection of one of our names that is not ours, and why."""

    collection: str
    reason: str

    def __str__(self) -> str:
        return f"collection {self.collection!r} {self.reason}"


async def check_ours(driver: Driver, state: DatabaseState) -> None:
    """Raise `StorageConfigError` with one sentence where a collection of our names is not ours."""
    found = await find_foreign(driver, state)
    if not found:
        return
    first, *others = found
    more = ""
    if others:
        names = " and ".join(repr(other.collection) for other in others)
        more = f", and {names} {'is' if len(others) == 1 else 'are'} not of deerflow-mongo either"
    raise StorageConfigError(f"{first}{more}; nothing was changed. {WAY_OUT}")


async def find_foreign(driver: Driver, state: DatabaseState) -> list[Foreign]:
    """All collections of our names that are not ours; reads documents only where the rest does not decide."""
    found = _by_what_was_read(state)
    if found:
        return found
    unknown = [schema for schema in COLLECTIONS if _is_untitled(state, schema.name)]
    reasons = await concurrently(_documents_of(driver, state, schema) for schema in unknown)
    return [
        Foreign(state.prefix + schema.name, text)
        for schema, text in zip(unknown, reasons, strict=True)
        if text
    ]


def _is_untitled(state: DatabaseState, name: str) -> bool:
    return state.prefix + name in state.collections and not state.is_titled(state.prefix + name)


# -- options, validators and indexes ---------------------------------------------------------------


def _by_what_was_read(state: DatabaseState) -> list[Foreign]:
    reasons: dict[str, str] = {}
    for name in (state.prefix + schema.name for schema in COLLECTIONS):
        options = state.options(name)
        reason = next((text for option, text in _FOREIGN_OPTIONS.items() if options.get(option)), None)
        if reason is not None:
            reasons[name] = reason
    if state.version_error is not None:
        reasons.setdefault(
            state.prefix + VERSIONS, f"was not written by deerflow-mongo: {state.version_error}"
        )
    if not state.is_set_up:
        for schema in COLLECTIONS:
            name = state.prefix + schema.name
            reason = _foreign_rule(schema, state.options(name), state.indexes.get(name, ()))
            if reason is not None:
                reasons.setdefault(name, reason)
    return [Foreign(name, reason) for name, reason in reasons.items()]


def _foreign_rule(schema: CollectionSchema, options: Document, indexes: Sequence[Document]) -> str | None:
    """Why a collection that is not known to be ours may refuse or remove our documents."""
    if options.get("validator"):
        return "has a validator that is not of deerflow-mongo"
    conflicts = [index for index in schema.indexes if state_of(index, indexes) == "conflicting"]
    if conflicts:
        return f"has an index in the place of {conflicts[0].name!r} that is not of deerflow-mongo"
    return next((text for index in indexes if (text := _restriction(index, schema.indexes))), None)


def _restriction(index: Document, ours: Sequence[Index]) -> str | None:
    kind = kind_of_restriction(index)
    if kind is None or any(state_of(other, [index]) == "present" for other in ours):
        return None
    return f"has the {kind} index {index['name']!r}, which is not of deerflow-mongo"


def kind_of_restriction(index: Document) -> str | None:
    """The kind of an index by which the server refuses or removes documents; None for any other."""
    keys = dict(index["key"])
    if index["name"] == "_id_" or list(keys) == ["_id"]:
        return None
    if EXPIRY in index:
        return "TTL"
    if index.get("unique") or index.get("prepareUnique"):
        return "unique"
    return next((str(kind) for kind in keys.values() if kind in _REFUSING_KINDS), None)


# -- documents -------------------------------------------------------------------------------------

_IN_USE = "is in use: it holds documents that deerflow-mongo has not written"


async def _documents_of(driver: Driver, state: DatabaseState, schema: CollectionSchema) -> str | None:
    """Why the documents of an existing collection without our validator are not ours."""
    collection = driver.collection(state.prefix + schema.name)
    with long_running():
        if schema.name == VERSIONS:
            is_foreign = await collection.find_one(queries.other_than_database_version()) is not None
        elif state.is_set_up:
            is_foreign = await _has_none_of_ours(collection, schema)
        else:
            is_foreign = await collection.find_one(queries.outside(schema.stored_validator)) is not None
    return _IN_USE if is_foreign else None


async def _has_none_of_ours(collection: Collection, schema: CollectionSchema) -> bool:
    """Whether another program has taken the place of a collection of ours that was dropped.

    Among our documents, one that does not fit the validator is a broken one of ours.
    """
    ours = queries.inside_or_of_version(schema.stored_validator, version_1.VERSION)
    return await collection.find_one(ours) is None and await collection.find_one({}) is not None
