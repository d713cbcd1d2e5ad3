"""Applies the schema to a database, and upgrades a database of an older version while it is used.

`apply` is idempotent and may run in many processes at once. What the schema is, is data in `schema.py`; how
documents of an older version look is in `documents/`. An upgrade runs in this order, so that it can be
interrupted anywhere and continued by the next `apply`:

1. The version document gets the new version: releases of the old one refuse the database from then on.
2. Collections get the new validators, which still allow updates of old documents, and the new indexes.
3. Documents are converted in batches, each document atomically and once. Meanwhile the stores of this release
   read and write documents of both versions.
4. Indexes that are not used any more are dropped, validators apply to every document, and the version
   document no longer has `migrating_from`.

A process never changes a database that a newer release has set up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from ..contract.errors import StorageConfigError, StorageError, StorageUnavailableError
from . import queries
from .documents import version_1
from .documents.encoding import Document
from .documents.runs import derived_fields
from .documents.versions import (
    SCHEMA_VERSION,
    DatabaseVersion,
    database_version_update,
    has_retention_mark,
    migration_start_update,
    retention_mark_update,
)
from .drivers.collection import Collection
from .drivers.driver import LONG_RUNNING_TIMEOUT_S, Driver, long_running
from .drivers.errors import code_of
from .inspection import is_same_index, stored_version
from .schema import (
    COLLECTIONS,
    RETENTION,
    RUN_EVENTS,
    VALIDATOR_TITLE,
    VERSIONS,
    CollectionSchema,
    Index,
    retention_index,
)

logger = logging.getLogger(__name__)

_INDEX_CONFLICT_CODES = (85, 86)  # IndexOptionsConflict, IndexKeySpecsConflict
_COLLECTION_EXISTS_CODE = 48
_DUPLICATE_KEY_CODE = 11000
_INDEX_BUILD_IN_PROGRESS_CODE = 12587  # BackgroundOperationInProgressForNamespace

_FOREIGN_KINDS: Final = {"viewOn": "a view", "timeseries": "a time series", "capped": "a capped collection"}

BATCH_DOCUMENTS = 1_000
_MAX_LOST_CONNECTIONS, _PAUSE_S = 20, 0.5
_PROGRESS_INTERVAL_S = 5.0

STRICT, MODERATE = "strict", "moderate"
"""Levels of a validator; with "moderate" it does not apply to updates of documents that it would refuse."""


@dataclass(frozen=True, slots=True)
class Step:
    """How a database of one version becomes one of the next."""

    from_version: int
    conversions: Mapping[str, list[Document]]
    """For each collection the update of its documents of that version."""
    obsolete_indexes: Mapping[str, Sequence[str]]


STEPS: tuple[Step, ...] = (
    Step(version_1.VERSION, version_1.conversions(derived_fields()), version_1.OBSOLETE_INDEXES),
)


# -- whether the database may be set up ------------------------------------------------------------


def check_readable(version: DatabaseVersion | None, database: str) -> None:
    """Refuse a database that this release may not use, or that no step upgrades."""
    if version is None:
        return
    if version.readable_from > SCHEMA_VERSION:
        raise StorageConfigError(
            f"database {database!r} has schema version {version.version}, which releases from version "
            f"{version.readable_from} on can read, and this release of deerflow-mongo knows up to "
            f"{SCHEMA_VERSION}: upgrade deerflow-mongo"
        )
    oldest = _oldest_of(version)
    if oldest < STEPS[0].from_version:
        raise StorageConfigError(
            f"database {database!r} has schema version {oldest}, which this release of deerflow-mongo "
            f"cannot upgrade: it knows the versions from {STEPS[0].from_version} on"
        )


def _oldest_of(version: DatabaseVersion) -> int:
    """The oldest version that documents of the database may have."""
    migrating_from = version.migrating_from
    return version.version if migrating_from is None else min(version.version, migrating_from)


async def _check_ours(driver: Driver, prefix: str, present: Mapping[str, Document]) -> None:
    """Refuse collections of our names that hold what is not ours."""
    for schema in COLLECTIONS:
        name = prefix + schema.name
        if name not in present or _validator_title(present[name]) is not None:
            continue
        what = next((text for option, text in _FOREIGN_KINDS.items() if present[name].get(option)), None)
        if what is None and await _has_foreign_documents(driver.collection(name), schema):
            what = "in use: it holds documents that deerflow-mongo has not written"
        if what is not None:
            raise StorageConfigError(
                f"collection {name!r} is {what}; nothing was changed. Set `collection_prefix`, or use "
                "another database"
            )


def _validator_title(options: Document) -> str | None:
    """The title of a validator that some release of this package has set, from version 2 on."""
    title = options.get("validator", {}).get("$jsonSchema", {}).get("title")
    prefix = VALIDATOR_TITLE.rpartition(" ")[0]
    return title if isinstance(title, str) and title.startswith(prefix) else None


async def _has_foreign_documents(collection: Collection, schema: CollectionSchema) -> bool:
    with long_running():
        return await collection.find_one(queries.not_ours(is_versions=schema.name == VERSIONS)) is not None


# -- applying --------------------------------------------------------------------------------------


async def apply(driver: Driver, prefix: str, database: str, *, ttl_days: int | None = None) -> None:
    """Create collections, validators and indexes, upgrade documents, and store the version.

    `ttl_days` is the age at which the server removes run events, None for never. It may change while the
    collection is in use. Raises `StorageConfigError`, and changes nothing, for a database of a newer version
    that this release cannot read, or with collections that are not ours.
    """
    version = await stored_version(driver, prefix)
    check_readable(version, database)
    if version is not None and version.version > SCHEMA_VERSION:
        logger.info(
            "database %r was set up by a newer release (schema version %d); it is used as it is",
            database,
            version.version,
            extra={"operation": "setup"},
        )
        return
    present = await driver.list_collections()
    await _check_ours(driver, prefix, present)
    steps = _steps_of(version)
    level = MODERATE if steps else STRICT
    versions, *others = sorted(COLLECTIONS, key=lambda schema: schema.name != VERSIONS)
    await _apply_collection(driver, prefix + versions.name, versions, present, level)
    if steps:
        await _start_migration(driver.collection(prefix + VERSIONS), steps[0].from_version)
    for schema in others:
        await _apply_collection(driver, prefix + schema.name, schema, present, level)
    if steps:
        await _migrate(driver, prefix, database, steps)
    await driver.collection(prefix + VERSIONS).find_one_and_upsert(
        queries.database_version(), database_version_update(is_complete=True)
    )
    await _apply_retention(driver, prefix, ttl_days)


async def _apply_collection(
    driver: Driver, name: str, schema: CollectionSchema, present: dict[str, Document], level: str
) -> None:
    validator = schema.stored_validator
    if name not in present:
        present[name] = await _create_collection(driver, name, validator)
    options = present[name]
    if options.get("validator") != validator or options.get("validationLevel", STRICT) != level:
        await _repeated(driver.set_validator, name, validator, level)
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
    specification = index.specification()
    try:
        await driver.create_index(name, specification)
    except StorageError as error:
        if code_of(error) in _INDEX_CONFLICT_CODES:
            if any(is_same_index(other, specification) for other in await driver.list_indexes(name)):
                return  # an operator's own index, which serves as well
            raise StorageConfigError(
                f"index {index.name!r} of collection {name!r} cannot be created: an index with the same name "
                f"or the same keys, and other options, exists: {error}. Drop that index, then run setup again"
            ) from error.__cause__
        if code_of(error) == _DUPLICATE_KEY_CODE:
            raise StorageConfigError(
                f"unique index {index.name!r} of collection {name!r} cannot be created: the collection "
                "contains duplicates. Remove them, then run setup again"
            ) from error.__cause__
        raise


# -- upgrading -------------------------------------------------------------------------------------


def _steps_of(version: DatabaseVersion | None) -> list[Step]:
    """The steps that the database still needs; the first may have begun."""
    if version is None:
        return []
    return [step for step in STEPS if step.from_version >= _oldest_of(version)]


async def _start_migration(versions: Collection, from_version: int) -> None:
    document = await versions.find_one(queries.database_version())
    await versions.find_one_and_upsert(
        queries.database_version(), migration_start_update(from_version, document)
    )


async def _migrate(driver: Driver, prefix: str, database: str, steps: Sequence[Step]) -> None:
    began, converted = time.monotonic(), 0
    from_version = steps[0].from_version
    logger.warning(
        "database %r is being upgraded from schema version %d to %d; it can be used meanwhile, but not by "
        "older releases. If the upgrade is interrupted, the next setup continues it",
        database,
        from_version,
        SCHEMA_VERSION,
        extra={"operation": "setup"},
    )
    for step in steps:
        for name, update in step.conversions.items():
            converted += await _convert(driver.collection(prefix + name), prefix + name, step, update)
        for name, indexes in step.obsolete_indexes.items():
            for index in indexes:
                await _repeated(driver.drop_index, prefix + name, index)
    for schema in COLLECTIONS:
        await _repeated(driver.set_validator, prefix + schema.name, schema.stored_validator, STRICT)
    logger.warning(
        "database %r was upgraded to schema version %d: %d documents were converted in %.1f s",
        database,
        SCHEMA_VERSION,
        converted,
        time.monotonic() - began,
        extra={"operation": "setup"},
    )


async def _convert(collection: Collection, name: str, step: Step, update: list[Document]) -> int:
    """Convert the collection's documents of the step's version; the number that this process converted."""
    converted, checked, reported = 0, 0, time.monotonic()
    last: Any = None
    while True:
        batch = await _repeated(_next_batch, collection, last)
        if not batch:
            return converted
        first, last = batch[0]["_id"], batch[-1]["_id"]
        checked += len(batch)
        if any(document["schema_version"] == step.from_version for document in batch):
            query = queries.of_version_between(step.from_version, first, last)
            converted += await _repeated(collection.update_many, query, update)
        if time.monotonic() - reported > _PROGRESS_INTERVAL_S:
            reported = time.monotonic()
            logger.info(
                "%s: %d documents checked, %d converted",
                name,
                checked,
                converted,
                extra={"operation": "setup", "collection": name},
            )


async def _next_batch(collection: Collection, last: Any) -> list[Document]:
    return await collection.find(
        queries.after_id(last), sort=(("_id", 1),), limit=BATCH_DOCUMENTS, projection=["schema_version"]
    )


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def _repeated(
    call: Callable[_Arguments, Awaitable[_Result]], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """The result of a call that changes nothing when it is repeated.

    Repeated after a lost connection, and while another process builds an index of the collection.
    """
    deadline, attempts = time.monotonic() + LONG_RUNNING_TIMEOUT_S, 0
    while True:
        try:
            with long_running():
                return await call(*args, **kwargs)
        except StorageUnavailableError:
            attempts += 1
            if attempts == _MAX_LOST_CONNECTIONS:
                raise
        except StorageError as error:
            if code_of(error) != _INDEX_BUILD_IN_PROGRESS_CODE or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_PAUSE_S)


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
