"""Emails without case: keys for accounts that an older release stored, and the races of new ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from bson import Int64
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, UserExistsError
from deerflow_mongo.mongodb import email_keys

Raw = MongoClient[dict[str, Any]]

UNCHANGED: dict[str, Any] = {
    "password_hash": "new",
    "system_role": "user",
    "oauth_provider": None,
    "oauth_id": None,
    "needs_setup": False,
    "token_version": 1,
}


def _old(user_id: str, email: str, *, created_us: int = 1) -> dict[str, Any]:
    """An account as an older release stored it."""
    return {
        "_id": user_id,
        "schema_version": 2,
        "email": email,
        "password_hash": None,
        "system_role": "user",
        "created_at": datetime(1970, 1, 1),  # noqa: DTZ001 - as the driver returns it
        "order": Int64(created_us),
        "oauth_provider": None,
        "oauth_id": None,
        "needs_setup": False,
        "token_version": 0,
    }


def _keys(raw: Raw, database: str) -> dict[str, Any]:
    return {account["_id"]: account.get("email_key") for account in raw[database]["users"].find()}


async def test_setup_adds_the_keys_that_old_accounts_lack(
    storage: MongoStorage,
    raw_client: Raw,
    database_name: str,
    new_storage: Callable[..., MongoStorage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(email_keys, "BATCH_ACCOUNTS", 3)
    emails = ["Bob@X.org", "eve@x.org", "ÄNNE@x.org", *(f"User{n}@X.org" for n in range(7))]
    raw_client[database_name]["users"].insert_many([_old(f"u-{n}", email) for n, email in enumerate(emails)])
    async with new_storage() as other:
        assert _keys(raw_client, database_name) == {f"u-{n}": e.lower() for n, e in enumerate(emails)}
        for number, email in enumerate(emails):
            row = await other.users.get_by_email(email.swapcase())
            assert row is not None
            assert (row["user_id"], row["email"]) == (f"u-{number}", email)
    before = list(raw_client[database_name]["users"].find())
    await storage.setup()
    assert list(raw_client[database_name]["users"].find()) == before


async def test_twenty_setups_at_once_add_the_keys(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name]["users"].insert_many([_old(f"u-{n}", f"U{n}@X") for n in range(50)])
    await asyncio.gather(*(storage.setup() for _ in range(20)))
    assert _keys(raw_client, database_name) == {f"u-{n}": f"u{n}@x" for n in range(50)}


async def test_account_that_cannot_be_read_stops_no_setup(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    broken = {name: value for name, value in _old("broken", "B@x").items() if name != "token_version"}
    newer = {**_old("newer", "N@x"), "schema_version": 99}
    raw_client[database_name].command(
        {
            "insert": "users",
            "documents": [_old("u-1", "A@x"), broken, newer],
            "bypassDocumentValidation": True,
        }
    )
    for _ in range(2):
        await storage.setup()
        assert _keys(raw_client, database_name) == {"u-1": "a@x", "broken": None, "newer": None}


async def test_oldest_of_several_old_accounts_is_found(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name]["users"].insert_many(
        [_old("u-1", "v@x", created_us=2), _old("u-3", "V@x", created_us=1), _old("u-2", "V@X", created_us=1)]
    )
    await storage.setup()
    row = await storage.users.get_by_email("v@X")
    assert row is not None
    assert row["user_id"] == "u-2"


async def test_new_account_whose_email_differs_in_case_from_an_old_one_is_refused(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name]["users"].insert_one(_old("old", "Bob@X.org"))
    await storage.setup()
    for email in ("bob@x.org", "Bob@X.org", "BOB@X.ORG"):
        with pytest.raises(UserExistsError, match="email"):
            await storage.users.create("new", email=email)
    await storage.users.create("other", email="other@x.org")
    with pytest.raises(UserExistsError, match="email"):
        await storage.users.update("other", email="bob@x.org", **UNCHANGED)
    assert await storage.users.update("missing", email="bob@x.org", **UNCHANGED) is False
    other = await storage.users.get("other")
    assert other is not None
    assert (other["email"], other["token_version"]) == ("other@x.org", 0)
    assert await storage.users.count() == 2


async def test_update_of_an_old_account_leaves_its_email_unless_it_differs_by_more_than_case(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """Also where an account with the same email in lower case exists, and where the account has no key."""
    users = raw_client[database_name]["users"]
    users.insert_many([_old("u-1", "Victim@x"), _old("u-2", "victim@x")])
    await storage.setup()
    users.insert_one(_old("u-3", "Without@x"))
    for user_id, email, stored in (
        ("u-1", "victim@x", "Victim@x"),
        ("u-2", "VICTIM@X", "victim@x"),
        ("u-3", "without@x", "Without@x"),
        ("u-1", "Other@X", "other@x"),
    ):
        assert await storage.users.update(user_id, email=email, **UNCHANGED)
        document = users.find_one({"_id": user_id}) or {}
        assert (document["email"], document["email_key"]) == (stored, stored.lower())
        assert document["password_hash"] == "new"  # noqa: S105 - made up


async def test_of_racing_accounts_whose_emails_differ_in_case_one_is_stored(
    new_storage: Callable[..., MongoStorage], storage: MongoStorage
) -> None:
    async with new_storage() as other:
        creations = [
            (storage, other)[n % 2].users.create(f"u-{n}", email="ab@x" if n % 3 else "AB@X")
            for n in range(40)
        ]
        results = await asyncio.gather(*creations, return_exceptions=True)
    stored = [row for row in results if isinstance(row, dict)]
    refused = [error for error in results if isinstance(error, UserExistsError)]
    assert (len(stored), len(refused)) == (1, 39)
    assert stored[0]["email"] == "ab@x"
    assert await storage.users.count() == 1
