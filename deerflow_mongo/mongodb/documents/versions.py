"""The schema version: in every document, and once for the whole database.

The database's version document has two numbers: `version`, the newest format that a release has set up, and
`readable_from`, the oldest version of this package's format whose releases may still use the database. A
release of an older version works with a newer database down to `readable_from`, and changes nothing of its
schema. Format 1 is that of the first commits; it was never released and has no `readable_from`.

A document's `schema_version` is the oldest version whose releases can read this document. The code that
compares and upgrades versions is `migrations.py`.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeGuard

from ...contract.times import clock
from .encoding import Document
from .stored_times import set_update

SCHEMA_VERSION = 2
"""The version of the documents written here and of the indexes and validators beside them."""

READABLE_FROM = 2
"""The oldest version whose releases can read and write beside this one; in every document written here."""

DATABASE_VERSION_ID = "deerflow-mongo"

RETENTION_MARK = "retention_since"
"""In the database's version document once run events were first given a time to live; never removed."""

MIGRATING_FROM = "migrating_from"
"""In the database's version document while its documents are being upgraded: the version they had."""


class DatabaseVersion(NamedTuple):
    """What the version document of a database says; `readable_from` of version 1 is 1."""

    version: int
    readable_from: int
    migrating_from: int | None


def database_version(document: Document | None) -> DatabaseVersion | None:
    """What the version document says; None without one.

    Raises `ValueError` for a document that no release of this package has written.
    """
    if document is None:
        return None
    version = document.get("version")
    readable_from = document.get("readable_from", 1 if version == 1 else None)
    migrating_from = document.get(MIGRATING_FROM)
    if not _is_number(version) or not _is_number(readable_from):
        raise ValueError(f"its version document has the version {version!r}")
    if migrating_from is not None and not _is_number(migrating_from):
        raise ValueError(f"its version document has `{MIGRATING_FROM}` {migrating_from!r}")
    return DatabaseVersion(+version, +readable_from, None if migrating_from is None else +migrating_from)


def is_newer(document: Document) -> bool:
    """Whether a newer release has written this document of a row."""
    version = document.get("schema_version")
    return isinstance(version, int | float) and not isinstance(version, bool) and version > SCHEMA_VERSION


IS_NEWER: Final[Document] = {
    "$and": [{"$isNumber": "$schema_version"}, {"$gt": ["$schema_version", SCHEMA_VERSION]}]
}
"""The same as an expression."""


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_current(version: DatabaseVersion | None) -> bool:
    """Whether a database of this version has nothing left to store in its version document."""
    return version == DatabaseVersion(SCHEMA_VERSION, READABLE_FROM, None)


def database_version_update(*, is_complete: bool) -> Document:
    """Set this release's version, never a lower one; `is_complete` ends a migration."""
    # $max: when two releases set up the same database, the newer one's version stays.
    update = set_update({}, updated_at=clock.stamp_us())
    update["$max"] = {"version": SCHEMA_VERSION, "readable_from": READABLE_FROM}
    if is_complete:
        update.setdefault("$unset", {})[MIGRATING_FROM] = ""
    return update


def migration_start_update(from_version: int, document: Document | None) -> Document:
    """Set this release's version, which releases of the old one refuse, and that the upgrade has begun.

    `document` is the version document before.
    """
    update = database_version_update(is_complete=False)
    update["$set"][MIGRATING_FROM] = from_version
    if document is not None and isinstance(document.get(RETENTION_MARK), str):
        # A text in version 1. When retention was first enabled is not used; that it was is.
        update["$set"] |= retention_mark_update()["$set"]
    return update


def retention_mark_update() -> Document:
    return set_update({}, retention_since=clock.stamp_us())


def has_retention_mark(document: Document | None) -> bool:
    return document is not None and RETENTION_MARK in document
