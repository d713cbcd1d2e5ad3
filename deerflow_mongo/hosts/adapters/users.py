"""DeerFlow's `UserRepository` over our accounts."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from ...contract.arguments import is_valid_id
from ...contract.capabilities import UserStore
from ...contract.errors import ArgumentValueError, UserExistsError
from ...contract.rows import UserRow
from ..deerflow import import_deerflow
from ..encodable import encodable

_base: Any = import_deerflow("app.gateway.auth.repositories.base")
_models: Any = import_deerflow("app.gateway.auth.models")

_ADMIN = "admin"
_CHANGEABLE = (
    "email",
    "password_hash",
    "system_role",
    "oauth_provider",
    "oauth_id",
    "needs_setup",
    "token_version",
)
"""The fields of an account that an update sets; DeerFlow and our stores name them alike."""


def _user(row: UserRow | None) -> Any:
    if row is None:
        return None
    fields = encodable({name: row[name] for name in _CHANGEABLE})
    return _models.User(
        id=UUID(row["user_id"]), created_at=datetime.fromisoformat(row["created_at"]), **fields
    )


def _fields(user: Any) -> dict[str, Any]:
    return {name: getattr(user, name) for name in _CHANGEABLE}


def _taken_error(user: Any, error: UserExistsError) -> ArgumentValueError:
    """The error as a `ValueError`, which DeerFlow's routes catch."""
    return ArgumentValueError(f"{user.email} cannot be stored: {error}")


class UserRepositoryAdapter(_base.UserRepository):
    """Accounts as DeerFlow's `User`. Raises `ValueError` if an email or an OAuth identity is taken.

    Emails that differ in case only are the same. The object that is created or updated gets the stored email.
    """

    def __init__(self, users: UserStore) -> None:
        self._users = users

    async def create_user(self, user: Any) -> Any:
        try:
            row = await self._users.create(str(user.id), created_at=user.created_at, **_fields(user))
        except UserExistsError as error:
            raise _taken_error(user, error) from error
        user.email = row["email"]
        return user

    async def get_user_by_id(self, user_id: str) -> Any:
        return _user(await self._users.get(user_id)) if is_valid_id(user_id) else None

    async def get_user_by_email(self, email: str) -> Any:
        return _user(await self._users.get_by_email(email)) if is_valid_id(email) else None

    async def get_user_by_oauth(self, provider: str, oauth_id: str) -> Any:
        if not is_valid_id(provider, oauth_id):
            return None
        return _user(await self._users.get_by_oauth(provider, oauth_id))

    async def update_user(self, user: Any) -> Any:
        """Set every field that may change. Raises DeerFlow's `UserNotFoundError` for an unknown account."""
        try:
            found = await self._users.update(str(user.id), **_fields(user))
        except UserExistsError as error:
            raise _taken_error(user, error) from error
        # An account of an older release has an email with capitals: only the database knows which is stored.
        row = await self._users.get(str(user.id)) if found else None
        if row is None:
            raise _base.UserNotFoundError(f"there is no account {user.id}; nothing was changed")
        user.email = row["email"]
        return user

    async def count_users(self) -> int:
        return await self._users.count()

    async def count_admin_users(self) -> int:
        return await self._users.count(system_role=_ADMIN)
