"""Statuses compared and set in one update, with every driver; and the runs that repeat others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from deerflow_mongo import ActiveRunError, MongoStorage, create_storage
from deerflow_mongo.contract.rows import ACTIVE_STATUSES, ENDED_STATUSES

pytestmark = pytest.mark.usefixtures("emptied_database")

THREAD, EARLY, LATE = "t", "2026-04-22T03:00:00.000001+00:00", "2026-04-22T04:00:00+00:00"
STATUSES = (*ACTIVE_STATUSES, *ENDED_STATUSES, "odd")


@pytest.fixture(params=["pymongo", "motor", "mongomock"])
async def storage(
    request: pytest.FixtureRequest, mongodb_url: str, database_name: str
) -> AsyncIterator[MongoStorage]:
    config: dict[str, Any] = {"backend": "mongodb", "driver": request.param}
    if request.param != "mongomock":
        config |= {"url": mongodb_url, "database": database_name}
    storage = create_storage(config)
    assert isinstance(storage, MongoStorage)
    async with storage:
        yield storage


async def _row(storage: MongoStorage, run_id: str = "r") -> dict[str, Any]:
    row = await storage.runs.get(run_id, user_id=None)
    assert row is not None
    return dict(row)


def _is_warned(caplog: pytest.LogCaptureFixture) -> bool:
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return bool(found)


FROM: tuple[tuple[str, ...] | None, ...] = (
    None,
    (),
    ("pending", "running"),
    ("pending", "running", "interrupted"),
    ("error",),
    ("odd", "success"),
)


async def test_status_is_set_from_the_given_statuses_only(
    storage: MongoStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """An ended run stays ended all the same, and the update counts: its times are set."""
    for new in ("running", "success", "odd"):
        for statuses in FROM:
            for old in STATUSES:
                run_id = f"{old} {new} {statuses}"
                await storage.runs.create(run_id, THREAD, user_id=None, status=old)
                before = await _row(storage, run_id)
                changed = await storage.runs.update_status(
                    run_id, new, started_at=EARLY, error="e", from_statuses=statuses
                )
                row = await _row(storage, run_id)
                assert changed is (statuses is None or old in statuses), run_id
                if not changed:
                    assert row == before, run_id
                    continue
                is_late = old in ENDED_STATUSES and new == "running"
                assert (row["status"], row["error"]) == ((old, None) if is_late else (new, "e")), run_id
                assert row["started_at"] == EARLY, run_id
    assert not _is_warned(caplog)


async def test_completion_is_stored_from_the_given_statuses_only(
    storage: MongoStorage, caplog: pytest.LogCaptureFixture
) -> None:
    for statuses in FROM:
        for old in STATUSES:
            run_id = f"{old} {statuses}"
            await storage.runs.create(run_id, THREAD, user_id=None, status=old)
            before = await _row(storage, run_id)
            changed = await storage.runs.update_run_completion(
                run_id, status="timeout", total_tokens=5, from_statuses=statuses
            )
            row = await _row(storage, run_id)
            assert changed is (statuses is None or old in statuses), run_id
            assert (row["status"], row["total_tokens"]) == ("timeout", 5) if changed else row == before
    assert not _is_warned(caplog)


async def test_missing_run_is_false_and_logged_whatever_the_statuses(
    storage: MongoStorage, caplog: pytest.LogCaptureFixture
) -> None:
    for statuses in FROM:
        for status in ("running", "success"):
            assert not await storage.runs.update_status("none", status, from_statuses=statuses)
            assert _is_warned(caplog), (statuses, status)
        assert not await storage.runs.update_run_completion("none", status="error", from_statuses=statuses)
        assert _is_warned(caplog), statuses


async def test_invalid_from_statuses_are_refused_before_anything_is_written(storage: MongoStorage) -> None:
    await storage.runs.create("r", THREAD, user_id=None)
    wrong: tuple[Any, ...] = ("pending", {"$ne": None}, [None], [{"$ne": None}], [""], 5)
    for statuses in wrong:
        with pytest.raises((TypeError, ValueError), match="from_statuses"):
            await storage.runs.update_status("r", "running", from_statuses=statuses)
        with pytest.raises((TypeError, ValueError), match="from_statuses"):
            await storage.runs.update_run_completion("r", status="error", from_statuses=statuses)
    with pytest.raises((TypeError, ValueError), match="stop_reason"):
        await storage.runs.update_status("r", "running", stop_reason=cast("Any", 5))
    assert (await _row(storage))["updated_at"] == ""


async def test_active_status_on_an_ended_run_sets_only_missing_times(storage: MongoStorage) -> None:
    await storage.runs.create("r", THREAD, user_id=None, status="success", ended_at=EARLY, error="first")
    before = await _row(storage)
    assert await storage.runs.update_status(
        "r", "running", started_at=EARLY, ended_at=LATE, error="late", stop_reason="late"
    )
    after = await _row(storage)
    assert after["updated_at"] != ""
    assert after == {**before, "started_at": EARLY, "updated_at": after["updated_at"]}


async def test_of_racing_changes_from_one_status_one_is_made(storage: MongoStorage) -> None:
    await storage.runs.create("r", THREAD, user_id=None)
    changes = (
        storage.runs.update_status("r", ("running", "interrupted")[number % 2], from_statuses=["pending"])
        for number in range(50)
    )
    assert sorted(await asyncio.gather(*changes)) == [False] * 49 + [True]


async def test_stop_reason_is_stored_with_the_status(storage: MongoStorage) -> None:
    runs = storage.runs
    await runs.put("r", thread_id=THREAD, user_id=None)
    for status, reason in (("running", "$a"), ("success", "user_stop")):
        await runs.update_status("r", status, stop_reason=reason)
        await runs.update_status("r", status, started_at=EARLY)
        assert (await _row(storage))["stop_reason"] == reason
    await runs.update_status("r", "running", stop_reason="late", metadata={"a": 1})
    assert (await _row(storage))["stop_reason"] == "user_stop"


async def test_second_active_run_of_a_thread_is_refused_and_stays_as_it_is(storage: MongoStorage) -> None:
    runs = storage.runs
    await runs.put("first", thread_id=THREAD, user_id=None, status="success")
    await runs.update_status("first", "odd")
    await runs.put("second", thread_id=THREAD, user_id=None)
    before = await _row(storage, "first")
    for statuses in (None, ["odd"], ["odd", "error"]):
        with pytest.raises(ActiveRunError, match=repr(THREAD)) as error:
            await runs.update_status("first", "running", from_statuses=statuses)
        assert error.value.thread_id == THREAD
        with pytest.raises(ActiveRunError):
            await runs.update_status("first", "running", metadata={"a": 1}, from_statuses=statuses)
        with pytest.raises(ActiveRunError):
            await runs.update_run_completion("first", status="running", from_statuses=statuses)
    assert await _row(storage, "first") == before
    await runs.update_status("second", "success")
    assert await runs.update_status("first", "running")


# -- reads -----------------------------------------------------------------------------------------

SOURCES: dict[str, Any] = {
    "text": "run-0",
    "same text": "run-0",
    "surrogate": "\ud800",
    "dotted": "a.$b",
    "marked": "_json",
    "empty": "",
    "none": None,
    "number": 5,
    "list": ["run-9"],
    "object": {"_json": "run-8"},
}


async def test_sources_of_successful_regenerations_are_the_texts_of_the_whole_thread(
    storage: MongoStorage,
) -> None:
    runs = storage.runs
    for name, value in SOURCES.items():
        metadata = {"regenerate_from_run_id": value}
        await runs.create(name, THREAD, user_id="alice", status="success", metadata=metadata)
    for number in range(120):
        metadata = {"regenerate_from_run_id": f"many-{number}"}
        await runs.create(f"m{number}", THREAD, user_id="alice", status="success", metadata=metadata)
    others: tuple[dict[str, Any], ...] = (
        {"thread_id": THREAD, "user_id": "bob", "status": "success"},
        {"thread_id": "other", "user_id": "alice", "status": "success"},
        {"thread_id": THREAD, "user_id": "alice", "status": "error"},
        {"thread_id": THREAD, "user_id": "alice", "status": "running"},
    )
    for number, other in enumerate(others):
        await runs.create(f"other-{number}", metadata={"regenerate_from_run_id": f"o{number}"}, **other)
    await runs.put(
        "reserved",
        thread_id=THREAD,
        operation_kind="delete",
        user_id="alice",
        status="success",
        metadata={"regenerate_from_run_id": "x"},
    )
    expected = {"run-0", "\ud800", "a.$b", "_json"} | {f"many-{number}" for number in range(120)}
    assert await runs.list_successful_regenerate_sources(THREAD, user_id="alice") == expected
    everybody = await runs.list_successful_regenerate_sources(THREAD, user_id=None)
    assert everybody == expected | {"o0"}
    assert await runs.list_successful_regenerate_sources("none", user_id=None) == set()


async def test_edit_regenerations_are_listed_oldest_first_in_any_status(storage: MongoStorage) -> None:
    runs = storage.runs
    edits: list[tuple[Any, Any]] = [("edit", value) for value in SOURCES.values()]
    edits += [(kind, "run-0") for kind in (None, "", "retry", ["edit"], {"edit": 1})]
    for number, (kind, source) in enumerate(edits):
        metadata = {"replay_kind": kind, "regenerate_from_run_id": source}
        status = STATUSES[number % len(STATUSES)]
        await runs.create(f"e{number}", THREAD, user_id="alice", status=status, metadata=metadata)
    for number in range(110):
        metadata = {"replay_kind": "edit", "regenerate_from_run_id": "x"}
        await runs.create(f"m{number}", THREAD, user_id="alice", metadata=metadata)
    await runs.create("no source", THREAD, user_id="alice", metadata={"replay_kind": "edit"})
    await runs.put(
        "reserved",
        thread_id=THREAD,
        operation_kind="delete",
        user_id="alice",
        metadata={"replay_kind": "edit", "regenerate_from_run_id": "x"},
    )
    listed = await runs.list_edit_regenerate_runs(THREAD, user_id="alice")
    expected = [f"e{number}" for number in range(5)] + [f"m{number}" for number in range(110)]
    assert [row["run_id"] for row in listed] == expected
    assert await runs.list_edit_regenerate_runs(THREAD, user_id="bob") == []


async def test_runs_of_a_thread_are_read_by_their_ids(storage: MongoStorage) -> None:
    runs = storage.runs
    for number in range(120):
        await runs.create(f"r{number}", THREAD, user_id="alice")
    await runs.create("bob's", THREAD, user_id="bob")
    await runs.create("elsewhere", "other", user_id="alice")
    await runs.put("reserved", thread_id=THREAD, operation_kind="delete", user_id="alice")
    await runs.put("owned", thread_id=THREAD, operation_kind=None, user_id="alice")
    ids = {"bob's", "elsewhere", "reserved", "owned", "none", *(f"r{number}" for number in range(120))}
    found = await runs.get_many_by_thread(THREAD, ids, user_id="alice")
    assert found.keys() == ids - {"bob's", "elsewhere", "reserved", "none"}
    assert found["r7"] == await runs.get("r7", user_id="alice")
    assert "bob's" in await runs.get_many_by_thread(THREAD, iter(ids), user_id=None)
    wrong: tuple[Any, ...] = ("r1", b"r1", {"$ne": None}, None, [{"$ne": None}], [""], 5)
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match="run_ids"):
            await runs.get_many_by_thread(THREAD, value, user_id=None)


async def test_no_ids_give_no_runs_and_need_an_actor_all_the_same(storage: MongoStorage) -> None:
    for empty in (list[str](), set[str]()):
        assert await storage.runs.get_many_by_thread(THREAD, empty, user_id=None) == {}
    with pytest.raises(RuntimeError, match="get_many_by_thread"):
        await storage.runs.get_many_by_thread(THREAD, [])
