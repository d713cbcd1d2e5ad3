"""Accounts: who may log in, for a host that keeps its users in the same database.

What a password, a role or a token version means is the host's affair; here a hash is text that no error and
no log shows. No two accounts have one email or one OAuth identity, whatever races: unique indexes decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ...contract import arguments
from ...contract.capabilities import UserStore
from ...contract.errors import UserExistsError
from ...contract.rows import TimeInput, UserRow
from .. import codec, queries
from ..codec import Document
from ..documents.stored_times import stored_from_optional, stored_now
from ..drivers.base import Collection, DuplicateKeyError
from ..schema import EMAIL_INDEX, OAUTH_INDEX

_OLDEST_OF_ROLE = (("created_at", 1), ("_id", 1))
_TAKEN = {EMAIL_INDEX.name: "email", OAUTH_INDEX.name: "OAuth identity"}


def _fields(
    *,
    email: object,
    password_hash: object,
    system_role: object,
    oauth_provider: object,
    oauth_id: object,
    needs_setup: object,
    token_version: object,
) -> Document:
    """An account's fields, but for its id and its age."""
    return {
        "email": arguments.identifier("email", email),
        "password_hash": arguments.optional_text("password_hash", password_hash),
        "system_role": arguments.identifier("system_role", system_role),
        "oauth_provider": arguments.optional_text("oauth_provider", oauth_provider),
        "oauth_id": arguments.optional_text("oauth_id", oauth_id),
        "needs_setup": arguments.flag("needs_setup", needs_setup),
        "token_version": arguments.count("token_version", token_version),
    }


def _taken(error: DuplicateKeyError) -> UserExistsError:
    """Which of an account's unique values another one has; the id, where no index of ours is named."""
    details = cast("Mapping[str, Any]", getattr(error.__cause__, "details", None) or {})
    values = cast("Mapping[str, Any]", details.get("keyValue") or {})
    # mongomock names the last index that it looked at, also where there was nothing to compare.
    keys = {name for name, value in values.items() if value is not None}
    for index in (EMAIL_INDEX, OAUTH_INDEX):
        if keys == {name for name, _ in index.keys}:
            return UserExistsError(_TAKEN[index.name])
    return UserExistsError("id" if values else "id, email or OAuth identity")


class MongoUserStore(UserStore):
    """Accounts on MongoDB. Every method is one command; `UserExistsError` leaves everything as it was."""

    def __init__(self, collection: Collection) -> None:
        """`collection` must read from the primary: a session ends with the password that began it."""
        self._collection = collection

    async def create(
        self,
        user_id: str,
        *,
        email: str,
        password_hash: str | None = None,
        system_role: str = "user",
        created_at: TimeInput | None = None,
        oauth_provider: str | None = None,
        oauth_id: str | None = None,
        needs_setup: bool = False,
        token_version: int = 0,
    ) -> UserRow:
        document: Document = {
            **queries.user_by_id(user_id),
            "schema_version": codec.SCHEMA_VERSION,
            **_fields(
                email=email,
                password_hash=password_hash,
                system_role=system_role,
                oauth_provider=oauth_provider,
                oauth_id=oauth_id,
                needs_setup=needs_setup,
                token_version=token_version,
            ),
            "created_at": stored_from_optional("created_at", created_at) or stored_now(),
        }
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as error:
            raise _taken(error) from error.__cause__
        return codec.user_row(document)

    async def get(self, user_id: str) -> UserRow | None:
        return await self._find(queries.user_by_id(user_id))

    async def get_by_email(self, email: str) -> UserRow | None:
        return await self._find(queries.user_by_email(email))

    async def get_by_oauth(self, oauth_provider: str, oauth_id: str) -> UserRow | None:
        return await self._find(queries.user_by_oauth(oauth_provider, oauth_id))

    async def update(
        self,
        user_id: str,
        *,
        email: str,
        password_hash: str | None,
        system_role: str,
        oauth_provider: str | None,
        oauth_id: str | None,
        needs_setup: bool,
        token_version: int,
    ) -> bool:
        changes = _fields(
            email=email,
            password_hash=password_hash,
            system_role=system_role,
            oauth_provider=oauth_provider,
            oauth_id=oauth_id,
            needs_setup=needs_setup,
            token_version=token_version,
        )
        try:
            return bool(await self._collection.update_one(queries.user_by_id(user_id), {"$set": changes}))
        except DuplicateKeyError as error:
            raise _taken(error) from error.__cause__

    async def count(self, *, system_role: str | None = None) -> int:
        counts = await self._collection.aggregate(
            [{"$match": queries.users_of_role(system_role)}, {"$group": {"_id": None, "users": {"$sum": 1}}}]
        )
        return +counts[0]["users"] if counts else 0

    async def list_by_role(self, system_role: str, *, limit: int = 100) -> list[UserRow]:
        rows = arguments.row_limit("limit", limit)
        if rows == 0:
            return []
        documents = await self._collection.find(
            queries.users_of_role(system_role), sort=_OLDEST_OF_ROLE, limit=rows
        )
        return [codec.user_row(document) for document in documents]

    async def _find(self, query: Document) -> UserRow | None:
        document = await self._collection.find_one(query)
        return None if document is None else codec.user_row(document)
