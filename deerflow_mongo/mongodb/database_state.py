"""What a database has under our names, read in one round of concurrent commands. Changes nothing.

`inspection.py` reports it, `foreign_collections.py` finds what is not ours in it, and `migrations.py` applies
the schema to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar, cast

from ..contract.errors import StorageError, StorageUnavailableError
from . import queries
from .documents.encoding import Document
from .documents.versions import SCHEMA_VERSION, DatabaseVersion, database_version
from .drivers.driver import Driver
from .drivers.errors import code_of
from .schema import (
    COLLECTIONS,
    DAY_S,
    USERS,
    VERSIONS,
    Expiry,
    Index,
    Retention,
    accepted_older_version,
    has_our_title,
)

LIBRARY_COLLECTIONS: Final = ("checkpoints", "checkpoint_writes")
"""How langgraph-checkpoint-mongodb names its collections by default; they are neither used nor changed."""

EXPIRY: Final = "expireAfterSeconds"

_NO_COLLECTION_CODE = 26  # NamespaceNotFound
_IS_A_VIEW_CODE = 166  # CommandNotSupportedOnView

_Result = TypeVar("_Result")

IndexState: TypeAlias = Literal["present", "conflicting", "missing"]


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The collections of our names that exist, their indexes, and the version document."""

    prefix: str
    collections: Mapping[str, Document]
    """By name with its prefix: `type` and `options`, as the server lists them."""
    indexes: Mapping[str, list[Document]]
    version_document: Document | None
    version: DatabaseVersion | None
    """None before the first setup, and for a version document that no release has written."""
    version_error: str | None
    """What is wrong with such a document."""
    lacks_email_keys: bool
    """Whether an account has no `email_key` yet: an older release, or another program, has stored it."""

    def options(self, name: str) -> Document:
        """The options of a collection; none where it does not exist."""
        return self.collections.get(name, {}).get("options", {})

    def is_titled(self, name: str) -> bool:
        """Whether the collection has a validator that some release of this package has set."""
        return has_our_title(self.options(name).get("validator"))

    @property
    def is_of_newer_release(self) -> bool:
        return self.version is not None and self.version.version > SCHEMA_VERSION

    @property
    def oldest_version(self) -> int | None:
        """The oldest version that documents of the database may have; None before the first setup."""
        if self.version is None:
            return None
        accepted = (accepted_older_version(self.options(name).get("validator")) for name in self.collections)
        versions = (self.version.version, self.version.migrating_from, *accepted)
        return min(version for version in versions if version is not None)

    @property
    def is_set_up(self) -> bool:
        """Whether some setup of this package has begun here: then the names are ours."""
        return self.version is not None or any(self.is_titled(name) for name in self.collections)


async def read_database(driver: Driver, prefix: str) -> DatabaseState:
    """The database's state by commands that only need the right to read."""
    names = [prefix + schema.name for schema in COLLECTIONS]
    versions = driver.collection(prefix + VERSIONS)
    listed, document, unkeyed, *indexes = await asyncio.gather(
        driver.list_collections([*names, *(prefix + name for name in LIBRARY_COLLECTIONS)]),
        versions.find_one(queries.database_version()),
        driver.collection(prefix + USERS).find_one(queries.users_without_email_key()),
        *(_indexes_of(driver, name) for name in names),
        return_exceptions=True,
    )
    # What a view shows, or why it cannot be read, is another program's.
    document = None if _is_view(listed, prefix + VERSIONS) else document
    unkeyed = None if _is_view(listed, prefix + USERS) else unkeyed
    _raise_first_error([listed, document, unkeyed, *indexes])
    collections = cast("dict[str, Document]", listed)
    version_document = cast("Document | None", document)
    found = dict(zip(names, cast("list[list[Document]]", indexes), strict=True))
    version, version_error = _parsed(version_document)
    return DatabaseState(
        prefix,
        collections,
        {name: found[name] for name in names if name in collections},
        version_document,
        version,
        version_error,
        unkeyed is not None,
    )


def _is_view(listed: object, name: str) -> bool:
    return isinstance(listed, dict) and cast("Document", listed).get(name, {}).get("type") == "view"


async def concurrently(calls: Iterable[Awaitable[_Result]]) -> list[_Result]:
    """All results; an error is raised when all calls have ended, so that none runs on unobserved."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    _raise_first_error(results)
    return cast("list[_Result]", results)


def _raise_first_error(results: Sequence[object]) -> None:
    """Of several, one that is no lost connection: a refused login, say, closes the others' connections."""
    errors = [result for result in results if isinstance(result, BaseException)]
    errors.sort(key=lambda error: isinstance(error, StorageUnavailableError))
    if errors:
        raise errors[0]


async def _indexes_of(driver: Driver, name: str) -> list[Document]:
    try:
        return await driver.list_indexes(name)
    except StorageError as error:
        if code_of(error) not in (_NO_COLLECTION_CODE, _IS_A_VIEW_CODE):
            raise
        return []


def _parsed(document: Document | None) -> tuple[DatabaseVersion | None, str | None]:
    try:
        return database_version(document), None
    except ValueError as error:
        return None, str(error)


# -- indexes ---------------------------------------------------------------------------------------


def state_of(index: Index, existing: Sequence[Document]) -> IndexState:
    """Whether an index of ours exists, under any name, or another one makes the server refuse it."""
    wanted = index.specification()
    if any(is_same_index(other, wanted) for other in existing):
        return "present"
    return "missing" if blocking(index, existing) is None else "conflicting"


def blocking(index: Index, existing: Sequence[Document]) -> str | None:
    """The name of the existing index that makes the server refuse this one, which does not exist."""
    identity = _identity(index.specification())
    same_name = (other["name"] for other in existing if other["name"] == index.name)
    same_keys = (other["name"] for other in existing if _identity(other) == identity)
    return next(same_name, None) or next(same_keys, None)


def is_same_index(one: Document, other: Document) -> bool:
    """Whether two indexes differ at most in their name and in what only the planner or the disk sees."""
    return _identity(one) == _identity(other) and one.get(EXPIRY) == other.get(EXPIRY)


def _identity(index: Document) -> Document:
    """What the server distinguishes indexes by."""
    return {
        "key": list(dict(index["key"]).items()),
        "unique": bool(index.get("unique")),
        "partial": index.get("partialFilterExpression"),
        "sparse": bool(index.get("sparse")),
        "collation": index.get("collation"),
    }


def retention_indexes(retention: Retention, existing: Sequence[Document]) -> dict[str, Document]:
    """The indexes by name that the retention's option has created."""
    by_name = {expiry.index_name: expiry for expiry in retention.expiries}
    return {
        index["name"]: index
        for index in existing
        if index["name"] in by_name and _expires_by(by_name[index["name"]], index)
    }


def retention_days(retention: Retention, existing: Sequence[Document]) -> float | None:
    """After how many days the server removes such documents by an index of ours or of an operator's."""
    main = retention.expiries[0]
    return min((index[EXPIRY] / DAY_S for index in existing if _expires_by(main, index)), default=None)


def _expires_by(expiry: Expiry, index: Document) -> bool:
    """Whether by this index the server removes at least the documents of the expiry, at whatever age."""
    partial = index.get("partialFilterExpression")
    return (
        EXPIRY in index and tuple(dict(index["key"])) == (expiry.date,) and partial in (None, expiry.partial)
    )
