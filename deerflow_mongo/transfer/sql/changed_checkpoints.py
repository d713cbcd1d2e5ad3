"""Which threads have checkpoints to copy: those whose counts or newest id differ between source and target.

LangGraph never changes a stored checkpoint; it adds checkpoints and pending writes. What it does replace is
the error, the question or the answers of a task that has not ended: threads with such a task are compared
each time. The copying itself, which compares all values of a thread, is in `transfer/checkpoints.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...mongodb.row_counts import StoredCheckpoints, checkpoints_of_threads
from ...mongodb.storage import MongoStorage
from ..sources import SourceThread
from . import queries
from .databases import SqlDatabase
from .layouts import WRITES_TABLES

THREADS_AT_ONCE: Final = 100


async def changed_threads(
    database: SqlDatabase, storage: MongoStorage, threads: Sequence[SourceThread]
) -> list[SourceThread]:
    """Those of the source's threads that the target has otherwise, or not at all."""
    table = WRITES_TABLES[database.dialect]
    counted = await database.all_rows(queries.write_counts(table))
    writes: dict[str, int] = {thread_id: count for thread_id, count in counted}  # noqa: C416
    there = {
        thread_id: StoredCheckpoints(checkpoints, last_id, writes.get(thread_id, 0))
        for thread_id, checkpoints, last_id in await database.all_rows(queries.checkpoint_summaries())
    }
    replaceable = {row[0] for row in await database.all_rows(queries.threads_with_replaceable_writes(table))}
    changed: list[SourceThread] = []
    for first in range(0, len(threads), THREADS_AT_ONCE):
        some = threads[first : first + THREADS_AT_ONCE]
        here = await checkpoints_of_threads(storage, [thread.thread_id for thread in some])
        changed += [
            thread
            for thread in some
            if here.get(thread.thread_id) != there.get(thread.thread_id, ())
            or thread.thread_id in replaceable
        ]
    return changed
