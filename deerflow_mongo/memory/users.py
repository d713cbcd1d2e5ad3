"""Accounts: no two have the same id, email or OAuth identity."""

from __future__ import annotations

from copy import deepcopy
from typing import Unpack

from ..contract import arguments
from ..contract.capabilities import UserStore
from ..contract.errors import UserExistsError
from ..contract.rows import AccountFields, TimeInput, UserRow
from .data import MemoryStore, now, oldest_first, optional_time


class MemoryUserStore(MemoryStore, UserStore):
    """`UserStore` in memory."""

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
        fields = arguments.account_fields(
            email=email,
            password_hash=password_hash,
            system_role=system_role,
            oauth_provider=oauth_provider,
            oauth_id=oauth_id,
            needs_setup=needs_setup,
            token_version=token_version,
        )
        row: UserRow = {
            "user_id": arguments.identifier("user_id", user_id),
            "created_at": optional_time("created_at", created_at) or now().isoformat(),
            **fields,
            "email": _lower(fields["email"]),
        }
        if row["user_id"] in self._data.users:
            raise UserExistsError("id")
        return self._store(row)

    async def get(self, user_id: str) -> UserRow | None:
        return deepcopy(self._data.users.get(arguments.identifier("user_id", user_id)))

    async def get_by_email(self, email: str) -> UserRow | None:
        wanted = _lower(arguments.identifier("email", email))
        found = [row for _, row in sorted(self._data.users.items()) if _lower(row["email"]) == wanted]
        return deepcopy(next(iter(oldest_first(found)), None))

    async def get_by_oauth(self, oauth_provider: str, oauth_id: str) -> UserRow | None:
        provider = arguments.identifier("oauth_provider", oauth_provider)
        identity = (provider, arguments.identifier("oauth_id", oauth_id))
        found = (row for row in self._data.users.values() if _oauth_identity(row) == identity)
        return deepcopy(next(found, None))

    async def update(self, user_id: str, **fields: Unpack[AccountFields]) -> bool:
        checked = arguments.account_fields(**fields)
        stored = self._data.users.get(arguments.identifier("user_id", user_id))
        if stored is None:
            return False
        new = _lower(checked["email"])
        email = stored["email"] if new == _lower(stored["email"]) else new
        self._store({**stored, **checked, "email": email})
        return True

    async def count(self, *, system_role: str | None = None) -> int:
        role = None if system_role is None else arguments.identifier("system_role", system_role)
        return sum(role in (None, row["system_role"]) for row in self._data.users.values())

    async def list_by_role(self, system_role: str, *, limit: int = 100) -> list[UserRow]:
        role = arguments.identifier("system_role", system_role)
        count = arguments.row_limit("limit", limit)
        found = [row for _, row in sorted(self._data.users.items()) if row["system_role"] == role]
        return deepcopy(oldest_first(found)[:count])

    def store_as_is(self, row: UserRow) -> None:
        """Store an imported account. Raises `UserExistsError`."""
        self._store(row)

    def _store(self, row: UserRow) -> UserRow:
        """Store a new or changed account, unless another one has its email or OAuth identity."""
        for other in self._data.users.values():
            if other["user_id"] == row["user_id"]:
                continue
            if _lower(other["email"]) == _lower(row["email"]):
                raise UserExistsError("email")
            if _oauth_identity(row) is not None and _oauth_identity(other) == _oauth_identity(row):
                raise UserExistsError("OAuth identity")
        self._data.users[row["user_id"]] = row
        return deepcopy(row)


def _lower(email: str) -> str:
    """The form in which emails are compared; it may be a little longer."""
    return arguments.identifier("email", email.lower())


def _oauth_identity(row: UserRow) -> tuple[str, str] | None:
    """A provider without an id, or an id without a provider, is no identity."""
    if row["oauth_provider"] is None or row["oauth_id"] is None:
        return None
    return row["oauth_provider"], row["oauth_id"]
