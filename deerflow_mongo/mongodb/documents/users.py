"""User documents: the accounts of a host."""

from __future__ import annotations

from ...contract.rows import UserRow
from .encoding import Document
from .stored_times import row_time, stored_now
from .versions import SCHEMA_VERSION, check_version


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


def new_user(user_id: str, fields: Document, created_at: str | None) -> Document:
    """A new account, created now where no other time is given."""
    return {
        "_id": user_id,
        "schema_version": SCHEMA_VERSION,
        **fields,
        "created_at": created_at or stored_now(),
    }


def user_update(fields: Document) -> Document:
    return {"$set": fields}


def user_row(document: Document) -> UserRow:
    check_version(document)
    return {
        "user_id": document["_id"],
        "email": document["email"],
        "password_hash": document["password_hash"],
        "system_role": document["system_role"],
        "created_at": row_time(document["created_at"]),
        "oauth_provider": document["oauth_provider"],
        "oauth_id": document["oauth_id"],
        "needs_setup": document["needs_setup"],
        "token_version": +document["token_version"],
    }
