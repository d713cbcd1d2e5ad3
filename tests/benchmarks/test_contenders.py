"""The benchmark contenders do what the stores' methods do, so that their times are comparable."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import bson
import pymongo
import pytest
from pymongo import AsyncMongoClient
from pymongo.database import Database

from benchmarks.contenders import deerflow_sql, raw_pymongo
from benchmarks.contenders.raw_pymongo import Call
from deerflow_mongo import ThreadMeta, ThreadMetaCreate, create_storage
from deerflow_mongo.contract.rows import CALLERS, TokenUsage
from deerflow_mongo.mongodb.documents.encoding import Document
from deerflow_mongo.mongodb.documents.feedback import feedback_row
from deerflow_mongo.mongodb.documents.run_events import event_row
from deerflow_mongo.mongodb.documents.runs import run_row
from deerflow_mongo.mongodb.documents.threads import thread_row
from deerflow_mongo.mongodb.schema import FEEDBACK, RUN_EVENTS, RUNS, THREADS

from ..mongodb.test_commands import CommandLog

USER, OTHER = "alice", "bob"
RUN, THREAD = "run-1", "thread-1"
COLLECTIONS = (RUNS, FEEDBACK, THREADS, RUN_EVENTS)
ROWS = 130
"""More than the 101 documents of a server's default first batch."""
START = datetime(2026, 1, 1, 12, 0, 0, 500, tzinfo=UTC)
COUNTS = {
    "total_input_tokens": 50,
    "total_output_tokens": 20,
    "total_tokens": 70,
    "llm_call_count": 3,
    "lead_agent_tokens": 40,
    "subagent_tokens": 20,
    "middleware_tokens": 10,
    "message_count": 4,
}

MISSING = deerflow_sql.missing()

Step = tuple[str, Mapping[str, Any]]


def _event(thread_id: str = THREAD, run_id: str = RUN, **fields: Any) -> dict[str, Any]:
    event = {"event_type": "said", "category": "message", "content": {"text": "hé"}, "metadata": {"n": 1}}
    return {"thread_id": thread_id, "run_id": run_id, **event, **fields}


def _thread(thread_id: str, **fields: Any) -> ThreadMetaCreate:
    return ThreadMetaCreate(thread_id=thread_id, metadata={"team": "red", "n": 1}, **fields)


async def _fill(storage: Any) -> None:
    """The rows that exist before a contender starts."""
    for position in range(ROWS):
        run_id = f"run-{position}"
        await storage.runs.create(run_id, THREAD, user_id=USER, model_name="gpt-4.1")
        await storage.feedback.create(run_id=run_id, thread_id=THREAD, rating=1, user_id=USER)
        await storage.threads.create_thread_meta(_thread(f"thread-{position}", user_id=USER))
    await storage.runs.create("of-other", THREAD, user_id=OTHER)
    await storage.runs.record_token_usage(RUN, caller="subagent", model_name="gpt-4.1", input_tokens=3)
    await storage.runs.update_run_completion("run-2", status="success", **COUNTS)
    for user, rating in (("carol", 1), ("dave", -1), ("erin", -1)):
        await storage.feedback.create(
            run_id=RUN, thread_id=THREAD, rating=rating, user_id=user, message_id="m-1"
        )
    for thread_id in (THREAD, "thread-2"):
        await storage.run_events.put_batch([_event(thread_id) for _ in range(ROWS)])
    await storage.run_events.put_batch(
        [_event(run_id="run-2", category="trace", event_type="called", content="text") for _ in range(3)]
    )


READS: tuple[Step, ...] = (
    ("runs.get", {"run_id": RUN, "user_id": USER}),
    ("runs.get", {"run_id": RUN, "user_id": OTHER}),
    ("runs.list_by_thread", {"thread_id": THREAD, "limit": 20, "user_id": USER}),
    ("runs.list_by_thread", {"thread_id": THREAD, "limit": 500, "user_id": None}),
    ("runs.token_usage_by_thread", {"thread_id": THREAD, "user_id": USER}),
    ("runs.token_usage_by_thread", {"thread_id": "none", "user_id": None}),
    ("feedback.get", {"feedback_id": "known"}),
    ("feedback.get", {"feedback_id": "none"}),
    ("feedback.list_by_run", {"thread_id": THREAD, "run_id": RUN, "limit": 500, "user_id": None}),
    ("feedback.list_by_run", {"thread_id": THREAD, "run_id": RUN, "limit": 20, "user_id": USER}),
    ("feedback.list_by_thread", {"thread_id": THREAD, "limit": 500}),
    ("feedback.list_by_thread_grouped", {"thread_id": THREAD, "user_id": USER}),
    ("feedback.aggregate_by_run", {"thread_id": THREAD, "run_id": RUN}),
    ("threads.get_thread_meta", {"thread_id": THREAD}),
    ("threads.get_thread", {"thread_id": THREAD, "user_id": USER}),
    ("threads.get_thread", {"thread_id": THREAD, "user_id": OTHER}),
    ("threads.search_threads", {"user_id": USER, "limit": 500}),
    ("threads.search_threads", {"user_id": USER, "limit": 20, "metadata": {"team": "red"}}),
    ("threads.search_threads", {"user_id": USER, "limit": 20, "metadata": {"team": "blue"}}),
    ("threads.search_threads", {"user_id": None, "limit": 500, "status": "idle"}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 50}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 500}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 20, "before_seq": 100}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 20, "after_seq": 100}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 500, "after_seq": 1}),
    ("run_events.list_events", {"thread_id": THREAD, "run_id": RUN, "limit": 500}),
    (
        "run_events.list_events",
        {"thread_id": THREAD, "run_id": "run-2", "event_types": ["called", "x"], "limit": 500},
    ),
    ("run_events.list_messages_by_run", {"thread_id": THREAD, "run_id": RUN, "limit": 500}),
    ("run_events.count_messages", {"thread_id": THREAD}),
    ("run_events.count_messages", {"thread_id": "none"}),
)

THREAD_AGAIN: Step = (
    "threads.ensure_thread",
    {"thread_id": "new", "assistant_id": "b", "metadata": {"not": "stored"}, "user_id": USER},
)
EVENT_AGAIN: Step = (
    "run_events.put_if_absent",
    _event("thread-2", event_type="once", content="not stored"),
)
"""Two calls without effect, since what they would create exists."""

WRITES: tuple[Step, ...] = (
    (
        "runs.create",
        {
            "run_id": "new",
            "thread_id": THREAD,
            "user_id": USER,
            "assistant_id": "a",
            "metadata": {"k": [1, {"deep": None}]},
            "kwargs": {"input": "hé"},
            "model_name": "gpt-4.1",
            "follow_up_to_run_id": RUN,
        },
    ),
    ("runs.update_status", {"run_id": "new", "status": "running", "started_at": START}),
    (
        "runs.update_status",
        {"run_id": "new", "status": "success", "ended_at": "2026-01-01T13:00:00Z", "metadata": {"m": 1}},
    ),
    ("runs.set_error", {"run_id": "new", "error": "boom"}),
    (
        "runs.record_token_usage",
        {
            "run_id": "new",
            "caller": "lead_agent",
            "model_name": "gpt-4.1",
            "input_tokens": 5,
            "output_tokens": 2,
        },
    ),
    (
        "runs.update_run_completion",
        {
            "run_id": "new",
            "status": "success",
            **COUNTS,
            "first_human_message": "hi",
            "last_ai_message": "hé",
            "ended_at": START,
        },
    ),
    ("runs.delete", {"run_id": "new", "user_id": USER}),
    (
        "feedback.create",
        {
            "run_id": RUN,
            "thread_id": THREAD,
            "rating": -1,
            "user_id": USER,
            "message_id": "m",
            "comment": "no",
        },
    ),
    (
        "feedback.upsert",
        {"run_id": RUN, "thread_id": THREAD, "rating": 1, "user_id": "new", "comment": "yes"},
    ),
    (
        "feedback.upsert",
        {"run_id": RUN, "thread_id": THREAD, "rating": -1, "user_id": "new", "comment": None},
    ),
    ("feedback.delete", {"feedback_id": "known"}),
    ("feedback.delete_by_run", {"thread_id": THREAD, "run_id": RUN, "user_id": "new"}),
    ("threads.create_thread_meta", {"data": _thread("new", user_id=USER, display_name="Title")}),
    (
        "threads.update_thread_meta",
        {
            "thread_id": "new",
            "display_name": "Other",
            "status": "busy",
            "metadata": {"k": 1},
            "assistant_id": "a",
        },
    ),
    THREAD_AGAIN,
    (
        "threads.ensure_thread",
        {"thread_id": "newer", "assistant_id": "a", "metadata": {"k": 1}, "user_id": USER},
    ),
    ("threads.ensure_thread", {"thread_id": "nobodys", "assistant_id": "a", "metadata": {}, "user_id": None}),
    ("threads.ensure_thread_running", {"thread_id": "new"}),
    ("threads.ensure_thread_running", {"thread_id": "newest", "assistant_id": "a"}),
    ("threads.sync_thread_title", {"thread_id": "new", "title": "Tïtle"}),
    ("threads.sync_thread_status", {"thread_id": "new", "status": "idle"}),
    ("threads.delete_thread", {"thread_id": "new"}),
    # The store reads a thread's last number once, with the thread's first event.
    ("run_events.put_batch", {"events": [_event(), _event(category="trace", content="text")]}),
    ("run_events.put", _event("thread-2")),
    ("run_events.put_if_absent", _event("thread-2", event_type="once")),
    EVENT_AGAIN,
    ("run_events.delete_by_run", {"thread_id": THREAD, "run_id": "run-2"}),
    ("run_events.delete_by_thread", {"thread_id": THREAD}),
)

# -- raw PyMongo -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of two callees with equal databases."""

    calls: Mapping[str, Call]
    commands: CommandLog
    database: Database[Document]


class CallsOf(dict[str, Call]):
    """A storage's methods by path."""

    def __init__(self, storage: object) -> None:
        super().__init__()
        self._storage = storage

    def __missing__(self, path: str) -> Call:
        store, _, method = path.partition(".")
        return getattr(getattr(self._storage, store), method)


Sides = tuple[Side, Side]
"""A storage and raw PyMongo."""


@pytest.fixture
async def sides(
    mongodb_url: str, raw_client: pymongo.MongoClient[Document], database_name: str
) -> AsyncIterator[Sides]:
    names = (f"{database_name}_store", f"{database_name}_raw_pymongo")
    options = {"backend": "mongodb", "url": mongodb_url}
    for name in names:
        async with create_storage({**options, "database": name}) as storage:
            if name == names[0]:
                await _fill(storage)
    ours, other = (raw_client[name] for name in names)
    known: Any = ours[FEEDBACK].find_one({"run_id": "run-9"})
    ours[FEEDBACK].insert_one({**known, "_id": "known", "user_id": OTHER})
    for collection in COLLECTIONS:
        other[collection].insert_many(ours[collection].find())
    logs = (CommandLog(), CommandLog())
    client = AsyncMongoClient[Document](mongodb_url, event_listeners=[logs[0]])
    storage = create_storage({**options, "database": names[0]}, client=client)
    async with client, storage, raw_pymongo.opened(mongodb_url, names[1], event_listeners=[logs[1]]) as calls:
        yield Side(CallsOf(storage), logs[0], ours), Side(calls, logs[1], other)
    for name in names:
        raw_client.drop_database(name)


def _as_rows(path: str, answer: Any) -> Any:
    """Raw PyMongo's answer in the form of the store's."""
    if path == "runs.token_usage_by_thread":
        return _token_usage(answer)
    if path == "feedback.aggregate_by_run":
        return {"run_id": RUN, "total": sum(answer.values()), "positive": answer[1], "negative": answer[-1]}
    row_of = ROW_OF[path.partition(".")[0]]
    if isinstance(answer, list):
        return [row_of(document) for document in cast("list[Document]", answer)]
    if path == "feedback.list_by_thread_grouped":
        return {run_id: row_of(document) for run_id, document in answer.items()}
    return row_of(cast("Document", answer)) if isinstance(answer, dict) else answer


def _token_usage(answer: Document) -> TokenUsage:
    totals: Document = defaultdict(int, *answer["totals"])
    return {
        "total_runs": totals["runs"],
        "total_input_tokens": totals["input"],
        "total_output_tokens": totals["output"],
        "total_tokens": totals["total"],
        "llm_call_count": totals["llm_calls"],
        "by_caller": {caller: totals[caller] for caller in CALLERS},
        "by_model": {
            group["_id"]: {
                "runs": group["runs"],
                "tokens": group["total"],
                "input_tokens": group["input"],
                "output_tokens": group["output"],
                "llm_calls": group["llm_calls"],
            }
            for group in answer["models"]
        },
    }


ROW_OF: dict[str, Callable[[Document], Any]] = {
    "runs": run_row,
    "feedback": feedback_row,
    "threads": thread_row,
    "run_events": event_row,
}


async def test_raw_pymongo_reads_the_same_rows(sides: Sides) -> None:
    ours, other = sides
    for path, arguments in READS:
        expected = await ours.calls[path](**arguments)
        found = await other.calls[path](**arguments)
        assert (path, arguments, _as_rows(path, found)) == (path, arguments, expected)


VOLATILE = ("created_at", "updated_at", "stored_at", "order")


def _stored(database: Database[Document]) -> dict[str, list[Document]]:
    """All documents of the four collections with their sizes, without volatile values."""
    stored = {
        name: [_fixed(name, document) for document in database[name].find(sort=[("order", 1)])]
        for name in COLLECTIONS
    }
    # Without the store's anchors and tombstones.
    events = database[RUN_EVENTS].find({"run_id": {"$exists": True}}, sort=[("thread_id", 1), ("seq", 1)])
    return {**stored, RUN_EVENTS: [_fixed(RUN_EVENTS, document) for document in events]}


def _fixed(collection: str, document: Document) -> Document:
    size_bytes = len(bson.encode(document))
    if "once" in document:
        size_bytes -= len(bson.encode({"seq": document.pop("seq")}))
    generated = (*VOLATILE, "_id") if collection in (FEEDBACK, RUN_EVENTS) else VOLATILE
    fixed = {name: type(item).__name__ if name in generated else item for name, item in document.items()}
    return {**fixed, "size_bytes": size_bytes}


async def test_raw_pymongo_stores_the_same_documents(sides: Sides) -> None:
    ours, other = sides
    assert _stored(other.database) == (before := _stored(ours.database))
    for step in WRITES:
        path, arguments = step
        await ours.calls[path](**arguments)
        await other.calls[path](**arguments)
        expected = _stored(ours.database)
        assert (path, arguments, _stored(other.database)) == (path, arguments, expected)
        assert (expected == before) is (step in (THREAD_AGAIN, EVENT_AGAIN)), step
        before = expected


async def test_raw_pymongo_sends_no_more_commands_than_the_store(sides: Sides) -> None:
    for path, arguments in (*READS, *WRITES):
        counts: list[int] = []
        for side in sides:
            side.commands.names.clear()
            await side.calls[path](**arguments)
            counts.append(len(side.commands.names))
        assert 0 < counts[1] <= counts[0], (path, arguments, counts)


async def test_every_raw_pymongo_path_is_covered(sides: Sides) -> None:
    assert {path for path, _ in (*READS, *WRITES)} == set(sides[1].calls)


async def test_empty_batch_sends_no_command(sides: Sides) -> None:
    for side in sides:
        side.commands.names.clear()
        assert await side.calls["run_events.put_batch"](events=[]) == []
        assert side.commands.names == []


async def test_raw_pymongo_is_correct_with_concurrent_tasks(sides: Sides) -> None:
    calls, database = sides[1].calls, sides[1].database
    vote = {"run_id": RUN, "thread_id": THREAD, "rating": 1, "user_id": "many"}
    once = _event("thread-2", event_type="once")
    results = await asyncio.gather(*(calls["run_events.put_if_absent"](**once) for _ in range(32)))
    await asyncio.gather(*(calls["feedback.upsert"](**vote) for _ in range(32)))
    batches = await asyncio.gather(
        *(calls["run_events.put_batch"](events=[_event(), _event()]) for _ in range(32))
    )
    assert sum(is_new for _, is_new in results) == 1
    assert database[FEEDBACK].count_documents({"user_id": "many"}) == 1
    numbers = sorted(event["seq"] for batch in batches for event in batch)
    assert numbers == list(range(numbers[0], numbers[0] + 64))


# -- DeerFlow's own SQL code -----------------------------------------------------------------------

CREATED = "the created row"
"""Placeholder of a `feedback_id`, which each side generates."""

MISSING_KEYS: Mapping[str, set[str]] = {
    "runs": {"started_at", "ended_at"},
    "feedback": {"owner_id"},
    "threads": set(),
    "run_events": set(),
}
"""Store -> keys of a row that DeerFlow's tables do not have."""

GENERATED = {"created_at", "updated_at", "created_time", "updated_time", "feedback_id"}
MARKS = ("content_is_json", "content_is_dict")
"""Keys that DeerFlow adds to an event's metadata."""

_NEW_RUN = {"thread_id": THREAD, "metadata": {"k": [1, {"deep": None}]}, "kwargs": {"input": "hé"}}
_VOTE = {"run_id": RUN, "thread_id": THREAD, "rating": 1}

SCRIPT: tuple[Step, ...] = (
    ("runs.create", {**_NEW_RUN, "run_id": RUN, "user_id": USER, "assistant_id": "a", "model_name": "m"}),
    ("runs.create", {**_NEW_RUN, "run_id": "run-2", "user_id": USER, "follow_up_to_run_id": RUN}),
    ("runs.create", {**_NEW_RUN, "run_id": "run-3", "user_id": OTHER}),
    ("runs.update_status", {"run_id": RUN, "status": "running", "started_at": START, "metadata": None}),
    ("runs.get", {"run_id": RUN, "user_id": USER}),
    ("runs.get", {"run_id": RUN, "user_id": OTHER}),
    (
        "runs.update_run_completion",
        {"run_id": RUN, "status": "success", **COUNTS, "last_ai_message": "hé", "ended_at": START},
    ),
    ("runs.update_run_completion", {"run_id": "run-2", "status": "success", **COUNTS}),
    ("runs.set_error", {"run_id": "run-2", "error": "boom"}),
    ("runs.delete", {"run_id": "run-3", "user_id": USER}),
    ("runs.get", {"run_id": "run-3", "user_id": None}),
    ("runs.delete", {"run_id": "run-3", "user_id": OTHER}),
    ("runs.list_by_thread", {"thread_id": THREAD, "limit": 100, "user_id": None}),
    ("runs.list_by_thread", {"thread_id": THREAD, "limit": 1, "user_id": USER}),
    ("runs.token_usage_by_thread", {"thread_id": THREAD, "user_id": USER}),
    ("feedback.create", {**_VOTE, "user_id": OTHER, "message_id": "m-1", "comment": "hé"}),
    ("feedback.get", {"feedback_id": CREATED}),
    ("feedback.upsert", {**_VOTE, "user_id": USER, "comment": "yes"}),
    ("feedback.upsert", {**_VOTE, "user_id": USER, "rating": -1, "comment": "no"}),
    ("feedback.list_by_run", {"thread_id": THREAD, "run_id": RUN, "limit": 100, "user_id": None}),
    ("feedback.list_by_run", {"thread_id": THREAD, "run_id": RUN, "limit": 100, "user_id": USER}),
    ("feedback.list_by_thread", {"thread_id": THREAD, "limit": 100}),
    ("feedback.list_by_thread_grouped", {"thread_id": THREAD, "user_id": USER}),
    ("feedback.aggregate_by_run", {"thread_id": THREAD, "run_id": RUN}),
    ("feedback.delete", {"feedback_id": CREATED}),
    ("feedback.get", {"feedback_id": CREATED}),
    ("feedback.delete_by_run", {"thread_id": THREAD, "run_id": RUN, "user_id": USER}),
    ("feedback.list_by_thread", {"thread_id": THREAD, "limit": 100}),
    ("threads.create_thread_meta", {"data": _thread(THREAD, user_id=USER, display_name="Title")}),
    ("threads.create_thread_meta", {"data": _thread("thread-2", user_id=USER, assistant_id="a")}),
    ("threads.sync_thread_title", {"thread_id": "thread-2", "title": "Tïtle"}),
    ("threads.sync_thread_status", {"thread_id": "thread-2", "status": "busy"}),
    ("threads.get_thread_meta", {"thread_id": "thread-2"}),
    ("threads.search_threads", {"user_id": USER, "limit": 20, "metadata": {"team": "red"}}),
    ("threads.search_threads", {"user_id": USER, "limit": 20, "status": "busy"}),
    (
        "threads.update_thread_meta",
        {
            "thread_id": THREAD,
            "display_name": "Other",
            "status": "busy",
            "metadata": {"team": "blue", "n": 2},
        },
    ),
    ("threads.get_thread", {"thread_id": THREAD, "user_id": USER}),
    ("threads.get_thread", {"thread_id": THREAD, "user_id": OTHER}),
    ("threads.delete_thread", {"thread_id": "thread-2"}),
    ("threads.search_threads", {"user_id": USER, "limit": 20}),
    ("run_events.put_batch", {"events": [_event(), _event(category="trace", content="text")]}),
    ("run_events.put", _event(run_id="run-2", event_type="called")),
    ("run_events.put", _event("thread-2")),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 50}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 1, "before_seq": 3}),
    ("run_events.list_messages", {"thread_id": THREAD, "limit": 1, "after_seq": 1}),
    ("run_events.list_events", {"thread_id": THREAD, "run_id": RUN, "limit": 500}),
    ("run_events.list_events", {"thread_id": THREAD, "run_id": RUN, "event_types": ["x"], "limit": 500}),
    ("run_events.list_messages_by_run", {"thread_id": THREAD, "run_id": "run-2", "limit": 50}),
    ("run_events.count_messages", {"thread_id": THREAD}),
    ("run_events.delete_by_run", {"thread_id": THREAD, "run_id": "run-2"}),
    ("run_events.delete_by_thread", {"thread_id": THREAD}),
    ("run_events.count_messages", {"thread_id": THREAD}),
)


def _plain_rows(path: str, answer: Any) -> Any:
    """An answer without generated values."""
    if isinstance(answer, ThreadMeta):
        answer = asdict(answer)
    if isinstance(answer, list):
        return [_plain_rows(path, row) for row in cast("list[Any]", answer)]
    if not isinstance(answer, dict):
        return answer
    row = {name: item for name, item in cast("Document", answer).items() if name not in GENERATED}
    if path == "feedback.list_by_thread_grouped":
        return {run_id: _plain_rows("feedback", item) for run_id, item in row.items()}
    if path.startswith("run_events"):
        row["metadata"] = {name: item for name, item in row["metadata"].items() if name not in MARKS}
    return row


def _assert_agrees(path: str, found: Any, expected: Any) -> None:
    """Compares the common keys; ours may have exactly the known additional ones."""
    if isinstance(expected, list):
        assert len(found) == len(cast("list[Any]", expected)), path
        for one, other in zip(found, cast("list[Any]", expected), strict=True):
            _assert_agrees(path, one, other)
    elif path == "runs.token_usage_by_thread":
        assert expected["by_model"].keys() == found["by_model"].keys()
        for name, model in {**found["by_model"], "": {**found, "by_model": None}}.items():
            of = {**expected, "by_model": None} if name == "" else expected["by_model"][name]
            assert model == {count: of[count] for count in model}
    elif isinstance(expected, dict) and found is not None:
        row = cast("Document", expected)
        if path not in ("feedback.list_by_thread_grouped", "feedback.aggregate_by_run"):
            assert row.keys() - found.keys() == MISSING_KEYS[path.partition(".")[0]], path
        shared = row.keys() & found.keys()
        if path == "feedback.list_by_thread_grouped":
            assert row.keys() == found.keys()
            for run_id in row:
                _assert_agrees("feedback", found[run_id], row[run_id])
            return
        assert {name: found[name] for name in shared} == {name: row[name] for name in shared}, path
    else:
        assert found == expected, path


RETURNS_NOTHING = ("runs.delete", "threads.delete_thread")


async def _play(calls: Mapping[str, Call]) -> list[Any]:
    """The answers to all steps."""
    answers: list[Any] = []
    created: dict[str, Any] = {}
    for path, arguments in SCRIPT:
        given = {name: created.get(name) if item == CREATED else item for name, item in arguments.items()}
        answer = await calls[path](**given)
        if path == "feedback.create":
            created["feedback_id"] = answer["feedback_id"]
        answers.append(_plain_rows(path, answer))
    return answers


@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
async def test_deerflow_sql_gives_the_same_answers(
    mongodb_url: str, database_name: str, tmp_path: Path
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'folder' / 'deerflow.db'}"
    await deerflow_sql.prepare(url)
    async with deerflow_sql.opened(url) as calls:
        found = await _play(calls)
        assert {path for path, _ in SCRIPT} == set(calls)
    options = {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    async with create_storage(options) as storage:
        expected = await _play(CallsOf(storage))
    for (path, _), theirs, ours in zip(SCRIPT, found, expected, strict=True):
        if path in RETURNS_NOTHING:
            assert theirs is None
        else:
            _assert_agrees(path, theirs, ours)


@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
async def test_deerflow_sql_rejects_a_change_of_assistant_id(tmp_path: Path) -> None:
    async with deerflow_sql.opened(f"sqlite+aiosqlite:///{tmp_path / 'deerflow.db'}") as calls:
        with pytest.raises(NotImplementedError, match="assistant_id"):
            await calls["threads.update_thread_meta"](thread_id=THREAD, assistant_id="a")


@pytest.mark.skipif(MISSING is None, reason="DeerFlow's SQL code can be used here")
def test_missing_deerflow_sql_has_a_reason() -> None:
    assert MISSING is not None
    assert "DeerFlow" in MISSING or "deerflow-kernel needs Python" in MISSING
