"""What a MongoDB database contains after a replay: read through the stores, or by counting collections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, cast

from ..contract.rows import FeedbackTotals, RunEventRow, RunRow, TokenUsage
from ..mongodb.config import redacted
from ..mongodb.schema import NEWEST_FIRST, RUN_EVENTS, RUNS, THREADS
from ..mongodb.storage import MongoStorage
from .recording import HOW_TOKENS_ARE_COUNTED
from .replay import HOW_EVENTS_ARE_STORED, HOW_USERS_VOTE, ReplayedThread
from .text import first_words, plain

Document: TypeAlias = dict[str, Any]

USER_NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")

ROWS_SHOWN = 20
MAX_THREADS_SUMMED = 1_000
STORY_PAGE, MAX_STORY_PAGES = 5, 5


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay wrote. `other_owners` has the threads that already belonged to another user."""

    threads: int
    runs: int
    events: int
    users: list[str]
    duration_ms: int
    other_owners: list[tuple[str, str | None]]


@dataclass(frozen=True, slots=True)
class UserTotals:
    """What the database contains of a user's replayed threads; `user` is None for a thread without owner."""

    user: str | None
    threads: int
    runs: int
    events: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What the database contains after a replay, in JSON types; `replayed` is the replay's own result."""

    server: Document
    replayed: ReplayResult
    by_user: list[UserTotals]
    runs_before: int
    runs_now: int
    runs_by_status: dict[str, int]
    events_before: int
    events_now: int
    events_by_category: dict[str, int]
    tokens: TokenUsage
    newest_runs: list[RunRow]
    votes: list[FeedbackTotals]
    threads_now: int
    threads: list[Document]
    ownership: Document
    story: Document
    document: Document
    rules: Document = field(
        default_factory=lambda: {
            "tokens": HOW_TOKENS_ARE_COUNTED,
            "votes": HOW_USERS_VOTE,
            "events": HOW_EVENTS_ARE_STORED,
        }
    )


class DatabaseReader:
    """Reads the summary of a database. Created before the replay, for the counts of before."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage
        prefix = storage.config.collection_prefix
        self._runs = storage.driver.collection(prefix + RUNS)
        self._threads = storage.driver.collection(prefix + THREADS)
        self._events = storage.driver.collection(prefix + RUN_EVENTS)
        self._runs_before = self._events_before = 0

    async def count_before(self) -> None:
        """Count the runs and events that are there already."""
        self._runs_before = sum((await self._runs_by_status()).values())
        self._events_before = sum((await self._events_by_category()).values())

    async def summary(self, replayed: ReplayResult, threads: Sequence[ReplayedThread]) -> Summary:
        """Read everything; the story is that of the first thread."""
        storage, by_status = self._storage, await self._runs_by_status()
        by_category = await self._events_by_category()
        documents = await self._runs.find({}, sort=NEWEST_FIRST, limit=ROWS_SHOWN)
        found = [await storage.runs.get(document["_id"], user_id=None) for document in documents]
        rows = [row for row in found if row is not None]
        most_calls = max(rows, key=lambda row: row["llm_call_count"])
        newest_threads = await storage.threads.search_threads(user_id=None, limit=MAX_THREADS_SUMMED)
        usages = [await storage.runs.token_usage_by_thread(x.thread_id, user_id=None) for x in newest_threads]
        counts = await self._threads.aggregate([{"$group": {"_id": None, "threads": {"$sum": 1}}}])
        return Summary(
            server=await _server_of(storage),
            replayed=replayed,
            by_user=await self._by_user(threads),
            runs_before=self._runs_before,
            runs_now=sum(by_status.values()),
            runs_by_status=by_status,
            events_before=self._events_before,
            events_now=sum(by_category.values()),
            events_by_category=by_category,
            tokens=_sum_of(usages),
            newest_runs=rows,
            votes=[await storage.feedback.aggregate_by_run(row["thread_id"], row["run_id"]) for row in rows],
            threads_now=counts[0]["threads"],
            threads=[asdict(thread) for thread in newest_threads[:ROWS_SHOWN]],
            ownership=await self._ownership(most_calls, replayed.users),
            story=await self._story(threads[0]),
            document=next(x for x in documents if x["_id"] == most_calls["run_id"]),
        )

    async def _runs_by_status(self) -> dict[str, int]:
        groups = await self._runs.aggregate(
            [{"$group": {"_id": "$status", "runs": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
        )
        return {group["_id"]: group["runs"] for group in groups}

    async def _events_by_category(self) -> dict[str, int]:
        """Of all threads. A document without category is not an event: it only reserves a number."""
        groups = await self._events.aggregate(
            [
                {"$match": {"category": {"$exists": True}}},
                {"$group": {"_id": "$category", "events": {"$sum": 1}}},
                {"$sort": {"_id": 1}},
            ]
        )
        return {group["_id"]: group["events"] for group in groups}

    async def _by_user(self, threads: Sequence[ReplayedThread]) -> list[UserTotals]:
        ids = [thread.thread_id for thread in threads]
        groups = await self._events.aggregate(
            [
                {"$match": {"thread_id": {"$in": ids}, "category": {"$exists": True}}},
                {"$group": {"_id": "$thread_id", "events": {"$sum": 1}}},
            ]
        )
        events = {group["_id"]: group["events"] for group in groups}
        totals: dict[str | None, UserTotals] = {}
        for thread in threads:
            usage = await self._storage.runs.token_usage_by_thread(thread.thread_id, user_id=None)
            before = totals.get(thread.owner, UserTotals(thread.owner, 0, 0, 0, 0))
            totals[thread.owner] = UserTotals(
                thread.owner,
                before.threads + 1,
                before.runs + usage["total_runs"],
                before.events + events.get(thread.thread_id, 0),
                before.tokens + usage["total_tokens"],
            )
        return list(totals.values())

    async def _story(self, thread: ReplayedThread) -> Document:
        """A thread's messages as a host's page would read them, page after page from the first."""
        events, thread_id = self._storage.run_events, thread.thread_id
        pages: list[Document] = []
        after_seq = 0
        while len(pages) < MAX_STORY_PAGES:
            rows = await events.list_messages(thread_id, after_seq=after_seq, limit=STORY_PAGE)
            if not rows:
                break
            pages.append({"after_seq": after_seq, "messages": [_line(row, thread.owner) for row in rows]})
            after_seq = rows[-1]["seq"]
        messages = await events.count_messages(thread_id)
        return {"thread_id": thread_id, "owner": thread.owner, "messages": messages, "pages": pages}

    async def _ownership(self, row: RunRow, users: Sequence[str]) -> Document:
        """How many runs of a thread its owner and another user can read."""
        owner, runs = row["user_id"], self._storage.runs
        other = next((name for name in (*users, *USER_NAMES) if name != owner), None)
        return {
            "thread_id": row["thread_id"],
            "owner": owner,
            "other": other,
            "owner_sees": len(await runs.list_by_thread(row["thread_id"], user_id=owner)),
            "other_sees": len(await runs.list_by_thread(row["thread_id"], user_id=other)),
        }


def _line(row: RunEventRow, owner: str | None) -> Document:
    """A line of a story. `who` is a tool's name, a model's caller, or the thread's owner for a human."""
    content, caller = row["content"], row["metadata"].get("caller")
    name = content.get("name") if isinstance(content, dict) else None
    return {
        "seq": row["seq"],
        "created_at": row["created_at"],
        "run_id": row["run_id"],
        "event_type": row["event_type"],
        "who": str(name or caller or owner or "everybody"),
        "words": first_words(content),
    }


def _sum_of(usages: Iterable[TokenUsage]) -> TokenUsage:
    """The sum of the threads' token usages, each of which the database summed."""
    total: Document = {}
    for usage in usages:
        _add(total, cast("Document", usage))
    return cast("TokenUsage", total)


def _add(total: Document, counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), cast("Mapping[str, Any]", value))
        else:
            total[name] = total.get(name, 0) + value


async def _server_of(storage: MongoStorage) -> Document:
    config, driver = storage.config, storage.driver
    version = None
    if config.has_server:
        version = (await driver.command({"buildInfo": 1}, database="admin"))["version"]
    return {
        "version": version,
        "url": plain(redacted(config.url)) if config.has_server else None,
        "data_dir": None if config.data_dir is None else str(config.data_dir),
        "database": config.database,
        "driver": driver.name,
    }
