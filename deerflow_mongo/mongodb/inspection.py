"""Reports where a database differs from the schema; changes nothing. `migrations.py` applies the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..contract.errors import StorageAccessError
from . import queries
from .database_state import (
    LIBRARY_COLLECTIONS,
    DatabaseState,
    blocking,
    concurrently,
    read_database,
    retention_days,
    retention_indexes,
    state_of,
)
from .documents.encoding import Document
from .documents.versions import SCHEMA_VERSION
from .drivers.driver import Driver
from .foreign_collections import find_foreign, kind_of_restriction
from .schema import COLLECTIONS, CollectionSchema, Index, retention_of


def _names() -> list[str]:
    return []


def _texts() -> dict[str, str]:
    return {}


def _days() -> dict[str, float]:
    return {}


@dataclass(slots=True)
class SchemaReport:
    """How a database compares to the schema; names of indexes are `collection.index`."""

    version: int | None = None
    """The newest version that a release has set up; None before the first setup."""
    readable_from: int | None = None
    """The oldest version whose releases may use the database."""
    migrating_from: int | None = None
    """The version of documents that are being upgraded; None otherwise."""
    collections: list[str] = field(default_factory=_names)
    missing_collections: list[str] = field(default_factory=_names)
    indexes: list[str] = field(default_factory=_names)
    """Of the schema, present; also where an operator has made the same index under another name."""
    missing_indexes: list[str] = field(default_factory=_names)
    conflicting_indexes: list[str] = field(default_factory=_names)
    """Indexes of ours that the server refuses to create, because of another one's name or keys."""
    blocking_indexes: dict[str, str] = field(default_factory=_texts)
    """For each of these the name of the index that is in the way."""
    duplicates: list[str] = field(default_factory=_names)
    """Missing unique indexes that cannot be created because of the collection's documents."""
    operator_indexes: list[str] = field(default_factory=_names)
    """Indexes that the schema does not have: an operator's own, or those of another release."""
    restricting_indexes: list[str] = field(default_factory=_names)
    """Those of them by which the server may refuse or remove documents, with their kind."""
    hidden_indexes: list[str] = field(default_factory=_names)
    """Indexes of the schema that an operator has hidden: the server maintains them and uses none."""
    outdated_validators: list[str] = field(default_factory=_names)
    """Collections whose validator is not this release's; `setup()` sets it. The mock stores none."""
    retention_days: dict[str, float] = field(default_factory=_days)
    """After how many days the server removes documents, by their collection's name without its prefix."""
    foreign: list[str] = field(default_factory=_names)
    """Collections of our names that are not ours, with the reason: `setup()` stops there."""
    library_collections: list[str] = field(default_factory=_names)
    """Collections with checkpoints of langgraph-checkpoint-mongodb, which are neither used nor changed."""

    @property
    def complete(self) -> bool:
        """Whether version, collections and indexes are this release's, or those of a newer one it can use."""
        if self.foreign:
            return False
        if self.version is not None and self.version > SCHEMA_VERSION:
            return self.readable_from is not None and self.readable_from <= SCHEMA_VERSION
        return (
            self.version == SCHEMA_VERSION
            and self.migrating_from is None
            and not (self.missing_collections or self.missing_indexes or self.conflicting_indexes)
        )


async def inspect(
    driver: Driver, prefix: str, retention: Mapping[str, int | None] | None = None
) -> SchemaReport:
    """Compare the database with the schema, and with the retention that is asked for, by its options."""
    state = await read_database(driver, prefix)
    report = SchemaReport()
    if state.version is not None:
        report.version, report.readable_from, report.migrating_from = state.version
    if state.version is None or state.version.version <= SCHEMA_VERSION:
        report.foreign = [str(found) for found in await find_foreign(driver, state)]
        if not report.foreign:
            found = await find_duplicates(driver, state)
            report.duplicates = [f"{collection}.{index.name}" for collection, index in found]
    for schema in COLLECTIONS:
        _inspect_collection(report, state, schema, retention or {})
    report.library_collections = await _library_collections(driver, state)
    return report


async def _library_collections(driver: Driver, state: DatabaseState) -> list[str]:
    """Those with the names of langgraph-checkpoint-mongodb's whose documents are that library's."""
    names = [state.prefix + name for name in LIBRARY_COLLECTIONS]
    names = [name for name in names if state.collections.get(name, {}).get("type") == "collection"]
    are_of_library = await concurrently(_is_of_library(driver, name) for name in names)
    return [name for name, is_of_library in zip(names, are_of_library, strict=True) if is_of_library]


async def _is_of_library(driver: Driver, name: str) -> bool:
    try:
        document = await driver.collection(name).find_one({})
    except StorageAccessError:
        return False  # nothing here needs the right to read it
    return document is not None and {"thread_id", "checkpoint_ns", "checkpoint_id"} <= document.keys()


async def find_duplicates(driver: Driver, state: DatabaseState) -> list[tuple[str, Index]]:
    """Missing unique indexes that documents of their collections make the server refuse."""
    missing = [
        (name, index)
        for schema in COLLECTIONS
        if (name := state.prefix + schema.name) in state.collections
        for index in missing_indexes(schema.indexes, state.indexes[name])
        if index.unique
    ]
    found = await concurrently(
        driver.has_results(name, queries.duplicates([key for key, _ in index.keys], index.partial))
        for name, index in missing
    )
    return [place for place, has_duplicates in zip(missing, found, strict=True) if has_duplicates]


def missing_indexes(indexes: Sequence[Index], existing: Sequence[Document]) -> list[Index]:
    return [index for index in indexes if state_of(index, existing) == "missing"]


def wanted_indexes(
    schema: CollectionSchema, existing: Sequence[Document], retention: Mapping[str, int | None]
) -> list[Index]:
    """The schema's indexes, and those of its retention that do not exist; the age of others is changed."""
    of_collection = retention_of(schema.name)
    ttl_days = None if of_collection is None else retention.get(of_collection.option)
    if of_collection is None or ttl_days is None:
        return list(schema.indexes)
    found = retention_indexes(of_collection, existing)
    return [*schema.indexes, *(x for x in of_collection.indexes(ttl_days) if x.name not in found)]


def _inspect_collection(
    report: SchemaReport,
    state: DatabaseState,
    schema: CollectionSchema,
    retention: Mapping[str, int | None],
) -> None:
    name = state.prefix + schema.name
    if name not in state.collections:
        report.missing_collections.append(name)
    else:
        report.collections.append(name)
        if state.options(name).get("validator") != schema.stored_validator:
            report.outdated_validators.append(name)
    existing = state.indexes.get(name, [])
    for index in wanted_indexes(schema, existing, retention):
        in_the_way = blocking(index, existing)
        if state_of(index, existing) == "conflicting" and in_the_way is not None:
            report.conflicting_indexes.append(f"{name}.{index.name}")
            report.blocking_indexes[f"{name}.{index.name}"] = in_the_way
    _inspect_indexes(report, name, schema, existing)


def _inspect_indexes(
    report: SchemaReport, name: str, schema: CollectionSchema, existing: list[Document]
) -> None:
    lists = {"present": report.indexes, "missing": report.missing_indexes}
    for index in schema.indexes:
        lists.get(state_of(index, existing), []).append(f"{name}.{index.name}")
    of_collection = retention_of(schema.name)
    if of_collection is not None and (days := retention_days(of_collection, existing)) is not None:
        report.retention_days[schema.name] = days
    for index in existing:
        _inspect_index(report, name, schema, index)


def _inspect_index(report: SchemaReport, name: str, schema: CollectionSchema, index: Document) -> None:
    label = f"{name}.{index['name']}"
    retention = retention_of(schema.name)
    others = [] if retention is None else [expiry.index_name for expiry in retention.expiries]
    others += [] if schema.shard_index is None else [schema.shard_index.name]
    if any(state_of(ours, [index]) == "present" for ours in schema.indexes):
        if index.get("hidden"):
            report.hidden_indexes.append(label)
    elif index["name"] not in {"_id_", *others, *(ours.name for ours in schema.indexes)}:
        report.operator_indexes.append(label)
        kind = kind_of_restriction(index)
        if kind is not None:
            report.restricting_indexes.append(f"{label} ({kind})")
