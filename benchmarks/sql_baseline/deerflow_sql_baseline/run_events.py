"""Run events. Reimplements `AppRunEventStore` and the run event repository below it.

The option `run_event_numbers` selects how events are numbered. "for_update": the thread's highest number is
read FOR UPDATE, which SQLite ignores and PostgreSQL rejects on an aggregate. "queued", as in later releases:
a thread's writers in one process wait for each other, and on PostgreSQL those of all processes, by an
advisory lock. DeerFlow's table of numbers that survive deletions is omitted, in SQL's favour.

Added: `get_last_visible_ai_seq_by_run`, one GROUP BY; `put`, a batch of one, and `put_if_absent`, a SELECT
and then such a batch, under the same locks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypedDict, Unpack, cast
from weakref import WeakValueDictionary

from sqlalchemy import ColumnElement, Select, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from deerflow_mongo import RunEventFields, RunEventRow, resolve_user_id
from deerflow_mongo.contract.actor import UserId, current_actor
from deerflow_mongo.contract.rows import MESSAGE

from .engine import POSTGRESQL, QUEUED, Sessions, SqlConfig
from .tables import RunEvent, moment
from .threads import SqlThreadStore

_LOCK_THREAD = text("SELECT pg_advisory_xact_lock(hashtext(CAST(:thread_id AS text))::bigint)")
_IS_JSON, _IS_DICT = "content_is_json", "content_is_dict"


class _Page(TypedDict, total=False):
    limit: int
    before_seq: int | None
    after_seq: int | None
    user_id: UserId


def _event(given: Mapping[str, Any]) -> RunEvent:
    content, metadata = given.get("content", ""), dict(given.get("metadata") or {})
    if not isinstance(content, str):
        metadata[_IS_JSON] = True
        if isinstance(content, dict):
            metadata[_IS_DICT] = True
        content = json.dumps(content, default=str, ensure_ascii=False)
    event = RunEvent(
        thread_id=str(given["thread_id"]),
        run_id=str(given["run_id"]),
        event_type=str(given["event_type"]),
        category=str(given["category"]),
        content=content,
        meta=metadata,
        user_id=given.get("user_id"),
    )
    if (created_at := given.get("created_at")) is not None:
        event.created_at = moment(created_at)
    return event


def _row(event: RunEvent) -> RunEventRow:
    metadata = dict(event.meta or {})
    is_json = bool(metadata.pop(_IS_JSON, False))
    is_json = bool(metadata.pop(_IS_DICT, False)) or is_json
    row: RunEventRow = {
        "thread_id": event.thread_id,
        "run_id": event.run_id,
        "event_type": event.event_type,
        "category": event.category,
        "content": json.loads(event.content) if is_json else event.content,
        "metadata": metadata,
        "created_at": event.created_at.isoformat(),
        "seq": event.seq,
    }
    if event.user_id is not None:
        row["user_id"] = event.user_id
    return row


def _user_filter(user_id: UserId, method: str) -> list[ColumnElement[bool]]:
    owner = resolve_user_id(user_id, method_name=f"run_events.{method}")
    return [] if owner is None else [RunEvent.user_id == owner]


class SqlRunEventStore:
    """`RunEventStore`, like the adapter."""

    def __init__(self, sessions: Sessions, threads: SqlThreadStore, config: SqlConfig) -> None:
        self._sessions = sessions
        self._threads = threads
        self._is_queued = config.run_event_numbers == QUEUED
        self._has_locks = self._is_queued and config.url.drivername == POSTGRESQL
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put_batch(self, events: Sequence[RunEventFields]) -> list[RunEventRow]:
        if not events:
            return []
        thread_ids = await self._checked_threads(events)
        async with self._locked(thread_ids), self._sessions.writing() as session:
            stored = await self._append(session, events)
        return [_row(event) for event in stored]

    async def put(self, **event: Unpack[RunEventFields]) -> RunEventRow:
        [row] = await self.put_batch([event])
        return row

    async def put_if_absent(self, **event: Unpack[RunEventFields]) -> tuple[RunEventRow, bool]:
        thread_id = event["thread_id"]
        thread_ids = await self._checked_threads([event])
        same = (RunEvent.run_id == event["run_id"], RunEvent.event_type == event["event_type"])
        query = select(RunEvent).where(RunEvent.thread_id == thread_id, *same)
        query = query.order_by(RunEvent.seq).limit(1)
        async with self._locked(thread_ids), self._sessions.writing() as session:
            await self._lock(session, thread_id)
            existing = (await session.execute(query)).scalar_one_or_none()
            if existing is not None:
                return _row(existing), False
            [stored] = await self._append(session, [event])
        return _row(stored), True

    async def list_messages(self, thread_id: str, **page: Unpack[_Page]) -> list[RunEventRow]:
        filters = _user_filter(page.get("user_id"), "list_messages")
        return await self._page(thread_id, filters, page)

    async def list_messages_by_run(
        self, thread_id: str, run_id: str, **page: Unpack[_Page]
    ) -> list[RunEventRow]:
        filters = _user_filter(page.get("user_id"), "list_messages_by_run")
        return await self._page(thread_id, [RunEvent.run_id == run_id, *filters], page)

    async def list_events(
        self,
        thread_id: str,
        run_id: str,
        *,
        event_types: Sequence[str] | None = None,
        task_id: str | None = None,
        limit: int = 500,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        query = select(RunEvent).where(RunEvent.thread_id == thread_id, RunEvent.run_id == run_id)
        query = query.where(*_user_filter(user_id, "list_events"))
        if event_types is not None:
            query = query.where(RunEvent.event_type.in_(event_types))
        if task_id is not None:
            query = query.where(RunEvent.meta["task_id"].as_string() == task_id)
        if after_seq is not None:
            query = query.where(RunEvent.seq > after_seq)
        return await self._read(thread_id, query.order_by(RunEvent.seq.asc()).limit(limit))

    async def get_last_visible_ai_seq_by_run(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = None
    ) -> dict[str, int]:
        wanted, filters = set(run_ids), _user_filter(user_id, "get_last_visible_ai_seq_by_run")
        if not wanted or not await self._is_visible(thread_id):
            return {}
        caller = func.coalesce(RunEvent.meta["caller"].as_string(), "")
        query = select(RunEvent.run_id, func.max(RunEvent.seq)).where(
            RunEvent.thread_id == thread_id,
            RunEvent.run_id.in_(wanted),
            RunEvent.category == MESSAGE,
            RunEvent.event_type.in_(("llm.ai.response", "ai_message")),
            caller.notlike("middleware:%"),
            *filters,
        )
        async with self._sessions.reading() as session:
            groups = (await session.execute(query.group_by(RunEvent.run_id))).all()
        return {group[0]: int(group[1]) for group in groups}

    async def count_messages(self, thread_id: str, *, user_id: UserId = None) -> int:
        filters = _user_filter(user_id, "count_messages")
        if not await self._is_visible(thread_id):
            return 0
        messages = (RunEvent.thread_id == thread_id, RunEvent.category == MESSAGE)
        async with self._sessions.reading() as session:
            return await _count(session, *messages, *filters)

    async def delete_by_thread(self, thread_id: str, *, user_id: UserId = None) -> int:
        return await self._delete(thread_id, *_user_filter(user_id, "delete_by_thread"))

    async def delete_by_run(self, thread_id: str, run_id: str, *, user_id: UserId = None) -> int:
        filters = _user_filter(user_id, "delete_by_run")
        return await self._delete(thread_id, RunEvent.run_id == run_id, *filters)

    # -- thread access ---------------------------------------------------------------------------------

    async def _is_visible(self, thread_id: str) -> bool:
        actor = current_actor()
        if actor is None:
            return True
        thread = await self._threads.get_thread_meta(thread_id)
        return thread is None or actor.may_use(thread.user_id)

    async def _checked_threads(self, events: Iterable[RunEventFields]) -> list[str]:
        """The threads of the events; raises `PermissionError` if the actor may not write to all of them."""
        thread_ids = sorted({str(cast("Mapping[str, Any]", event)["thread_id"]) for event in events})
        refused = [thread_id for thread_id in thread_ids if not await self._is_visible(thread_id)]
        if refused:
            raise PermissionError(
                f"actor is not allowed to append events for thread(s): {', '.join(refused)}"
            )
        return thread_ids

    # -- numbers ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _locked(self, thread_ids: Iterable[str]) -> AsyncGenerator[None]:
        """Locks the (sorted, to avoid deadlocks) threads against other writers of this process."""
        async with AsyncExitStack() as locks:
            for thread_id in thread_ids if self._is_queued else ():
                await locks.enter_async_context(self._locks.setdefault(thread_id, asyncio.Lock()))
            yield

    async def _lock(self, session: AsyncSession, thread_id: str) -> None:
        if self._has_locks:
            await session.execute(_LOCK_THREAD, {"thread_id": thread_id})

    async def _append(self, session: AsyncSession, given: Sequence[RunEventFields]) -> list[RunEvent]:
        events = [_event(cast("Mapping[str, Any]", fields)) for fields in given]
        last: dict[str, int] = {}
        for thread_id in sorted({event.thread_id for event in events}):
            await self._lock(session, thread_id)
            last[thread_id] = await self._last_number(session, thread_id)
        for event in events:
            last[event.thread_id] += 1
            event.seq = last[event.thread_id]
            session.add(event)
        await session.flush()
        return events

    async def _last_number(self, session: AsyncSession, thread_id: str) -> int:
        highest = select(func.max(RunEvent.seq)).where(RunEvent.thread_id == thread_id)
        if not self._has_locks:
            highest = highest.with_for_update()
        return await session.scalar(highest) or 0

    # -- queries ---------------------------------------------------------------------------------------

    async def _page(
        self, thread_id: str, conditions: Iterable[ColumnElement[bool]], page: _Page
    ) -> list[RunEventRow]:
        limit, before_seq, after_seq = page.get("limit", 50), page.get("before_seq"), page.get("after_seq")
        query = select(RunEvent).where(RunEvent.thread_id == thread_id, *conditions)
        query = query.where(RunEvent.category == MESSAGE)
        if before_seq is None and after_seq is not None:
            query = query.where(RunEvent.seq > after_seq).order_by(RunEvent.seq.asc()).limit(limit)
            return await self._read(thread_id, query)
        if before_seq is not None:
            query = query.where(RunEvent.seq < before_seq)
        rows = await self._read(thread_id, query.order_by(RunEvent.seq.desc()).limit(limit))
        return rows[::-1]

    async def _read(self, thread_id: str, query: Select[Any]) -> list[RunEventRow]:
        if not await self._is_visible(thread_id):
            return []
        async with self._sessions.reading() as session:
            return [_row(event) for event in (await session.execute(query)).scalars()]

    async def _delete(self, thread_id: str, *conditions: ColumnElement[bool]) -> int:
        if not await self._is_visible(thread_id):
            return 0
        conditions = (RunEvent.thread_id == thread_id, *conditions)
        async with self._sessions.writing() as session:
            count = await _count(session, *conditions)
            await session.execute(delete(RunEvent).where(*conditions))
            return count


async def _count(session: AsyncSession, *conditions: ColumnElement[bool]) -> int:
    return await session.scalar(select(func.count()).select_from(RunEvent).where(*conditions)) or 0
