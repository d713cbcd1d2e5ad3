"""Every read is an index scan that examines as many documents as it returns, as `explain` reports it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage, ThreadMetaCreate, create_storage
from deerflow_mongo.mongodb import queries
from deerflow_mongo.mongodb.checkpoints import queries as checkpoint_queries
from deerflow_mongo.mongodb.schema import CHECKPOINT_NUMBERS, CHECKPOINTS, COLLECTIONS, Index, schema_of

from .plans import plan_of_read, winning_stages

LEASE: dict[str, Any] = {"owner_worker_id": "w1", "lease_expires_at": "2999-01-01T00:00:00Z"}

USERS, PER_USER, LIMIT, PENDING = ("alice", "bob"), 30, 10, 5


class ReadLog(CommandListener):
    """The last read that a client sent, as a command that can be explained."""

    def __init__(self) -> None:
        self.command: dict[str, Any] = {}

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name in ("find", "aggregate"):
            explainable = ("find", "aggregate", "filter", "sort", "limit", "skip", "pipeline", "cursor")
            self.command = {name: value for name, value in event.command.items() if name in explainable}

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


def _oauth(user_id: str) -> dict[str, Any]:
    """Half of the accounts have an OAuth identity."""
    return {"oauth_provider": "github", "oauth_id": user_id} if user_id.startswith("alice") else {}


async def _fill(storage: MongoStorage) -> None:
    await storage.setup()
    for position in range(PER_USER):
        for user in USERS:
            run_id = f"{user}-{position}"
            thread = ThreadMetaCreate(
                thread_id=run_id,
                user_id=user,
                status="idle" if position % 2 else "busy",
                metadata={"parity": position % 2, "a.b": {"$gt": position}},
            )
            account: dict[str, Any] = {
                "email": f"{run_id}@example.org",
                "system_role": user,
                **_oauth(run_id),
            }
            await asyncio.gather(
                storage.runs.create(run_id, "t", user_id=user),
                storage.feedback.create(run_id=run_id, thread_id="t", rating=1, user_id=user),
                storage.feedback.create(run_id="alice-1", thread_id="t", rating=-1, user_id=user),
                storage.threads.create_thread_meta(thread),
                storage.users.create(run_id, **account),
            )
    for position in range(PER_USER - PENDING):
        for user in USERS:
            await storage.runs.update_status(f"{user}-{position}", "running")
    await storage.run_events.put_batch(
        [
            {
                "thread_id": "t",
                "run_id": USERS[position % 2],
                "event_type": f"type-{position % 3}",
                "category": "trace" if position % 5 else "message",
            }
            for position in range(10 * PER_USER)
        ]
    )


class Explainer:
    """Runs a read and returns what the server reports: (index, documents examined, rows returned)."""

    def __init__(
        self, storage: MongoStorage, log: ReadLog, raw: MongoClient[dict[str, Any]], database: str
    ) -> None:
        self.storage = storage
        self._log = log
        self._raw = raw[database]

    async def explain(self, read: Any) -> tuple[str, int, int]:
        await read
        return self._explain(self._log.command)

    def explain_filter(
        self, collection: str, query: dict[str, Any], sort: dict[str, int] | None = None
    ) -> tuple[str, int, int]:
        """As `explain`, for what a write looks for, or a read that is not one of a store."""
        return self._explain({"find": collection, "filter": query, **({"sort": sort} if sort else {})})

    def _explain(self, command: dict[str, Any]) -> tuple[str, int, int]:
        plan = self._raw.command({"explain": command, "verbosity": "executionStats"})
        plan = plan_of_read(plan)
        stats, stages = plan["executionStats"], winning_stages(plan)
        assert not {stage["stage"] for stage in stages} & {"COLLSCAN", "SORT"}, stages
        index = next(stage.get("indexName", stage["stage"]) for stage in reversed(stages))
        return index, stats["totalDocsExamined"], stats["nReturned"]


def _is_for_reads(index: Index) -> bool:
    return not index.unique and index.expire_after_s is None


@contextlib.asynccontextmanager
async def _explainer(url: str, database: str, raw: MongoClient[dict[str, Any]]) -> AsyncGenerator[Explainer]:
    log = ReadLog()
    async with AsyncMongoClient[dict[str, Any]](url, event_listeners=[log]) as client:
        storage = create_storage({"backend": "mongodb", "database": database}, client=client)
        assert isinstance(storage, MongoStorage)
        yield Explainer(storage, log, raw, database)


@pytest.fixture(scope="module")
def filled_database(mongodb_url: str, raw_client: MongoClient[dict[str, Any]]) -> Iterator[str]:
    """Filled once: that takes longer than all tests that only read it."""
    name = f"explain_{uuid.uuid4().hex[:12]}"

    async def fill() -> None:
        async with _explainer(mongodb_url, name, raw_client) as explainer:
            await _fill(explainer.storage)

    with asyncio.Runner() as runner:
        runner.run(fill())
    yield name
    raw_client.drop_database(name)


@pytest.fixture
async def explainer(
    mongodb_url: str, filled_database: str, raw_client: MongoClient[dict[str, Any]]
) -> AsyncIterator[Explainer]:
    """On rows that all tests share: for those that only read."""
    async with _explainer(mongodb_url, filled_database, raw_client) as explainer:
        yield explainer


@pytest.fixture
async def own_explainer(
    mongodb_url: str, database_name: str, raw_client: MongoClient[dict[str, Any]]
) -> AsyncIterator[Explainer]:
    """On rows of the test's own, which it may change."""
    async with _explainer(mongodb_url, database_name, raw_client) as explainer:
        await _fill(explainer.storage)
        yield explainer


async def test_run_by_id_examines_one_document(explainer: Explainer) -> None:
    runs = explainer.storage.runs
    assert await explainer.explain(runs.get("alice-3", user_id=None)) == ("IDHACK", 1, 1)
    _, examined, returned = await explainer.explain(runs.get("alice-3", user_id="alice"))
    assert (examined, returned) == (1, 1)


async def test_runs_of_a_thread_examine_as_many_as_they_return(explainer: Explainer) -> None:
    runs = explainer.storage.runs
    read = runs.list_by_thread("t", limit=LIMIT, user_id="bob")
    assert await explainer.explain(read) == ("by_thread_and_user", LIMIT, LIMIT)
    read = runs.list_by_thread("t", limit=LIMIT, user_id=None)
    assert await explainer.explain(read) == ("by_thread", LIMIT, LIMIT)


async def test_pending_runs_examine_as_many_as_they_return(explainer: Explainer) -> None:
    runs, pending = explainer.storage.runs, PENDING * len(USERS)
    assert await explainer.explain(runs.list_pending()) == ("active", pending, pending)
    assert await explainer.explain(runs.list_pending(before="2020-01-01")) == ("active", 0, 0)


async def test_active_runs_examine_as_many_as_they_return(own_explainer: Explainer) -> None:
    """Those with an expired lease examine all active runs."""
    runs, active = own_explainer.storage.runs, PER_USER * len(USERS)
    assert await own_explainer.explain(runs.list_inflight()) == ("active", active, active)
    assert await own_explainer.explain(runs.list_inflight(before="2020-01-01")) == ("active", 0, 0)
    await runs.put("owned", thread_id="other", user_id=None, **LEASE)
    read = runs.list_inflight_with_expired_lease()
    assert await own_explainer.explain(read) == ("active", active + 1, active)


async def test_writes_of_a_run_with_an_owner_examine_one_document(own_explainer: Explainer) -> None:
    runs = own_explainer.storage.runs
    await runs.put("owned", thread_id="t", user_id=None, **LEASE, idempotency_key="k")
    filters = [
        queries.run_by_idempotency_key("k"),
        queries.active_operation("t"),
        queries.interruptible_operation("t", LEASE["owner_worker_id"], 10, "another key"),
        queries.active_run_of_worker("owned", LEASE["owner_worker_id"]),
        queries.expired_run("alice-1", 10),
        queries.uncancelled_run("owned"),
        queries.pending_run("owned"),
    ]
    for query in filters:
        index, examined, returned = own_explainer.explain_filter("runs", queries.changeable(query))
        assert (examined, returned) == (1, 1), (index, query)
    assert own_explainer.explain_filter("runs", queries.new_run_by_id("owned"))[1:] == (1, 0)
    assert own_explainer.explain_filter("runs", queries.new_run_by_id("new"))[1:] == (0, 0)
    query = queries.changeable(queries.active_runs_of_worker(LEASE["owner_worker_id"]))
    assert own_explainer.explain_filter("runs", query) == ("active", PER_USER * len(USERS) + 1, 1)


async def test_feedback_lists_examine_as_many_as_they_return(explainer: Explainer) -> None:
    feedback = explainer.storage.feedback
    read = feedback.list_by_run("t", "alice-1", limit=LIMIT)
    assert await explainer.explain(read) == ("by_run", LIMIT, LIMIT)
    read = feedback.list_by_run("t", "alice-1", limit=LIMIT, user_id="bob")
    assert await explainer.explain(read) == ("by_user", LIMIT, LIMIT)
    assert await explainer.explain(feedback.list_by_thread("t", limit=LIMIT)) == (
        "by_thread",
        LIMIT,
        LIMIT,
    )


async def test_feedback_oldest_first_scans_the_same_indexes_backwards(explainer: Explainer) -> None:
    feedback = explainer.storage.feedback
    read = feedback.list_by_run("t", "alice-1", limit=LIMIT, order="oldest_first")
    assert await explainer.explain(read) == ("by_run", LIMIT, LIMIT)
    read = feedback.list_by_run("t", "alice-1", limit=LIMIT, user_id="bob", order="oldest_first")
    assert await explainer.explain(read) == ("by_user", LIMIT, LIMIT)
    read = feedback.list_by_thread("t", limit=LIMIT, order="oldest_first")
    assert await explainer.explain(read) == ("by_thread", LIMIT, LIMIT)


async def test_feedback_of_a_user_in_a_thread_is_read_in_index_order(explainer: Explainer) -> None:
    """The scan skips the rows of the thread's other users."""
    for order in ("newest_first", "oldest_first"):
        read = explainer.storage.feedback.list_by_thread("t", limit=LIMIT, user_id="bob", order=order)
        index, examined, returned = await explainer.explain(read)
        assert (index, returned) == ("by_thread", LIMIT)
        assert examined <= len(USERS) * (LIMIT + 1)


async def test_feedback_by_id_for_a_user_examines_one_document(explainer: Explainer) -> None:
    [row] = await explainer.storage.feedback.list_by_thread("t", limit=1)
    read = explainer.storage.feedback.get(row["feedback_id"], user_id=row["user_id"])
    _, examined, returned = await explainer.explain(read)
    assert (examined, returned) == (1, 1)


async def test_votes_are_counted_from_the_index_alone(explainer: Explainer) -> None:
    index, examined, _ = await explainer.explain(explainer.storage.feedback.aggregate_by_run("t", "alice-1"))
    assert (index, examined) == ("by_run", 0)


async def test_grouped_feedback_examines_one_document_per_run(explainer: Explainer) -> None:
    read = explainer.storage.feedback.list_by_thread_grouped("t", user_id="alice")
    index, examined, _ = await explainer.explain(read)
    assert (index, examined) == ("by_user", PER_USER)


async def test_feedback_of_some_runs_examines_one_document_per_run(explainer: Explainer) -> None:
    runs = ["alice-2", "alice-3", "none"]
    read = explainer.storage.feedback.list_by_run_ids("t", runs, user_id="alice")
    index, examined, _ = await explainer.explain(read)
    assert (index, examined) == ("by_user", 2)


async def test_token_usage_examines_only_the_runs_of_the_thread(explainer: Explainer) -> None:
    read = explainer.storage.runs.token_usage_by_thread("t", user_id="alice")
    index, examined, _ = await explainer.explain(read)
    assert (index, examined) == ("by_thread_and_user", PER_USER)
    read = explainer.storage.runs.token_usage_by_thread("t", user_id="alice", statuses=["running"])
    index, examined, _ = await explainer.explain(read)
    assert (index, examined) == ("by_thread_and_user", PER_USER)


async def test_thread_search_last_updated_first_examines_as_many_as_it_returns(explainer: Explainer) -> None:
    threads = explainer.storage.threads
    for offset in (0, LIMIT):
        read = threads.search_threads(user_id="bob", order="last_updated_first", limit=LIMIT, offset=offset)
        assert await explainer.explain(read) == ("by_user_last_updated", LIMIT, LIMIT)


@pytest.mark.parametrize(
    ("wanted", "index", "rows"),
    [
        ({"user_id": None}, "by_time", LIMIT),
        ({"user_id": "bob"}, "by_user", LIMIT),
        ({"user_id": "bob", "status": "busy"}, "by_user_and_status", LIMIT),
        ({"user_id": "bob", "metadata": {"parity": 1}}, "by_user_and_metadata", LIMIT),
        ({"user_id": "bob", "metadata": {"a.b": {"$gt": 5}}}, "by_user_and_metadata", 1),
        ({"user_id": None, "metadata": {"a.b": {"$gt": 5}}}, "by_metadata", 2),
    ],
)
async def test_thread_search_examines_as_many_as_it_returns(
    explainer: Explainer, wanted: dict[str, Any], index: str, rows: int
) -> None:
    read = explainer.storage.threads.search_threads(limit=LIMIT, **wanted)
    assert await explainer.explain(read) == (index, rows, rows)


PINNED_FIRST_SEARCHES: list[tuple[dict[str, Any], str]] = [
    ({"user_id": None}, "pinned_first"),
    ({"user_id": None, "status": "busy"}, "by_status_pinned_first"),
    ({"user_id": None, "metadata": {"parity": 1}}, "by_metadata_pinned_first"),
    ({"user_id": "bob"}, "by_user_pinned_first"),
    ({"user_id": "bob", "status": "busy"}, "by_user_and_status_pinned_first"),
    ({"user_id": "bob", "metadata": {"parity": 1}}, "by_user_and_metadata_pinned_first"),
]


@pytest.mark.parametrize(("wanted", "index"), PINNED_FIRST_SEARCHES)
async def test_thread_search_pinned_first_examines_as_many_as_it_returns(
    explainer: Explainer, wanted: dict[str, Any], index: str
) -> None:
    threads = explainer.storage.threads
    for offset in (0, LIMIT // 2):
        read = threads.search_threads(order="pinned_first", limit=LIMIT, offset=offset, **wanted)
        assert await explainer.explain(read) == (index, LIMIT, LIMIT)


async def test_thread_search_by_everything_pinned_first_needs_no_sort(explainer: Explainer) -> None:
    read = explainer.storage.threads.search_threads(
        user_id="bob", status="busy", metadata={"parity": 0}, order="pinned_first", limit=LIMIT
    )
    _, examined, returned = await explainer.explain(read)
    assert (examined, returned) == (LIMIT, LIMIT)


async def test_thread_search_without_a_match_examines_nothing(explainer: Explainer) -> None:
    read = explainer.storage.threads.search_threads(user_id="bob", metadata={"parity": True})
    _, examined, returned = await explainer.explain(read)
    assert (examined, returned) == (0, 0)


async def test_event_lists_examine_as_many_as_they_return(explainer: Explainer) -> None:
    events = explainer.storage.run_events
    reads = [
        (events.list_messages("t", limit=LIMIT), "message_seq", LIMIT),
        (events.list_messages("t", limit=LIMIT, before_seq=200), "message_seq", LIMIT),
        (events.list_messages("t", limit=LIMIT, after_seq=100), "message_seq", LIMIT),
        (events.list_messages("t", limit=LIMIT, after_seq=100, before_seq=120), "message_seq", 4),
        (events.list_events("t", "bob", limit=LIMIT), "run_seq", LIMIT),
        (events.list_events("t", "bob", event_types=["type-1"], limit=LIMIT), "run_seq", LIMIT),
        (events.list_events("t", "bob", event_types=["type-1", "type-2"], limit=LIMIT), "run_seq", LIMIT),
        (events.list_messages_by_run("t", "bob", limit=LIMIT), "run_message_seq", LIMIT),
        (events.list_messages_by_run("t", "bob", limit=LIMIT, after_seq=50), "run_message_seq", LIMIT),
        (events.list_thread_events("t", after_seq=50, limit=LIMIT), "thread_seq", LIMIT),
    ]
    for read, index, rows in reads:
        assert await explainer.explain(read) == (index, rows, rows)


async def test_repeated_events_are_looked_up_by_their_event_ids(own_explainer: Explainer) -> None:
    events = own_explainer.storage.run_events
    batch: list[Any] = [
        {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "trace", "event_id": f"{n}"}
        for n in range(LIMIT)
    ]
    await events.put_batch(batch)
    assert await own_explainer.explain(events.put_batch(batch)) == ("by_event_id", LIMIT, LIMIT)


async def test_events_of_a_user_are_read_in_index_order(own_explainer: Explainer) -> None:
    """The scan skips the thread's other events, which are few in a thread of that user."""
    events = own_explainer.storage.run_events
    await events.put_batch(
        [
            {
                "thread_id": "t",
                "run_id": "carol",
                "event_type": "said",
                "category": "message",
                "user_id": "carol",
            }
            for _ in range(LIMIT)
        ]
    )
    reads = [
        (events.list_messages("t", user_id="carol"), {"message_seq"}),
        (events.list_events("t", "carol", user_id="carol"), {"run_seq"}),
        # For a run that has messages only, both indexes cost the same.
        (events.list_messages_by_run("t", "carol", user_id="carol"), {"run_seq", "run_message_seq"}),
    ]
    for read, indexes in reads:
        index, _, returned = await own_explainer.explain(read)
        assert index in indexes
        assert returned == LIMIT


async def test_last_visible_answers_are_read_from_the_index_alone(explainer: Explainer) -> None:
    events = explainer.storage.run_events
    for user_id in (None, "carol"):
        read = events.get_last_visible_ai_seq_by_run("t", ["alice", "bob", "none"], user_id=user_id)
        index, examined, _ = await explainer.explain(read)
        assert (index, examined) == ("run_messages_by_type", 0)


async def test_events_of_a_task_are_read_in_the_order_of_the_runs_events(own_explainer: Explainer) -> None:
    events = own_explainer.storage.run_events
    batch: list[Any] = [
        {
            "thread_id": "t",
            "run_id": "r",
            "event_type": "step",
            "category": "trace",
            "metadata": {"task_id": f"{n % 2}"},
        }
        for n in range(2 * LIMIT)
    ]
    await events.put_batch(batch)
    read = events.list_events("t", "r", task_id="1", limit=LIMIT)
    assert await own_explainer.explain(read) == ("run_seq", 2 * LIMIT, LIMIT)


async def test_messages_are_counted_from_the_index_alone(explainer: Explainer) -> None:
    index, examined, _ = await explainer.explain(explainer.storage.run_events.count_messages("t"))
    assert (index, examined) == ("message_seq", 0)


async def test_account_reads_examine_as_many_as_they_return(explainer: Explainer) -> None:
    users = explainer.storage.users
    assert await explainer.explain(users.get("bob-3")) == ("IDHACK", 1, 1)
    assert await explainer.explain(users.get_by_email("Bob-3@example.org")) == ("by_email_key", 1, 1)
    assert await explainer.explain(users.get_by_email("nobody")) == ("by_email_key", 0, 0)
    read = users.get_by_oauth("github", "alice-3")
    assert await explainer.explain(read) == ("one_account_per_oauth_identity", 1, 1)
    read = users.list_by_role("bob", limit=LIMIT)
    assert await explainer.explain(read) == ("by_role", LIMIT, LIMIT)


async def test_accounts_of_a_role_are_counted_from_the_index_alone(explainer: Explainer) -> None:
    index, examined, _ = await explainer.explain(explainer.storage.users.count(system_role="bob"))
    assert (index, examined) == ("by_role", 0)


async def test_every_index_is_used_by_a_read_or_is_unique_or_expires(explainer: Explainer) -> None:
    storage = explainer.storage
    reads = [
        storage.runs.list_by_thread("t", user_id="bob"),
        storage.runs.list_by_thread("t", user_id=None),
        storage.runs.list_pending(),
        storage.feedback.list_by_run("t", "alice-1"),
        storage.feedback.list_by_run("t", "alice-1", user_id="bob"),
        storage.feedback.list_by_thread("t"),
        storage.threads.search_threads(user_id=None),
        storage.threads.search_threads(user_id="bob"),
        storage.threads.search_threads(user_id="bob", status="busy"),
        storage.threads.search_threads(user_id="bob", metadata={"parity": 1}),
        storage.threads.search_threads(user_id=None, metadata={"parity": 1}),
        storage.threads.search_threads(user_id="bob", order="last_updated_first"),
        *(
            storage.threads.search_threads(order="pinned_first", **wanted)
            for wanted in (search[0] for search in PINNED_FIRST_SEARCHES)
        ),
        storage.run_events.get_last_visible_ai_seq_by_run("t", ["bob"]),
        storage.users.get_by_email("bob-3@example.org"),
        storage.users.list_by_role("bob"),
        storage.run_events.list_messages("t"),
        storage.run_events.list_events("t", "bob"),
        storage.run_events.list_messages_by_run("t", "bob"),
    ]
    used = [(await explainer.explain(read))[0] for read in reads]
    names = [
        index.name
        for schema in COLLECTIONS
        if schema.name != CHECKPOINTS  # see the next test
        for index in schema.indexes
        if _is_for_reads(index)
    ]
    of_pipelines = ["by_time", "by_user", "by_time"]  # of runs and feedback: test_questions.py, test_views.py
    assert sorted(used + of_pipelines) == sorted(names)


async def test_every_index_of_checkpoints_is_used_by_a_read_or_is_unique_or_expires(
    explainer: Explainer,
) -> None:
    by_id = {"_id.checkpoint": -1}
    used = {
        explainer.explain_filter(CHECKPOINTS, query, sort)[0]
        for query, sort in (
            (checkpoint_queries.checkpoints_over_namespaces("t", before="c"), by_id),
            (checkpoint_queries.checkpoints_over_namespaces(None, before="c"), by_id),
            (checkpoint_queries.checkpoints_of_runs(["r"]), None),
        )
    }
    indexes = schema_of(CHECKPOINTS).indexes
    assert used == {index.name for index in indexes if _is_for_reads(index)}
    numbered = explainer.explain_filter(CHECKPOINTS, checkpoint_queries.numbered("t"), {"seq": -1})
    assert numbered[0] == CHECKPOINT_NUMBERS.name
