"""The driver's error is the `__cause__` of the errors that stores and setup raise in its place.

Errors of the driver's own methods are in `drivers/test_errors.py`, run events in `test_run_events.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError as DriverDuplicateKeyError
from pymongo.errors import OperationFailure

from deerflow_mongo import (
    MongoStorage,
    RunExistsError,
    StorageConfigError,
    StorageError,
    ThreadAccessError,
    ThreadExistsError,
    ThreadMetaCreate,
    UserExistsError,
)
from deerflow_mongo.mongodb import migrations, queries

Raw = MongoClient[dict[str, Any]]

ACCOUNT: dict[str, Any] = {
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": "github",
    "oauth_id": "u",
    "needs_setup": False,
    "token_version": 0,
}

REFUSED_WRITES: dict[str, tuple[type[StorageError], Callable[[MongoStorage], Awaitable[Any]]]] = {
    "runs.create": (RunExistsError, lambda s: s.runs.create("r", "t", user_id=None)),
    "threads.create_thread_meta": (
        ThreadExistsError,
        lambda s: s.threads.create_thread_meta(ThreadMetaCreate(thread_id="t")),
    ),
    "threads.ensure_thread": (
        ThreadAccessError,
        lambda s: s.threads.ensure_thread(thread_id="t", user_id="bob"),
    ),
    "users.create": (UserExistsError, lambda s: s.users.create("u", email="other@example.org")),
    "users.update": (UserExistsError, lambda s: s.users.update("v", email="v@example.org", **ACCOUNT)),
    "feedback.upsert": (
        StorageError,
        lambda s: s.feedback.upsert(run_id="r", thread_id="t", rating=1, user_id="alice"),
    ),
}


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    # Closed after a failure too: a client that stays open fails a later test.
    async with aclosing(MongoStorage.open({"url": mongodb_url, "database": database_name})) as opened:
        yield opened


@pytest.mark.parametrize("method", REFUSED_WRITES)
async def test_refused_write_has_the_drivers_error_as_cause(
    method: str, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    kind, call = REFUSED_WRITES[method]
    async with storage:
        await storage.runs.create("r", "t", user_id="alice")
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="t", user_id="alice"))
        for user_id in ("u", "v"):
            await storage.users.create(
                user_id, email=f"{user_id}@example.org", oauth_provider="github", oauth_id=user_id
            )
        # A vote never finds the document that makes its insert fail.
        feedback = raw_client[database_name]["feedback"]
        feedback.create_index("thread_id", unique=True)
        await storage.feedback.create(run_id="other", thread_id="t", rating=1, user_id="bob")
        with pytest.raises(kind) as refused:
            await call(storage)
        assert type(refused.value) is kind
        assert isinstance(refused.value.__cause__, DriverDuplicateKeyError)


async def test_email_that_a_racing_account_takes_has_the_drivers_error_as_cause(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update looks for the email before it writes; a taken email that it finds has no driver's error."""
    fields: dict[str, Any] = {**ACCOUNT, "oauth_provider": None, "oauth_id": None}
    async with storage:
        await storage.users.create("u", email="u@example.org")
        await storage.users.create("v", email="v@example.org")
        with pytest.raises(UserExistsError) as found:
            await storage.users.update("v", email="U@example.org", **fields)
        assert (found.value.taken, found.value.__cause__) == ("email", None)
        look = queries.other_user_with_email

        def look_before_the_other(user_id: str, email: str) -> queries.Query:
            return look(user_id, f"not yet {email}")

        monkeypatch.setattr(queries, "other_user_with_email", look_before_the_other)
        with pytest.raises(UserExistsError) as refused:
            await storage.users.update("v", email="U@example.org", **fields)
        assert refused.value.taken == "email"
        assert isinstance(refused.value.__cause__, DriverDuplicateKeyError)


@pytest.fixture
def unseen_conflicts(storage: MongoStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setup sees neither indexes nor duplicates at its first look, as if they came after it."""

    def nothing(*_: object) -> None:
        pass

    async def none(*_: object) -> None:
        pass

    monkeypatch.setattr(migrations, "_check_indexes", nothing)
    monkeypatch.setattr(migrations, "_check_duplicates", none)


@pytest.mark.usefixtures("unseen_conflicts")
async def test_setup_that_an_index_prevents_has_the_drivers_error_as_cause(
    storage: MongoStorage, raw_client: Raw, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.setup()
    runs = raw_client[database_name]["runs"]
    runs.drop_index("by_thread")
    list_indexes = storage.driver.list_indexes

    async def of_before(name: str) -> list[dict[str, Any]]:
        found = await list_indexes(name)
        if name == "runs" and "by_thread" not in runs.index_information():
            runs.create_index("status", name="by_thread")
        return found

    monkeypatch.setattr(storage.driver, "list_indexes", of_before)
    with pytest.raises(StorageConfigError, match="cannot be created") as refused:
        await storage.setup()
    assert isinstance(refused.value.__cause__, OperationFailure)


@pytest.mark.usefixtures("unseen_conflicts")
async def test_setup_that_duplicates_prevent_has_the_drivers_error_as_cause(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    await storage.users.create("u", email="same")
    users = raw_client[database_name]["users"]
    users.drop_index("one_account_per_email")
    account = users.find_one({"_id": "u"})
    assert account is not None
    users.insert_one({**account, "_id": "v"})
    with pytest.raises(StorageConfigError, match="contains duplicates") as refused:
        await storage.setup()
    assert isinstance(refused.value.__cause__, OperationFailure)
