"""What DeerFlow may rely on of its `ThreadMetaStore`, on every storage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from deerflow_mongo.hosts.availability import AvailabilityMiddleware, StorageHealth

from .gateway_process import needs_deerflow
from .host_stores import (
    OURS,
    THREADS,
    acting,
    expect_differences,
    named,
    open_storage,
    open_store,
    refusals,
    signature_faults,
    stale_differences,
)

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

KEYS = {
    "thread_id",
    "assistant_id",
    "user_id",
    "display_name",
    "status",
    "metadata",
    "created_at",
    "updated_at",
}
MISSING_IDS = pytest.mark.parametrize(
    "thread_id", ["missing", "", "x" * 5_000], ids=["missing", "empty", "long"]
)


@pytest.fixture(params=THREADS.backends)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, mongodb_url: str, database_name: str
) -> AsyncGenerator[Any]:
    expect_differences(request, THREADS)
    opened = open_store(THREADS, request.param, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as threads:
        yield threads


@pytest.fixture
async def ours(tmp_path: Path, mongodb_url: str, database_name: str) -> AsyncGenerator[Any]:
    opened = open_store(THREADS, OURS, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as threads:
        yield threads


async def create(store: Any, thread_id: str = "thread", **fields: Any) -> dict[str, Any]:
    return await store.create(thread_id, **{"user_id": "alice", **fields})


async def get(store: Any, thread_id: str = "thread") -> Any:
    return await store.get(thread_id, user_id=None)


async def found(store: Any, **wanted: Any) -> list[str]:
    return [row["thread_id"] for row in await store.search(**{"user_id": None, **wanted})]


def when(text: str) -> datetime:
    """A row's time; one without an offset is in UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# -- the interface ---------------------------------------------------------------------------------


def test_adapter_has_every_method_with_deerflows_signature() -> None:
    assert signature_faults(THREADS) == []
    assert stale_differences(THREADS, globals()) == []


async def test_store_is_an_instance_of_deerflows_base_class(store: Any) -> None:
    assert isinstance(store, named(str(THREADS.base)))


# -- create and get --------------------------------------------------------------------------------


async def test_create_stores_every_field_and_returns_the_row(store: Any) -> None:
    given = {
        "assistant_id": "lead_agent",
        "user_id": "alice",
        "display_name": "Ünï",
        "metadata": {"a.b": {"$c": [1, None, 2.5]}},
    }
    row = await store.create("thread", **given)
    assert {name: row[name] for name in given} == given
    assert (row["thread_id"], row["status"]) == ("thread", "idle")
    assert row["created_at"] == row["updated_at"]
    assert when(row["created_at"]) <= datetime.now(UTC)
    assert await get(store) == row


async def test_row_has_the_keys_of_the_sql_row(store: Any) -> None:
    assert set(await create(store)) == KEYS
    assert set(await get(store)) == KEYS
    [row] = await store.search(user_id=None)
    assert set(row) == KEYS


async def test_times_have_an_offset(store: Any) -> None:
    await create(store)
    row = await get(store)
    assert datetime.fromisoformat(row["created_at"]).tzinfo is not None
    assert datetime.fromisoformat(row["updated_at"]).tzinfo is not None


async def test_fields_of_a_new_thread_are_optional(store: Any) -> None:
    row = await create(store)
    assert row["assistant_id"] is row["display_name"] is None
    assert row["metadata"] == {}


async def test_existing_thread_is_not_overwritten(store: Any) -> None:
    await create(store, metadata={"first": True})
    with pytest.raises(refusals()):
        await create(store, user_id="bob", metadata={"first": False})
    row = await get(store)
    assert (row["user_id"], row["metadata"]) == ("alice", {"first": True})


@MISSING_IDS
async def test_missing_ids_are_not_found(store: Any, thread_id: str) -> None:
    assert await get(store, thread_id) is None
    await store.delete(thread_id, user_id=None)


# -- users -----------------------------------------------------------------------------------


async def test_user_sees_own_threads_only(store: Any) -> None:
    await create(store, "hers")
    await create(store, "his", user_id="bob")
    await create(store, "nobodys", user_id=None)
    assert (await store.get("hers", user_id="alice"))["thread_id"] == "hers"
    for thread_id in ("his", "nobodys"):
        assert await store.get(thread_id, user_id="alice") is None
    assert await found(store, user_id="alice") == ["hers"]
    assert set(await found(store)) == {"hers", "his", "nobodys"}


async def test_default_user_is_the_bound_user(store: Any) -> None:
    alice = UUID(int=1)
    with acting(alice):
        assert (await store.create("thread"))["user_id"] == str(alice)
    with acting("bob"):
        assert await store.get("thread") is None
        assert await store.search() == []
        await store.update_display_name("thread", "his")
        await store.update_status("thread", "busy")
        await store.update_metadata("thread", {"his": True})
        await store.delete("thread")
    with acting(alice):
        row = await store.get("thread")
        assert (row["display_name"], row["status"], row["metadata"]) == (None, "idle", {})
        await store.update_display_name("thread", "hers")
        await store.update_status("thread", "busy")
        await store.update_metadata("thread", {"hers": True})
        [row] = await store.search()
        assert (row["display_name"], row["status"], row["metadata"]) == ("hers", "busy", {"hers": True})
        await store.delete("thread")
    assert await get(store) is None


async def test_user_id_may_be_a_uuid(store: Any) -> None:
    assert (await create(store, user_id=UUID(int=1)))["user_id"] == str(UUID(int=1))
    assert await found(store, user_id=UUID(int=1)) == ["thread"]
    assert await store.check_access("thread", UUID(int=1)) is True


async def test_default_user_without_a_bound_user_is_an_error(store: Any) -> None:
    for call in (
        lambda: store.create("thread"),
        lambda: store.get("thread"),
        lambda: store.search(),
        lambda: store.update_display_name("thread", "name"),
        lambda: store.update_status("thread", "busy"),
        lambda: store.update_metadata("thread", {}),
        lambda: store.delete("thread"),
    ):
        with pytest.raises(RuntimeError, match="user"):
            await call()


@pytest.mark.parametrize(
    ("owner", "user_id", "allowed"), [("alice", "alice", True), ("alice", "bob", False), (None, "bob", True)]
)
@pytest.mark.parametrize("require_existing", [False, True])
async def test_owner_has_access_and_everybody_to_a_thread_without_owner(
    store: Any, owner: str | None, user_id: str, allowed: bool, require_existing: bool
) -> None:
    await create(store, user_id=owner)
    assert await store.check_access("thread", user_id, require_existing=require_existing) is allowed


@MISSING_IDS
async def test_access_to_a_missing_thread_depends_on_require_existing(store: Any, thread_id: str) -> None:
    assert await store.check_access(thread_id, "alice") is True
    assert await store.check_access(thread_id, "alice", require_existing=True) is False


async def test_request_reads_a_thread_once_to_grant_access_and_each_time_to_refuse_it(
    ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's route of a new run checks the thread's owner, and so does the run manager."""
    await create(ours, user_id="alice")
    reads: list[str] = []
    get_thread_meta = ours._threads.get_thread_meta

    async def counted(thread_id: str) -> Any:
        reads.append(thread_id)
        return await get_thread_meta(thread_id)

    monkeypatch.setattr(ours._threads, "get_thread_meta", counted)
    found: list[bool] = []

    async def app(*_: Any) -> None:
        found.extend([await ours.check_access("thread", name) for name in ("alice", "alice", "bob", "bob")])
        found.extend([await ours.check_access("missing", "alice") for _ in range(2)])

    middleware = AvailabilityMiddleware(app, health=StorageHealth())
    for _ in range(2):
        await middleware({"type": "http", "method": "POST", "path": "/"}, _ignore, _ignore)
    assert found == [True, True, False, False, True, True] * 2
    assert reads == ["thread", "thread", "thread", "missing", "missing"] * 2
    reads.clear()
    assert [await ours.check_access("thread", "alice") for _ in range(2)] == [True, True]
    assert reads == ["thread", "thread"], "without a request, each check reads"


async def _ignore(*_: Any) -> Any:
    """In place of a request's `receive` and `send`."""


# -- updates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "value", "field", "stored"),
    [
        ("update_display_name", "Title", "display_name", "Title"),
        ("update_status", "running", "status", "running"),
        ("update_metadata", {"b": 2}, "metadata", {"a": 1, "b": 2}),
    ],
)
@pytest.mark.parametrize("user_id", ["alice", None])
async def test_update_changes_one_field_and_updated_at(
    store: Any, method: str, value: Any, field: str, stored: Any, user_id: str | None
) -> None:
    before = await create(store, metadata={"a": 1}, display_name="Old", assistant_id="lead_agent")
    await getattr(store, method)("thread", value, user_id=user_id)
    after = await get(store)
    assert after[field] == stored
    assert when(after["updated_at"]) > when(before["updated_at"])
    assert {**after, field: None, "updated_at": None} == {**before, field: None, "updated_at": None}


async def test_updates_of_a_missing_or_another_users_thread_change_nothing(store: Any) -> None:
    before = await create(store)
    missing = [(thread_id, user) for thread_id in ("missing", "", "x" * 5_000) for user in (None, "alice")]
    for thread_id, user_id in (*missing, ("thread", "bob")):
        await store.update_display_name(thread_id, "Title", user_id=user_id)
        await store.update_status(thread_id, "busy", user_id=user_id)
        await store.update_metadata(thread_id, {"a": 1}, user_id=user_id)
    assert await get(store) == before
    assert await get(store, "missing") is None


async def test_metadata_is_merged_by_top_level_keys(store: Any) -> None:
    await create(store, metadata={"a": {"x": 1}, "b": 1, "c.d": 1})
    await store.update_metadata("thread", {"a": {"y": 2}, "c.d": None, "$e": 3}, user_id="alice")
    assert (await get(store))["metadata"] == {"a": {"y": 2}, "b": 1, "c.d": None, "$e": 3}


async def test_metadata_with_infinity_comes_back_unchanged(store: Any) -> None:
    await create(store, metadata={"a": float("inf")})
    await store.update_metadata("thread", {"b": float("-inf")}, user_id=None)
    assert (await get(store))["metadata"] == {"a": float("inf"), "b": float("-inf")}


async def test_search_finds_merged_metadata(store: Any) -> None:
    await create(store, metadata={"a": 1, "b": 1})
    await store.update_metadata("thread", {"a": 2}, user_id="alice")
    assert await found(store, metadata={"a": 2}) == ["thread"]
    assert await found(store, metadata={"a": 1}) == []
    assert await found(store, metadata={"a": 2, "b": 1}) == ["thread"]


async def test_thread_is_deleted_by_its_owner_only(store: Any) -> None:
    await create(store)
    await store.delete("thread", user_id="bob")
    assert await get(store) is not None
    await store.delete("thread", user_id="alice")
    assert await get(store) is None


# -- search ----------------------------------------------------------------------------------------


async def test_search_is_last_updated_first(store: Any) -> None:
    for thread_id in "abcd":
        await create(store, thread_id)
    await store.update_status("b", "busy", user_id=None)
    assert await found(store) == ["b", "d", "c", "a"]


async def test_search_is_paged(store: Any) -> None:
    for thread_id in "abcd":
        await create(store, thread_id)
    pages = [await found(store, limit=2, offset=offset) for offset in (0, 2, 4)]
    assert [len(page) for page in pages] == [2, 2, 0]
    assert sorted(pages[0] + pages[1]) == list("abcd")


async def test_search_by_status(store: Any) -> None:
    for thread_id in "ab":
        await create(store, thread_id)
    await store.update_status("b", "running", user_id=None)
    assert await found(store, status="running") == ["b"]
    assert await found(store, status="idle", user_id="alice") == ["a"]
    assert len(await found(store, status="")) == 2
    assert await found(store, status="  ") == []
    assert await found(store, status="x" * 5_000) == []


async def test_search_by_metadata(store: Any) -> None:
    await create(store, "a", metadata={"kind": "agent", "n": 1})
    await create(store, "b", metadata={"kind": "agent", "n": 2}, user_id="bob")
    assert set(await found(store, metadata={"kind": "agent"})) == {"a", "b"}
    assert await found(store, metadata={"kind": "agent", "n": 2}) == ["b"]
    assert await found(store, metadata={"kind": "agent"}, user_id="alice") == ["a"]
    assert await found(store, metadata={"kind": "other"}) == []
    assert await found(store, metadata={"missing": "x"}) == []
    assert len(await found(store, metadata={})) == 2


@pytest.mark.parametrize(
    ("value", "others"),
    [
        (1, [True, "1"]),
        (True, [1, "true"]),
        ("1", [1]),
        ("true", [True]),
        (2.5, ["2.5", 2]),
        (False, [0, None]),
    ],
    ids=repr,
)
async def test_search_distinguishes_types(store: Any, value: Any, others: list[Any]) -> None:
    await create(store, "it", metadata={"k": value})
    for position, other in enumerate(others):
        await create(store, str(position), metadata={"k": other})
    assert await found(store, metadata={"k": value}) == ["it"]


async def test_search_for_null_finds_null_and_not_missing(store: Any) -> None:
    await create(store, "null", metadata={"k": None})
    await create(store, "missing", metadata={"other": 1})
    assert await found(store, metadata={"k": None}) == ["null"]


async def test_search_for_a_float_finds_the_integer(store: Any) -> None:
    await create(store, metadata={"k": 2})
    assert await found(store, metadata={"k": 2.0}) == ["thread"]


UNSEARCHABLE: dict[Any, Any] = {
    "a.b": 1,
    "$or": 1,
    "": 1,
    "list": [1],
    "map": {"a": 1},
    "large": 2**63,
    'q"': "x",
}


@pytest.mark.parametrize("key", UNSEARCHABLE)
async def test_unsearchable_metadata_is_ignored_and_logged(
    store: Any, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    await create(store, "a", metadata={"safe": 1})
    await create(store, "b", metadata={"safe": 2})
    with caplog.at_level(logging.WARNING):
        assert await found(store, metadata={"safe": 1, key: UNSEARCHABLE[key]}) == ["a"]
    assert [record for record in caplog.records if repr(key).strip("'") in record.message]


async def test_search_by_unsearchable_metadata_alone_is_refused(store: Any) -> None:
    error = named("deerflow.persistence.thread_meta.base:InvalidMetadataFilterError")
    with pytest.raises(error, match=r"a\.b, list, map"):
        await store.search(metadata={"map": {}, "list": [], "a.b": 1}, user_id=None)


# -- ours alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_search_for_nan_or_infinity_is_refused(ours: Any, value: float) -> None:
    error = named("deerflow.persistence.thread_meta.base:InvalidMetadataFilterError")
    with pytest.raises(error, match="k"):
        await ours.search(metadata={"k": value}, user_id=None)


async def test_concurrent_merges_lose_nothing(ours: Any) -> None:
    await create(ours)
    merges = (ours.update_metadata("thread", {f"k{i}": i}, user_id="alice") for i in range(20))
    await asyncio.gather(*merges)
    assert (await get(ours))["metadata"] == {f"k{i}": i for i in range(20)}
    assert await found(ours, metadata={"k7": 7, "k19": 19}) == ["thread"]


async def test_deleted_thread_is_open_only_to_the_owner_of_its_runs(
    mongodb_url: str, database_name: str
) -> None:
    async with open_storage(mongodb_url, database_name) as storage:
        threads = named(THREADS.ours)(storage.threads, storage.runs)
        await storage.runs.create("run", "thread", user_id="alice")
        await storage.runs.create("other", "nobodys", user_id=None)
        for thread_id, user_id, allowed in (
            ("thread", "alice", True),
            ("thread", "bob", False),
            ("nobodys", "bob", True),
            ("missing", "bob", True),
            ("", "bob", True),
        ):
            assert await threads.check_access(thread_id, user_id) is allowed
            assert await threads.check_access(thread_id, user_id, require_existing=True) is False


async def test_one_of_many_concurrent_creates_succeeds(ours: Any) -> None:
    users = [f"user{i}" for i in range(10)]
    results = await asyncio.gather(*(create(ours, user_id=user) for user in users), return_exceptions=True)
    [row] = [row for row in results if isinstance(row, dict)]
    assert await get(ours) == row


# -- what DeerFlow calls from release 2.1 on -------------------------------------------------------


async def test_existing_thread_is_the_integrity_error_that_deerflows_route_catches(ours: Any) -> None:
    await create(ours)
    with pytest.raises(named("sqlalchemy.exc:IntegrityError"), match="'thread' exists already") as refused:
        await create(ours)
    assert refused.value.sqlstate == "23505"


async def test_search_is_pinned_first_and_then_last_updated_first(ours: Any) -> None:
    for name in ("a", "b", "c", "d"):
        await create(ours, name)
    await ours.update_metadata("b", {"deerflow_pinned": True}, touch=False, user_id="alice")
    await ours.update_metadata("a", {"deerflow_pinned": True}, touch=False, user_id="alice")
    await ours.update_metadata("c", {"deerflow_pinned": 1}, touch=False, user_id="alice")
    assert await found(ours) == await found(ours, user_id="alice") == ["b", "a", "d", "c"]
    assert await found(ours, limit=2, offset=1) == ["a", "d"]
    await ours.update_metadata("b", {"deerflow_pinned": False}, touch=False, user_id="alice")
    await ours.update_metadata("c", {"other": 1}, user_id="alice")
    assert await found(ours) == ["a", "c", "d", "b"]


async def test_metadata_without_touch_leaves_the_time_of_the_update(ours: Any) -> None:
    before = await create(ours, metadata={"a": 1})
    await ours.update_metadata("thread", {"b": 2}, touch=False, user_id="alice")
    assert await get(ours) == {**before, "metadata": {"a": 1, "b": 2}}
    await ours.update_metadata("thread", {"b": 3}, user_id="alice")
    assert when((await get(ours))["updated_at"]) > when(before["updated_at"])


async def test_owner_changes_by_the_owner_or_without_a_user(ours: Any) -> None:
    before = await create(ours)
    await ours.update_owner("thread", "bob", user_id="carol")
    assert await get(ours) == before
    with acting("alice"):
        await ours.update_owner("thread", UUID(int=1))
    row = await get(ours)
    assert row["user_id"] == str(UUID(int=1))
    assert when(row["updated_at"]) > when(before["updated_at"])
    await ours.update_owner("thread", "bob", user_id=None)
    assert (await ours.check_access("thread", "bob"), await ours.check_access("thread", "alice")) == (
        True,
        False,
    )
    await ours.update_owner("missing", "bob", user_id=None)
    await ours.update_owner("", "bob", user_id=None)
    with pytest.raises(TypeError, match="owner_user_id"):
        await ours.update_owner("thread", None, user_id=None)


async def test_error_of_an_unsearchable_filter_is_deerflows_text(ours: Any) -> None:
    with pytest.raises(named("deerflow.persistence.thread_meta.base:InvalidMetadataFilterError")) as refused:
        await ours.search(metadata={"b;": 1, "a.b": 1}, user_id=None)
    assert str(refused.value) == "All metadata filter keys were rejected as unsafe: a.b, b;"
