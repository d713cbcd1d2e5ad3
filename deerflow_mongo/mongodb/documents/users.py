"""User documents: the accounts of a host."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from ...contract.rows import AccountFields, UserRow
from .encoding import WHOLE, Document, UnreadableError
from .stored_times import ORDER, created_fields, row_time_of_stamp
from .version_1 import as_current
from .versions import READABLE_FROM, SCHEMA_VERSION

EMAIL_KEY: Final = "email_key"
"""The email in lower case, by which accounts are found; a setup adds it to those of an older release."""

_OPTIONAL_TEXT: Final = frozenset({str, type(None)})


def email_key(email: str) -> str:
    """What is equal for emails that differ in case only."""
    return email.lower()


def is_same_email(one: str, other: str) -> bool:
    return email_key(one) == email_key(other)


def new_email(email: str) -> str:
    """An email as new ones are stored."""
    return email_key(email)


def new_user(user_id: str, fields: AccountFields, created_us: int, *, email: str | None = None) -> Document:
    """A new account; those of equal time of creation are listed by id.

    Its email is stored in lower case, or as `email` where that is given.
    """
    return {
        "_id": user_id,
        "schema_version": READABLE_FROM,
        **_changes(fields, new_email(fields["email"]) if email is None else email),
        **created_fields(created_us),
    }


def insert_user_update(document: Document) -> Document:
    """The upsert that stores a new account where the filter finds none, and changes no other."""
    return {"$setOnInsert": document}


def user_update(fields: AccountFields, *, email: str | None = None) -> Document:
    """Replace everything but the id and the time of creation; the email only by one that is given here."""
    return {"$set": _changes(fields, email)}


def _changes(fields: AccountFields, email: str | None) -> Document:
    changes: Document = {**fields}
    del changes["email"]
    return changes if email is None else {**changes, "email": email, EMAIL_KEY: email_key(email)}


def email_key_update(email: str) -> Document:
    """The update that gives a key to an account with this email."""
    return {"$set": {EMAIL_KEY: email_key(email)}}


def ascii_email_keys_update() -> list[Document]:
    """The update that gives a key to accounts with emails in ASCII; the server lowers no other letters."""
    return [{"$set": {EMAIL_KEY: {"$toLower": "$email"}}}]


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
