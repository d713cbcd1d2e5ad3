"""How much the threads' checkpoints take: documents and their sizes, as they are before compression.

It reads every document that it counts, on the server. What may be deleted is not its subject: see a dry run
of `pruning.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...contract.arguments import identifier
from ..documents.encoding import Document
from ..drivers.collection import Collection
from ..drivers.time_limit import long_running
from . import queries

DEFAULT_LARGEST: Final = 20


@dataclass(frozen=True, slots=True)
class ThreadStatistics:
    """One thread, or all together where `thread` is empty. The sizes are in bytes, before compression.

    `writes` are of tasks, one document each; `parts` are of large ones. `deleted` are tombstones and deletion
    records, which the server removes after a day.
    """

    thread: str = ""
    size_bytes: int = 0
    checkpoints: int = 0
    checkpoints_bytes: int = 0
    writes: int = 0
    writes_bytes: int = 0
    parts: int = 0
    parts_bytes: int = 0
    pieces: int = 0
    pieces_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointStatistics:
    """All threads, and the largest ones first."""

    threads: int
    total: ThreadStatistics
    largest: list[ThreadStatistics]


async def statistics(collection: Collection, *, largest: int = DEFAULT_LARGEST) -> CheckpointStatistics:
    """Of the whole collection: the server reads all of it, which may take minutes."""
    found = await _read(collection, {}, largest)
    totals = found["totals"][0] if found["totals"] else {"threads": 0}
    return CheckpointStatistics(
        threads=int(totals["threads"]),
        total=_row("", totals),
        largest=[_row(document["_id"], document) for document in found["largest"]],
    )


async def statistics_of_thread(collection: Collection, thread: str) -> ThreadStatistics:
    """Zeros for a thread without anything."""
    identifier("thread_id", thread)
    found = await _read(collection, queries.documents_of(thread), 1)
    return _row(thread, found["largest"][0] if found["largest"] else {})


async def _read(collection: Collection, query: queries.Query, largest: int) -> Document:
    with long_running():
        return (await collection.aggregate(queries.statistics(query, largest)))[0]


def _row(thread: str, document: Document) -> ThreadStatistics:
    names = set(ThreadStatistics.__dataclass_fields__) - {"thread"}
    return ThreadStatistics(thread, **{name: int(document[name]) for name in names if name in document})
