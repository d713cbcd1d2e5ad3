"""The stored rows of runs, as both halves of `MemoryRunStore` read and change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any, cast

from ..contract import arguments, rows, statuses, times
from ..contract.errors import ActiveRunError
from ..contract.rows import RunRow, TimeInput
from . import data


class RunRows(data.MemoryStore):
    """Finding runs, marking them as updated, and the thread that an active one occupies."""

    def _copy(self, run: RunRow) -> RunRow:
        """What a caller gets of a stored run."""
        copy = deepcopy(run)
        if "operation_kind" in copy:
            by_model = self._data.model_counts.get(run["run_id"], {})
            copy["token_usage_by_model"] = {
                model: {name: count for name, count in counts.items() if name != "llm_calls"}
                for model, counts in by_model.items()
            }
        return copy

    def _copies(self, found: Iterable[RunRow]) -> list[RunRow]:
        return [self._copy(run) for run in found]

    def _find(self, run_id: str, user: str | None) -> RunRow | None:
        """The stored run itself, if it exists for this user."""
        run = self._data.runs.get(arguments.identifier("run_id", run_id))
        return run if run is not None and data.is_visible(run["user_id"], user) else None

    def _runs_of_thread(self, thread_id: str, user: str | None) -> list[RunRow]:
        """The runs of the thread that exist for this user, without its reservations."""
        of_thread = data.visible_of_thread(self._data.runs, thread_id, user)
        return [run for run in of_thread if is_run(run)]

    def _mark_updated(self, run: RunRow) -> None:
        """Set `updated_at`. Followers wake up after the caller has changed the run; no task runs between."""
        run["updated_at"] = data.now().isoformat()
        self._data.wake_followers_of_run(run["run_id"])

    def _occupant(self, thread_id: str, *, but: str) -> RunRow | None:
        """The active run or reservation that occupies the thread, if it is not that of this id."""
        for run in self._data.runs.values():
            if run["thread_id"] == thread_id and run["run_id"] != but and _occupies(run, run["status"]):
                return run
        return None

    def _check_free(self, run: RunRow, status: str) -> None:
        """Raise `ActiveRunError` where the run would be the second active one of its thread."""
        if _occupies(run, status) and self._occupant(run["thread_id"], but=run["run_id"]) is not None:
            raise ActiveRunError(run["thread_id"])


def is_run(run: RunRow) -> bool:
    """Whether it is a run and no reservation."""
    return run.get("operation_kind") in (None, "run")


def was_created_until(run: RunRow, until: datetime) -> bool:
    return datetime.fromisoformat(run["created_at"]) <= until


def until(before: TimeInput | None) -> datetime:
    """The time of a list that has what was created at or before it; now by default."""
    return data.now() if before is None else times.parse_time("before", before)


def _occupies(run: RunRow, status: str) -> bool:
    """Whether the run, with this status, occupies its thread."""
    return run.get("operation_kind") is not None and status in rows.ACTIVE_STATUSES


def set_stop_reason(run: RunRow, stop_reason: str | None) -> None:
    """Set it where it is given. Only the rows of `RunOwnership` have one."""
    if stop_reason is not None and "operation_kind" in run:
        run["stop_reason"] = stop_reason


def change_status(run: RunRow, changes: Mapping[str, Any], new_times: Mapping[str, str | None]) -> None:
    """Apply `changes`, a status among them, and the times given.

    An ended run that gets an active status stays as it is, but a time that it lacks is set.
    """
    row = cast("dict[str, Any]", run)
    restarts = statuses.restarts_ended_run(row["status"], changes["status"])
    if not restarts:
        row.update(changes)
    for name, time in new_times.items():
        if time is not None and (row[name] is None or not restarts):
            row[name] = time
