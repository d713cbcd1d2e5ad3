"""Accounts: the promises of `capabilities.UserStore`, skipped for a storage without `Accounts`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ..contract.capabilities import Accounts, UserStore
from ..contract.errors import InvalidArgumentError, StorageError, UserExistsError
from ..contract.protocols import Storage
from ..contract.rows import MAX_COUNT, UserRow
from .cases import case
from .contract import Contract
from .values import assert_is_now, assert_pickles_and_copies, assert_row_time, exactly, now

_HASH = "$2b$12$of-a-secret-password"
_OTHER_HASH = "$2b$12$of-another-password"
_DAY = datetime(2026, 4, 22, tzinfo=UTC)

_DEFAULTS: Mapping[str, Any] = {
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": None,
    "oauth_id": None,
    "needs_setup": False,
    "token_version": 0,
}
_EVERY_FIELD: Mapping[str, Any] = {
    "email": "alice@example.org",
    "password_hash": _HASH,
    "system_role": "admin",
    "oauth_provider": "github",
    "oauth_id": "4711",
    "needs_setup": True,
    "token_version": 3,
}

# The unique value that a second account would share -> the second account.
_DUPLICATES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "id": ("u-1", {"email": "other@example.org"}),
    "email": ("u-2", {"email": "alice@example.org"}),
    "OAuth identity": ("u-2", {"email": "other@example.org", "oauth_provider": "github", "oauth_id": "4711"}),
}

_INVALID_TEXTS: tuple[Any, ...] = ({"$ne": None}, {"$gt": ""}, {}, 5, 0, True, b"x", [], ["x"], object())
_TOO_LONG = "é" * 512 + "x"
_INVALID_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "user_id": (*_INVALID_TEXTS, None, "", _TOO_LONG, "a\ud800"),
    "email": (*_INVALID_TEXTS, None, "", _TOO_LONG, "a\ud800"),
    "system_role": (*_INVALID_TEXTS, None, "", _TOO_LONG),
    "password_hash": (*_INVALID_TEXTS, _TOO_LONG, "a\ud800"),
    "oauth_provider": (*_INVALID_TEXTS, _TOO_LONG),
    "oauth_id": (*_INVALID_TEXTS, _TOO_LONG),
    "needs_setup": (0, 1, None, "", "yes", {"$ne": None}, []),
    "token_version": (-1, 1.0, "1", True, 2**63, {"$inc": 1}, []),
}


async def _given(users: UserStore, user_id: str, **fields: Any) -> UserRow:
    own: dict[str, Any] = {"email": f"{user_id}@example.org", **fields}
    return await users.create(user_id, **own)


def _every_field(**changes: Any) -> dict[str, Any]:
    return {**_EVERY_FIELD, **changes}


def _update_of(row: UserRow, **changes: Any) -> dict[str, Any]:
    """Arguments of `update` that change only `changes`."""
    return {**{name: dict(row)[name] for name in _EVERY_FIELD}, **changes}


async def _all(users: UserStore) -> list[UserRow]:
    found = [await users.list_by_role(role, limit=1_000) for role in ("admin", "user")]
    return [row for rows in found for row in rows]


class AccountContract(Contract):
    @pytest.fixture
    def users(self, request: pytest.FixtureRequest, storage: Storage) -> UserStore:
        """The storage's accounts; skips the test where there are none."""
        if not isinstance(storage, Accounts):
            pytest.skip(f"{request.function.__name__}: {type(storage).__name__} does not have `Accounts`")
        return storage.users

    # Creating and reading.

    async def test_new_account_has_the_documented_defaults(self, users: UserStore) -> None:
        since = now()
        row = await users.create("u-1", email="alice@example.org")
        expected = {
            "user_id": "u-1",
            "email": "alice@example.org",
            **_DEFAULTS,
            "created_at": row["created_at"],
        }
        assert exactly(dict(row)) == exactly(expected)
        assert_is_now(assert_row_time(row["created_at"]), since=since)
        assert await users.get("u-1") == row

    async def test_account_create_stores_every_field(self, users: UserStore) -> None:
        row = await users.create("u-1", **_every_field(created_at="2026-04-22T12:00:00.123456+09:00"))
        expected = {"user_id": "u-1", **_EVERY_FIELD, "created_at": "2026-04-22T03:00:00.123456+00:00"}
        assert exactly(dict(row)) == exactly(expected)
        for found in (
            await users.get("u-1"),
            await users.get_by_email("alice@example.org"),
            await users.get_by_oauth("github", "4711"),
        ):
            assert exactly(found) == exactly(row)
        assert await users.list_by_role("admin") == [row]

    async def test_account_row_has_exactly_the_documented_keys(self, users: UserStore) -> None:
        row = await _given(users, "u-1")
        assert set(row) == set(UserRow.__annotations__)

    async def test_get_of_unknown_account_returns_none(self, users: UserStore) -> None:
        await users.create("u-1", **_every_field())
        for found in (
            await users.get("u-2"),
            await users.get("alice@example.org"),
            await users.get_by_email("u-1"),
            await users.get_by_email("alice@example.org "),
            await users.get_by_oauth("github", "4712"),
            await users.get_by_oauth("google", "4711"),
            await users.get_by_oauth("4711", "github"),
        ):
            assert found is None

    async def test_many_accounts_may_have_no_oauth_identity(self, users: UserStore) -> None:
        """A provider without an id, or an id without a provider, is no identity."""
        halves: list[dict[str, Any]] = [
            {},
            {"oauth_provider": "github"},
            {"oauth_id": "4711"},
            {"oauth_provider": None, "oauth_id": None},
        ]
        for number, half in enumerate(halves * 2):
            await _given(users, f"u-{number}", **half)
        assert await users.count() == 8
        assert await users.get_by_oauth("github", "4711") is None

    async def test_emails_that_differ_in_case_are_one_account(self, users: UserStore) -> None:
        row = await users.create("u-1", email="Alice@X.org")
        assert row["email"] == "alice@x.org"
        for email in ("alice@x.org", "Alice@x.org", "ALICE@X.ORG"):
            assert await users.get_by_email(email) == row
            with case(email), pytest.raises(UserExistsError):
                await users.create("u-2", email=email)
        assert await users.count() == 1

    async def test_of_racing_accounts_whose_emails_differ_in_case_one_is_stored(
        self, users: UserStore
    ) -> None:
        emails = ["alice@x.org", "Alice@x.org", "ALICE@X.ORG", "alice@X.org"] * 5
        results = await asyncio.gather(
            *(users.create(f"u-{number}", email=email) for number, email in enumerate(emails)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, UserExistsError) for result in results) == len(emails) - 1
        assert await users.count() == 1

    async def test_update_stores_another_email_in_lower_case(self, users: UserStore) -> None:
        row = await _given(users, "u-1", email="alice@x.org")
        await _given(users, "u-2", email="bob@x.org")

        async def change(email: str, token_version: int = 0) -> bool:
            fields: dict[str, Any] = {**_DEFAULTS, "email": email, "token_version": token_version}
            return await users.update("u-1", **fields)

        assert await change("ALICE@x.org", token_version=7)
        assert await users.get("u-1") == {**row, "token_version": 7}
        with pytest.raises(UserExistsError):
            await change("Bob@X.org")
        assert await change("Carol@X.org")
        assert await users.get_by_email("CAROL@x.org") == {**row, "email": "carol@x.org"}
        assert await users.get_by_email("alice@x.org") is None

    async def test_token_version_is_not_limited_to_32_bits(self, users: UserStore) -> None:
        row = await _given(users, "u-1", token_version=MAX_COUNT)
        assert exactly(row["token_version"]) == exactly(MAX_COUNT)
        assert exactly(await users.get("u-1")) == exactly(row)

    async def test_any_account_text_round_trips(self, users: UserStore) -> None:
        texts = ["$ne", "a.b", " ", "a\0b", "é", "e\u0301", "x" * 1_024, "{'$gt': ''}", '{"_json":"1"}']
        names = ("email", "password_hash", "system_role", "oauth_provider", "oauth_id")
        for number, text in enumerate(texts):
            with case(text[:20]):
                fields: dict[str, Any] = dict.fromkeys(names, text)
                row = await users.create(f"{number} {text}"[:1_024], **fields)
                assert {name: dict(row)[name] for name in fields} == fields
                for found in (
                    await users.get(row["user_id"]),
                    await users.get_by_email(text),
                    await users.get_by_oauth(text, text),
                ):
                    assert found == row
                assert await users.list_by_role(text) == [row]

    async def test_empty_optional_text_of_an_account_is_stored(self, users: UserStore) -> None:
        empty: dict[str, Any] = dict.fromkeys(("password_hash", "oauth_provider", "oauth_id"), "")
        row = await _given(users, "u-1", **empty)
        assert {name: dict(row)[name] for name in empty} == empty
        assert await users.get("u-1") == row

    # Unique values.

    async def test_duplicate_account_raises_user_exists_error(self, users: UserStore) -> None:
        """It names the value, and neither a hash nor another value of either account; nothing is written."""
        first = await users.create("u-1", **_every_field())
        for duplicate, (user_id, fields) in _DUPLICATES.items():
            with case(duplicate):
                arguments: dict[str, Any] = {"password_hash": _OTHER_HASH, **fields}
                with pytest.raises(UserExistsError, match=duplicate) as raised:
                    await users.create(user_id, **arguments)
                error = raised.value
                assert isinstance(error, StorageError)
                assert duplicate in error.taken
                shown = f"{error!s} {error!r} {error.args!r} {vars(error)!r}"
                for secret in (_HASH, _OTHER_HASH, "alice@example.org", "4711"):
                    assert secret not in shown
                assert_pickles_and_copies(error)
                assert await _all(users) == [first]

    async def test_exactly_one_of_fifty_concurrent_account_creates_succeeds(self, users: UserStore) -> None:
        shared: dict[str, dict[str, Any]] = {
            "id": {"user_id": "shared"},
            "email": {"email": "shared@example.org"},
            "OAuth identity": {"oauth_provider": "github", "oauth_id": "4711"},
        }

        def create(duplicate: str, number: int) -> Awaitable[UserRow]:
            user_id = f"{duplicate} {number}"
            fields: dict[str, Any] = {"user_id": user_id, "email": f"{user_id}@example.org"}
            return users.create(**{**fields, **shared[duplicate]})

        expected: list[UserRow] = []
        for duplicate in shared:
            with case(duplicate):
                creates = (create(duplicate, number) for number in range(50))
                results = await asyncio.gather(*creates, return_exceptions=True)
                [created] = [result for result in results if not isinstance(result, BaseException)]
                assert sum(isinstance(result, UserExistsError) for result in results) == 49
                expected.append(created)
                assert await _all(users) == expected

    async def test_password_hash_never_appears_in_errors_repr_or_log(
        self, storage: Storage, users: UserStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log is that of the backend's own package; a driver may log its commands at DEBUG."""
        row = await users.create("u-1", **_every_field())
        other = await _given(users, "u-2", password_hash=_HASH)
        shown = [repr(storage), repr(users)]
        attempts: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: users.create("u-1", email="x", password_hash=_HASH),
            lambda: users.create("u-3", **_every_field(email={"$ne": None})),
            lambda: users.create("u-3", **_every_field(password_hash=[_HASH])),
            lambda: users.create("u-3", **_every_field(password_hash=_HASH * 100)),
            lambda: users.create("u-3", **_every_field(password_hash=_HASH + "\ud800")),
            lambda: users.update("u-2", **_update_of(row)),
            lambda: users.update("u-2", **_update_of(other, token_version=-1)),
        )
        package = type(storage).__module__.partition(".")[0]
        with caplog.at_level(logging.DEBUG, logger=package):
            for number, attempt in enumerate(attempts):
                with case(number):
                    with pytest.raises(StorageError) as raised:
                        await attempt()
                    shown += [str(raised.value), repr(raised.value)]
        shown += [record.getMessage() for record in caplog.records if record.name.startswith(package)]
        assert _HASH not in " ".join(shown)
        assert await _all(users) == [row, other]

    # Updating.

    async def test_account_update_sets_every_field(self, users: UserStore) -> None:
        before = await _given(users, "u-1")
        other = await _given(users, "u-2")
        assert await users.update("u-1", **_every_field()) is True
        after = await users.get("u-1")
        assert exactly(after) == exactly({**before, **_EVERY_FIELD})
        assert await users.get_by_email(before["email"]) is None
        assert await users.get_by_email("alice@example.org") == after
        assert await users.get_by_oauth("github", "4711") == after
        assert await users.get("u-2") == other

    async def test_account_update_may_clear_fields_or_change_nothing(self, users: UserStore) -> None:
        row = await users.create("u-1", **_every_field())
        assert await users.update("u-1", **_update_of(row)) is True
        assert await users.get("u-1") == row
        cleared: dict[str, Any] = {"password_hash": None, "oauth_provider": None, "oauth_id": None}
        assert await users.update("u-1", **_update_of(row, **cleared)) is True
        assert await users.get("u-1") == {**row, **cleared}
        assert await users.get_by_oauth("github", "4711") is None
        await _given(users, "u-2", oauth_provider="github", oauth_id="4711")

    async def test_update_of_a_missing_account_returns_false(self, users: UserStore) -> None:
        row = await users.create("u-1", **_every_field())
        assert await users.update("u-2", **_update_of(row, email="new@example.org")) is False
        assert await users.update("u-2", **_update_of(row)) is False
        assert await _all(users) == [row]

    async def test_account_update_to_a_duplicate_raises_and_changes_nothing(self, users: UserStore) -> None:
        first = await users.create("u-1", **_every_field())
        second = await _given(users, "u-2")
        for duplicate in ({"email": "alice@example.org"}, {"oauth_provider": "github", "oauth_id": "4711"}):
            with case(duplicate):
                with pytest.raises(UserExistsError) as raised:
                    await users.update("u-2", **_update_of(second, token_version=9, **duplicate))
                assert _HASH not in str(raised.value)
                assert await _all(users) == [first, second]

    async def test_exactly_one_of_fifty_concurrent_updates_to_one_email_succeeds(
        self, users: UserStore
    ) -> None:
        rows = [await _given(users, f"u-{number}") for number in range(50)]
        updates = (users.update(row["user_id"], **_update_of(row, email="same@x.org")) for row in rows)
        results = await asyncio.gather(*updates, return_exceptions=True)
        assert results.count(True) == 1
        assert sum(isinstance(result, UserExistsError) for result in results) == 49
        winner = rows[results.index(True)]
        assert await users.get_by_email("same@x.org") == {**winner, "email": "same@x.org"}
        assert len({row["email"] for row in await _all(users)}) == 50

    async def test_account_update_is_atomic(self, users: UserStore) -> None:
        """A reader sees all fields of one update, never parts of two."""
        await _given(users, "u-1", password_hash="0")  # noqa: S106 - not a password

        async def write() -> None:
            for number in range(1, 51):
                changes = {"email": f"{number}@x", "password_hash": str(number), "token_version": number}
                await users.update("u-1", **_every_field(**changes))

        async def read() -> None:
            while not writing.done():
                row = await users.get("u-1")
                assert row is not None
                assert row["password_hash"] == str(row["token_version"])
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        await asyncio.gather(writing, read(), read())

    # Counting and listing.

    async def test_accounts_are_counted_in_total_and_by_role(self, users: UserStore) -> None:
        assert exactly(await users.count()) == exactly(0)
        for number in range(12):
            await _given(users, f"u-{number}", system_role="user" if number % 3 else "admin")
        counts = [
            await users.count(),
            await users.count(system_role=None),
            await users.count(system_role="admin"),
            await users.count(system_role="user"),
            await users.count(system_role="Admin"),
        ]
        assert exactly(counts) == exactly([12, 12, 4, 8, 0])

    async def test_accounts_of_a_role_are_listed_oldest_first(self, users: UserStore) -> None:
        """Accounts with equal `created_at` are listed by id."""
        ages = {"d": 3, "c": 1, "b": 1, "a": 2, "e": 0}
        for user_id, days in ages.items():
            await _given(users, user_id, system_role="admin", created_at=_DAY + timedelta(days=days))
        await _given(users, "user")
        listed = [row["user_id"] for row in await users.list_by_role("admin")]
        assert listed == ["e", "b", "c", "a", "d"]
        for limit in (0, 1, 3, 5, 10**12):
            with case(limit):
                rows = await users.list_by_role("admin", limit=limit)
                assert [row["user_id"] for row in rows] == listed[:limit]
        assert await users.list_by_role("unknown") == []

    async def test_account_list_has_a_default_limit_of_100(self, users: UserStore) -> None:
        rows = [await _given(users, f"u-{number}") for number in range(105)]
        assert await users.list_by_role("user") == rows[:100]
        assert await users.list_by_role("user", limit=200) == rows

    # Invalid arguments.

    async def test_invalid_account_field_raises_and_writes_nothing(self, users: UserStore) -> None:
        """The error is an `InvalidArgumentError` that names the field."""
        row = await users.create("u-1", **_every_field())
        for name, values in _INVALID_FIELDS.items():
            for value in values:
                with case(name, repr(value)[:40]):
                    arguments = _every_field(user_id="u-2", email="new@example.org", oauth_id="1")
                    with pytest.raises(InvalidArgumentError, match=name):
                        await users.create(**{**arguments, name: value})
                    arguments["user_id"] = "u-1"
                    with pytest.raises(InvalidArgumentError, match=name):
                        await users.update(**{**arguments, name: value})
        for time in ("yesterday", 5, {"$gt": ""}):
            wrong: Any = time
            with case(time), pytest.raises(InvalidArgumentError, match="created_at"):
                await users.create("u-2", email="new@example.org", created_at=wrong)
        assert await _all(users) == [row]

    async def test_invalid_argument_of_an_account_query_raises(self, users: UserStore) -> None:
        """Also an operator document such as `{"$ne": None}`."""
        await users.create("u-1", **_every_field())
        for value in (*_INVALID_TEXTS, "", _TOO_LONG):
            reads: dict[str, Callable[[Any], Awaitable[object]]] = {
                "user_id": users.get,
                "email": users.get_by_email,
                "oauth_provider": lambda value: users.get_by_oauth(value, "4711"),
                "oauth_id": lambda value: users.get_by_oauth("github", value),
                "system_role": users.list_by_role,
            }
            for name, read in reads.items():
                with case(name, repr(value)[:40]), pytest.raises(InvalidArgumentError, match=name):
                    await read(value)
            with case("count", repr(value)[:40]), pytest.raises(InvalidArgumentError, match="system_role"):
                await users.count(system_role=value)
        for limit in (-1, True, 1.5, "5", None):
            wrong: Any = limit
            with case(limit), pytest.raises(InvalidArgumentError, match="limit"):
                await users.list_by_role("admin", limit=wrong)

    async def test_account_methods_have_the_contracts_docstring(self, users: UserStore) -> None:
        for name, method in vars(UserStore).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                with case(name):
                    assert inspect.getdoc(getattr(users, name)) == inspect.getdoc(method)
