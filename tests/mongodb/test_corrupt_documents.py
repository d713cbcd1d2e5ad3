"""Documents that another program has broken, or a newer release has written: every field, in many ways.

Which of them are broken is decided by the server: its validator refuses them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import pytest
from bson import Binary, DatetimeMS, Decimal128, Int64, ObjectId
from pymongo import MongoClient
from pymongo.errors import BulkWriteError

from deerflow_mongo import (
    CorruptDocumentError,
    MongoStorage,
    ThreadAccessError,
    ThreadMetaCreate,
)
from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION
from deerflow_mongo.mongodb.schema import COLLECTIONS

from .documents import pinned

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]

MISSING = object()
WAYS: dict[str, object] = {
    "missing": MISSING,
    "null": None,
    "text": "many",
    "a number": 7,
    "a negative number": -1,
    "a fraction": 1.5,
    "an array": [],
    "an object": {},
    "an ObjectId": ObjectId(),
    "a date": datetime(2026, 4, 22),  # noqa: DTZ001 - as the driver returns dates
    "a decimal": Decimal128("1"),
    "binary": Binary(b"x"),
}

FEW_WAYS = ("missing", "null", "text", "an array", "an ObjectId")
"""Enough for the writes, of which each is a command or two for every document."""

OWNED_RUNS = "owned runs"
"""A kind of its own: documents of `runs` that have an owner and are active, each in its own thread."""

READABLE_ALL_THE_SAME = (
    "order_tie",
    "imported",
    "vote",
    "once",
    "pinned",
    "email_key",
    "lease_renewed_at",
    "lease_ms",
    "tokens.by_model.gpt-4%2E1.llm_calls",
)
"""What no row has: such a document can be read, and only a write of it is refused."""

_FIELDS = list(pinned.OWNED_RUN)
ONLY_OF_OWNED_RUNS = (*_FIELDS[_FIELDS.index("operation_kind") :], "tokens.by_model.gpt-4%2E1")
"""What is not read of a run without an owner."""

_VALIDATORS: dict[str, Document] = {schema.name: schema.validator for schema in COLLECTIONS}
_PINNED: dict[str, Document] = {
    "runs": pinned.RUN,
    OWNED_RUNS: pinned.OWNED_RUN,
    "feedback": pinned.VOTE,
    "threads": pinned.THREAD,
    "run_events": {**pinned.EVENT, "event_id": "e"},
    "users": pinned.USER,
}


class Broken(NamedTuple):
    document_id: str
    field: str
    way: str
    document: Document


def _paths(schema: Document, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field that a validator describes, except `_id` and what is inside a marked text."""
    for name, inner in schema.get("anyOf", [schema])[0].get("properties", {}).items():
        if name != "_id":
            yield (*path, name)
            if "anyOf" not in inner:
                yield from _paths(inner, (*path, name))
        additional = inner.get("additionalProperties")
        if isinstance(additional, dict):
            yield (*path, name, "gpt-4%2E1")
            yield from _paths(cast("Document", additional), (*path, name, "gpt-4%2E1"))


def _unique(collection: str, number: int) -> Document:
    """A document of its own: nothing in it hinders another one."""
    document = copy.deepcopy(_PINNED[collection])
    if collection == "run_events":
        return document | {"_id": ObjectId(), "seq": 100 + number, "event_id": f"e{number}"}
    document["_id"] = f"broken-{number}"
    if collection == OWNED_RUNS:
        document |= {"thread_id": f"thread-{number}", "idempotency_key": str(number), "cancel_action": None}
        document["ended_at"] = pinned.RUN["ended_at"]  # else its microseconds are not read
    if collection == "users":
        email = f"{number}@example.org"
        document |= {"email": email, "email_key": email, "oauth_id": str(number)}
    if collection == "feedback":
        document["run_id"] = f"run-{number}"
    return document


def _changed(document: Document, path: tuple[str, ...], value: object) -> Document:
    holder = document
    for name in path[:-1]:
        holder = holder[name]
    if value is MISSING:
        holder.pop(path[-1], None)
    else:
        holder[path[-1]] = value
    return document


def _given_broken(
    raw: Raw, database: str, collection: str, ways: Iterable[str] = tuple(WAYS)
) -> list[Broken]:
    """Store every broken document: those that the validator refuses and the unique indexes accept."""
    made: list[Broken] = []
    stored_in = "runs" if collection == OWNED_RUNS else collection
    for number, path in enumerate(_paths(_VALIDATORS[stored_in])):
        for place, way in enumerate(ways):
            document = _changed(_unique(collection, number * 100 + place), path, WAYS[way])
            made.append(Broken(str(document["_id"]), ".".join(path), way, document))
    found: Any = raw[database][stored_in]
    refused = _refused(found, made, validates=True)
    found.delete_many({"_id": {"$in": [item.document["_id"] for item in made]}})
    broken = [item for item in made if refused.get(item.document_id) == 121]
    not_stored = _refused(found, broken, validates=False)
    return [item for item in broken if item.document_id not in not_stored]


def _refused(found: Any, items: list[Broken], *, validates: bool) -> dict[str, int]:
    """Insert the documents; of each that the server refuses, the code."""
    documents = [item.document for item in items]
    try:
        found.insert_many(documents, ordered=False, bypass_document_validation=not validates)
    except BulkWriteError as error:
        failures: list[Document] = cast("dict[str, Any]", error.details)["writeErrors"]
        return {items[int(failure["index"])].document_id: int(failure["code"]) for failure in failures}
    return {}


def _is_readable(broken: Broken) -> bool:
    """Whether the broken field is one that no row has, or a count that is negative and nothing else."""
    is_of_no_row = "operation_kind" not in broken.document and broken.field.startswith(ONLY_OF_OWNED_RUNS)
    return (
        is_of_no_row
        or broken.field.startswith(READABLE_ALL_THE_SAME)
        or (broken.way == "a negative number" and broken.field in ("seq", "token_version", "duration_ms"))
    )


def _logged(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """Of each document in the log, which has it once: its field. Clears the log."""
    records = [vars(record) for record in caplog.records if record.levelno == logging.ERROR]
    fields = {str(record["document_id"]): str(record["field"]) for record in records}
    assert len(fields) == len(records)
    for record in caplog.records:
        assert {repr(name) for name in fields if repr(name) in record.getMessage()}
    caplog.clear()
    return fields


def _assert_names(error: CorruptDocumentError, broken: Broken) -> None:
    """An empty object lacks its first field."""
    assert error.document_id == broken.document_id
    assert f"{error.field}.".startswith(f"{broken.field}."), (error.field, broken.way)


async def _assert_refused(broken: list[Broken], call: Callable[[Broken], Awaitable[object]]) -> None:
    for item in broken:
        with pytest.raises(CorruptDocumentError) as error:
            await call(item)
        _assert_names(error.value, item)


async def _assert_refused_or_repaired(
    broken: list[Broken],
    write: Callable[[Broken], Awaitable[object]],
    raw: Raw,
    database: str,
    collection: str,
) -> None:
    """A write that replaces the broken field repairs it; any other is refused and changes nothing."""
    found = raw[database][collection]
    for item in broken:
        before = found.find_one({"_id": item.document["_id"]})
        try:
            await write(item)
        except CorruptDocumentError as error:
            _assert_names(error, item)
            assert error.__cause__ is not None or error.field == "schema_version"  # noqa: PT017
            assert found.find_one({"_id": item.document["_id"]}) == before
        else:
            validator = {"_id": item.document["_id"], "$jsonSchema": _VALIDATORS[collection]}
            assert found.count_documents(validator) == 1, (item.field, item.way)


def _split(broken: list[Broken]) -> tuple[list[Broken], set[str]]:
    """Those that cannot be read, and the ids of the others."""
    readable = {item.document_id for item in broken if _is_readable(item)}
    return [item for item in broken if item.document_id not in readable], readable


def _assert_logged(caplog: pytest.LogCaptureFixture, unreadable: list[Broken], *filtered: str) -> None:
    """Each document once, with its field, but those that the list's own filter leaves out."""
    expected = {item.document_id: item.field for item in unreadable if item.field not in filtered}
    logged = _logged(caplog)
    assert logged.keys() == expected.keys()
    for name, field in expected.items():
        assert f"{logged[name]}.".startswith(f"{field}."), name


async def test_broken_runs_are_left_out_of_lists_and_logged(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = storage.runs
    for run_id in ("before", "after"):
        await runs.create(run_id, "thread-1", user_id="alice")
        await runs.record_token_usage(run_id, caller="subagent", model_name="m", input_tokens=5)
    broken = _given_broken(raw_client, database_name, "runs")
    assert len({item.field for item in broken}) > 30
    unreadable, readable = _split(broken)
    rows = await runs.list_by_thread("thread-1", user_id="alice", limit=10_000)
    assert {row["run_id"] for row in rows} == readable | {"before", "after"}
    _assert_logged(caplog, unreadable, "thread_id", "user_id", "operation_kind")
    await _assert_refused(unreadable, lambda item: runs.get(item.document_id, user_id=None))
    usage = await runs.token_usage_by_thread("thread-1", user_id="alice")
    assert usage["by_model"]["m"] == {
        "runs": 2,
        "tokens": 10,
        "input_tokens": 10,
        "output_tokens": 0,
        "llm_calls": 2,
    }
    assert {type(value) for value in usage["by_model"]["gpt-4.1"].values()} == {int}
    for item in broken:
        assert await runs.delete(item.document_id, user_id=None)


async def test_broken_pending_runs_are_left_out(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await storage.runs.create("neighbour", "thread-1", user_id="alice")
    await storage.runs.create("broken", "thread-1", user_id="alice")
    found = raw_client[database_name].get_collection("runs")
    found.update_one({"_id": "broken"}, {"$unset": {"tokens": ""}}, bypass_document_validation=True)
    assert [row["run_id"] for row in await storage.runs.list_pending()] == ["neighbour"]
    assert _logged(caplog) == {"broken": "tokens"}


RUN_WRITES: dict[str, Callable[[MongoStorage, str], Awaitable[object]]] = {
    "record_token_usage": lambda s, run_id: s.runs.record_token_usage(
        run_id, caller="lead_agent", model_name="gpt-4.1", input_tokens=1
    ),
    "update_model_name": lambda s, run_id: s.runs.update_model_name(run_id, "m"),
    "update_status": lambda s, run_id: s.runs.update_status(run_id, "running", metadata={"a": 1}),
    "update_status without metadata": lambda s, run_id: s.runs.update_status(run_id, "running"),
    "update_status from statuses": lambda s, run_id: s.runs.update_status(
        run_id, "running", from_statuses=["pending", "error"]
    ),
    "set_error": lambda s, run_id: s.runs.set_error(run_id, "boom"),
    "update_run_completion": lambda s, run_id: s.runs.update_run_completion(run_id, status="success"),
}


@pytest.mark.parametrize("name", RUN_WRITES)
async def test_writes_onto_broken_runs_are_refused_or_repair_them(
    name: str, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    broken = _given_broken(raw_client, database_name, "runs", FEW_WAYS)
    await _assert_refused_or_repaired(
        broken,
        lambda item: RUN_WRITES[name](storage, item.document_id),
        raw_client,
        database_name,
        "runs",
    )


async def test_broken_runs_with_an_owner_are_left_out_and_logged(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken lease counts as expired."""
    runs = storage.runs
    valid = pinned.OWNED_RUN["lease_renewed_at"] + timedelta(days=100_000)
    raw_client[database_name]["runs"].insert_one(_unique(OWNED_RUNS, 99_999) | {"lease_renewed_at": valid})
    broken = _given_broken(raw_client, database_name, OWNED_RUNS)
    assert len({item.field for item in broken}) > 40
    unreadable, readable = _split(broken)
    # The server compares numbers of every type with `order`, and nothing else.
    compared = [
        item for item in unreadable if item.field != "order" or item.way in ("a fraction", "a decimal")
    ]
    for list_runs, neighbours in (
        (runs.list_inflight, {"broken-99999"}),
        (runs.list_inflight_with_expired_lease, set[str]()),
    ):
        # One list at a time: each logs what it leaves out.
        assert {row["run_id"] for row in await list_runs()} == readable | neighbours
        _assert_logged(caplog, compared, "status")
    await _assert_refused(unreadable, lambda item: runs.get(item.document_id, user_id=None))


OWNER = pinned.OWNED_RUN["owner_worker_id"]
LEASE: dict[str, Any] = {"owner_worker_id": OWNER, "lease_expires_at": "2999-01-01T00:00:00Z"}
TEXTS: dict[str, Any] = {"error": "E: x", "stop_reason": "y"}

OWNER_WRITES: dict[str, Callable[[MongoStorage, str], Awaitable[object]]] = {
    "put": lambda s, run_id: s.runs.put(run_id, thread_id=run_id, user_id=None, **LEASE),
    "update_lease": lambda s, run_id: s.runs.update_lease(run_id, **LEASE),
    "renew_lease": lambda s, run_id: s.runs.renew_lease(run_id, **LEASE),
    "request_cancel": lambda s, run_id: s.runs.request_cancel(run_id, action="interrupt"),
    "finalize_if_not_cancelled": lambda s, run_id: s.runs.finalize_if_not_cancelled(
        run_id, status="success", **TEXTS
    ),
    "claim_for_takeover": lambda s, run_id: s.runs.claim_for_takeover(run_id, grace_seconds=0, **TEXTS),
    "update_run_progress": lambda s, run_id: s.runs.update_run_progress(run_id, total_tokens=1),
}


@pytest.mark.parametrize("name", OWNER_WRITES)
async def test_owners_writes_onto_broken_runs_are_refused_or_repair_them(
    name: str, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """Except where the broken field is one that the write compares."""
    compared = ("status", "owner_worker_id") if name.endswith("lease") else ("status", "cancel_action")
    broken = _given_broken(raw_client, database_name, OWNED_RUNS, FEW_WAYS)
    await _assert_refused_or_repaired(
        [item for item in broken if item.field not in compared],
        lambda item: OWNER_WRITES[name](storage, item.document_id),
        raw_client,
        database_name,
        "runs",
    )


async def test_writes_of_all_runs_of_an_owner_leave_out_broken_ones(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    found = raw_client[database_name]["runs"]
    broken = _given_broken(raw_client, database_name, OWNED_RUNS, FEW_WAYS)
    for number in (99_998, 99_999):
        found.insert_one(_unique(OWNED_RUNS, number))
    before = {item.document_id: found.find_one({"_id": item.document["_id"]}) for item in broken}
    lease = LEASE["lease_expires_at"]
    assert await storage.runs.renew_leases_of_worker(OWNER, lease_expires_at=lease) == 2
    assert await storage.runs.end_runs_of_worker(OWNER, status="interrupted", error="x") == 2
    assert {item.document_id: found.find_one({"_id": item.document["_id"]}) for item in broken} == before


async def test_broken_feedback(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    feedback = storage.feedback
    good = await feedback.upsert(run_id="run-1", thread_id="thread-1", rating=1, user_id="alice")
    broken = _given_broken(raw_client, database_name, "feedback")
    unreadable, readable = _split(broken)
    rows = await feedback.list_by_thread("thread-1", limit=10_000)
    assert {row["feedback_id"] for row in rows} == readable | {good["feedback_id"]}
    _assert_logged(caplog, unreadable, "thread_id")
    grouped = await feedback.list_by_thread_grouped("thread-1", user_id="alice")
    assert {row["feedback_id"] for row in grouped.values()} == readable | {good["feedback_id"]}
    await _assert_refused(unreadable, lambda item: feedback.get(item.document_id))
    caplog.clear()
    for item in broken:
        run_id = item.document["run_id"] if item.field != "run_id" else "x"
        totals = await feedback.aggregate_by_run("thread-1", run_id)
        assert totals["total"] in (0, 1)

    async def upsert(item: Broken) -> None:
        run_id = item.document["run_id"] if item.field != "run_id" else "x"
        await feedback.upsert(run_id=run_id, thread_id="thread-1", rating=1, user_id="alice")

    found_by_vote = [
        item for item in broken if item.field not in ("run_id", "thread_id", "user_id", "message_id")
    ]
    await _assert_refused_or_repaired(found_by_vote, upsert, raw_client, database_name, "feedback")
    for item in broken:
        assert await feedback.delete(item.document_id)


async def test_older_vote_is_shown_where_the_newest_is_broken(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    names: dict[str, Any] = {"run_id": "r", "thread_id": "t", "user_id": "alice"}
    older = await storage.feedback.create(**names, rating=1)
    newest = await storage.feedback.create(**names, rating=-1)
    raw_client[database_name]["feedback"].update_one(
        {"_id": newest["feedback_id"]}, {"$set": {"comment": 5}}, bypass_document_validation=True
    )
    assert await storage.feedback.list_by_thread_grouped("t", user_id="alice") == {"r": older}


async def test_broken_threads(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads = storage.threads
    await threads.ensure_thread(thread_id="neighbour", user_id="alice", metadata={"source": "web"})
    broken = _given_broken(raw_client, database_name, "threads")
    unreadable, readable = _split(broken)
    found = await threads.search_threads(user_id="alice", limit=10_000)
    assert {thread.thread_id for thread in found} == readable | {"neighbour"}
    _assert_logged(caplog, unreadable, "user_id")
    found = await threads.search_threads(user_id=None, metadata={"source": "web"}, limit=10_000)
    assert "neighbour" in {thread.thread_id for thread in found}
    await _assert_refused(unreadable, lambda item: threads.get_thread_meta(item.document_id))
    await _assert_refused(
        unreadable, lambda item: threads.ensure_thread(thread_id=item.document_id, user_id=None)
    )


THREAD_WRITES: dict[str, Callable[[MongoStorage, str], Awaitable[object]]] = {
    "merge_thread_metadata": lambda s, name: s.threads.merge_thread_metadata(name, {"a": 1}),
    "update_thread_meta": lambda s, name: s.threads.update_thread_meta(name, status="busy"),
    "ensure_thread_running": lambda s, name: s.threads.ensure_thread_running(thread_id=name),
    "sync_thread_title": lambda s, name: s.threads.sync_thread_title(thread_id=name, title="x"),
}


@pytest.mark.parametrize("name", THREAD_WRITES)
async def test_writes_onto_broken_threads_are_refused_or_repair_them(
    name: str, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    broken = _given_broken(raw_client, database_name, "threads", FEW_WAYS)
    await _assert_refused_or_repaired(
        broken,
        lambda item: THREAD_WRITES[name](storage, item.document_id),
        raw_client,
        database_name,
        "threads",
    )
    for item in broken:
        assert await storage.threads.delete_thread(item.document_id)


async def test_broken_users(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    users = storage.users
    await users.create("neighbour", email="neighbour@example.org", system_role="admin")
    broken = _given_broken(raw_client, database_name, "users")
    unreadable, readable = _split(broken)
    rows = await users.list_by_role("admin", limit=10_000)
    assert {row["user_id"] for row in rows} == readable | {"neighbour"}
    _assert_logged(caplog, unreadable, "system_role")
    await _assert_refused(unreadable, lambda item: users.get(item.document_id))
    with_email = [item for item in unreadable if item.field != "email"]
    await _assert_refused(with_email, lambda item: users.get_by_email(item.document["email"]))
    assert await users.count() == len(broken) + 1

    async def update(item: Broken) -> None:
        await users.update(
            item.document_id,
            email=f"{item.document_id}@example.org",
            password_hash=None,
            system_role="admin",
            oauth_provider=None,
            oauth_id=None,
            needs_setup=False,
            token_version=1,
        )

    await _assert_refused_or_repaired(broken, update, raw_client, database_name, "users")


def _event(event_type: str = "said", **fields: Any) -> Any:
    return {
        "thread_id": "thread-1",
        "run_id": "run-1",
        "event_type": event_type,
        "category": "message",
        **fields,
    }


async def test_broken_events(
    storage: MongoStorage,
    mongodb_url: str,
    raw_client: Raw,
    database_name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = storage.run_events
    await events.put(**_event())
    broken = _given_broken(raw_client, database_name, "run_events")
    unreadable, readable = _split(broken)
    seqs = {item.document["seq"] for item in broken if item.document_id in readable} | {1}
    lists: dict[str, tuple[Awaitable[list[Any]], tuple[str, ...]]] = {
        "list_messages": (events.list_messages("thread-1", limit=10_000), ("thread_id", "category")),
        "list_messages_by_run": (
            events.list_messages_by_run("thread-1", "run-1", limit=10_000),
            ("thread_id", "run_id", "category"),
        ),
        "list_events": (events.list_events("thread-1", "run-1", limit=10_000), ("thread_id", "run_id")),
    }
    for name, (rows, unseen) in lists.items():
        assert {row["seq"] for row in await rows} == seqs, name
        _assert_logged(caplog, unreadable, *unseen)
    rows = await events.list_thread_events("thread-1", limit=10_000)
    assert {row["seq"] for row in rows} == seqs - {-1}
    assert await events.count_messages("thread-1") > len(rows)
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as other_process:
        next_row = await other_process.run_events.put(**_event())
    assert next_row["seq"] > max(seqs)
    await events.delete_by_thread("thread-1")
    caplog.clear()
    assert {row["seq"] for row in await events.list_messages("thread-1")} == {-1}
    left = set(_logged(caplog).values())
    assert left <= {"seq", "run_id"}  # the number and the run are what a deletion finds events by


async def test_put_if_absent_raises_for_a_broken_event(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.run_events.put_if_absent(**_event("once"))
    raw_client[database_name]["run_events"].update_one(
        {"event_type": "once"}, {"$set": {"metadata": "x"}}, bypass_document_validation=True
    )
    with pytest.raises(CorruptDocumentError, match="metadata is of type string, expected object"):
        await storage.run_events.put_if_absent(**_event("once"))


async def test_page_is_full_where_a_broken_event_is_left_out(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """A reader takes a short page for the last one."""
    await storage.run_events.put_batch([_event() for _ in range(60)])
    raw_client[database_name]["run_events"].update_many(
        {"seq": {"$mod": [2, 0], "$gt": 0}},
        {"$unset": {"category": "", "metadata": ""}},
        bypass_document_validation=True,
    )
    rows = await storage.run_events.list_thread_events("thread-1", limit=25)
    assert [row["seq"] for row in rows] == list(range(1, 51, 2))
    rows = await storage.run_events.list_thread_events("thread-1", after_seq=49, limit=25)
    assert [row["seq"] for row in rows] == list(range(51, 60, 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("started_at", DatetimeMS(2**60)),
        ("order", Int64(2**62)),
        ("error", {"_json": "no JSON"}),
        ("error", {"_json": 5}),
        ("metadata", {"a": {"_json": "no JSON"}}),
    ],
)
async def test_value_out_of_range_does_not_break_a_list(
    name: str, value: object, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """The driver itself cannot decode a date after the year 9999."""
    for run_id in ("neighbour", "broken"):
        await storage.runs.create(run_id, "t", user_id="alice", metadata={"a": 1})
    raw_client[database_name]["runs"].update_one(
        {"_id": "broken"}, {"$set": {name: value}}, bypass_document_validation=True
    )
    assert [row["run_id"] for row in await storage.runs.list_by_thread("t", user_id="alice")] == ["neighbour"]
    with pytest.raises(CorruptDocumentError) as error:
        await storage.runs.get("broken", user_id="alice")
    assert error.value.field == name


async def test_payload_that_another_program_has_extended_is_read_as_json(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.runs.create("r", "t", user_id="alice", metadata={"a": 1})
    added = {
        "metadata.when": datetime(2026, 4, 22),  # noqa: DTZ001
        "metadata.who": ObjectId("6807f0ae0f1d2c3b4a596877"),
        "metadata.price": Decimal128("1.10"),
        "metadata.list": [Binary(b"x"), Int64(5)],
    }
    raw_client[database_name]["runs"].update_one({"_id": "r"}, {"$set": added})
    row = await storage.runs.get("r", user_id="alice")
    assert row is not None
    assert row["metadata"] == {
        "a": 1,
        "when": "2026-04-22T00:00:00+00:00",
        "who": "6807f0ae0f1d2c3b4a596877",
        "price": "1.10",
        "list": ["eA==", 5],
    }


# -- documents of a newer version ------------------------------------------------------------------

ACCOUNT: dict[str, Any] = {
    "email": "new@example.org",
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": None,
    "oauth_id": None,
    "needs_setup": False,
    "token_version": 1,
}

ON_NEWER: dict[str, tuple[str, Callable[[MongoStorage], Awaitable[object]]]] = {
    "runs.get": ("runs", lambda s: s.runs.get("x", user_id="alice")),
    "runs.delete": ("runs", lambda s: s.runs.delete("x", user_id="alice")),
    **{f"runs.{name}": ("runs", lambda s, write=write: write(s, "x")) for name, write in RUN_WRITES.items()},
    "threads.get_thread": ("threads", lambda s: s.threads.get_thread("x", user_id="alice")),
    "threads.delete_thread": ("threads", lambda s: s.threads.delete_thread("x")),
    "threads.ensure_thread": (
        "threads",
        lambda s: s.threads.ensure_thread(thread_id="x", user_id="alice"),
    ),
    **{
        f"threads.{name}": ("threads", lambda s, write=write: write(s, "x"))
        for name, write in THREAD_WRITES.items()
    },
    "feedback.delete_by_run": (
        "feedback",
        lambda s: s.feedback.delete_by_run(thread_id="x", run_id="x", user_id="alice"),
    ),
    "feedback.upsert": (
        "feedback",
        lambda s: s.feedback.upsert(thread_id="x", run_id="x", rating=1, user_id="alice"),
    ),
    "users.get": ("users", lambda s: s.users.get("x")),
    "users.update": ("users", lambda s: s.users.update("x", **ACCOUNT)),
}


async def _given_newer(storage: MongoStorage, raw: Raw, database: str) -> None:
    await storage.runs.create("x", "x", user_id="alice")
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="x", user_id="alice"))
    await storage.feedback.upsert(thread_id="x", run_id="x", rating=-1, user_id="alice")
    await storage.users.create("x", email="x@example.org")
    await storage.run_events.put_batch([_event(thread_id="x", run_id="x")])
    for name in _PINNED:
        raw[database][name].update_many(
            {"seq": {"$ne": 0}},
            {"$set": {"schema_version": SCHEMA_VERSION + 1, "status": ["of another form"]}},
            bypass_document_validation=True,
        )


@pytest.mark.parametrize("method", ON_NEWER)
async def test_document_of_a_newer_version_is_never_changed(
    method: str, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await _given_newer(storage, raw_client, database_name)
    collection, call = ON_NEWER[method]
    before = list(raw_client[database_name][collection].find())
    with pytest.raises(CorruptDocumentError, match=r"upgrade deerflow-mongo") as error:
        await call(storage)
    assert (error.value.collection, error.value.field) == (collection, "schema_version")
    assert list(raw_client[database_name][collection].find()) == before


async def test_documents_of_a_newer_version_are_left_out_of_lists(
    storage: MongoStorage, raw_client: Raw, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await _given_newer(storage, raw_client, database_name)
    events = list(raw_client[database_name]["run_events"].find())
    assert await storage.runs.list_by_thread("x", user_id="alice") == []
    assert await storage.threads.search_threads(user_id="alice") == []
    assert await storage.feedback.list_by_thread("x") == []
    assert await storage.users.list_by_role("user") == []
    assert await storage.run_events.list_messages("x") == []
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 5
    assert (await storage.runs.token_usage_by_thread("x", user_id="alice"))["total_runs"] == 0
    assert await storage.run_events.delete_by_thread("x") == 0
    assert list(raw_client[database_name]["run_events"].find()) == events


async def test_another_users_thread_of_a_newer_version_is_refused_like_any_other(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await _given_newer(storage, raw_client, database_name)
    with pytest.raises(ThreadAccessError):
        await storage.threads.ensure_thread(thread_id="x", user_id="bob")
    assert await storage.threads.get_thread("x", user_id="bob") is None
    assert await storage.threads.delete_thread("x", user_id="bob") is False


async def test_broken_document_of_version_1_is_left_out_during_an_upgrade(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    found = raw_client[database_name]["runs"]
    old = {
        **pinned.RUN,
        "schema_version": 1,
        "created_at": "2026-04-22T03:26:38.123456+00:00",
        "updated_at": None,
    }
    old |= {"started_at": None, "ended_at": None}
    for name in ("duration_ms", "error_type", "order_tie", "updated_at_us", "ended_at_us"):
        del old[name]
    broken = {
        "created_at": {"created_at": "yesterday"},
        "started_at": {"started_at": "today"},
        "tokens": {"tokens": None},
        "status": {"status": 5},
    }
    found.insert_many([{**old, "_id": "neighbour"}], bypass_document_validation=True)
    found.insert_many(
        [{**old, "_id": name, **change} for name, change in broken.items()], bypass_document_validation=True
    )
    rows = await storage.runs.list_by_thread("thread-1", user_id="alice")
    assert [row["run_id"] for row in rows] == ["neighbour"]
    for name in broken:
        with pytest.raises(CorruptDocumentError) as error:
            await storage.runs.get(name, user_id=None)
        assert error.value.field == name
