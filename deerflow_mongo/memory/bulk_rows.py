"""Rows in bulk: all rows of a kind in the order of their keys, and rows stored exactly as they are given."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any, TypeAlias, cast

from ..contract import arguments
from ..contract.bulk_rows import (
    KEYS,
    BulkRow,
    BulkRows,
    EventNumbersRow,
    ExportedFeedbackRow,
    ExportedRunEventRow,
    ExportedRunRow,
    Imported,
    Key,
    RefusedRow,
    RowKind,
    ThreadRow,
    key_order,
    thread_row_of,
)
from ..contract.checked_rows import checked_key, checked_rows, key_of
from ..contract.errors import ActiveRunError, ArgumentValueError, IdempotencyKeyError, UserExistsError
from ..contract.row_digests import row_digest
from ..contract.rows import RunEventRow, ThreadMeta, UserRow
from .data import EventLog, Memory, MemoryStore
from .runs import MemoryRunStore
from .users import MemoryUserStore

_Conflict: TypeAlias = "str | None"
"""Why another row is in the way; None where the row was stored."""


class MemoryBulkRows(MemoryStore, BulkRows):
    """`BulkRows` in memory."""

    def __init__(self, memory: Memory, runs: MemoryRunStore, users: MemoryUserStore) -> None:
        super().__init__(memory)
        self._runs = runs
        self._users = users
        self._stores: Mapping[RowKind, Callable[[Any], _Conflict]] = {
            "users": self._store_user,
            "threads": self._store_thread,
            "runs": self._store_run,
            "feedback": self._store_feedback,
        }

    async def export_rows(
        self, kind: RowKind, *, after: Key | None = None, batch_size: int = 1_000
    ) -> AsyncGenerator[Sequence[BulkRow]]:
        key = None if after is None else checked_key(kind, after)
        size = arguments.row_limit("batch_size", batch_size)
        if size == 0:
            raise ArgumentValueError("batch_size must not be 0")
        rows = sorted(self._exported(kind), key=lambda row: key_order(key_of(kind, row)))
        behind = [row for row in rows if key is None or key_order(key_of(kind, row)) > key_order(key)]
        for start in range(0, len(behind), size):
            yield deepcopy(behind[start : start + size])

    def _exported(self, kind: RowKind) -> Sequence[BulkRow]:
        data = self._data
        rows: Mapping[str, Callable[[], Sequence[BulkRow]]] = {
            "users": lambda: list(data.users.values()),
            "threads": lambda: [thread_row_of(thread) for thread in data.threads.values()],
            "runs": lambda: [self._run_row(run_id) for run_id in data.runs],
            "feedback": lambda: [self._feedback_row(feedback_id) for feedback_id in data.feedback],
            "run_events": lambda: [row for log in data.events.values() for row in _event_rows(log)],
            "event_numbers": lambda: [
                {"thread_id": thread_id, "next_seq": log.last_seq + 1}
                for thread_id, log in data.events.items()
                if log.last_seq > (log.events[-1]["seq"] if log.events else 0)
            ],
        }
        return rows[arguments.one_of("kind", kind, KEYS)]()

    def _run_row(self, run_id: str) -> ExportedRunRow:
        by_model = self._data.model_counts.get(run_id, {})
        return cast("ExportedRunRow", {**self._data.runs[run_id], "token_usage_by_model": by_model})

    def _feedback_row(self, feedback_id: str) -> ExportedFeedbackRow:
        return {**self._data.feedback[feedback_id], "is_vote": feedback_id in self._data.votes}

    # Importing.

    async def import_rows(
        self, kind: RowKind, rows: Sequence[BulkRow], *, overwrite: bool = False
    ) -> Imported:
        overwrite = arguments.flag("overwrite", overwrite)
        checked = checked_rows(kind, rows)
        outcome = Imported(refused=checked.refused)
        if kind in self._stores:
            self._import_identified(kind, checked.rows, outcome, overwrite=overwrite)
            return outcome
        for key, row in checked.rows.items():
            if kind == "run_events":
                self._import_event(key, cast("ExportedRunEventRow", row), outcome)
            else:
                self._import_numbers(cast("EventNumbersRow", row), outcome)
        return outcome

    def _import_identified(
        self, kind: RowKind, rows: Mapping[Key, BulkRow], outcome: Imported, *, overwrite: bool
    ) -> None:
        """A row that another one is in the way of is tried again, as long as others were replaced."""
        stored = {key_of(kind, row): row for row in self._exported(kind)}
        waiting = dict(rows)
        replaced = -1
        conflicts: dict[Key, RefusedRow] = {}
        while waiting and outcome.replaced > replaced:
            replaced, conflicts = outcome.replaced, {}
            for key, row in waiting.items():
                conflict = self._import_one(kind, key, row, stored.get(key), outcome, overwrite=overwrite)
                if conflict is not None:
                    conflicts[key] = RefusedRow(key, conflict, is_conflict=True)
            waiting = {key: waiting[key] for key in conflicts}
        outcome.refused += conflicts.values()

    def _import_one(
        self,
        kind: RowKind,
        key: Key,
        row: BulkRow,
        stored: BulkRow | None,
        outcome: Imported,
        *,
        overwrite: bool,
    ) -> _Conflict:
        imported = self._data.imported.setdefault(kind, {})
        digest = row_digest(row)
        if stored is not None:
            if row_digest(stored) == digest:
                outcome.unchanged += 1
                return None
            if not overwrite and imported.get(key) != row_digest(stored):
                outcome.changed_here.append(key)
                return None
        conflict = self._stores[kind](row)
        if conflict is None:
            imported[key] = digest
            outcome.stored += stored is None
            outcome.replaced += stored is not None
        return conflict

    def _store_user(self, row: UserRow) -> _Conflict:
        try:
            self._users.store_as_is(row)
        except UserExistsError as error:
            return f"another account has its {error.taken}"
        return None

    def _store_thread(self, row: ThreadRow) -> _Conflict:
        fields = dict(row)
        times = {name: datetime.fromisoformat(row[name]) for name in ("created_time", "updated_time")}
        self._data.threads[row["thread_id"]] = ThreadMeta(**cast("Any", {**fields, **times}))
        return None

    def _store_run(self, row: ExportedRunRow) -> _Conflict:
        try:
            self._runs.store_as_is(row)
        except ActiveRunError:
            return "its thread has another active run or reservation"
        except IdempotencyKeyError:
            return "another run has its idempotency key"
        return None

    def _store_feedback(self, row: ExportedFeedbackRow) -> _Conflict:
        place = (row["thread_id"], row["run_id"], row["user_id"])
        for feedback_id in self._data.votes - {row["feedback_id"]}:
            vote = self._data.feedback[feedback_id]
            if row["is_vote"] and (vote["thread_id"], vote["run_id"], vote["user_id"]) == place:
                return "its user has another vote on the run"
        stored = cast("dict[str, Any]", dict(row))
        del stored["is_vote"]
        self._data.feedback[row["feedback_id"]] = cast("Any", stored)
        self._data.votes.discard(row["feedback_id"])
        if row["is_vote"]:
            self._data.votes.add(row["feedback_id"])
        return None

    def _import_event(self, key: Key, row: ExportedRunEventRow, outcome: Imported) -> None:
        log = self._data.events.setdefault(row["thread_id"], EventLog())
        place = bisect_left(log.events, row["seq"], key=lambda event: event["seq"])
        stored = log.events[place] if place < len(log.events) else None
        if row["seq"] in log.deleted:
            outcome.changed_here.append(key)
        elif stored is not None and stored["seq"] == row["seq"]:
            if row_digest(_event_row(log, stored)) == row_digest(row):
                outcome.unchanged += 1
            else:
                outcome.refused.append(RefusedRow(key, "another event has its number"))
        elif "event_id" in row and row["event_id"] in log.by_event_id:
            outcome.refused.append(RefusedRow(key, "another event of its thread has its event_id"))
        elif "once" in row and any(_is_once_of(log, event, row) for event in log.events):
            reason = "its run has another event of its type that is stored once"
            outcome.refused.append(RefusedRow(key, reason))
        else:
            self._insert_event(log, place, row)
            outcome.stored += 1

    def _insert_event(self, log: EventLog, place: int, row: ExportedRunEventRow) -> None:
        event = cast("RunEventRow", {name: value for name, value in row.items() if name != "once"})
        log.events.insert(place, event)
        log.last_seq = max(log.last_seq, event["seq"])
        if "once" in row:
            log.once.add(event["seq"])
        if "event_id" in event:
            log.by_event_id[event["event_id"]] = event
        self._data.wake_followers_of_thread(event["thread_id"])

    def _import_numbers(self, row: EventNumbersRow, outcome: Imported) -> None:
        log = self._data.events.setdefault(row["thread_id"], EventLog())
        if row["next_seq"] <= log.last_seq + 1:
            outcome.unchanged += 1
        else:
            log.last_seq = row["next_seq"] - 1
            outcome.stored += 1


def _event_row(log: EventLog, event: RunEventRow) -> ExportedRunEventRow:
    return cast("ExportedRunEventRow", {**event, "once": True} if event["seq"] in log.once else event)


def _event_rows(log: EventLog) -> list[ExportedRunEventRow]:
    return [_event_row(log, event) for event in log.events]


def _is_once_of(log: EventLog, event: RunEventRow, row: ExportedRunEventRow) -> bool:
    same = event["run_id"] == row["run_id"] and event["event_type"] == row["event_type"]
    return same and event["seq"] in log.once
