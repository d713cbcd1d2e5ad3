"""Run events: one list per thread, in which an event's number only ever rises."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from copy import deepcopy
from typing import Unpack

from ..contract import arguments
from ..contract.actor import UserId, current_actor
from ..contract.capabilities import Following
from ..contract.errors import ArgumentValueError, ThreadAccessError
from ..contract.protocols import RunEventStore
from ..contract.rows import MESSAGE, RunEventFields, RunEventRow
from ..contract.run_event_fields import CheckedRunEvent, checked_event, checked_events
from ..contract.statuses import is_ending
from .data import EventLog, Follower, MemoryStore, is_visible, now

_FOLLOW_PAGE = 500

_ANSWERS = ("llm.ai.response", "ai_message")


class MemoryRunEventStore(MemoryStore, RunEventStore, Following):
    """`RunEventStore` in memory."""

    # Writing.

    async def put_batch(self, events: Sequence[RunEventFields]) -> list[RunEventRow]:
        return self._append([_new_row(event) for event in checked_events(events)])

    async def put(self, **event: Unpack[RunEventFields]) -> RunEventRow:
        [row] = self._append([_new_row(checked_event(event))])
        return row

    async def put_if_absent(self, **event: Unpack[RunEventFields]) -> tuple[RunEventRow, bool]:
        new = _new_row(checked_event(event))
        self._check_access([new])
        for row in self._log(new["thread_id"]).events:
            if row["run_id"] == new["run_id"] and row["event_type"] == new["event_type"]:
                return deepcopy(row), False
        [row] = self._append([new])
        is_new = row["seq"] == new["seq"]
        if is_new:
            self._log(new["thread_id"]).once.add(row["seq"])
        return row, is_new

    def _append(self, rows: list[RunEventRow]) -> list[RunEventRow]:
        """Number the rows and store them; copies in the same order of what is stored for each of them."""
        self._check_access(rows)
        # One copy each: two rows may be for the same event.
        return [deepcopy(self._stored(row)) for row in rows]

    def _stored(self, row: RunEventRow) -> RunEventRow:
        """The row, numbered, or the one that is stored with its `event_id`."""
        log = self._log(row["thread_id"])
        if "event_id" in row:
            first = log.by_event_id.setdefault(row["event_id"], row)
            if first is not row:
                return first
        log.last_seq += 1
        row["seq"] = log.last_seq
        log.events.append(row)
        self._data.wake_followers_of_thread(row["thread_id"])
        return row

    def _check_access(self, rows: Iterable[RunEventRow]) -> None:
        """Raise `ThreadAccessError` if one of the threads is not the bound actor's to use."""
        for row in rows:
            if not self._may_use(row["thread_id"]):
                raise ThreadAccessError(row["thread_id"], "append events to")

    def _may_use(self, thread_id: str) -> bool:
        """Whether the bound actor may use the thread: their own, one without an owner, or one not stored."""
        thread = self._data.threads.get(thread_id)
        actor = current_actor()
        return actor is None or thread is None or actor.may_use(thread.user_id)

    def _log(self, thread_id: str) -> EventLog:
        return self._data.events.setdefault(thread_id, EventLog())

    # Reading.

    async def list_messages(
        self,
        thread_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        user = arguments.acting_user(user_id, "RunEventStore.list_messages")
        return _page(self._messages(thread_id, user), limit, before_seq, after_seq)

    async def list_messages_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        run_id = arguments.identifier("run_id", run_id)
        user = arguments.acting_user(user_id, "RunEventStore.list_messages_by_run")
        return _page(self._messages(thread_id, user, run_id), limit, before_seq, after_seq)

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
        run_id = arguments.identifier("run_id", run_id)
        user = arguments.acting_user(user_id, "RunEventStore.list_events")
        types = arguments.names("event_types", event_types)
        task = arguments.optional_text("task_id", task_id)
        found = [
            row
            for row in self._events(thread_id, user, run_id)
            if (types is None or row["event_type"] in types)
            and (task is None or row["metadata"].get("task_id") == task)
        ]
        return _page(found, limit, None, 0 if after_seq is None else after_seq)

    async def get_last_visible_ai_seq_by_run(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = None
    ) -> dict[str, int]:
        user = arguments.acting_user(user_id, "RunEventStore.get_last_visible_ai_seq_by_run")
        wanted = arguments.identifiers("run_ids", run_ids)
        return {
            row["run_id"]: row["seq"]
            for row in self._messages(thread_id, user)
            if row["run_id"] in wanted and _is_visible_answer(row)
        }

    async def list_thread_events(
        self, thread_id: str, *, run_id: str | None = None, after_seq: int = 0, limit: int = 500
    ) -> list[RunEventRow]:
        run_id = None if run_id is None else arguments.identifier("run_id", run_id)
        after = arguments.sequence_number("after_seq", after_seq) or 0
        return _page(self._events(thread_id, None, run_id), limit, None, after)

    async def count_messages(self, thread_id: str, *, user_id: UserId = None) -> int:
        user = arguments.acting_user(user_id, "RunEventStore.count_messages")
        return len(self._messages(thread_id, user))

    def _messages(self, thread_id: str, user: str | None, run_id: str | None = None) -> list[RunEventRow]:
        return [row for row in self._events(thread_id, user, run_id) if row["category"] == MESSAGE]

    def _events(self, thread_id: str, user: str | None, run_id: str | None = None) -> list[RunEventRow]:
        """The stored events of the thread, or of one run, that this user and the bound actor may see."""
        thread_id = arguments.identifier("thread_id", thread_id)
        log = self._data.events.get(thread_id)
        if log is None or not self._may_use(thread_id):
            return []
        return [
            row
            for row in log.events
            if run_id in (None, row["run_id"]) and is_visible(row.get("user_id"), user)
        ]

    # Following.

    @property
    def max_followers(self) -> int:
        return sys.maxsize

    async def follow(
        self,
        thread_id: str,
        *,
        run_id: str | None = None,
        after_seq: int = 0,
        until_run_ends: bool = False,
    ) -> AsyncGenerator[RunEventRow]:
        thread_id = arguments.identifier("thread_id", thread_id)
        run_id = None if run_id is None else arguments.identifier("run_id", run_id)
        if arguments.flag("until_run_ends", until_run_ends) and run_id is None:
            raise ArgumentValueError("until_run_ends needs a run_id")
        with self._data.following(thread_id, run_id if until_run_ends else None) as follower:
            while True:
                # Before the events are read: one that is stored while they are handed out sets it.
                follower.changed.clear()
                has_ended = until_run_ends and self._has_ended(run_id, follower)
                rows = await self.list_thread_events(
                    thread_id, run_id=run_id, after_seq=after_seq, limit=_FOLLOW_PAGE
                )
                for row in rows:
                    after_seq = row["seq"]
                    yield row
                if len(rows) == _FOLLOW_PAGE:
                    continue
                if has_ended:
                    return
                await follower.changed.wait()

    def _has_ended(self, run_id: str | None, follower: Follower) -> bool:
        """Whether the run has ended, or was deleted since the follower began."""
        run = None if run_id is None else self._data.runs.get(run_id)
        return follower.run_was_deleted if run is None else is_ending(run["status"])

    # Deleting.

    async def delete_by_thread(self, thread_id: str, *, user_id: UserId = None) -> int:
        user = arguments.acting_user(user_id, "RunEventStore.delete_by_thread")
        return self._delete(thread_id, self._events(thread_id, user))

    async def delete_by_run(self, thread_id: str, run_id: str, *, user_id: UserId = None) -> int:
        run_id = arguments.identifier("run_id", run_id)
        user = arguments.acting_user(user_id, "RunEventStore.delete_by_run")
        return self._delete(thread_id, self._events(thread_id, user, run_id))

    def _delete(self, thread_id: str, rows: list[RunEventRow]) -> int:
        """Remove these events of the thread; their numbers are not given again."""
        deleted = {row["seq"] for row in rows}
        log = self._log(thread_id)
        log.events = [row for row in log.events if row["seq"] not in deleted]
        log.once -= deleted
        log.deleted |= deleted
        log.by_event_id = {row["event_id"]: row for row in log.events if "event_id" in row}
        return len(deleted)


def _page(
    rows: list[RunEventRow], limit: int, before_seq: int | None, after_seq: int | None
) -> list[RunEventRow]:
    """The first `limit` rows after `after_seq`, or the last `limit` without it."""
    count = arguments.row_limit("limit", limit)
    before = arguments.sequence_number("before_seq", before_seq)
    after = arguments.sequence_number("after_seq", after_seq)
    between = [
        row
        for row in rows
        if (before is None or row["seq"] < before) and (after is None or row["seq"] > after)
    ]
    return deepcopy(between[:count] if after is not None else between[max(0, len(between) - count) :])


def _new_row(event: CheckedRunEvent) -> RunEventRow:
    """A checked event as a row, before it has a number."""
    row: RunEventRow = {
        "thread_id": event.thread_id,
        "run_id": event.run_id,
        "event_type": event.event_type,
        "category": event.category,
        "content": event.content,
        "metadata": event.metadata,
        "created_at": (event.created_at or now()).isoformat(),
        "seq": 0,
    }
    if event.user_id is not None:
        row["user_id"] = event.user_id
    if event.event_id is not None:
        row["event_id"] = event.event_id
    return row


def _is_visible_answer(row: RunEventRow) -> bool:
    """Whether a message is an answer of the agent itself and not one of its middlewares'."""
    caller = row["metadata"].get("caller")
    is_hidden = isinstance(caller, str) and caller.startswith("middleware:")
    return row["event_type"] in _ANSWERS and not is_hidden
