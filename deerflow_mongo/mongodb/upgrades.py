"""Converts the documents of an older version while the database is used; `migrations.py` does the rest.

Each document is converted atomically and once, so that an interrupted conversion is continued by the next one
and several processes may convert at once. What a document of an older version becomes is in `documents/`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar

from ..contract.errors import StorageError, StorageUnavailableError
from . import queries
from .database_state import DatabaseState, concurrently
from .documents import version_1
from .documents.encoding import Document
from .documents.runs import derived_fields
from .documents.versions import SCHEMA_VERSION
from .drivers.collection import Collection
from .drivers.driver import LONG_RUNNING_TIMEOUT_S, Driver, long_running
from .drivers.errors import code_of
from .schema import COLLECTIONS

logger = logging.getLogger(__name__)

BATCH_DOCUMENTS = 1_000
_INDEX_BUILD_IN_PROGRESS_CODE = 12587  # BackgroundOperationInProgressForNamespace
_REFUSED_BY_VALIDATOR_CODE = 121  # DocumentValidationFailure
_MAX_LOST_CONNECTIONS, _PAUSE_S = 20, 0.5
_LOG_INTERVAL_S = 5.0

STRICT: Final = "strict"
"""The level of a validator that applies to every insert and update."""


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


def steps_of(state: DatabaseState) -> list[Step]:
    """The steps that the database still needs; the first may have begun."""
    oldest = state.oldest_version
    return [] if oldest is None else [step for step in STEPS if step.from_version >= oldest]


# -- progress --------------------------------------------------------------------------------------

Action: TypeAlias = Literal["create", "validate", "index", "convert", "drop_index", "convert_late"]


class Progress(NamedTuple):
    """What is being done to a collection, whose name has its prefix."""

    action: Action
    collection: str
    done: int = 0
    """Of a conversion: how many of the collection's documents were looked at."""
    total: int = 0
    """Of a conversion: how many the collection had at its begin."""
    converted: int = 0


Report: TypeAlias = Callable[[Progress], None]


def unreported(progress: Progress) -> None:
    """The report of a setup that nobody watches."""


# -- converting ------------------------------------------------------------------------------------


async def convert_database(
    driver: Driver, prefix: str, database: str, steps: Sequence[Step], report: Report
) -> None:
    """Convert all documents, drop what only the old release used, and refuse its documents from then on."""
    began, converted = time.monotonic(), 0
    from_version = steps[0].from_version
    logger.warning(
        "database %r is being upgraded from schema version %d to %d; it can be used meanwhile, but older "
        "releases cannot read what is converted. If the upgrade is interrupted, the next setup continues it",
        database,
        from_version,
        SCHEMA_VERSION,
        extra={"operation": "setup"},
    )
    for step in steps:
        for name, update in step.conversions.items():
            converted += await _convert(driver, prefix + name, step, update, report)
        await _drop_indexes(driver, prefix, step, report)
    await concurrently(
        repeated(driver.set_validator, prefix + schema.name, schema.stored_validator, STRICT)
        for schema in COLLECTIONS
    )
    # From here on no document of an older version is stored; those that came behind the conversion are left.
    for step in steps:
        for name, update in step.conversions.items():
            report(Progress("convert_late", prefix + name))
            converted += await _convert_late(driver.collection(prefix + name), step, update)
    logger.warning(
        "database %r was upgraded to schema version %d: %d documents were converted in %.1f s",
        database,
        SCHEMA_VERSION,
        converted,
        time.monotonic() - began,
        extra={"operation": "setup"},
    )


async def _drop_indexes(driver: Driver, prefix: str, step: Step, report: Report) -> None:
    for name, indexes in step.obsolete_indexes.items():
        report(Progress("drop_index", prefix + name))
        for index in indexes:
            await repeated(driver.drop_index, prefix + name, index)


async def _convert(driver: Driver, name: str, step: Step, update: list[Document], report: Report) -> int:
    """Convert the collection's documents of the step's version; the number that this process converted."""
    collection, total = driver.collection(name), await repeated(driver.count_documents, name)
    converted, checked, logged = 0, 0, time.monotonic()
    last: Any = None
    report(Progress("convert", name, 0, total, 0))
    while batch := await repeated(_next_batch, collection, last):
        last = batch[-1]["_id"]
        checked += len(batch)
        if any(document["schema_version"] == step.from_version for document in batch):
            converted += await _convert_batch(collection, step, batch, update)
        report(Progress("convert", name, checked, max(checked, total), converted))
        if time.monotonic() - logged > _LOG_INTERVAL_S:
            logged = time.monotonic()
            logger.info(
                "%s: %d documents checked, %d converted",
                name,
                checked,
                converted,
                extra={"operation": "setup", "collection": name},
            )
        if len(batch) < BATCH_DOCUMENTS:
            break  # not when there is nothing more: events are stored behind the end all the time
    return converted


async def _convert_batch(
    collection: Collection, step: Step, batch: Sequence[Document], update: list[Document]
) -> int:
    """Convert those of the batch, which is in the order of ids, that are of the step's version.

    A document that cannot become a valid one, because it is broken, stays as it is and is logged: no read
    returns it, before or after, and it must not stop the upgrade of all others.
    """
    try:
        query = queries.of_version_between(step.from_version, batch[0]["_id"], batch[-1]["_id"])
        return await repeated(collection.update_many, query, update)
    except StorageError as error:
        if code_of(error) != _REFUSED_BY_VALIDATOR_CODE:
            raise
    converted = 0
    for document_id in (document["_id"] for document in batch):
        query = queries.of_version_between(step.from_version, document_id, document_id)
        try:
            converted += await repeated(collection.update_many, query, update)
        except StorageError as error:
            if code_of(error) != _REFUSED_BY_VALIDATOR_CODE:
                raise
            logger.error(
                "a document of %s is broken and was not converted",
                collection.name,
                extra={"operation": "setup", "collection": collection.name, "document_id": document_id},
            )
    return converted


async def _next_batch(collection: Collection, last: Any) -> list[Document]:
    return await collection.find(
        queries.after_id(last), sort=(("_id", 1),), limit=BATCH_DOCUMENTS, projection=["schema_version"]
    )


async def _convert_late(collection: Collection, step: Step, update: list[Document]) -> int:
    """Convert what is left of the step's version, which the server looks for; the number of documents."""
    converted, last = 0, None
    while batch := await repeated(_next_old_batch, collection, step.from_version, last):
        last = batch[-1]["_id"]
        converted += await _convert_batch(collection, step, batch, update)
    return converted


async def _next_old_batch(collection: Collection, version: int, last: Any) -> list[Document]:
    query = queries.of_version_after(version, last)
    return await collection.find(query, sort=(("_id", 1),), limit=BATCH_DOCUMENTS, projection=["_id"])


# -- repeating -------------------------------------------------------------------------------------

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def repeated(
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
