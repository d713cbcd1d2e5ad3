"""Applies the schema to a database, and reports where a database differs from it.

What the schema is, is data in `schema.py`. `apply` is idempotent and may run in many processes at once;
`inspect` changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from ..contract.errors import StorageConfigError, StorageError
from . import queries
from .documents.encoding import Document
from .documents.versions import (
    SCHEMA_VERSION,
    database_version,
    database_version_update,
    has_retention_mark,
    retention_mark_update,
)
from .drivers.collection import Collection
from .drivers.driver import Driver
from .drivers.errors import code_of
from .schema import (
    COLLECTIONS,
    DAY_S,
    RETENTION,
    RUN_EVENTS,
    VERSIONS,
    CollectionSchema,
    Index,
    retention_index,
)

logger = logging.getLogger(__name__)

_INDEX_CONFLICT_CODES = (85, 86)  # IndexOptionsConflict, IndexKeySpecsConflict
_COLLECTION_EXISTS_CODE = 48
_DUPLICATE_KEY_CODE = 11000


def check_version(version: int | None, database: str) -> None:
    """Refuse a database that a newer release has set up."""
    if version is not None and version > SCHEMA_VERSION:
        raise StorageConfigError(
            f"database {database!r} has schema version {version}, and this release of deerflow-mongo knows "
            f"up to {SCHEMA_VERSION}: upgrade deerflow-mongo"
        )


async def stored_version(driver: Driver, prefix: str) -> int | None:
    """The schema's version in the database; None before the first `apply`."""
    return database_version(await driver.collection(prefix + VERSIONS).find_one(queries.database_version()))


# -- inspecting ------------------------------------------------------------------------------------


@dataclass(slots=True)
class SchemaReport:
    """How a database compares to the schema; names of indexes are `collection.index`."""

    version: int | None = None
    collections: list[str] = field(default_factory=lambda: list[str]())
    missing_collections: list[str] = field(default_factory=lambda: list[str]())
    indexes: list[str] = field(default_factory=lambda: list[str]())
    missing_indexes: list[str] = field(default_factory=lambda: list[str]())
    other_indexes: list[str] = field(default_factory=lambda: list[str]())
    """Indexes of the right name with other keys or options."""
    renamed_indexes: list[str] = field(default_factory=lambda: list[str]())
    """Indexes equal to a missing one except for the name, which make the server refuse to create ours."""
    outdated_validators: list[str] = field(default_factory=lambda: list[str]())
    """Collections whose validator is not this release's; `setup()` sets it. The mock stores none."""
    retention_days: float | None = None
    """After how many days the server removes run events; None for never."""

    @property
    def complete(self) -> bool:
        """Whether the version, the collections and the indexes are this release's."""
        return self.version == SCHEMA_VERSION and not (
            self.missing_collections or self.missing_indexes or self.other_indexes or self.renamed_indexes
        )


async def inspect(driver: Driver, prefix: str) -> SchemaReport:
    """Compare the database with the schema."""
    report = SchemaReport()
    present = await driver.list_collections()
    if prefix + VERSIONS in present:
        report.version = await stored_version(driver, prefix)
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
    found = {index["name"]: _comparable(index) for index in indexes}
    for index in schema.indexes:
        label = f"{name}.{index.name}"
        wanted = _comparable(index.specification())
        if index.name not in found:
            report.missing_indexes.append(label)
            report.renamed_indexes += [f"{name}.{other}" for other in found if found[other] == wanted]
        elif found[index.name] == wanted:
            report.indexes.append(label)
        else:
            report.other_indexes.append(label)
    if RETENTION in found:
        report.retention_days = found[RETENTION]["ttl"] / DAY_S


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


# -- applying --------------------------------------------------------------------------------------


async def apply(driver: Driver, prefix: str, database: str, *, ttl_days: int | None = None) -> None:
    """Create collections, validators and indexes, and store the version.

    `ttl_days` is the age at which the server removes run events, None for never. It may change while the
    collection is in use.
    """
    check_version(await stored_version(driver, prefix), database)
    present = await driver.list_collections()
    for schema in COLLECTIONS:
        await _apply_collection(driver, prefix + schema.name, schema, present)
    await driver.collection(prefix + VERSIONS).find_one_and_upsert(
        queries.database_version(), database_version_update()
    )
    await _apply_retention(driver, prefix, ttl_days)


async def _apply_collection(
    driver: Driver, name: str, schema: CollectionSchema, present: dict[str, Document]
) -> None:
    validator = schema.stored_validator
    if name not in present:
        present[name] = await _create_collection(driver, name, validator)
    if present[name].get("validator") != validator:
        await driver.set_validator(name, validator)
    for index in schema.indexes:
        await _create_index(driver, name, index)


async def _create_collection(driver: Driver, name: str, validator: Document) -> Document:
    try:
        await driver.create_collection(name, validator)
    except StorageError as error:
        if code_of(error) != _COLLECTION_EXISTS_CODE:
            raise
        # Another process created it first. Its options are read, because setting the same validator again
        # would need a permission that a user with read and write access only does not have.
        return (await driver.list_collections())[name]
    return {"validator": validator}


async def _create_index(driver: Driver, name: str, index: Index) -> None:
    try:
        await driver.create_index(name, index.specification())
    except StorageError as error:
        if code_of(error) in _INDEX_CONFLICT_CODES:
            raise StorageConfigError(
                f"index {index.name!r} of collection {name!r} cannot be created: an index with the same name "
                f"and other keys or options, or the same keys and another name, exists: {error}. Drop that "
                "index, then run setup again"
            ) from error.__cause__
        if code_of(error) == _DUPLICATE_KEY_CODE:
            raise StorageConfigError(
                f"unique index {index.name!r} of collection {name!r} cannot be created: the collection "
                "contains duplicates. Remove them, then run setup again"
            ) from error.__cause__
        raise


# -- retention of run events -----------------------------------------------------------------------


async def had_retention(versions: Collection) -> bool:
    """Whether retention of run events has ever been enabled in this database."""
    return has_retention_mark(await versions.find_one(queries.database_version()))


async def _apply_retention(driver: Driver, prefix: str, ttl_days: int | None) -> None:
    name = prefix + RUN_EVENTS
    found = next((index for index in await driver.list_indexes(name) if index["name"] == RETENTION), None)
    if ttl_days is None:
        if found is not None:
            logger.warning(
                "run_events_ttl_days is not set: run events are no longer removed by age",
                extra={"collection": name},
            )
            await driver.drop_index(name, RETENTION)
        return
    # The mark comes before the index: after the first removal, the events that are left do not show which
    # numbers a thread has used.
    await driver.collection(prefix + VERSIONS).update_one(
        queries.database_version_without_retention(), retention_mark_update()
    )
    wanted = retention_index(ttl_days)
    if found is None:
        await _create_index(driver, name, wanted)
    elif found.get("expireAfterSeconds") != wanted.expire_after_s:
        await driver.set_expiry(name, wanted.specification())
