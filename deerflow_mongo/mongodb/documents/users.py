"""User documents: the accounts of a host."""

from __future__ import annotations

from ...contract.rows import UserRow
from .encoding import Document
from .stored_times import ORDER, created_fields, row_time_of_stamp
from .version_1 import as_current
from .versions import READABLE_FROM, SCHEMA_VERSION


def user_fields(
    *,
    email: str,
    password_hash: str | None,
    system_role: str,
    oauth_provider: str | None,
    oauth_id: str | None,
    needs_setup: bool,
    token_version: int,
) -> Document:
    """What an update replaces: everything except the id and the time of creation."""
    return {
        "email": email,
        "password_hash": password_hash,
        "system_role": system_role,
        "oauth_provider": oauth_provider,
        "oauth_id": oauth_id,
        "needs_setup": needs_setup,
        "token_version": token_version,
    }


def new_user(user_id: str, fields: Document, created_us: int) -> Document:
    """A new account; those of equal time of creation are listed by id."""
    return {"_id": user_id, "schema_version": READABLE_FROM, **fields, **created_fields(created_us)}


def user_update(fields: Document) -> Document:
    return {"$set": fields}


def user_row(document: Document) -> UserRow:
    if document["schema_version"] != SCHEMA_VERSION:
        document = as_current(document)
    return {
        "user_id": document["_id"],
        "email": document["email"],
        "password_hash": document["password_hash"],
        "system_role": document["system_role"],
        "created_at": row_time_of_stamp(document[ORDER]),
        "oauth_provider": document["oauth_provider"],
        "oauth_id": document["oauth_id"],
        "needs_setup": document["needs_setup"],
        "token_version": +document["token_version"],
    }
