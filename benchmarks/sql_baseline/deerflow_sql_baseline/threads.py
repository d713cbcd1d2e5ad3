"""Threads. Reimplements `ThreadMetaStoreAdapter`, the repository below it and `ThreadMetaStorage` above it.

Added: `delete_thread` returns whether the thread existed, and `updated_time` is the creation time until the
first update, as `deerflow_mongo.ThreadMeta` requires. As in DeerFlow 2.x: `merge_thread_metadata`, and owner
checks before changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack, cast

from sqlalchemy import ColumnElement, CursorResult, case, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from deerflow_mongo import AUTO, ThreadMeta, ThreadMetaCreate, resolve_user_id
from deerflow_mongo.contract.actor import UserId
from deerflow_mongo.contract.rows import PINNED, ThreadOrder

from .engine import Sessions
from .tables import Thread, now

_LAST_UPDATED = (func.coalesce(Thread.updated_time, Thread.created_time).desc(), Thread.thread_id.desc())
_ORDERS: dict[ThreadOrder, tuple[ColumnElement[Any], ...]] = {
    "newest_first": (Thread.created_time.desc(),),
    "last_updated_first": _LAST_UPDATED,
    # Text, "1" on SQLite: PostgreSQL refuses to take other texts for booleans.
    "pinned_first": (case((Thread.meta[PINNED].as_string().in_(("true", "1")), 0), else_=1), *_LAST_UPDATED),
}


class _Changes(TypedDict, total=False):
    assistant_id: str | None
    display_name: str | None
    status: str | None
    metadata: Mapping[str, Any] | None
    owner_id: str | None


def _meta(thread: Thread) -> ThreadMeta:
    return ThreadMeta(
        thread_id=thread.thread_id,
        assistant_id=thread.assistant_id,
        user_id=thread.user_id,
        display_name=thread.display_name,
        status=thread.status,
        metadata=dict(thread.meta or {}),
        created_time=thread.created_time,
        updated_time=thread.updated_time or thread.created_time,
    )


def _stripped(text: str | None) -> str | None:
    return (text.strip() or None) if text is not None else None


async def _owned(session: AsyncSession, thread_id: str, owner: object) -> Thread | None:
    """The thread if it belongs to the owner; an owner of None matches every thread."""
    query = select(Thread).where(Thread.thread_id == thread_id)
    thread = (await session.execute(query)).scalar_one_or_none()
    return None if thread is None or owner not in (None, thread.user_id) else thread


class SqlThreadStore:
    """`ThreadStore`: adapter and facade in one object."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def create_thread_meta(self, data: ThreadMetaCreate) -> ThreadMeta:
        thread = Thread(
            thread_id=data.thread_id,
            assistant_id=data.assistant_id,
            user_id=data.user_id,
            display_name=data.display_name,
            status=data.status,
            meta=dict(data.metadata),
        )
        async with self._sessions.writing() as session:
            session.add(thread)
            await session.flush()
            await session.refresh(thread)
            return _meta(thread)

    async def get_thread_meta(self, thread_id: str) -> ThreadMeta | None:
        async with self._sessions.reading() as session:
            thread = await _owned(session, thread_id, None)
        return None if thread is None else _meta(thread)

    async def update_thread_meta(
        self, thread_id: str, *, user_id: UserId = None, **fields: Unpack[_Changes]
    ) -> None:
        owner = resolve_user_id(user_id, method_name="threads.update_thread_meta")
        values: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        if "metadata" in values:
            values["meta"] = dict(values.pop("metadata"))
        if "owner_id" in values:
            values["user_id"] = values.pop("owner_id")
        async with self._sessions.writing() as session:
            if values and (owner is None or await _owned(session, thread_id, owner) is not None):
                await session.execute(update(Thread).where(Thread.thread_id == thread_id).values(**values))

    async def merge_thread_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: UserId = None, touch: bool = True
    ) -> None:
        owner = resolve_user_id(user_id, method_name="threads.merge_thread_metadata")
        async with self._sessions.writing() as session:
            thread = await _owned(session, thread_id, owner)
            if thread is not None:
                merged = {**(thread.meta or {}), **metadata}
                updated = now() if touch else Thread.updated_time
                query = update(Thread).where(Thread.thread_id == thread_id)
                await session.execute(query.values(meta=merged, updated_time=updated))

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        owner = resolve_user_id(user_id, method_name="threads.delete_thread")
        async with self._sessions.writing() as session:
            if owner is not None and await _owned(session, thread_id, owner) is None:
                return False
            result = await session.execute(delete(Thread).where(Thread.thread_id == thread_id))
            return cast("CursorResult[Any]", result).rowcount > 0

    async def get_thread(self, thread_id: str, *, user_id: UserId = AUTO) -> ThreadMeta | None:
        thread = await self.get_thread_meta(thread_id)
        if thread is None:
            return None
        owner = resolve_user_id(user_id, method_name="threads.get_thread")
        return None if owner is not None and thread.user_id != owner else thread

    async def ensure_thread(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        user_id: UserId = AUTO,
    ) -> ThreadMeta:
        owner = cast("str | None", resolve_user_id(user_id, method_name="threads.ensure_thread"))
        existing = await self.get_thread(thread_id, user_id=owner)
        if existing is not None:
            return existing
        new: Any = {"thread_id": thread_id, "assistant_id": assistant_id, "metadata": metadata or {}}
        return await self.create_thread_meta(ThreadMetaCreate(**new, user_id=owner))

    async def ensure_thread_running(
        self, *, thread_id: str, assistant_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> ThreadMeta:
        if await self.get_thread_meta(thread_id) is None:
            new: Any = {"thread_id": thread_id, "assistant_id": assistant_id, "metadata": metadata or {}}
            return await self.create_thread_meta(ThreadMetaCreate(**new, status="running"))
        await self.update_thread_meta(thread_id, status="running")
        # None where it was deleted meanwhile
        return cast("ThreadMeta", await self.get_thread_meta(thread_id))

    async def sync_thread_title(self, *, thread_id: str, title: str) -> None:
        await self.update_thread_meta(thread_id, display_name=title)

    async def sync_thread_assistant_id(self, *, thread_id: str, assistant_id: str) -> None:
        await self.update_thread_meta(thread_id, assistant_id=assistant_id)

    async def sync_thread_status(self, *, thread_id: str, status: str) -> None:
        await self.update_thread_meta(thread_id, status=status)

    async def sync_thread_metadata(self, *, thread_id: str, metadata: Mapping[str, Any]) -> None:
        await self.update_thread_meta(thread_id, metadata=metadata)

    async def search_threads(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        user_id: UserId = AUTO,
        assistant_id: str | None = None,
        limit: int = 100,
        offset: int = 0,
        order: ThreadOrder = "newest_first",
    ) -> list[ThreadMeta]:
        owner = cast("str | None", resolve_user_id(user_id, method_name="threads.search_threads"))
        wanted = {Thread.status: status, Thread.user_id: owner, Thread.assistant_id: assistant_id}
        query = select(Thread)
        for column, text in wanted.items():
            value = _stripped(text)
            if value is not None:
                query = query.where(column == value)
        for key, value in (metadata or {}).items():
            query = query.where(Thread.meta[key].as_string() == str(value))
        query = query.order_by(*_ORDERS[order]).limit(limit).offset(offset)
        async with self._sessions.reading() as session:
            return [_meta(thread) for thread in (await session.execute(query)).scalars()]
