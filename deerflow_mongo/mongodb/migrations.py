"""Applies the schema to a database, and reports where a database differs from it.

What the schema is, is data in `schema.py`. `apply` is idempotent and may be raced by many processes;
`inspect` changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from ..contract.errors import StorageConfigError, StorageError
from .codec import SCHEMA_VERSION, Document
from .documents.stored_times import stored_now
from .drivers.base import Collection, Driver
from .schema import (
    COLLECTIONS,
    DAY_S,
    RETENTION,
    RETENTION_MARK,
    RUN_EVENTS,
    VERSIONS,
    CollectionSchema,
    Index,
    retention_index,
)

logger = logging.getLogger(__name__)

_VERSION_ID = "deerflow-mongo"
_INDEX_CONFLICT_CODES = (85, 86)  # IndexOptionsConflict, IndexKeySpecsConflict
_COLLECTION_EXISTS_CODE = 48
_DUPLICATE_KEY_CODE = 11000


# -- inspecting ------------------------------------------------------------------------------------


@dataclass(slots=True)
class SchemaReport:
    """What a database has of the schema; names of indexes are `collection.index`."""

    version: int | None = None
    collections: list[str] = field(default_factory=lambda: list[str]())
    missing_collections: list[str] = field(default_factory=lambda: list[str]())
    indexes: list[str] = field(default_factory=lambda: list[str]())
    missing_indexes: list[str] = field(default_factory=lambda: list[str]())
    other_indexes: list[str] = field(default_factory=lambda: list[str]())
    """Indexes of the right name with other keys or options."""
    renamed_indexes: list[str] = field(default_factory=lambda: list[str]())
    """Indexes under another name that the server takes for one of ours, and so refuses to make ours."""
    outdated_validators: list[str] = field(default_factory=lambda: list[str]())
    """Collections whose validator is not this release's; `setup()` sets it. The mock keeps none."""
    retention_days: float | None = None
    """After how many days the server removes run events; None for never."""

    @property
    def complete(self) -> bool:
        """Whether the version, the collections and the indexes are this release's."""
        return self.version == SCHEMA_VERSION and not (
            self.missing_collections or self.missing_indexes or self.other_indexes or self.renamed_indexes
        )


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


async def stored_version(driver: Driver, prefix: str) -> int | None:
    """The schema's version in the database; None before the first `apply`."""
    document = await driver.collection(prefix + VERSIONS).find_one({"_id": _VERSION_ID})
    return None if document is None else document["version"]


async def inspect(driver: Driver, prefix: str) -> SchemaReport:
    """Hold the database against the schema."""
    report = SchemaReport()
    present = await driver.list_collections()
    if prefix + VERSIONS in present:
        report.version = await stored_version(driver, prefix)
    for schema in COLLECTIONS:
        name = prefix + schema.name
        known = name in present
        (report.collections if known else report.missing_collections).append(name)
        if known and present[name].get("validator") != schema.stored_validator:
            report.outdated_validators.append(name)
        found = {index["name"]: index for index in await driver.list_indexes(name)} if known else {}
        if RETENTION in found:
            report.retention_days = found[RETENTION]["expireAfterSeconds"] / DAY_S
        for index in schema.indexes:
            label = f"{name}.{index.name}"
            wanted = _comparable(index.specification())
            if index.name not in found:
                report.missing_indexes.append(label)
                renamed = [other for other in found if _comparable(found[other]) == wanted]
                report.renamed_indexes += [f"{name}.{other}" for other in renamed]
            elif _comparable(found[index.name]) == wanted:
                report.indexes.append(label)
            else:
                report.other_indexes.append(label)
    return report


# -- applying --------------------------------------------------------------------------------------


def check_version(version: int | None, database: str) -> None:
    """Refuse a database that a newer release has set up."""
    if version is not None and version > SCHEMA_VERSION:
        raise StorageConfigError(
            f"database {database!r} has schema version {version}, and this release of deerflow-mongo knows "
            f"up to {SCHEMA_VERSION}: upgrade deerflow-mongo"
        )


async def apply(driver: Driver, prefix: str, database: str, *, ttl_days: int | None = None) -> None:
    """Make collections, validators and indexes, and store the version.

    `ttl_days` is how long run events are kept, None for ever; it may change on a collection that is in use.
    """
    check_version(await stored_version(driver, prefix), database)
    present = await driver.list_collections()
    for schema in COLLECTIONS:
        await _apply_collection(driver, prefix + schema.name, schema, present)
    # $max: of two releases that set up the same database, the newer one's version stays.
    await driver.collection(prefix + VERSIONS).find_one_and_upsert(
        {"_id": _VERSION_ID}, {"$max": {"version": SCHEMA_VERSION}, "$set": {"updated_at": stored_now()}}
    )
    await _apply_retention(driver, prefix, ttl_days)


async def _apply_retention(driver: Driver, prefix: str, ttl_days: int | None) -> None:
    name = prefix + RUN_EVENTS
    found = next((index for index in await driver.list_indexes(name) if index["name"] == RETENTION), None)
    if ttl_days is None:
        if found is not None:
            logger.warning("run events are kept for ever from now on: run_events_ttl_days is not set")
            await driver.drop_index(name, RETENTION)
        return
    # First, since from the first removal on a thread's numbers are not told by what is left of it.
    await driver.collection(prefix + VERSIONS).update_one(
        {"_id": _VERSION_ID, RETENTION_MARK: None}, {"$set": {RETENTION_MARK: stored_now()}}
    )
    wanted = retention_index(ttl_days)
    if found is None:
        await _create_index(driver, name, wanted)
    elif found.get("expireAfterSeconds") != wanted.expire_after_s:
        await driver.set_expiry(name, wanted.specification())


async def had_retention(versions: Collection) -> bool:
    """Whether the server has ever been told to remove run events by their age."""
    document = await versions.find_one({"_id": _VERSION_ID})
    return document is not None and RETENTION_MARK in document


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
        if _code(error) != _COLLECTION_EXISTS_CODE:
            raise
        # Another process was first. With the same validator there is nothing left to do, and a user who may
        # read and write only is not allowed to.
        return (await driver.list_collections())[name]
    return {"validator": validator}


async def _create_index(driver: Driver, name: str, index: Index) -> None:
    try:
        await driver.create_index(name, index.specification())
    except StorageError as error:
        if _code(error) in _INDEX_CONFLICT_CODES:
            raise StorageConfigError(
                f"index {index.name!r} of collection {name!r} cannot be made, because one with other keys "
                f"or options, or another name, is in its place: {error}. Drop that one, then run setup again"
            ) from error
        if _code(error) == _DUPLICATE_KEY_CODE:
            raise StorageConfigError(
                f"unique index {index.name!r} of collection {name!r} cannot be made, because the collection "
                "holds duplicates. Remove them, then run setup again"
            ) from error
        raise


def _code(error: StorageError) -> Any:
    return getattr(error.__cause__, "code", None)
