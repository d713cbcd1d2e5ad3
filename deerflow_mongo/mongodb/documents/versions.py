"""The schema version: in every document, and once for the whole database.

The database's own version and the time since which retention applies are one document of the collection
`schema_versions`. The code that compares and upgrades versions is `migrations.py`.
"""

from __future__ import annotations

from ...contract.errors import StorageError
from .encoding import Document
from .stored_times import stored_now

SCHEMA_VERSION = 1
"""The version of the documents written here and of the indexes and validators beside them."""

DATABASE_VERSION_ID = "deerflow-mongo"

RETENTION_MARK = "retention_since"
"""In the database's version document once run events were first given a time to live; never removed."""


def check_version(document: Document) -> None:
    """Refuse a document that a newer release wrote, whose fields may mean something else."""
    version = document["schema_version"]
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"document {document['_id']!r} has schema version {version}, and this release of deerflow-mongo "
            f"reads up to {SCHEMA_VERSION}: upgrade deerflow-mongo"
        )


def database_version(document: Document | None) -> int | None:
    """The version that the database's version document has; None without one."""
    return None if document is None else document["version"]


def database_version_update() -> Document:
    # $max: when two releases set up the same database, the newer one's version stays.
    return {"$max": {"version": SCHEMA_VERSION}, "$set": {"updated_at": stored_now()}}


def retention_mark_update() -> Document:
    return {"$set": {RETENTION_MARK: stored_now()}}


def has_retention_mark(document: Document | None) -> bool:
    return document is not None and RETENTION_MARK in document
