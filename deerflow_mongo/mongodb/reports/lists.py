"""Lists of threads and runs over a whole database, newest first, and where the end of a thread begins.

What a host lists is in `stores/` and `events/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ...contract.rows import RunRow, ThreadMeta
from ..documents.runs import run_row
from ..documents.stored_times import stamp_of
from ..documents.threads import thread_row
from ..drivers.collection import Sort
from ..drivers.driver import Driver
from ..queries import events_after
from ..row_collection import RowCollection
from ..schema import NEWEST_FIRST, RUN_EVENTS, RUNS, SEQ_FALLING, THREADS
from . import queries

_NEWEST_RUN_FIRST: Sort = (("created_at", -1),)
"""By the indexes over all threads, `by_time` and `by_user`."""


async def list_threads(
    driver: Driver,
    prefix: str,
    *,
    user_id: str | None = None,
    statuses: Sequence[str] | None = None,
    since: datetime | None = None,
    limit: int,
) -> list[ThreadMeta]:
    """The newest `limit` threads that match everything given; what cannot be read is logged and left out.

    `since` is an aware time.
    """
    rows = RowCollection(driver.collection(prefix + THREADS), THREADS, thread_row)
    query = queries.threads_listed(
        user_id=user_id, statuses=statuses, since_us=None if since is None else stamp_of(since)
    )
    return await rows.find(query, sort=NEWEST_FIRST, limit=limit)


async def list_runs(
    driver: Driver,
    prefix: str,
    *,
    thread_id: str | None = None,
    user_id: str | None = None,
    statuses: Sequence[str] | None = None,
    since: datetime | None = None,
    limit: int,
) -> list[RunRow]:
    """The newest `limit` runs of a thread, or of all, as `list_threads` does."""
    rows = RowCollection(driver.collection(prefix + RUNS), RUNS, run_row)
    query = queries.runs_listed(
        thread_id=thread_id,
        user_id=user_id,
        statuses=statuses,
        since=None if since is None else since.astimezone(UTC),
    )
    sort = _NEWEST_RUN_FIRST if thread_id is None else NEWEST_FIRST
    return await rows.find(query, sort=sort, limit=limit)


async def seq_before_last(driver: Driver, prefix: str, thread_id: str, run_id: str | None, last: int) -> int:
    """The number behind which the last `last` (from 1 up) events of a thread, or of a run, are; else 0."""
    events = driver.collection(prefix + RUN_EVENTS)
    query = events_after(thread_id, run_id, 0)
    found = await events.find(query, sort=SEQ_FALLING, limit=1, skip=last - 1, projection=("seq",))
    return found[0]["seq"] - 1 if found else 0
