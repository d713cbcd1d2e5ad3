"""Accounts (`MongoStorage.users`) on each driver; they are a capability, not part of the core contract."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, StorageError, UserExistsError, UserRow, create_storage
from deerflow_mongo.testing.contract import case
from deerflow_mongo.testing.values import assert_is_now, assert_row_time, exactly, now

HASH = "$2b$12$of-a-secret-password"
DAY = datetime(2026, 4, 22, tzinfo=UTC)

NEW: Mapping[str, Any] = {
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": None,
    "oauth_id": None,
    "needs_setup": False,
    "token_version": 0,
}
EVERY_FIELD: Mapping[str, Any] = {
    "email": "alice@example.org",
    "password_hash": HASH,
    "system_role": "admin",
    "oauth_provider": "github",
    "oauth_id": "4711",
    "needs_setup": True,
    "token_version": 3,
}

NO_TEXTS: tuple[Any, ...] = ({"$ne": None}, {"$gt": ""}, {}, 5, 0, True, b"x", [], ["x"], object())
TOO_LONG = "é" * 512 + "x"


@pytest.fixture(params=["pymongo", "motor", "mongomock"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[MongoStorage]:
    config: dict[str, Any] = {"backend": "mongodb", "driver": request.param}
    if request.param != "mongomock":
        config["url"] = request.getfixturevalue("mongodb_url")
        config["database"] = request.getfixturevalue("database_name")
    opened = create_storage(config)
    assert isinstance(opened, MongoStorage)
    async with opened:
        yield opened


async def _given(storage: MongoStorage, user_id: str, **fields: Any) -> UserRow:
    own: dict[str, Any] = {"email": f"{user_id}@example.org", **fields}
    return await storage.users.create(user_id, **own)


def _every_field(**changes: Any) -> dict[str, Any]:
    return {**EVERY_FIELD, **changes}


def _update_of(row: UserRow, **changes: Any) -> dict[str, Any]:
    """Arguments of `update` that change only `changes`."""
    return {**{name: dict(row)[name] for name in EVERY_FIELD}, **changes}


async def _all(storage: MongoStorage) -> list[UserRow]:
    found = [await storage.users.list_by_role(role, limit=1_000) for role in ("admin", "user")]
    return [row for rows in found for row in rows]


# -- creating and reading --------------------------------------------------------------------------


async def test_new_account_has_the_defaults(storage: MongoStorage) -> None:
    since = now()
    row = await storage.users.create("u-1", email="alice@example.org")
    expected = {
        "user_id": "u-1",
        "email": "alice@example.org",
        **NEW,
        "created_at": row["created_at"],
    }
    assert exactly(dict(row)) == exactly(expected)
    assert_is_now(assert_row_time(row["created_at"]), since=since)
    assert await storage.users.get("u-1") == row


async def test_every_field_of_an_account_is_stored(storage: MongoStorage) -> None:
    row = await storage.users.create("u-1", **_every_field(created_at="2026-04-22T12:00:00.123456+09:00"))
    expected = {"user_id": "u-1", **EVERY_FIELD, "created_at": "2026-04-22T03:00:00.123456+00:00"}
    assert exactly(dict(row)) == exactly(expected)
    for found in (
        await storage.users.get("u-1"),
        await storage.users.get_by_email("alice@example.org"),
        await storage.users.get_by_oauth("github", "4711"),
    ):
        assert exactly(found) == exactly(row)
    assert await storage.users.list_by_role("admin") == [row]


async def test_row_has_exactly_its_keys(storage: MongoStorage) -> None:
    row = await _given(storage, "u-1")
    assert set(row) == set(UserRow.__annotations__)


async def test_unknown_account_is_none(storage: MongoStorage) -> None:
    await storage.users.create("u-1", **_every_field())
    users = storage.users
    for found in (
        await users.get("u-2"),
        await users.get("alice@example.org"),
        await users.get_by_email("u-1"),
        await users.get_by_email("Alice@example.org"),
        await users.get_by_email("alice@example.org "),
        await users.get_by_oauth("github", "4712"),
        await users.get_by_oauth("google", "4711"),
        await users.get_by_oauth("4711", "github"),
    ):
        assert found is None


async def test_many_accounts_may_have_no_oauth_identity(storage: MongoStorage) -> None:
    """A provider without an id, or an id without a provider, is no identity."""
    halves: list[dict[str, Any]] = [
        {},
        {"oauth_provider": "github"},
        {"oauth_id": "4711"},
        {"oauth_provider": None, "oauth_id": None},
    ]
    for number, half in enumerate(halves * 2):
        await _given(storage, f"u-{number}", **half)
    assert await storage.users.count() == 8
    assert await storage.users.get_by_oauth("github", "4711") is None


# -- values that exist already ----------------------------------------------------------------------

TAKEN: Mapping[str, tuple[str, dict[str, Any]]] = {
    "id": ("u-1", {"email": "other@example.org"}),
    "email": ("u-2", {"email": "alice@example.org"}),
    "OAuth identity": ("u-2", {"email": "other@example.org", "oauth_provider": "github", "oauth_id": "4711"}),
}


@pytest.mark.parametrize("taken", TAKEN)
async def test_create_with_an_existing_value_is_an_error_that_names_it(
    storage: MongoStorage, taken: str
) -> None:
    """The error contains no hash and nothing of the other account; nothing is written."""
    first = await storage.users.create("u-1", **_every_field())
    user_id, fields = TAKEN[taken]
    arguments: dict[str, Any] = {"password_hash": "another-secret", **fields}
    with pytest.raises(UserExistsError) as refused:
        await storage.users.create(user_id, **arguments)
    assert isinstance(refused.value, StorageError)
    assert taken in str(refused.value)
    if "mongomock" not in repr(storage):  # the mock does not always name the index
        assert refused.value.taken == taken
    texts = f"{refused.value!s} {refused.value!r} {refused.value.args!r} {vars(refused.value)!r}"
    for secret in (HASH, "another-secret", "alice@example.org", "4711"):
        assert secret not in texts
    assert await _all(storage) == [first]


@pytest.mark.parametrize("taken", TAKEN)
async def test_exactly_one_of_fifty_concurrent_creates_succeeds(storage: MongoStorage, taken: str) -> None:
    def arguments(number: int) -> dict[str, Any]:
        fields: dict[str, Any] = {"user_id": f"u-{number}", "email": f"{number}@example.org"}
        own: dict[str, dict[str, Any]] = {
            "id": {"user_id": "u"},
            "email": {"email": "same@example.org"},
            "OAuth identity": {"oauth_provider": "github", "oauth_id": "4711"},
        }
        return {**fields, **own[taken]}

    results = await asyncio.gather(
        *(storage.users.create(**arguments(number)) for number in range(50)), return_exceptions=True
    )
    [created] = [result for result in results if not isinstance(result, BaseException)]
    assert sum(isinstance(result, UserExistsError) for result in results) == 49
    assert await _all(storage) == [created]


async def test_no_error_repr_or_log_contains_a_password_hash(
    storage: MongoStorage, caplog: pytest.LogCaptureFixture
) -> None:
    row = await storage.users.create("u-1", **_every_field())
    other = await _given(storage, "u-2", password_hash=HASH)
    texts = [repr(storage), repr(storage.users)]
    attempts: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: storage.users.create("u-1", email="x", password_hash=HASH),
        lambda: storage.users.create("u-3", **_every_field(email={"$ne": None})),
        lambda: storage.users.create("u-3", **_every_field(password_hash=[HASH])),
        lambda: storage.users.create("u-3", **_every_field(password_hash=HASH * 100)),
        lambda: storage.users.create("u-3", **_every_field(password_hash=HASH + "\ud800")),
        lambda: storage.users.update("u-2", **_update_of(row)),
        lambda: storage.users.update("u-2", **_update_of(other, token_version=-1)),
    )
    with caplog.at_level(logging.DEBUG, logger="deerflow_mongo"):
        for number, attempt in enumerate(attempts):
            with case(number):
                with pytest.raises((StorageError, TypeError, ValueError)) as refused:
                    await attempt()
                texts += [str(refused.value), repr(refused.value)]
    texts += [record.getMessage() for record in caplog.records if record.name.startswith("deerflow_mongo")]
    assert HASH not in " ".join(texts)
    assert await _all(storage) == [row, other]


# -- updating --------------------------------------------------------------------------------------


async def test_update_replaces_every_field(storage: MongoStorage) -> None:
    before = await _given(storage, "u-1")
    other = await _given(storage, "u-2")
    assert await storage.users.update("u-1", **_every_field()) is True
    after = await storage.users.get("u-1")
    assert exactly(after) == exactly({**before, **EVERY_FIELD})
    assert await storage.users.get_by_email(before["email"]) is None
    assert await storage.users.get_by_email("alice@example.org") == after
    assert await storage.users.get_by_oauth("github", "4711") == after
    assert await storage.users.get("u-2") == other


async def test_update_may_remove_values_or_change_nothing(storage: MongoStorage) -> None:
    row = await storage.users.create("u-1", **_every_field())
    assert await storage.users.update("u-1", **_update_of(row)) is True
    assert await storage.users.get("u-1") == row
    without: dict[str, Any] = {"password_hash": None, "oauth_provider": None, "oauth_id": None}
    assert await storage.users.update("u-1", **_update_of(row, **without)) is True
    assert await storage.users.get("u-1") == {**row, **without}
    assert await storage.users.get_by_oauth("github", "4711") is None
    await _given(storage, "u-2", oauth_provider="github", oauth_id="4711")


async def test_update_of_a_missing_account_returns_false(storage: MongoStorage) -> None:
    row = await storage.users.create("u-1", **_every_field())
    assert await storage.users.update("u-2", **_update_of(row, email="new@example.org")) is False
    assert await storage.users.update("u-2", **_update_of(row)) is False
    assert await _all(storage) == [row]


async def test_update_to_an_existing_value_changes_nothing(storage: MongoStorage) -> None:
    first = await storage.users.create("u-1", **_every_field())
    second = await _given(storage, "u-2")
    for taken in ({"email": "alice@example.org"}, {"oauth_provider": "github", "oauth_id": "4711"}):
        with case(taken):
            with pytest.raises(UserExistsError) as refused:
                await storage.users.update("u-2", **_update_of(second, token_version=9, **taken))
            assert HASH not in str(refused.value)
            assert await _all(storage) == [first, second]


async def test_exactly_one_of_fifty_concurrent_updates_to_one_email_succeeds(storage: MongoStorage) -> None:
    rows = [await _given(storage, f"u-{number}") for number in range(50)]
    updates = (storage.users.update(row["user_id"], **_update_of(row, email="same@x.org")) for row in rows)
    results = await asyncio.gather(*updates, return_exceptions=True)
    assert results.count(True) == 1
    assert sum(isinstance(result, UserExistsError) for result in results) == 49
    winner = rows[results.index(True)]
    assert await storage.users.get_by_email("same@x.org") == {**winner, "email": "same@x.org"}
    assert len({row["email"] for row in await _all(storage)}) == 50


async def test_update_of_an_account_is_atomic_for_readers(storage: MongoStorage) -> None:
    await _given(storage, "u-1", password_hash="0")  # noqa: S106 - no password

    async def write() -> None:
        for number in range(1, 51):
            changes = {"email": f"{number}@x", "password_hash": str(number), "token_version": number}
            await storage.users.update("u-1", **_every_field(**changes))

    async def read() -> None:
        while not writing.done():
            row = await storage.users.get("u-1")
            assert row is not None
            assert row["password_hash"] == str(row["token_version"])
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    await asyncio.gather(writing, read(), read())


# -- counting and listing --------------------------------------------------------------------------


async def test_accounts_are_counted(storage: MongoStorage) -> None:
    assert exactly(await storage.users.count()) == exactly(0)
    for number in range(12):
        await _given(storage, f"u-{number}", system_role="user" if number % 3 else "admin")
    counts = [
        await storage.users.count(),
        await storage.users.count(system_role=None),
        await storage.users.count(system_role="admin"),
        await storage.users.count(system_role="user"),
        await storage.users.count(system_role="Admin"),
    ]
    assert exactly(counts) == exactly([12, 12, 4, 8, 0])


async def test_accounts_of_a_role_are_listed_oldest_first(storage: MongoStorage) -> None:
    """Accounts with the same `created_at` are ordered by id."""
    ages = {"d": 3, "b": 1, "c": 1, "a": 2, "e": 0}
    for user_id, days in ages.items():
        await _given(storage, user_id, system_role="admin", created_at=DAY + timedelta(days=days))
    await _given(storage, "user")
    listed = [row["user_id"] for row in await storage.users.list_by_role("admin")]
    assert listed == ["e", "b", "c", "a", "d"]
    for limit in (0, 1, 3, 5, 10**12):
        rows = await storage.users.list_by_role("admin", limit=limit)
        assert [row["user_id"] for row in rows] == listed[:limit]
    assert await storage.users.list_by_role("nobody") == []


async def test_list_by_role_returns_a_hundred_accounts_by_default(storage: MongoStorage) -> None:
    rows = [await _given(storage, f"u-{number}") for number in range(105)]
    assert await storage.users.list_by_role("user") == rows[:100]
    assert await storage.users.list_by_role("user", limit=200) == rows


# -- bad input -------------------------------------------------------------------------------------

BAD: Mapping[str, tuple[Any, ...]] = {
    "user_id": (*NO_TEXTS, None, "", TOO_LONG, "a\ud800"),
    "email": (*NO_TEXTS, None, "", TOO_LONG, "a\ud800"),
    "system_role": (*NO_TEXTS, None, "", TOO_LONG),
    "password_hash": (*NO_TEXTS, TOO_LONG, "a\ud800"),
    "oauth_provider": (*NO_TEXTS, TOO_LONG),
    "oauth_id": (*NO_TEXTS, TOO_LONG),
    "needs_setup": (0, 1, None, "", "yes", {"$ne": None}, []),
    "token_version": (-1, 1.0, "1", True, 2**63, {"$inc": 1}, []),
}


async def test_bad_argument_is_named_and_nothing_is_written(storage: MongoStorage) -> None:
    row = await storage.users.create("u-1", **_every_field())
    for name, values in BAD.items():
        for value in values:
            with case(name, repr(value)[:40]):
                arguments = _every_field(user_id="u-2", email="new@example.org", oauth_id="1")
                with pytest.raises((TypeError, ValueError), match=name):
                    await storage.users.create(**{**arguments, name: value})
                arguments["user_id"] = "u-1"
                with pytest.raises((TypeError, ValueError), match=name):
                    await storage.users.update(**{**arguments, name: value})
    for time in ("yesterday", 5, {"$gt": ""}):
        wrong: Any = time
        with case(time), pytest.raises(ValueError, match="created_at"):
            await storage.users.create("u-2", email="new@example.org", created_at=wrong)
    assert await _all(storage) == [row]


async def test_operator_documents_never_reach_a_user_filter(storage: MongoStorage) -> None:
    await storage.users.create("u-1", **_every_field())
    users = storage.users
    for value in (*NO_TEXTS, "", TOO_LONG):
        reads: dict[str, Callable[[Any], Awaitable[object]]] = {
            "user_id": users.get,
            "email": users.get_by_email,
            "oauth_provider": lambda value: users.get_by_oauth(value, "4711"),
            "oauth_id": lambda value: users.get_by_oauth("github", value),
            "system_role": users.list_by_role,
        }
        for name, read in reads.items():
            with case(name, repr(value)[:40]), pytest.raises((TypeError, ValueError), match=name):
                await read(value)
        with case("count", repr(value)[:40]), pytest.raises((TypeError, ValueError), match="system_role"):
            await users.count(system_role=value)
    for limit in (-1, True, 1.5, "5", None):
        wrong: Any = limit
        with case(limit), pytest.raises((TypeError, ValueError), match="limit"):
            await users.list_by_role("admin", limit=wrong)


async def test_special_characters_in_account_texts_are_stored_as_they_are(storage: MongoStorage) -> None:
    texts = ["$ne", "a.b", " ", "a\0b", "é", "e\u0301", "x" * 1_024, "{'$gt': ''}", '{"_json":"1"}']
    for number, text in enumerate(texts):
        with case(text[:20]):
            fields: dict[str, Any] = dict.fromkeys(
                ("email", "password_hash", "system_role", "oauth_provider", "oauth_id"), text
            )
            row = await storage.users.create(f"{number} {text}"[:1_024], **fields)
            assert {name: dict(row)[name] for name in fields} == fields
            for found in (
                await storage.users.get(row["user_id"]),
                await storage.users.get_by_email(text),
                await storage.users.get_by_oauth(text, text),
            ):
                assert found == row
            assert await storage.users.list_by_role(text) == [row]


async def test_empty_optional_texts_of_an_account_are_stored(storage: MongoStorage) -> None:
    empty: dict[str, Any] = dict.fromkeys(("password_hash", "oauth_provider", "oauth_id"), "")
    row = await _given(storage, "u-1", **empty)
    assert {name: dict(row)[name] for name in empty} == empty
    assert await storage.users.get("u-1") == row
