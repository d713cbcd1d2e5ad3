"""Accounts: no two have the same id, email or OAuth identity."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from ..contract import arguments
from ..contract.capabilities import UserStore
from ..contract.errors import UserExistsError
from ..contract.rows import TimeInput, UserRow
from .data import Memory, now, optional_time


class MemoryUserStore(UserStore):
    """`UserStore` in memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

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
        }
        if row["user_id"] in self._memory.data.users:
            raise UserExistsError("id")
        return self._store(row)

    async def get(self, user_id: str) -> UserRow | None:
        row = self._memory.data.users.get(arguments.identifier("user_id", user_id))
        return None if row is None else row.copy()

    async def get_by_email(self, email: str) -> UserRow | None:
        return self._find(email=arguments.identifier("email", email))

    async def get_by_oauth(self, oauth_provider: str, oauth_id: str) -> UserRow | None:
        return self._find(
            oauth_provider=arguments.identifier("oauth_provider", oauth_provider),
            oauth_id=arguments.identifier("oauth_id", oauth_id),
        )

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
        stored = self._memory.data.users.get(arguments.identifier("user_id", user_id))
        if stored is None:
            return False
        self._store({**stored, **fields})
        return True

    async def count(self, *, system_role: str | None = None) -> int:
        role = None if system_role is None else arguments.identifier("system_role", system_role)
        return sum(role in (None, row["system_role"]) for row in self._memory.data.users.values())

    async def list_by_role(self, system_role: str, *, limit: int = 100) -> list[UserRow]:
        role = arguments.identifier("system_role", system_role)
        rows = arguments.row_limit("limit", limit)
        found = [row for row in self._memory.data.users.values() if row["system_role"] == role]
        found.sort(key=lambda row: (datetime.fromisoformat(row["created_at"]), row["user_id"]))
        return [row.copy() for row in found[:rows]]

    def _store(self, row: UserRow) -> UserRow:
        """Store a new or changed account, unless another one has its email or OAuth identity."""
        for other in self._memory.data.users.values():
            if other["user_id"] == row["user_id"]:
                continue
            if other["email"] == row["email"]:
                raise UserExistsError("email")
            if _oauth_identity(row) is not None and _oauth_identity(other) == _oauth_identity(row):
                raise UserExistsError("OAuth identity")
        self._memory.data.users[row["user_id"]] = row
        return row.copy()

    def _find(self, **fields: str) -> UserRow | None:
        for row in self._memory.data.users.values():
            if fields.items() <= cast("dict[str, Any]", row).items():
                return row.copy()
        return None


def _oauth_identity(row: UserRow) -> tuple[str, str] | None:
    """A provider without an id, or an id without a provider, is no identity."""
    if row["oauth_provider"] is None or row["oauth_id"] is None:
        return None
    return row["oauth_provider"], row["oauth_id"]
