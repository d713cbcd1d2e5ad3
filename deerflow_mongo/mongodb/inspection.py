"""Reports where a database differs from the schema; changes nothing. `migrations.py` applies the schema."""

from __future__ import annotations

from dataclasses import dataclass, field

from .database_state import EXPIRY, DatabaseState, read_database, removes_stored_events, state_of
from .documents.encoding import Document
from .documents.versions import SCHEMA_VERSION
from .drivers.driver import Driver
from .ownership import find_foreign, kind_of_restriction
from .schema import COLLECTIONS, DAY_S, RETENTION, RUN_EVENTS, CollectionSchema


def _names() -> list[str]:
    return []


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
    """Indexes of the name of ours with other keys or options, which make the server refuse to create ours."""
    operator_indexes: list[str] = field(default_factory=_names)
    """Indexes that the schema does not have: an operator's own, or those of another release."""
    restricting_indexes: list[str] = field(default_factory=_names)
    """Those of them by which the server may refuse or remove documents, with their kind."""
    hidden_indexes: list[str] = field(default_factory=_names)
    """Indexes of the schema that an operator has hidden: the server maintains them and uses none."""
    outdated_validators: list[str] = field(default_factory=_names)
    """Collections whose validator is not this release's; `setup()` sets it. The mock stores none."""
    retention_days: float | None = None
    """After how many days the server removes run events; None for never."""
    foreign: list[str] = field(default_factory=_names)
    """Collections of our names that are not ours, with the reason: `setup()` stops there."""

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


async def inspect(driver: Driver, prefix: str) -> SchemaReport:
    """Compare the database with the schema."""
    state = await read_database(driver, prefix)
    report = SchemaReport()
    if state.version is not None:
        report.version, report.readable_from, report.migrating_from = state.version
    if state.version is None or state.version.version <= SCHEMA_VERSION:
        report.foreign = [str(found) for found in await find_foreign(driver, state)]
    for schema in COLLECTIONS:
        _inspect_collection(report, state, schema)
    return report


def _inspect_collection(report: SchemaReport, state: DatabaseState, schema: CollectionSchema) -> None:
    name = state.prefix + schema.name
    if name not in state.collections:
        report.missing_collections.append(name)
    else:
        report.collections.append(name)
        if state.options(name).get("validator") != schema.stored_validator:
            report.outdated_validators.append(name)
    _inspect_indexes(report, name, schema, state.indexes.get(name, []))


def _inspect_indexes(
    report: SchemaReport, name: str, schema: CollectionSchema, existing: list[Document]
) -> None:
    lists = {
        "present": report.indexes,
        "conflicting": report.conflicting_indexes,
        "missing": report.missing_indexes,
    }
    for index in schema.indexes:
        lists[state_of(index, existing)].append(f"{name}.{index.name}")
    for index in existing:
        _inspect_index(report, name, schema, index)


def _inspect_index(report: SchemaReport, name: str, schema: CollectionSchema, index: Document) -> None:
    label = f"{name}.{index['name']}"
    is_of_events = schema.name == RUN_EVENTS
    if is_of_events and removes_stored_events(index):
        days = index[EXPIRY] / DAY_S
        report.retention_days = days if report.retention_days is None else min(days, report.retention_days)
    if any(state_of(ours, [index]) == "present" for ours in schema.indexes):
        if index.get("hidden"):
            report.hidden_indexes.append(label)
    elif index["name"] not in {"_id_", *(ours.name for ours in schema.indexes)} and not (
        is_of_events and index["name"] == RETENTION
    ):
        report.operator_indexes.append(label)
        kind = kind_of_restriction(index)
        if kind is not None:
            report.restricting_indexes.append(f"{label} ({kind})")
