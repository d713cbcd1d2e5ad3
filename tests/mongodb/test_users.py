"""Accounts on MongoDB, beyond what `AccountContract` of the conformance suite promises for every backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, UserExistsError

ALICE: Mapping[str, Any] = {
    "email": "alice@example.org",
    "oauth_provider": "github",
    "oauth_id": "4711",
}

# The unique value that the second account shares -> the second account.
DUPLICATES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "id": ("u-1", {"email": "other@example.org"}),
    "email": ("u-2", {"email": "alice@example.org"}),
    "OAuth identity": ("u-2", {"email": "other@example.org", "oauth_provider": "github", "oauth_id": "4711"}),
}


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    """On a server: mongomock does not always report which index has the duplicate."""
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as storage:
        yield storage


@pytest.mark.parametrize("duplicate", DUPLICATES)
async def test_user_exists_error_names_exactly_the_duplicate_value(
    storage: MongoStorage, duplicate: str
) -> None:
    first = await storage.users.create("u-1", **ALICE)
    second = await storage.users.create("u-3", email="u-3@example.org")
    user_id, fields = DUPLICATES[duplicate]
    with pytest.raises(UserExistsError) as created:
        await storage.users.create(user_id, **fields)
    assert created.value.taken == duplicate
    if duplicate != "id":
        unchanged: dict[str, Any] = {
            name: dict(second)[name] for name in dict(second) if name not in ("user_id", "created_at")
        }
        with pytest.raises(UserExistsError) as updated:
            await storage.users.update("u-3", **{**unchanged, **fields})
        assert updated.value.taken == duplicate
    assert await storage.users.get("u-1") == first
    assert await storage.users.get("u-3") == second
