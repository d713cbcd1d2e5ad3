"""What DeerFlow may rely on of its `RunEventStore`, on every storage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from deerflow_mongo.contract.actor import BoundActor, current_actor
from deerflow_mongo.contract.errors import PayloadTooLargeError
from deerflow_mongo.contract.rows import ThreadMetaCreate
from deerflow_mongo.mongodb.storage import MongoStorage

from .gateway_process import needs_deerflow
from .host_stores import (
    RUN_EVENTS,
    acting,
    expect_differences,
    named,
    open_storage,
    open_store,
    signature_faults,
    stale_differences,
)

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

MIB = 1024 * 1024
KEYS = {
    "thread_id",
    "run_id",
    "user_id",
    "event_type",
    "category",
    "content",
    "metadata",
    "created_at",
    "seq",
}


@pytest.fixture(params=RUN_EVENTS.backends)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, mongodb_url: str, database_name: str
) -> AsyncGenerator[Any]:
    expect_differences(request, RUN_EVENTS)
    opened = open_store(RUN_EVENTS, request.param, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as run_events:
        yield run_events


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncGenerator[MongoStorage]:
    async with open_storage(mongodb_url, database_name) as opened:
        yield opened


@pytest.fixture
def ours(storage: MongoStorage) -> Any:
    return named(RUN_EVENTS.ours)(storage.run_events)


def event(event_type: str = "e", **fields: Any) -> dict[str, Any]:
    return {
        "thread_id": "thread",
        "run_id": "run",
        "event_type": event_type,
        "category": "message",
        **fields,
    }


def types(rows: list[dict[str, Any]]) -> list[str]:
    return [row["event_type"] for row in rows]


async def all_of(store: Any, run_id: str = "run") -> list[dict[str, Any]]:
    with acting("alice"):
        return await store.list_events("thread", run_id, **everybody(store))


def everybody(store: Any) -> dict[str, Any]:
    """The arguments of a read of all events; DeerFlow's store in memory takes none and reads all."""
    return {} if isinstance(store, named(str(RUN_EVENTS.memory))) else {"user_id": None}


# -- the interface ---------------------------------------------------------------------------------


def test_adapter_has_every_method_with_deerflows_signature() -> None:
    assert signature_faults(RUN_EVENTS) == []
    assert stale_differences(RUN_EVENTS, globals()) == []


async def test_store_is_an_instance_of_deerflows_base_class(store: Any) -> None:
    assert isinstance(store, named(str(RUN_EVENTS.base)))


# -- writing ---------------------------------------------------------------------------------------


async def test_put_returns_the_whole_event(store: Any) -> None:
    given = event(content="hello", metadata={"caller": "lead_agent"})
    row = await store.put(**given, created_at="2026-01-01T12:00:00+00:00")
    assert {name: row[name] for name in given} == given
    assert row["seq"] == 1
    assert row["created_at"].startswith("2026-01-01T12:00:00")


async def test_row_has_the_keys_of_the_sql_row(store: Any) -> None:
    [row] = await store.put_batch([event()])
    assert set(row) == KEYS
    [row] = await all_of(store)
    assert set(row) == KEYS
    assert row["user_id"] is None


async def test_content_defaults_to_empty_text(store: Any) -> None:
    row = await store.put(**event())
    assert (row["content"], row["metadata"]) == ("", {})


@pytest.mark.parametrize(
    "content",
    ["", "text", "ünï\0code", '{"a": 1}', {}, {"a.b": {"$c": None}}, [], [1, 2.5, True, {"x": []}], 7, False],
    ids=str,
)
async def test_content_comes_back_unchanged(store: Any, content: Any) -> None:
    row = await store.put(**event(content=content))
    assert row["content"] == content
    [row] = await all_of(store)
    assert row["content"] == content
    assert type(row["content"]) is type(content)


async def test_content_may_be_none(store: Any) -> None:
    assert (await store.put(**event(content=None)))["content"] is None


async def test_metadata_comes_back_unchanged(store: Any) -> None:
    given: dict[str, Any] = {"a.b": 1, "$c": {"d": [None, True]}}
    await store.put(**event(content="text", metadata=given))
    assert (await all_of(store))[0]["metadata"] == given


@pytest.mark.parametrize(
    ("content", "marks"),
    [
        ({"a": 1}, {"content_is_json": True, "content_is_dict": True}),
        ({}, {"content_is_json": True, "content_is_dict": True}),
        ([1], {"content_is_json": True}),
        (7, {"content_is_json": True}),
        (False, {"content_is_json": True}),
        (1.5, {"content_is_json": True}),
    ],
    ids=str,
)
async def test_metadata_of_a_returned_event_marks_content_that_is_no_text(
    store: Any, content: Any, marks: dict[str, bool]
) -> None:
    given = {"own": 1}
    row = await store.put(**event(content=content, metadata=given))
    assert row["metadata"] == {**given, **marks}
    assert (await all_of(store))[0]["metadata"] == {**given, **marks}
    assert given == {"own": 1}


async def test_events_are_numbered_from_one_in_each_thread(store: Any) -> None:
    first = await store.put_batch([event("a"), event("b", run_id="other")])
    last = await store.put(**event("c"))
    elsewhere = await store.put(**event("d", thread_id="elsewhere"))
    assert [row["seq"] for row in [*first, last, elsewhere]] == [1, 2, 3, 1]
    assert types([*first, last]) == ["a", "b", "c"]


async def test_empty_batch_stores_nothing(store: Any) -> None:
    assert await store.put_batch([]) == []


async def test_default_category_of_a_batch_is_trace(store: Any) -> None:
    given = event()
    del given["category"]
    [row] = await store.put_batch([given])
    assert row["category"] == "trace"


async def test_unknown_keys_of_an_event_are_ignored(store: Any) -> None:
    [row] = await store.put_batch([event(colour="red")])
    assert "colour" not in row


async def test_values_that_are_not_json_are_stored_as_text(store: Any) -> None:
    await store.put(**event(content={"id": UUID(int=7)}))
    [row] = await all_of(store)
    assert row["content"] == {"id": str(UUID(int=7))}


# -- traces ----------------------------------------------------------------------------------------


async def test_long_trace_is_truncated_by_bytes(store: Any) -> None:
    text = "x" + "é" * 6_000
    row = await store.put(**event(content=text, category="trace", metadata={"own": 1}))
    assert row["content"] == "x" + "é" * 5_119  # 10,239 bytes: half of a letter is no letter
    assert row["metadata"] == {"own": 1, "content_truncated": True, "original_byte_length": 12_001}


async def test_long_structured_trace_is_truncated_as_json(store: Any) -> None:
    [row] = await store.put_batch([event(content={"ä": "x" * 20_000}, category="trace")])
    assert row["content"] == '{"ä": "' + "x" * (10_240 - 8)
    assert row["metadata"]["content_truncated"] is True
    assert row["metadata"]["original_byte_length"] == 20_000 + 10


async def test_short_traces_and_messages_are_not_truncated(store: Any) -> None:
    rows = await store.put_batch(
        [event(content="x" * 10_240, category="trace"), event(content="x" * 50_000, category="message")]
    )
    assert [len(row["content"]) for row in rows] == [10_240, 50_000]
    assert [row["metadata"] for row in rows] == [{}, {}]


# -- what cannot be stored ---------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["x" * (17 * MIB), float("nan")], ids=["huge", "nan"])
async def test_unstorable_event_does_not_lose_its_batch(store: Any, odd: Any) -> None:
    rows = await store.put_batch([event("a"), event("b", content=[odd]), event("c")])
    assert types(rows) == types(await all_of(store)) == ["a", "b", "c"]


async def test_content_over_16_mib_comes_back_unchanged(store: Any) -> None:
    row = await store.put(**event(content="x" * (17 * MIB)))
    assert len(row["content"]) == 17 * MIB


async def test_content_with_infinity_comes_back_unchanged(store: Any) -> None:
    row = await store.put(**event(content=[float("inf")]))
    assert row["content"] == [float("inf")]


async def test_oversized_content_and_metadata_are_truncated_and_logged(
    ours: Any, caplog: pytest.LogCaptureFixture
) -> None:
    huge: dict[str, Any] = {"big": "y" * (17 * MIB), "small": 1, "odd": float("nan")}
    with caplog.at_level(logging.WARNING):
        rows = await ours.put_batch([event(), event(content="x" * (20 * MIB), metadata=huge)])
    assert len(rows[1]["content"]) == 4 * MIB
    marks = {"metadata_truncated": True, "content_truncated": True, "original_byte_length": 20 * MIB}
    assert rows[1]["metadata"] == {"small": 1, **marks}
    records = [record for record in caplog.records if "is stored truncated" in record.message]
    assert len(records) == 2
    assert all("'run'" in record.message for record in records)
    assert {(vars(record)["run_id"], vars(record)["event_type"]) for record in records} == {("run", "e")}


class SmallStore:
    """A store whose events hold at most 100 KiB of metadata and of content each."""

    async def put_batch(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for position, stored in enumerate(events):
            for field in ("metadata", "content"):
                if len(str(stored[field])) > 100 * 1024:
                    raise PayloadTooLargeError(f"events[{position}].{field}", None, 100 * 1024)
        return events


async def test_event_is_truncated_further_until_the_backend_stores_it() -> None:
    small = named(RUN_EVENTS.ours)(SmallStore())
    metadata = {"half": "y" * (MIB // 2), "small": 1}
    rows = await small.put_batch([event(), event(content={"a": "x" * 100}, metadata=metadata)])
    marks = {"content_is_json": True, "content_is_dict": True}
    assert rows[1]["metadata"] == {"small": 1, "metadata_truncated": True, **marks}
    assert rows[1]["content"] == {"a": "x" * 100}


async def test_event_that_no_truncation_makes_storable_is_refused() -> None:
    with pytest.raises(PayloadTooLargeError, match="content"):
        await named(RUN_EVENTS.ours)(SmallStore()).put(**event(content="x" * MIB))


async def test_truncated_content_has_its_original_length(ours: Any) -> None:
    row = await ours.put(**event(content="é" * (9 * MIB), metadata={"own": 1}))
    assert row["content"] == "é" * (2 * MIB)
    assert row["metadata"] == {"own": 1, "content_truncated": True, "original_byte_length": 18 * MIB}


@pytest.mark.parametrize("content", [{"\ud800": float("nan")}, [float("nan"), "\ud800" * 10]])
async def test_content_with_nan_and_surrogates_is_stored_as_text(ours: Any, content: Any) -> None:
    row = await ours.put(**event(content=content))
    assert "NaN" in row["content"]


async def test_recursive_content_is_stored(ours: Any) -> None:
    content: list[Any] = []
    content.append(content)
    assert "list" in (await ours.put(**event(content=content)))["content"]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("category", ["message", "trace"])
async def test_content_whose_str_raises_is_stored(ours: Any, category: str) -> None:
    row = await ours.put(**event(content=[Unprintable()], category=category, metadata={"a": Unprintable()}))
    assert "without a text" in str(row["content"])
    assert row["metadata"].pop("a") == "<Unprintable>"
    assert row["metadata"].pop("metadata_truncated") is True


async def test_invalid_event_is_refused(ours: Any) -> None:
    with pytest.raises(ValueError, match="event_type"):
        await ours.put(**event("x" * 2_000))
    with pytest.raises(KeyError, match="run_id"):
        await ours.put_batch([{"thread_id": "thread", "event_type": "e"}])


# -- users -----------------------------------------------------------------------------------


async def test_event_belongs_to_the_bound_user(store: Any) -> None:
    alice = UUID(int=1)
    with acting(alice):
        put = await store.put(**event())
        [batch] = await store.put_batch([event()])
    assert put["user_id"] == batch["user_id"] == str(alice)


async def test_explicit_user_of_an_event_wins_over_the_bound_user(store: Any) -> None:
    with acting("alice"):
        rows = await store.put_batch([event(user_id="bob"), event(user_id=None), event()])
    assert [row["user_id"] for row in rows] == ["bob", None, "alice"]


async def test_user_sees_own_events_only(store: Any) -> None:
    await store.put_batch([event("hers", user_id="alice"), event("his", user_id="bob"), event("nobodys")])
    for user_id, seen in (("alice", ["hers"]), ("carol", []), (None, ["hers", "his", "nobodys"])):
        assert types(await store.list_messages("thread", user_id=user_id)) == seen
        assert types(await store.list_messages_by_run("thread", "run", user_id=user_id)) == seen
        assert types(await store.list_events("thread", "run", user_id=user_id)) == seen
        assert await store.count_messages("thread", user_id=user_id) == len(seen)
    with acting("bob"):
        assert types(await store.list_messages("thread")) == ["his"]
        assert types(await store.list_messages_by_run("thread", "run")) == ["his"]
        assert types(await store.list_events("thread", "run")) == ["his"]
        assert await store.count_messages("thread") == 1


async def test_user_id_may_be_a_uuid(store: Any) -> None:
    [row] = await store.put_batch([event(user_id=UUID(int=1))])
    assert row["user_id"] == str(UUID(int=1))
    assert await store.list_messages("thread", user_id=UUID(int=1)) == [row]


async def test_reads_and_deletions_without_a_bound_user_are_errors(store: Any) -> None:
    for call in (
        lambda: store.list_messages("thread"),
        lambda: store.list_messages_by_run("thread", "run"),
        lambda: store.list_events("thread", "run"),
        lambda: store.count_messages("thread"),
        lambda: store.delete_by_thread("thread"),
        lambda: store.delete_by_run("thread", "run"),
    ):
        with pytest.raises(RuntimeError, match="user"):
            await call()


async def test_user_deletes_own_events_only(store: Any) -> None:
    events = [event("hers", user_id="alice"), event("his", user_id="bob")]
    await store.put_batch([*events, event("other", run_id="other", user_id="alice")])
    assert await store.delete_by_run("thread", "run", user_id="alice") == 1
    assert types(await store.list_messages("thread", user_id=None)) == ["his", "other"]
    assert await store.delete_by_thread("thread", user_id="carol") == 0
    with acting("bob"):
        assert await store.delete_by_thread("thread") == 1
    assert types(await store.list_messages("thread", user_id=None)) == ["other"]


async def test_another_users_thread_is_empty_and_refuses_events(storage: MongoStorage, ours: Any) -> None:
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="thread", user_id="alice"))
    with acting("alice"):
        await ours.put(**event())
    with acting("bob"), pytest.raises(PermissionError):
        await ours.put(**event())
    await ours.put_batch([event(user_id="bob")])
    assert await ours.list_messages("thread", user_id="bob") == []
    assert await ours.count_messages("thread", user_id="bob") == 0
    assert await ours.delete_by_thread("thread", user_id="bob") == 0


async def test_bound_user_stays_bound_after_a_read_for_another_user(ours: Any) -> None:
    with acting("alice"):
        for user_id in ("bob", None):
            await ours.list_messages("thread", user_id=user_id)
            await ours.delete_by_thread("thread", user_id=user_id)
            with pytest.raises(ValueError, match="limit"):
                await ours.list_events("thread", "run", limit=-1, user_id=user_id)
            assert current_actor() == BoundActor("alice")


async def test_user_none_sees_and_deletes_events_of_any_thread(storage: MongoStorage, ours: Any) -> None:
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="thread", user_id="alice"))
    await ours.put(**event())
    with acting("bob"):
        assert len(await ours.list_messages("thread", user_id=None)) == 1
        assert len(await ours.list_events("thread", "run", user_id=None)) == 1
        assert await ours.delete_by_run("thread", "run", user_id=None) == 1


# -- reading ---------------------------------------------------------------------------------------


async def fill(store: Any) -> dict[str, Any]:
    """Six messages of two runs, and two traces."""
    await store.put_batch([event("a"), event("trace", category="trace"), event("b"), event("c")])
    await store.put_batch([event(name, run_id="other") for name in "de"])
    await store.put_batch([event("f"), event("trace", category="trace")])
    return everybody(store)


async def test_messages_are_the_latest_in_rising_order(store: Any) -> None:
    everyone = await fill(store)
    rows = await store.list_messages("thread", **everyone)
    assert types(rows) == list("abcdef")
    assert [row["seq"] for row in rows] == [1, 3, 4, 5, 6, 7]
    assert types(await store.list_messages("thread", limit=2, **everyone)) == ["e", "f"]
    assert await store.count_messages("thread", **everyone) == 6


async def test_limit_zero_gives_nothing(store: Any) -> None:
    everyone = await fill(store)
    assert await store.list_messages("thread", limit=0, **everyone) == []
    assert await store.list_messages_by_run("thread", "run", limit=0, after_seq=0, **everyone) == []
    assert await store.list_events("thread", "run", limit=0, **everyone) == []


async def test_negative_limit_is_refused(store: Any) -> None:
    everyone = await fill(store)
    with pytest.raises(ValueError, match="limit"):
        await store.list_messages("thread", limit=-1, **everyone)


async def test_messages_are_paged_both_ways(store: Any) -> None:
    everyone = await fill(store)
    assert types(await store.list_messages("thread", before_seq=5, limit=2, **everyone)) == ["b", "c"]
    assert types(await store.list_messages("thread", after_seq=1, limit=2, **everyone)) == ["b", "c"]
    assert types(await store.list_messages("thread", after_seq=7, **everyone)) == []
    assert types(await store.list_messages("thread", before_seq=1, **everyone)) == []


async def test_messages_between_two_numbers(store: Any) -> None:
    everyone = await fill(store)
    assert types(await store.list_messages("thread", after_seq=1, before_seq=5, **everyone)) == ["b", "c"]


async def test_messages_of_a_run_are_paged_both_ways(store: Any) -> None:
    everyone = await fill(store)

    async def page(**page: Any) -> list[str]:
        return types(await store.list_messages_by_run("thread", "run", **page, **everyone))

    assert await page() == ["a", "b", "c", "f"]
    assert await page(limit=2) == ["c", "f"]
    assert await page(before_seq=7, limit=2) == ["b", "c"]
    assert await page(after_seq=1, limit=2) == ["b", "c"]
    assert await page(after_seq=1, before_seq=7) == ["b", "c"]


async def test_events_of_a_run_are_the_first_in_rising_order(store: Any) -> None:
    everyone = await fill(store)
    rows = await store.list_events("thread", "run", **everyone)
    assert types(rows) == ["a", "trace", "b", "c", "f", "trace"]
    assert types(await store.list_events("thread", "run", limit=3, **everyone)) == ["a", "trace", "b"]
    wanted = await store.list_events("thread", "run", event_types=["trace", "c"], **everyone)
    assert types(wanted) == ["trace", "c", "trace"]


async def test_invalid_event_types_match_nothing(store: Any) -> None:
    everyone = await fill(store)
    assert types(await store.list_events("thread", "run", event_types=["c", ""], **everyone)) == ["c"]
    assert await store.list_events("thread", "run", event_types=["", "x" * 5_000], **everyone) == []


async def test_empty_event_types_mean_all_types(store: Any) -> None:
    everyone = await fill(store)
    assert len(await store.list_events("thread", "run", event_types=[], **everyone)) == 6


@pytest.mark.parametrize("thread_id", ["missing", "", "x" * 5_000], ids=["missing", "empty", "long"])
async def test_missing_ids_are_not_found(store: Any, thread_id: str) -> None:
    everyone = everybody(store)
    assert await store.list_messages(thread_id, **everyone) == []
    assert await store.list_messages_by_run(thread_id, "run", **everyone) == []
    assert await store.list_events("thread", thread_id, **everyone) == []
    assert await store.count_messages(thread_id, **everyone) == 0
    assert await store.delete_by_thread(thread_id, **everyone) == 0
    assert await store.delete_by_run("thread", thread_id, **everyone) == 0


# -- deleting --------------------------------------------------------------------------------------


async def test_deletions_return_their_number(store: Any) -> None:
    everyone = await fill(store)
    assert await store.delete_by_run("thread", "other", **everyone) == 2
    assert types(await store.list_messages("thread", **everyone)) == ["a", "b", "c", "f"]
    assert await store.delete_by_thread("thread", **everyone) == 6
    assert await store.count_messages("thread", **everyone) == 0
    assert await store.list_events("thread", "run", **everyone) == []


async def test_numbers_are_not_reused_after_a_deletion(store: Any) -> None:
    everyone = await fill(store)
    await store.delete_by_thread("thread", **everyone)
    assert (await store.put(**event()))["seq"] == 9


# -- ours alone ------------------------------------------------------------------------------------


async def test_concurrent_writers_get_distinct_numbers(ours: Any) -> None:
    batches = await asyncio.gather(*(ours.put_batch([event(str(i))] * 5) for i in range(20)))
    assert sorted(row["seq"] for rows in batches for row in rows) == list(range(1, 101))


async def test_max_trace_content_is_configurable(storage: MongoStorage) -> None:
    short = named(RUN_EVENTS.ours)(storage.run_events, max_trace_content=3)
    row = await short.put(**event(content="abcdef", category="trace"))
    assert (row["content"], row["metadata"]["original_byte_length"]) == ("abc", 6)


# -- what DeerFlow calls from release 2.1 on -------------------------------------------------------


async def test_put_if_absent_stores_one_event_of_a_type_for_each_run(ours: Any) -> None:
    receipt = event("run.delivery", category="outputs", content={"presented": 0, "paths": []})
    results = await asyncio.gather(*(ours.put_if_absent(**receipt) for _ in range(20)))
    assert sorted(created for _, created in results) == [False] * 19 + [True]
    assert len({row["seq"] for row, _ in results}) == 1
    row = results[0][0]
    assert set(row) == KEYS
    assert (row["content"], row["user_id"]) == (receipt["content"], None)
    assert row["metadata"] == {"content_is_json": True, "content_is_dict": True}
    assert (await ours.put_if_absent(**{**receipt, "run_id": "other"}))[1] is True
    assert (await ours.put_if_absent(**{**receipt, "event_type": "other"}))[1] is True
    await ours.put_batch([event("put")])
    assert (await ours.put_if_absent(**event("put")))[1] is False


async def test_put_if_absent_belongs_to_the_bound_user_and_is_truncated_as_other_events(ours: Any) -> None:
    with acting("alice"):
        row, _ = await ours.put_if_absent(**event("a", category="trace", content="x" * 20_000))
        assert row["user_id"] == "alice"
        assert row["metadata"] == {"content_truncated": True, "original_byte_length": 20_000}
    row, _ = await ours.put_if_absent(**event("b", content="x" * (17 * MIB)))
    assert row["metadata"]["content_truncated"] is True


async def test_batch_of_several_threads_is_refused(ours: Any) -> None:
    with pytest.raises(ValueError, match=r"one thread.*other, thread"):
        await ours.put_batch([event(), event(thread_id="other")])
    assert await all_of(ours) == []
    assert await ours.put_batch([]) == []


async def test_events_of_a_task_are_filtered_before_the_limit(ours: Any) -> None:
    tasks = [event(metadata={"task_id": task}) for task in ("a", "b", "b", "a", "a")]
    await ours.put_batch([*tasks, event()])

    async def seqs(**wanted: Any) -> list[int]:
        return [row["seq"] for row in await ours.list_events("thread", "run", user_id=None, **wanted)]

    assert await seqs(task_id="a", limit=2) == [1, 4]
    assert await seqs(task_id="a", limit=2, after_seq=4) == [5]
    assert await seqs(task_id="a", event_types=["other"]) == []
    assert await seqs(after_seq=4) == [5, 6]
    assert await seqs(task_id="x" * 5_000) == []


async def test_last_visible_answers_of_runs(ours: Any) -> None:
    read = ours.get_last_visible_ai_seq_by_run
    answers = [
        event("llm.ai.response", run_id=run_id, metadata={"caller": caller})
        for run_id, caller in (("r1", "lead_agent"), ("r1", "middleware:title"), ("r2", "middleware:x"))
    ]
    with acting("alice"):
        await ours.put_batch(answers)
        assert await read("thread", {"r1", "r2", "r3", "", "x" * 5_000}) == {"r1": 1}
    with acting("bob"):
        assert await read("thread", {"r1"}) == {}
    assert await read("thread", {"r1"}, user_id=None) == {"r1": 1}
    assert await read("thread", set()) == await read("", {"r1"}, user_id=None) == {}
    with pytest.raises(RuntimeError, match="get_last_visible_ai_seq_by_run"):
        await read("thread", {"r1"})
