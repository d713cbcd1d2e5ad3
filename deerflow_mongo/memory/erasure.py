"""Erases a thread or a user from a storage in memory, or counts what an erasure would remove.

What belongs to whom is collected first; it then goes all at once, between two awaits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..contract.arguments import identifier
from ..contract.erasure import Erased
from ..contract.rows import RunEventRow
from .data import Data


@dataclass(slots=True)
class Belongings:
    """The ids of what a thread or a user has."""

    threads: set[str] = field(default_factory=set[str])
    """Whole threads, whose runs, events and feedback are in the other sets."""
    runs: set[str] = field(default_factory=set[str])
    events: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    feedback: set[str] = field(default_factory=set[str])
    accounts: set[str] = field(default_factory=set[str])

    def counts(self, data: Data) -> Erased:
        """Without checkpoints, which are the saver's."""
        are_runs = [
            run_id for run_id in self.runs if data.runs[run_id].get("operation_kind") in (None, "run")
        ]
        return Erased(
            threads=len(self.threads & data.threads.keys()),
            runs=len(are_runs),
            run_events=len(self.events),
            feedback=len(self.feedback),
            accounts=len(self.accounts),
        )


def of_threads(data: Data, thread_ids: Iterable[str]) -> Belongings:
    threads = {identifier("thread_id", thread_id) for thread_id in thread_ids}
    return Belongings(
        threads=threads,
        runs={row["run_id"] for row in data.runs.values() if row["thread_id"] in threads},
        events={_key(row) for row in _events(data) if row["thread_id"] in threads},
        feedback={row["feedback_id"] for row in data.feedback.values() if row["thread_id"] in threads},
    )


def of_user(data: Data, user_id: str) -> Belongings:
    user_id = identifier("user_id", user_id)
    own = {thread.thread_id for thread in data.threads.values() if thread.user_id == user_id}
    users_of: dict[str, set[str | None]] = {}
    for run in data.runs.values():
        users_of.setdefault(run["thread_id"], set()).add(run["user_id"])
    for thread_id, users in users_of.items():
        thread = data.threads.get(thread_id)
        if users == {user_id} and (thread is None or thread.user_id is None):
            own.add(thread_id)
    found = of_threads(data, own)
    found.runs |= {row["run_id"] for row in data.runs.values() if row["user_id"] == user_id}
    found.events |= {
        _key(row) for row in _events(data) if row.get("user_id") == user_id or row["run_id"] in found.runs
    }
    found.feedback |= {
        row["feedback_id"]
        for row in data.feedback.values()
        if row["user_id"] == user_id or row["run_id"] in found.runs
    }
    found.accounts = {user_id} & data.users.keys()
    return found


def erase(data: Data, found: Belongings) -> None:
    for thread_id in {thread_id for thread_id, _ in found.events}:
        log = data.events[thread_id]
        log.events = [row for row in log.events if _key(row) not in found.events]
        log.by_event_id = {row["event_id"]: row for row in log.events if "event_id" in row}
    for feedback_id in found.feedback:
        data.feedback.pop(feedback_id, None)
        data.votes.discard(feedback_id)
    for run_id in found.runs:
        data.runs.pop(run_id, None)
        data.model_counts.pop(run_id, None)
        data.lease_ends_ms.pop(run_id, None)
        data.wake_followers_of_run(run_id, was_deleted=True)
    for thread_id in found.threads:
        data.threads.pop(thread_id, None)
    for user_id in found.accounts:
        data.users.pop(user_id, None)


def _events(data: Data) -> Iterable[RunEventRow]:
    return (row for log in data.events.values() for row in log.events)


def _key(row: RunEventRow) -> tuple[str, int]:
    return row["thread_id"], row["seq"]
