"""Erases a thread, or a user, from every collection, or counts what an erasure would remove.

What belongs to whom is decided here, once for both; how run events and checkpoints are deleted is in
`events/store.py` and `checkpoints/deletion.py`. A document of a newer version is never deleted: an erasure
removes the rest, and then raises an error that names it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from ..contract.arguments import identifier
from ..contract.erasure import Erased
from ..contract.errors import CorruptDocumentError
from . import queries
from .checkpoints.queries import live_checkpoints
from .documents.counting import count_pipeline, counted
from .documents.encoding import Document
from .drivers.collection import Collection
from .queries import Query

_BATCH = 1_000
"""Documents of one command that deletes."""

_SCANNED = 10_000
"""Documents of one command that looks for a user where no index has them; two fields of each are sent."""

_BY_ID = (("_id", 1),)


@dataclass(frozen=True, slots=True)
class ErasableData:
    """The collections that an erasure looks at, and what deletes where numbers must stay occupied."""

    runs: Collection
    feedback: Collection
    threads: Collection
    users: Collection
    run_events: Collection
    checkpoints: Collection
    erase_events: Callable[[Query], Awaitable[int]]
    """Deletes these events of one thread; the number of events."""
    erase_checkpoints: Callable[[str], Awaitable[int]]
    """Deletes those of a thread; the number of checkpoints."""


class Removal(Protocol):
    """How an erasure removes what it finds; each method returns a number of rows."""

    async def rows(self, collection: Collection, query: Query) -> int: ...

    async def events(self, query: Query) -> int:
        """Run events of one thread."""
        ...

    async def checkpoints(self, thread_id: str) -> int: ...

    async def end(self, places: Sequence[tuple[Collection, Query]]) -> None:
        """Raise `CorruptDocumentError` for a document that should have gone from one of these places."""
        ...


class Deleting(Removal):
    """Deletes, in batches."""

    def __init__(self, data: ErasableData) -> None:
        self._data = data

    async def rows(self, collection: Collection, query: Query) -> int:
        deleted, query = 0, queries.changeable(query)
        while found := await collection.find(query, sort=(), limit=_BATCH, projection=("_id",)):
            some = queries.by_ids([document["_id"] for document in found])
            deleted += await collection.delete_many({"$and": [query, some]})
        return deleted

    async def events(self, query: Query) -> int:
        return await self._data.erase_events(query)

    async def checkpoints(self, thread_id: str) -> int:
        return await self._data.erase_checkpoints(thread_id)

    async def end(self, places: Sequence[tuple[Collection, Query]]) -> None:
        for collection, query in places:
            found = await collection.find(queries.newer(query), sort=(), limit=1, projection=("_id",))
            if found:
                reason = "is of a newer release, which has to erase it; everything else was erased"
                raise CorruptDocumentError(collection.name, str(found[0]["_id"]), "schema_version", reason)


class Counting(Removal):
    """Counts and changes nothing."""

    def __init__(self, data: ErasableData) -> None:
        self._data = data

    async def rows(self, collection: Collection, query: Query) -> int:
        return counted(await collection.aggregate(count_pipeline(queries.changeable(query))))

    async def events(self, query: Query) -> int:
        return await self.rows(self._data.run_events, query)

    async def checkpoints(self, thread_id: str) -> int:
        return await self.rows(self._data.checkpoints, live_checkpoints(thread_id))

    async def end(self, places: Sequence[tuple[Collection, Query]]) -> None:
        pass


def _ignore(erased: Erased) -> None:
    pass


class MongoErasure:
    """One erasure of threads or a user, or the count of one.

    `on_thread` gets what was erased of each thread, after it.
    """

    def __init__(
        self, data: ErasableData, removal: Removal, on_thread: Callable[[Erased], None] = _ignore
    ) -> None:
        self._data = data
        self._removal = removal
        self._on_thread = on_thread
        self._threads: set[str] = set()
        """Those that were erased as a whole."""
        self._runs: set[str] = set()
        """Those that were erased in threads of others."""

    # A thread.

    async def thread(self, thread_id: str) -> Erased:
        thread_id = identifier("thread_id", thread_id)
        erased = await self._thread(thread_id)
        of_thread = queries.of_thread(thread_id)
        await self._removal.end(
            (
                (self._data.runs, of_thread),
                (self._data.feedback, of_thread),
                (self._data.run_events, queries.events_of_thread(thread_id)),
                (self._data.threads, queries.thread_by_id(thread_id)),
            )
        )
        return erased

    async def _thread(self, thread_id: str) -> Erased:
        data, removal, of_thread = self._data, self._removal, queries.of_thread(thread_id)
        self._threads.add(thread_id)
        erased = Erased()
        erased.checkpoints = await removal.checkpoints(thread_id)
        erased.run_events = await removal.events(queries.events_of_thread(thread_id))
        erased.feedback = await removal.rows(data.feedback, of_thread)
        erased.runs = await removal.rows(data.runs, queries.runs_of_thread(thread_id))
        erased.threads = await removal.rows(data.threads, queries.thread_by_id(thread_id))
        # Reservations: that of the host's own deletion, which kept new runs out until now, is no run.
        await removal.rows(data.runs, of_thread)
        self._on_thread(erased)
        return erased

    async def old_threads(self, updated_before: datetime, statuses: Sequence[str]) -> AsyncGenerator[str]:
        """The threads that were last updated before this time, without those that have an active run.

        Only those in one of these statuses, or in any without one. Reads all threads.
        """
        async for page in _pages(self._data.threads, {}, ("status", "updated_at"), _SCANNED):
            for thread in page:
                updated_at, is_wanted = thread.get("updated_at"), thread.get("status") in statuses
                if not isinstance(updated_at, datetime) or updated_at.replace(tzinfo=UTC) >= updated_before:
                    continue
                if (is_wanted or not statuses) and not await self._has_active_run(thread["_id"]):
                    yield thread["_id"]

    async def _has_active_run(self, thread_id: str) -> bool:
        return await self._data.runs.find_one(queries.active_in_thread(thread_id)) is not None

    # A user.

    async def user(self, user_id: str) -> Erased:
        user_id = identifier("user_id", user_id)
        of_user, erased = queries.of_user(user_id), Erased()
        async for thread_id in self._own_threads(user_id):
            erased.add(await self._thread(thread_id))
        async for thread_id in self._threads_with_runs(user_id):
            if await self._is_nobody_elses(thread_id, user_id):
                erased.add(await self._thread(thread_id))
            else:
                erased.add(await self._runs_in_shared_thread(thread_id, user_id))
        erased.runs += await self._removal.rows(self._data.runs, queries.without_thread(of_user))
        erased.feedback += await self._feedback_of(user_id)
        erased.run_events += await self._events_for(user_id)
        erased.accounts = await self._removal.rows(self._data.users, queries.user_by_id(user_id))
        await self._removal.end(
            (
                (self._data.threads, of_user),
                (self._data.runs, of_user),
                (self._data.users, queries.user_by_id(user_id)),
            )
        )
        return erased

    async def _own_threads(self, user_id: str) -> AsyncGenerator[str]:
        async for page in _pages(self._data.threads, queries.of_user(user_id), ("_id",), _BATCH):
            for thread in page:
                yield thread["_id"]

    async def _threads_with_runs(self, user_id: str) -> AsyncGenerator[str]:
        """The other threads in which the user has runs, each once."""
        seen: set[str] = set()
        async for page in _pages(self._data.runs, queries.of_user(user_id), ("thread_id",), _BATCH):
            for thread_id in {run.get("thread_id") for run in page} - seen - self._threads:
                if isinstance(thread_id, str):
                    seen.add(thread_id)
                    yield thread_id

    async def _is_nobody_elses(self, thread_id: str, user_id: str) -> bool:
        thread = await self._data.threads.find_one(queries.thread_by_id(thread_id))
        if thread is not None and thread.get("user_id") is not None:
            return False
        others = queries.of_others_in_thread(thread_id, user_id)
        return await self._data.runs.find_one(others) is None

    async def _runs_in_shared_thread(self, thread_id: str, user_id: str) -> Erased:
        data, removal, erased = self._data, self._removal, Erased()
        query = queries.of_user_in_thread(thread_id, user_id)
        async for page in _pages(data.runs, query, ("_id",), _BATCH):
            run_ids = [run["_id"] for run in page]
            self._runs.update(run_ids)
            for run_id in run_ids:
                erased.run_events += await removal.events(queries.events_of_run(thread_id, run_id))
            feedback = queries.of_runs(queries.of_thread(thread_id), run_ids)
            erased.feedback += await removal.rows(data.feedback, feedback)
            erased.runs += await removal.rows(data.runs, {**query, **queries.by_ids(run_ids)})
        return erased

    async def _feedback_of(self, user_id: str) -> int:
        number = 0
        async for found in self._scan(self._data.feedback, user_id):
            number += await self._removal.rows(self._data.feedback, queries.by_ids(_ids(found)))
        return number

    async def _events_for(self, user_id: str) -> int:
        number = 0
        async for found in self._scan(self._data.run_events, user_id):
            by_thread: dict[str, list[Document]] = defaultdict(list)
            for event in found:
                if isinstance(event.get("thread_id"), str):
                    by_thread[event["thread_id"]].append(event)
            for thread_id, events in by_thread.items():
                number += await self._removal.events(queries.events_by_id(thread_id, _ids(events)))
            broken = queries.without_thread(queries.by_ids(_ids(found)))
            number += await self._removal.rows(self._data.run_events, broken)
        return number

    async def _scan(self, collection: Collection, user_id: str) -> AsyncGenerator[list[Document]]:
        """The user's documents that are not of an erased thread or run; reads the whole collection.

        An erasure is rare: an index of users would make every event that is stored more expensive.
        """
        async for page in _pages(collection, {}, ("user_id", "thread_id", "run_id"), _SCANNED):
            found = [
                document
                for document in page
                if document.get("user_id") == user_id
                and document.get("thread_id") not in self._threads
                and document.get("run_id") not in self._runs
            ]
            if found:
                yield found


async def _pages(
    collection: Collection, query: Query, fields: Sequence[str], size: int
) -> AsyncGenerator[list[Document]]:
    """These fields of the documents in the order of their ids, which may be deleted meanwhile."""
    last: Any = None
    while page := await collection.find(
        queries.behind(query, last), sort=_BY_ID, limit=size, projection=fields
    ):
        yield page
        last = page[-1]["_id"]


def _ids(documents: Sequence[Document]) -> list[Any]:
    return [document["_id"] for document in documents]
