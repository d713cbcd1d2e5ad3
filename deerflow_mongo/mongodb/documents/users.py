"""User documents: the accounts of a host."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from ...contract.rows import UserRow
from .encoding import WHOLE, Document, UnreadableError
from .stored_times import ORDER, created_fields, row_time_of_stamp
from .version_1 import as_current
from .versions import READABLE_FROM, SCHEMA_VERSION

_OPTIONAL_TEXT: Final = frozenset({str, type(None)})


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
    if document["schema_version"] is not SCHEMA_VERSION:
        document = as_current(document)
    user_id, email, system_role = document["_id"], document["email"], document["system_role"]
    order, token_version = document[ORDER], document["token_version"]
    optional = document["password_hash"], document["oauth_provider"], document["oauth_id"]
    if (
        not (type(user_id) is type(email) is type(system_role) is str)
        or not _OPTIONAL_TEXT.issuperset(map(type, optional))
        or type(document["needs_setup"]) is not bool
        or type(order) not in WHOLE
        or type(token_version) not in WHOLE
        or type(document["created_at"]) is not datetime
    ):
        raise UnreadableError
    password_hash, oauth_provider, oauth_id = optional
    return {
        "user_id": user_id,
        "email": email,
        "password_hash": password_hash,
        "system_role": system_role,
        "created_at": row_time_of_stamp(order),
        "oauth_provider": oauth_provider,
        "oauth_id": oauth_id,
        "needs_setup": document["needs_setup"],
        "token_version": +token_version,
    }
