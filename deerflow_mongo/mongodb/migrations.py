"""Applies the schema to a database, and upgrades a database of an older version while it is used.

`apply` is idempotent and may run in many processes at once. It reads everything first: what it may not change
(`foreign_collections.py`) or cannot create stops it before anything is changed. What the schema is, is data
in `schema.py`; how documents of an older version look is in `documents/`. An upgrade runs in this order, so
that it can be interrupted anywhere and continued by the next `apply`:

1. The version document gets the new version: releases of the old one refuse the database from then on.
2. Collections get validators that accept documents of both versions, and the new indexes.
3. Documents are converted in batches, each document atomically and once (`upgrades.py`). Meanwhile the stores
   of this release read and write documents of both versions, and processes of the old release go on storing
   documents of theirs.
4. Indexes that are not used any more are dropped, validators refuse documents of the old version, those that
   came late are converted, and the version document no longer has `migrating_from`.

A process never changes a database that a newer release has set up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ..contract.errors import StorageConfigError, StorageError
from . import queries
from .database_state import (
    EXPIRY,
    DatabaseState,
    blocking,
    concurrently,
    read_database,
    retention_indexes,
    state_of,
)
from .documents.encoding import Document
from .documents.versions import (
    SCHEMA_VERSION,
    DatabaseVersion,
    database_version_update,
    has_retention_mark,
    is_current,
    migration_start_update,
    retention_mark_update,
)
from .drivers.collection import Collection
from .drivers.driver import Driver
from .drivers.errors import code_of
from .email_keys import fill_email_keys
from .foreign_collections import check_ours
from .inspection import find_duplicates, missing_indexes, wanted_indexes
from .schema import (
    COLLECTIONS,
    RETENTIONS,
    USERS,
    VERSIONS,
    CollectionSchema,
    Index,
    Retention,
    schema_of,
)
from .upgrades import (
    STEPS,
    STRICT,
    Progress,
    Report,
    Step,
    convert_database,
    repeated,
    steps_of,
    unreported,
)

logger = logging.getLogger(__name__)

_INDEX_CONFLICT_CODES = (85, 86)  # IndexOptionsConflict, IndexKeySpecsConflict
_COLLECTION_EXISTS_CODE = 48
_DUPLICATE_KEY_CODE = 11000


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
    from_version = version.version if version.migrating_from is None else version.migrating_from
    oldest = min(version.version, from_version)
    if oldest < STEPS[0].from_version:
        raise StorageConfigError(
            f"database {database!r} has schema version {oldest}, which this release of deerflow-mongo "
            f"cannot upgrade: it knows the versions from {STEPS[0].from_version} on"
        )


def _check_indexes(state: DatabaseState, retention: Mapping[str, int | None]) -> None:
    """Refuse existing indexes that make the server refuse one of ours."""
    for schema in COLLECTIONS:
        name = state.prefix + schema.name
        existing = state.indexes.get(name, [])
        for index in wanted_indexes(schema, existing, retention):
            if state_of(index, existing) == "conflicting":
                raise _conflict(name, index, existing)


def _conflict(collection: str, index: Index, existing: Sequence[Document]) -> StorageConfigError:
    return StorageConfigError(
        f"index {index.name!r} of collection {collection!r} cannot be created: the index "
        f"{blocking(index, existing)!r} has its name or its keys, and other options. Drop that index, then "
        "run setup again"
    )


async def check_applicable(driver: Driver, state: DatabaseState, retention: Mapping[str, int | None]) -> None:
    """Raise `StorageConfigError` where the schema cannot be applied to what the database has."""
    await check_ours(driver, state)
    _check_indexes(state, retention)
    await _check_duplicates(driver, state)


def _refuse_upgrade(state: DatabaseState, database: str, steps: Sequence[Step]) -> None:
    """Refuse what may take long: to convert documents, and to build indexes of existing collections."""
    missing = [
        f"{name}.{index.name}"
        for schema in COLLECTIONS
        if (name := state.prefix + schema.name) in state.collections
        for index in missing_indexes(schema.indexes, state.indexes[name])
    ]
    if state.version is None or not (steps or missing):
        return
    what = f"has schema version {state.oldest_version}" if steps else f"lacks indexes ({', '.join(missing)})"
    raise StorageConfigError(
        f"database {database!r} {what}, and `upgrade_at_start` is false: run `deerflow-mongo schema "
        "upgrade`, also while the database is used"
    )


async def _check_duplicates(driver: Driver, state: DatabaseState) -> None:
    """Refuse documents that a unique index of ours, which is yet to be created, would refuse."""
    for collection, index in await find_duplicates(driver, state):
        raise _duplicates(collection, repr(index.name))


def _duplicates(collection: str, index: str) -> StorageConfigError:
    return StorageConfigError(
        f"unique index {index} of collection {collection!r} cannot be created: the collection contains "
        "duplicates. Remove them, then run setup again"
    )


async def check_set_up(driver: Driver, prefix: str, database: str) -> None:
    """Raise `StorageConfigError` for a database that is not set up, or that this release cannot use."""
    state = await read_database(driver, prefix)
    check_readable(state.version, database)
    if state.version is None and state.version_error is None:
        raise StorageConfigError(
            f"database {database!r} has no data of deerflow-mongo (no schema version in its collection "
            f"{prefix + VERSIONS!r}): name the database, and the `collection_prefix`, that the host uses"
        )
    await check_ours(driver, state)


# -- applying --------------------------------------------------------------------------------------


async def apply(
    driver: Driver,
    prefix: str,
    database: str,
    retention: Mapping[str, int | None],
    *,
    upgrade: bool = True,
    report: Report = unreported,
) -> None:
    """Create collections, validators and indexes, upgrade documents, and store the version.

    One round of concurrent reads comes first, and the only one where everything is there. `retention` has
    the days of its options, None for never; what it does not name stays as it is, and all of it may change
    while the collections are in use. `report` is called as each step begins, and while documents are
    converted.

    Raises `StorageConfigError`, and changes nothing, for a database of a newer version that this release
    cannot read, with collections that are not ours, or with indexes or documents that make the server refuse
    an index of ours; without `upgrade` also where documents would be converted, or indexes of collections
    built that exist already.
    """
    state = await read_database(driver, prefix)
    check_readable(state.version, database)
    if state.version is not None and state.is_of_newer_release:
        logger.info(
            "database %r was set up by a newer release (schema version %d); it is used as it is",
            database,
            state.version.version,
            extra={"operation": "setup"},
        )
        return
    await check_applicable(driver, state, retention)
    steps = steps_of(state)
    if not upgrade:
        _refuse_upgrade(state, database, steps)
    if steps:
        await _upgrade(driver, state, database, steps, report)
    else:
        await concurrently(
            _apply_collection(driver, state, schema, schema.stored_validator, report)
            for schema in COLLECTIONS
        )
    await _store_version(driver, state)
    if state.lacks_email_keys:
        users = driver.collection(state.prefix + USERS)
        await repeated(fill_email_keys, users, schema_of(USERS).stored_validator)
    for of_collection in RETENTIONS:
        if of_collection.option in retention:
            await _apply_retention(driver, state, of_collection, retention[of_collection.option])


async def _apply_collection(
    driver: Driver, state: DatabaseState, schema: CollectionSchema, validator: Document, report: Report
) -> None:
    name = state.prefix + schema.name
    options = state.options(name)
    if name not in state.collections:
        report(Progress("create", name))
        options = await _create_collection(driver, state.prefix, name, validator)
    if options.get("validator") != validator or options.get("validationLevel", STRICT) != STRICT:
        report(Progress("validate", name))
        await repeated(driver.set_validator, name, validator, STRICT)
    missing = missing_indexes(schema.indexes, state.indexes.get(name, []))
    if missing:
        report(Progress("index", name))
        await _create_indexes(driver, name, missing)


async def _create_collection(driver: Driver, prefix: str, name: str, validator: Document) -> Document:
    """Create the collection; its options."""
    try:
        await driver.create_collection(name, validator)
    except StorageError as error:
        if code_of(error) != _COLLECTION_EXISTS_CODE:
            raise
        # Another process was first: this package's, which has set the validator, or another program.
        state = await read_database(driver, prefix)
        await check_ours(driver, state)
        return state.options(name)
    return {"validator": validator}


async def _create_indexes(driver: Driver, name: str, indexes: Sequence[Index]) -> None:
    """Create these indexes by one command; another process may create the same ones."""
    if not indexes:
        return
    try:
        await driver.create_indexes(name, [index.specification() for index in indexes])
    except StorageError as error:
        code = code_of(error)
        if code == _DUPLICATE_KEY_CODE:
            names = " or ".join(repr(index.name) for index in indexes if index.unique)
            raise _duplicates(name, names) from error.__cause__
        if code not in _INDEX_CONFLICT_CODES:
            raise
        existing = await driver.list_indexes(name)
        missing = [index for index in indexes if state_of(index, existing) != "present"]
        if len(missing) == len(indexes):
            conflicting = (index for index in missing if state_of(index, existing) == "conflicting")
            raise _conflict(name, next(conflicting, missing[0]), existing) from error.__cause__
        await _create_indexes(driver, name, missing)


async def _store_version(driver: Driver, state: DatabaseState) -> None:
    if not is_current(state.version):
        await driver.collection(state.prefix + VERSIONS).find_one_and_upsert(
            queries.database_version(), database_version_update(is_complete=True)
        )


# -- upgrading -------------------------------------------------------------------------------------


async def _upgrade(
    driver: Driver, state: DatabaseState, database: str, steps: Sequence[Step], report: Report
) -> None:
    from_version = steps[0].from_version
    versions, *others = sorted(COLLECTIONS, key=lambda schema: schema.name != VERSIONS)
    await _apply_collection(driver, state, versions, versions.stored_validator, report)
    version_document = driver.collection(state.prefix + VERSIONS)
    await _start_migration(version_document, from_version)
    await concurrently(
        _apply_collection(driver, state, schema, schema.transitional_validator(from_version), report)
        for schema in others
    )
    # Again, because another process may have completed its upgrade before these validators were set.
    await _start_migration(version_document, from_version)
    await convert_database(driver, state.prefix, database, steps, report)


async def _start_migration(versions: Collection, from_version: int) -> None:
    document = await versions.find_one(queries.database_version())
    await versions.find_one_and_upsert(
        queries.database_version(), migration_start_update(from_version, document)
    )


# -- retention -------------------------------------------------------------------------------------


async def had_retention(versions: Collection) -> bool:
    """Whether retention of run events has ever been enabled in this database."""
    return has_retention_mark(await versions.find_one(queries.database_version()))


async def _apply_retention(
    driver: Driver, state: DatabaseState, retention: Retention, ttl_days: int | None
) -> None:
    name = state.prefix + retention.collection
    existing = state.indexes.get(name, [])
    found = retention_indexes(retention, existing)
    if ttl_days is None:
        if found:
            logger.warning(
                "%s is null: %s are no longer removed by age",
                retention.option,
                retention.subject,
                extra={"collection": name},
            )
        for index_name in found:
            await driver.drop_index(name, index_name)
        return
    # The mark comes before the index: after the first removal, the events that are left do not show which
    # numbers a thread has used.
    if retention.removes_numbers and not has_retention_mark(state.version_document):
        await driver.collection(state.prefix + VERSIONS).update_one(
            queries.database_version_without_retention(), retention_mark_update()
        )
    wanted = retention.indexes(ttl_days)
    new = [index for index in wanted if index.name not in found]
    await _create_indexes(driver, name, missing_indexes(new, existing))
    for index in wanted:
        if index.name in found and found[index.name][EXPIRY] != index.expire_after_s:
            await driver.set_expiry(name, index.specification())
