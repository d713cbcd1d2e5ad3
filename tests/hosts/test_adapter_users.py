"""What DeerFlow may rely on of its `UserRepository`, on every storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from .gateway_process import needs_deerflow
from .host_stores import (
    OURS,
    USERS,
    expect_differences,
    named,
    open_storage,
    open_store,
    signature_faults,
    stale_differences,
)

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

INVALID_IDS = ("", "x" * 5_000)
HASH = "$dfv2$" + "h" * 60


@pytest.fixture(params=USERS.backends)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, mongodb_url: str, database_name: str
) -> AsyncGenerator[Any]:
    expect_differences(request, USERS)
    opened = open_store(USERS, request.param, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as users:
        yield users


@pytest.fixture
async def ours(tmp_path: Path, mongodb_url: str, database_name: str) -> AsyncGenerator[Any]:
    opened = open_store(USERS, OURS, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as users:
        yield users


def user(email: str = "alice@example.com", **fields: Any) -> Any:
    return named("app.gateway.auth.models:User")(email=email, **fields)


def github(oauth_id: str, email: str = "bob@example.com") -> Any:
    return user(email, oauth_provider="github", oauth_id=oauth_id)


# -- the interface ---------------------------------------------------------------------------------


def test_adapter_has_every_method_with_deerflows_signature() -> None:
    assert signature_faults(USERS) == []
    assert stale_differences(USERS, globals()) == []


async def test_repository_is_an_instance_of_deerflows_base_class(store: Any) -> None:
    assert isinstance(store, named(str(USERS.base)))


# -- create and get --------------------------------------------------------------------------------


async def test_account_has_every_field(store: Any) -> None:
    given = user(
        id=UUID(int=7),
        password_hash=HASH,
        system_role="admin",
        created_at=datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC),
        oauth_provider="github",
        oauth_id="1",
        needs_setup=True,
        token_version=3,
    )
    assert await store.create_user(given) == given
    assert await store.get_user_by_id(str(given.id)) == given
    assert await store.get_user_by_email(given.email) == given
    assert await store.get_user_by_oauth("github", "1") == given


async def test_new_account_needs_only_an_email(store: Any) -> None:
    given = await store.create_user(user())
    found = await store.get_user_by_id(str(given.id))
    assert found == given
    assert found.created_at.tzinfo is not None
    assert found.password_hash is found.oauth_provider is found.oauth_id is None


@pytest.mark.parametrize("text", ["missing", *INVALID_IDS], ids=["missing", "empty", "long"])
async def test_missing_accounts_are_not_found(store: Any, text: str) -> None:
    assert await store.get_user_by_id(text) is None
    assert await store.get_user_by_email(text) is None
    assert await store.get_user_by_oauth("github", text) is None
    assert await store.get_user_by_oauth(text, "1") is None


async def test_accounts_are_counted(store: Any) -> None:
    assert (await store.count_users(), await store.count_admin_users()) == (0, 0)
    await store.create_user(user())
    await store.create_user(user("root@example.com", system_role="admin"))
    assert (await store.count_users(), await store.count_admin_users()) == (2, 1)


# -- what is unique --------------------------------------------------------------------


async def test_email_is_unique(store: Any) -> None:
    first = await store.create_user(user())
    with pytest.raises(ValueError, match="alice@example"):
        await store.create_user(user(password_hash=HASH))
    assert await store.get_user_by_email("alice@example.com") == first
    assert await store.count_users() == 1


async def test_oauth_identity_is_unique(store: Any) -> None:
    await store.create_user(github("1"))
    with pytest.raises(ValueError, match="carol"):
        await store.create_user(github("1", "carol@example.com"))
    await store.create_user(github("2", "carol@example.com"))
    await store.create_user(user("dora@example.com"))
    await store.create_user(user("erin@example.com"))
    assert await store.count_users() == 4


async def test_id_is_unique(store: Any) -> None:
    await store.create_user(user(id=UUID(int=1)))
    with pytest.raises(ValueError, match="bob"):
        await store.create_user(user("bob@example.com", id=UUID(int=1)))


# -- update ----------------------------------------------------------------------------------------


async def test_update_sets_every_field_that_may_change(store: Any) -> None:
    given = await store.create_user(user(password_hash=HASH, needs_setup=True))
    changed = given.model_copy(
        update={
            "email": "new@example.com",
            "password_hash": HASH[::-1],
            "system_role": "admin",
            "oauth_provider": "github",
            "oauth_id": "1",
            "needs_setup": False,
            "token_version": 1,
        }
    )
    assert await store.update_user(changed) == changed
    assert await store.get_user_by_id(str(given.id)) == changed
    assert await store.get_user_by_email("alice@example.com") is None
    assert await store.count_admin_users() == 1


async def test_update_clears_fields_that_are_none(store: Any) -> None:
    given = await store.create_user(github("1"))
    await store.update_user(given.model_copy(update={"oauth_provider": None, "oauth_id": None}))
    assert await store.get_user_by_oauth("github", "1") is None


async def test_update_leaves_created_at(store: Any) -> None:
    given = await store.create_user(user())
    await store.update_user(given.model_copy(update={"created_at": datetime(2000, 1, 1, tzinfo=UTC)}))
    assert await store.get_user_by_id(str(given.id)) == given


async def test_update_of_a_missing_account_is_an_error(store: Any) -> None:
    unknown = user()
    with pytest.raises(named("app.gateway.auth.repositories.base:UserNotFoundError"), match=str(unknown.id)):
        await store.update_user(unknown)
    assert await store.count_users() == 0


async def test_update_to_a_taken_email_is_a_value_error(store: Any) -> None:
    await store.create_user(user())
    bob = await store.create_user(user("bob@example.com"))
    with pytest.raises(ValueError, match="alice"):
        await store.update_user(bob.model_copy(update={"email": "alice@example.com"}))
    assert (await store.get_user_by_id(str(bob.id))).email == "bob@example.com"


# -- ours alone ------------------------------------------------------------------------------------


async def test_one_of_many_concurrent_registrations_succeeds(ours: Any) -> None:
    results = await asyncio.gather(*(ours.create_user(user()) for _ in range(10)), return_exceptions=True)
    [account] = [item for item in results if not isinstance(item, ValueError)]
    assert await ours.get_user_by_email("alice@example.com") == account


async def test_errors_never_show_the_password_hash(ours: Any) -> None:
    await ours.create_user(user())
    with pytest.raises(ValueError, match="email") as caught:
        await ours.create_user(user(password_hash=HASH))
    error: BaseException | None = caught.value
    while error is not None:
        assert HASH not in f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__


# -- emails without case, from release 2.1 on ------------------------------------------------------


async def test_new_email_is_stored_in_lower_case_and_the_object_gets_it(ours: Any) -> None:
    given = user("Alice@Example.com")
    assert await ours.create_user(given) is given
    assert given.email == "alice@example.com"
    for email in ("alice@example.com", "ALICE@example.COM"):
        assert (await ours.get_user_by_email(email)).id == given.id
    other = user("ALICE@example.com")
    with pytest.raises(ValueError, match="another account has this email"):
        await ours.create_user(other)
    assert await ours.count_users() == 1


async def test_of_racing_accounts_whose_emails_differ_in_case_one_is_stored(ours: Any) -> None:
    given = [user(email) for email in ("a@example.com", "A@example.com") * 10]
    results = await asyncio.gather(*map(ours.create_user, given), return_exceptions=True)
    assert sum(isinstance(result, ValueError) for result in results) == 19
    assert await ours.count_users() == 1


async def test_old_account_with_capitals_keeps_them_in_an_update_and_the_object_gets_them(
    mongodb_url: str, database_name: str, raw_client: Any
) -> None:
    async with open_storage(mongodb_url, database_name) as storage:
        ours = named(USERS.ours)(storage.users)
        given = user("victim@example.com", password_hash=HASH)
        await ours.create_user(given)
        stored = {"email": "Victim@example.com"}
        raw_client[database_name]["users"].update_one({}, {"$set": stored, "$unset": {"email_key": ""}})
        await storage.setup()
        with pytest.raises(ValueError, match="email"):
            await ours.create_user(user("victim@example.com"))
        given.token_version = 1
        assert await ours.update_user(given) is given
        assert given.email == "Victim@example.com"
        row = await ours.get_user_by_email("victim@example.com")
        assert (row.email, row.token_version) == ("Victim@example.com", 1)
        given.email = "New@Example.com"
        await ours.update_user(given)
        assert given.email == (await ours.get_user_by_id(str(given.id))).email == "new@example.com"
