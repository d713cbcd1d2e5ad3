"""Reports where a database differs from the schema; changes nothing. `migrations.py` applies the schema."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..contract.errors import StorageConfigError
from . import queries
from .documents.encoding import Document
from .documents.versions import SCHEMA_VERSION, DatabaseVersion, database_version
from .drivers.driver import Driver
from .schema import COLLECTIONS, DAY_S, RETENTION, VERSIONS, CollectionSchema


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
    outdated_validators: list[str] = field(default_factory=_names)
    """Collections whose validator is not this release's; `setup()` sets it. The mock stores none."""
    retention_days: float | None = None
    """After how many days the server removes run events; None for never."""

    @property
    def complete(self) -> bool:
        """Whether version, collections and indexes are this release's, or those of a newer one it can use."""
        if self.version is not None and self.version > SCHEMA_VERSION:
            return self.readable_from is not None and self.readable_from <= SCHEMA_VERSION
        return (
            self.version == SCHEMA_VERSION
            and self.migrating_from is None
            and not (self.missing_collections or self.missing_indexes or self.conflicting_indexes)
        )


async def stored_version(driver: Driver, prefix: str) -> DatabaseVersion | None:
    """The schema's version in the database; None before the first setup.

    Raises `StorageConfigError` where something else is stored in its place.
    """
    document = await driver.collection(prefix + VERSIONS).find_one(queries.database_version())
    try:
        return database_version(document)
    except ValueError as error:
        raise StorageConfigError(
            f"collection {prefix + VERSIONS!r} was not written by deerflow-mongo: {error}; nothing was "
            "changed. Use another database, or set `collection_prefix`"
        ) from None


async def inspect(driver: Driver, prefix: str) -> SchemaReport:
    """Compare the database with the schema."""
    report = SchemaReport()
    present = await driver.list_collections()
    version = await stored_version(driver, prefix) if prefix + VERSIONS in present else None
    if version is not None:
        report.version, report.readable_from, report.migrating_from = version
    for schema in COLLECTIONS:
        name = prefix + schema.name
        if name not in present:
            report.missing_collections.append(name)
            _inspect_indexes(report, name, schema, [])
            continue
        report.collections.append(name)
        if present[name].get("validator") != schema.stored_validator:
            report.outdated_validators.append(name)
        _inspect_indexes(report, name, schema, await driver.list_indexes(name))
    return report


def _inspect_indexes(
    report: SchemaReport, name: str, schema: CollectionSchema, indexes: list[Document]
) -> None:
    found = {index["name"]: index for index in indexes}
    ours = {index.name for index in schema.indexes} | {"_id_", RETENTION}
    for index in schema.indexes:
        wanted = index.specification()
        same = [other for other in found.values() if is_same_index(other, wanted)]
        if same:
            report.indexes.append(f"{name}.{index.name}")
            ours |= {other["name"] for other in same}
        elif index.name in found:
            report.conflicting_indexes.append(f"{name}.{index.name}")
        else:
            report.missing_indexes.append(f"{name}.{index.name}")
    report.operator_indexes += [f"{name}.{other}" for other in found if other not in ours]
    if RETENTION in found:
        report.retention_days = found[RETENTION]["expireAfterSeconds"] / DAY_S


def is_same_index(one: Document, other: Document) -> bool:
    """Whether two indexes differ in their name at most."""
    return _comparable(one) == _comparable(other)


def _comparable(index: Document) -> Document:
    return {
        "key": list(dict(index["key"]).items()),
        "unique": bool(index.get("unique")),
        "partial": index.get("partialFilterExpression"),
        "sparse": bool(index.get("sparse")),
        "ttl": index.get("expireAfterSeconds"),
        "collation": index.get("collation"),
        "hidden": bool(index.get("hidden")),
    }
