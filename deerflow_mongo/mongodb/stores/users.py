"""Accounts: who may log in, for a host that stores its users in the same database.

What a password hash, a role or a token version means is up to the host; a hash appears in no error and no
log. Unique indexes guarantee that no two accounts have the same email or the same OAuth identity. New emails
are stored in lower case, so that the index refuses those that differ in case only; an old one with capitals
is found by its key.
"""

from __future__ import annotations

from ...contract import arguments
from ...contract.capabilities import UserStore
from ...contract.errors import UserExistsError
from ...contract.rows import AccountFields, TimeInput, UserRow
from ...contract.times import clock
from .. import queries
from ..documents.counting import count_pipeline, counted
from ..documents.stored_times import stamp_from_optional
from ..documents.users import insert_user_update, is_same_email, new_email, new_user, user_row, user_update
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..row_collection import RowCollection
from ..schema import EMAIL_INDEX, OAUTH_INDEX, OLDEST_USER_FIRST, USERS

_EMAIL = "email"
_UNIQUE = ((EMAIL_INDEX, _EMAIL), (OAUTH_INDEX, "OAuth identity"))


def _exists_error(error: DuplicateKeyError) -> UserExistsError:
    """The error that names the unique value; the id where the server names none of our indexes."""
    for index, unique_value in _UNIQUE:
        if error.keys == tuple(name for name, _ in index.keys):
            return UserExistsError(unique_value)
    return UserExistsError("id" if error.keys else "id, email or OAuth identity")


class MongoUserStore(UserStore):
    """`UserStore` on MongoDB. Every method is one command, but for an update that changes an email."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._rows = RowCollection(collection, USERS, user_row)

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
        given_creation = stamp_from_optional("created_at", created_at)
        fields = arguments.account_fields(
            email=email,
            password_hash=password_hash,
            system_role=system_role,
            oauth_provider=oauth_provider,
            oauth_id=oauth_id,
            needs_setup=needs_setup,
            token_version=token_version,
        )
        document = new_user(
            arguments.identifier("user_id", user_id),
            fields,
            clock.stamp_us() if given_creation is None else given_creation,
        )
        query = queries.users_by_email(fields["email"])
        try:
            is_new = await self._collection.insert_if_absent(query, insert_user_update(document))
        except DuplicateKeyError as error:
            raise _exists_error(error) from error.__cause__
        if not is_new:
            raise UserExistsError(_EMAIL)
        return self._rows.row(document)

    async def get(self, user_id: str) -> UserRow | None:
        return await self._rows.find_one(queries.user_by_id(user_id))

    async def get_by_email(self, email: str) -> UserRow | None:
        query = queries.users_by_email(email)
        found = await self._collection.find(query, sort=OLDEST_USER_FIRST, limit=1)
        return self._rows.row(found[0]) if found else None

    async def get_by_oauth(self, oauth_provider: str, oauth_id: str) -> UserRow | None:
        return await self._rows.find_one(queries.user_by_oauth(oauth_provider, oauth_id))

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
        fields = arguments.account_fields(
            email=email,
            password_hash=password_hash,
            system_role=system_role,
            oauth_provider=oauth_provider,
            oauth_id=oauth_id,
            needs_setup=needs_setup,
            token_version=token_version,
        )
        with_same_email = queries.user_with_email(user_id, fields["email"])
        try:
            if await self._rows.update_matching(with_same_email, user_update(fields)):
                return True
            return await self._update_with_email(user_id, fields)
        except DuplicateKeyError as error:
            raise _exists_error(error) from error.__cause__

    async def _update_with_email(self, user_id: str, fields: AccountFields) -> bool:
        """Update an account whose email changes by more than its case, or that has no key yet.

        The unique index covers stored emails only: an old one with capitals is looked for first. No new one
        can appear in between.
        """
        stored = await self._rows.find_one(queries.user_by_id(user_id))
        if stored is None:
            return False
        email = fields["email"]
        if is_same_email(stored["email"], email):
            update = user_update(fields, email=stored["email"])
        elif await self._collection.find_one(queries.other_user_with_email(user_id, email)) is not None:
            raise UserExistsError(_EMAIL)
        else:
            update = user_update(fields, email=new_email(email))
        return await self._rows.update_one(queries.user_by_id(user_id), update)

    async def count(self, *, system_role: str | None = None) -> int:
        pipeline = count_pipeline(queries.users_of_role(system_role))
        return counted(await self._collection.aggregate_few(pipeline))

    async def list_by_role(self, system_role: str, *, limit: int = 100) -> list[UserRow]:
        rows = arguments.row_limit("limit", limit)
        if rows == 0:
            return []
        return await self._rows.find(queries.users_of_role(system_role), sort=OLDEST_USER_FIRST, limit=rows)
