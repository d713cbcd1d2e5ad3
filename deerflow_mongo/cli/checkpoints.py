"""`deerflow-mongo checkpoints`: what LangGraph's checkpoints take up, pruning them, and copying them in.

The rules are in the storage and in `transfer/`; here are the options, the progress and the exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import timedelta
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.text import Text

from ..contract.errors import StorageConfigError
from ..demo.text import counted, plain
from ..mongodb.checkpoints.deletion import Collections
from ..mongodb.checkpoints.pruning import Progress, Pruned, Rule
from ..mongodb.checkpoints.pruning import prune as prune_checkpoints
from ..mongodb.checkpoints.statistics import (
    DEFAULT_LARGEST,
    CheckpointStatistics,
    ThreadStatistics,
    statistics,
    statistics_of_thread,
)
from ..mongodb.config import MongoConfig
from ..mongodb.drivers.collection import Collection
from ..mongodb.drivers.driver import READ_COMMITTED
from ..mongodb.schema import CHECKPOINTS
from ..mongodb.storage import MongoStorage
from ..transfer.checkpoints import CheckpointCopy, CopiedThread, CopyOptions, Result
from ..transfer.sources import Source, SourceThread, open_source
from .ids import whole_id
from .options import JsonOption, age
from .storage_options import StorageOptions, require_existing_data
from .tables import number_lines
from .terminal import (
    MAX_SENTENCE_SHOWN,
    PROBLEM_EXIT,
    console_for,
    counting_progress,
    explained,
    json_of,
    logged_errors,
    status,
    stoppable,
)

MIB = 1024 * 1024

OnlyThreadsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--thread", metavar="THREAD", help="Only this thread; may be given several times."),
]


def mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"


def _data(storage: MongoStorage, **options: Any) -> Collection:
    return storage.driver.collection(storage.config.collection_prefix + CHECKPOINTS, options)


# -- stats -----------------------------------------------------------------------------------------


def stats(
    where: StorageOptions,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="How many of the largest threads to list.")
    ] = DEFAULT_LARGEST,
    thread: Annotated[
        list[str] | None,
        typer.Option("--thread", metavar="THREAD", help="This thread instead; may be given several times."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what checkpoints take up: in all, and the largest threads.

    A checkpoint refers to pieces, each of which is stored once per thread; writes are those of tasks, until
    their checkpoint goes. Sizes are those of the documents before compression. The server reads all of them,
    which may take minutes; nothing is changed.
    """
    with explained():
        storage = where.existing_storage("checkpoints")
        found = asyncio.run(stoppable(_statistics(storage, limit, thread or [])))
        if as_json:
            typer.echo(json_of(asdict(found), indent=2))
        else:
            for line in _lines_of_statistics(found):
                typer.echo(line)


async def _statistics(storage: MongoStorage, limit: int, thread_ids: Sequence[str]) -> CheckpointStatistics:
    async with contextlib.aclosing(storage):
        with status(console_for(stderr=True), "measuring"):
            if not thread_ids:
                return await statistics(_data(storage), largest=limit)
            unique = dict.fromkeys([await whole_id(storage, "thread", text) for text in thread_ids])
            rows = [await statistics_of_thread(_data(storage), thread_id) for thread_id in unique]
    counts = [count.name for count in fields(ThreadStatistics) if count.name != "thread"]
    total: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in counts}
    rows.sort(key=lambda row: row.size_bytes, reverse=True)
    return CheckpointStatistics(len(rows), ThreadStatistics(**total), rows)


_COLUMNS = ("total MiB", "checkpoints", "MiB", "pieces", "MiB", "writes", "MiB", "thread")


def _lines_of_statistics(found: CheckpointStatistics) -> Iterator[str]:
    total = found.total
    yield (
        f"{counted(found.threads, 'thread')} with {counted(total.checkpoints, 'checkpoint')}: "
        f"{mib(total.size_bytes)} before compression"
    )
    if total.deleted:
        size = mib(total.deleted_bytes)
        yield f"of it {counted(total.deleted, 'record')} of deletions, {size}, which expire after a day"
    yield from number_lines([_COLUMNS, *(_cells(row) for row in (*found.largest, total))])


def _cells(row: ThreadStatistics) -> tuple[str, ...]:
    sizes = (row.checkpoints_bytes, row.pieces_bytes, row.writes_bytes + row.parts_bytes)
    counts = (row.checkpoints, row.pieces, row.writes)
    cells = [f"{row.size_bytes / MIB:,.1f}"]
    for count, size in zip(counts, sizes, strict=True):
        cells += [f"{count:,}", f"{size / MIB:,.1f}"]
    return (*cells, plain(row.thread) if row.thread else "(total)")


# -- prune -----------------------------------------------------------------------------------------


def prune(
    where: StorageOptions,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last", metavar="N", min=1, help="Only those beyond the newest N of each namespace."
        ),
    ] = None,
    older_than: Annotated[
        timedelta | None,
        typer.Option(
            "--older-than",
            parser=age,
            metavar="AGE",
            help="Only those stored longer ago, such as 30d; units are m, h, d and w.",
        ),
    ] = None,
    thread: OnlyThreadsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; print what would be deleted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete old checkpoints and what only they need, also while hosts use the database.

    One of --keep-last and --older-than is needed; with both, a checkpoint must meet both to be deleted. Never
    deleted are the newest checkpoint of a namespace, one with pending writes (an interrupt that waits for its
    answer, a step that did not end), and those that a remaining one needs for a delta channel. A copied
    checkpoint is as old as the copy.

    With a checkpoint go the writes of its tasks, and the pieces of values that no other checkpoint refers to,
    and what interrupted puts and deletions have left. The command may be interrupted and repeated.
    """
    with explained():
        if keep_last is None and older_than is None:
            raise StorageConfigError("name what may be deleted with --keep-last, --older-than or both")
        storage = where.existing_storage("checkpoints")
        rule = Rule(keep_last, older_than)
        started = time.perf_counter()
        pruned, threads = asyncio.run(stoppable(_prune(storage, thread or None, rule, dry_run=dry_run)))
        seconds = time.perf_counter() - started
        if as_json:
            outcome = {"dry_run": dry_run, "seconds": round(seconds, 3), "threads": threads}
            typer.echo(json_of({**outcome, "pruned": asdict(pruned)}, indent=2))
        else:
            typer.echo(_line_of_pruned(pruned, threads, seconds, dry_run=dry_run))


async def _prune(
    storage: MongoStorage, thread_ids: Sequence[str] | None, rule: Rule, *, dry_run: bool
) -> tuple[Pruned, int]:
    """What was deleted, and the number of threads that were looked at."""
    console, threads = console_for(stderr=True), 0
    collections = Collections(_data(storage), _data(storage, **READ_COMMITTED))
    async with contextlib.aclosing(storage):
        with counting_progress(console, "pruning", "threads") as report:

            def show(progress: Progress) -> None:
                nonlocal threads
                threads = progress.threads
                removed = progress.removed
                details = f"{removed.checkpoints:,} checkpoints  {mib(removed.size_bytes)}"
                report(progress.threads_done, progress.threads, details)

            if thread_ids is not None:
                thread_ids = [await whole_id(storage, "thread", text) for text in thread_ids]
            pruned = await prune_checkpoints(collections, thread_ids, rule, dry_run=dry_run, on_progress=show)
    return pruned, threads


def _line_of_pruned(pruned: Pruned, threads: int, seconds: float, *, dry_run: bool) -> str:
    removed = pruned.removed
    what = (
        f"{counted(removed.checkpoints, 'checkpoint')}, {counted(removed.writes, 'write')} and "
        f"{counted(removed.pieces, 'piece')} ({mib(removed.size_bytes)} before compression)"
    )
    done = (
        f"would be deleted; nothing was changed, {seconds:,.1f} s"
        if dry_run
        else f"deleted in {seconds:,.1f} s"
    )
    return f"{counted(threads, 'thread')}, {len(pruned.threads):,} of them affected: {what} {done}."


# -- copy ------------------------------------------------------------------------------------------


def copy(
    where: StorageOptions,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            help="sqlite:///file (sqlite:////file for an absolute path), postgresql://..., or "
            "mongodb-langgraph://... of langgraph-checkpoint-mongodb, each read with its own package, or "
            "mongodb://... of deerflow-mongo; '$NAME' for the value of an environment variable.",
        ),
    ],
    thread: OnlyThreadsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace threads of the target that differ from the source.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Compare all values, or else the checkpoints' ids only."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; print what would be copied.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the checkpoints of another LangGraph saver into the storage, thread by thread.

    Everything that LangGraph reads is copied: all namespaces, parents, metadata, versions and pending writes
    with their order. Values are copied as they are stored, so that no module of the application is needed.
    Each thread is then read back and compared.

    The source is never changed and may be in use: what is written to it meanwhile is copied when the command
    is repeated. Repeating it continues threads that were interrupted, and leaves those alone that are there
    already, also where the target has newer checkpoints. A thread that differs otherwise is reported, and
    replaced only with --overwrite.

    The exit code is 0 if every thread is in the target, 1 if one failed or differs, and 2 if an option is
    wrong.
    """
    with explained():
        storage = where.storage_on_server("checkpoints")
        if dry_run:
            require_existing_data(storage, "checkpoints")
        options = CopyOptions(overwrite=overwrite, verify=verify, dry_run=dry_run)
        with logged_errors():
            copied, seconds = asyncio.run(stoppable(_copy(storage, source, thread or [], options)))
        if as_json:
            typer.echo(json_of(copied_as_json(copied, seconds, dry_run=dry_run), indent=2))
        else:
            _show_copied(console_for(), copied, seconds, dry_run=dry_run)
        if not all(outcome.is_successful for outcome in copied):
            raise typer.Exit(PROBLEM_EXIT)


async def _copy(
    storage: MongoStorage, source_url: str, thread_ids: Sequence[str], options: CopyOptions
) -> tuple[list[CopiedThread], float]:
    """What became of each thread, and the seconds that it took."""
    console = console_for(stderr=True)
    async with contextlib.aclosing(storage), _opened(source_url, storage) as source:
        with status(console, "opening both databases"):
            threads = await _threads_of(source, thread_ids)
            reader, target = await savers(storage, dry_run=options.dry_run)
        started = time.perf_counter()
        with counting_progress(console, "copying", "checkpoints") as report:
            progress = CopyProgress(threads, report)
            copier = CheckpointCopy(
                source, target, options, reader=reader, on_checkpoint=progress.on_checkpoint
            )
            copied = [progress.finished(thread, await copier.copy(thread.thread_id)) for thread in threads]
        return copied, time.perf_counter() - started


@contextlib.asynccontextmanager
async def _opened(source_url: str, target: MongoStorage) -> AsyncGenerator[Source]:
    source = await open_source(source_url)
    try:
        config = getattr(getattr(source, "storage", None), "config", None)
        if isinstance(config, MongoConfig) and _place(config) == _place(target.config):
            raise StorageConfigError("--from is the database that the copy would go to")
        yield source
    finally:
        await source.aclose()


def _place(config: MongoConfig) -> tuple[str, str, str]:
    hosts = urlsplit(config.url).netloc.rpartition("@")[2].lower()
    return hosts, config.database, config.collection_prefix


async def _threads_of(source: Source, thread_ids: Sequence[str]) -> list[SourceThread]:
    if not thread_ids:
        return list(await source.threads())
    unique = dict.fromkeys(thread_ids)
    return [SourceThread(thread_id, len(await source.checkpoints(thread_id))) for thread_id in unique]


async def savers(storage: MongoStorage, *, dry_run: bool) -> tuple[Any, Any]:
    """A saver that has nothing in its memory, to read with, and the one to write with."""
    from ..mongodb.checkpoints.saver import MongoCheckpointSaver

    reader = MongoCheckpointSaver(_data(storage))
    return reader, reader if dry_run else await storage.checkpointer()


class CopyProgress:
    """Counts what was written, and prints threads that failed as they fail."""

    def __init__(self, threads: Sequence[SourceThread], report: Callable[[int, int, str], None]) -> None:
        self._report = report
        self._all_threads = len(threads)
        self._all_checkpoints = sum(thread.checkpoints for thread in threads)
        self._threads = self._checkpoints_of_finished = self._checkpoints = self._size_bytes = 0

    def on_checkpoint(self, size_bytes: int) -> None:
        self._checkpoints += 1
        self._size_bytes += size_bytes
        self._show()

    def finished(self, thread: SourceThread, outcome: CopiedThread) -> CopiedThread:
        self._threads += 1
        self._checkpoints_of_finished += thread.checkpoints
        self._checkpoints = 0
        self._show()
        if not outcome.is_successful:
            _report_problem(outcome)
        return outcome

    def _show(self) -> None:
        details = f"{self._threads:,}/{self._all_threads:,} threads  {mib(self._size_bytes)}"
        done = self._checkpoints_of_finished + self._checkpoints
        self._report(done, max(done, self._all_checkpoints), details)


def _report_problem(outcome: CopiedThread) -> None:
    what = "differs and was left alone" if outcome.result == "different" else "was not copied"
    text = f"thread {plain(outcome.thread_id)} {what}: {plain(outcome.reason, MAX_SENTENCE_SHOWN)}"
    console_for(stderr=True).print(Text(text, style="red"), soft_wrap=True)


_COPIED: Mapping[Result, str] = {
    "copied": "copied",
    "continued": "continued",
    "overwritten": "replaced",
    "unchanged": "there already",
    "ahead": "there already, with newer checkpoints",
    "different": "different and left alone",
    "failed": "failed",
}
"""Result -> what the last line calls such threads, in its order."""


def _show_copied(console: Console, copied: Sequence[CopiedThread], seconds: float, *, dry_run: bool) -> None:
    line = line_of_copied(copied, seconds, dry_run=dry_run)
    console.print(Text(line), soft_wrap=True)


def line_of_copied(copied: Sequence[CopiedThread], seconds: float, *, dry_run: bool) -> str:
    results = Counter(outcome.result for outcome in copied)
    counts = [f"{results[result]:,} {text}" for result, text in _COPIED.items() if results[result]]
    checkpoints = sum(outcome.checkpoints for outcome in copied)
    size_bytes = sum(outcome.size_bytes for outcome in copied)
    line = f"{counted(len(copied), 'thread')}: {', '.join(counts)}. "
    if dry_run:
        return f"{line}{counted(checkpoints, 'checkpoint')} would be copied; nothing was changed."
    return f"{line}{counted(checkpoints, 'checkpoint')} with states of {mib(size_bytes)} in {seconds:,.1f} s."


def copied_as_json(copied: Sequence[CopiedThread], seconds: float, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "seconds": round(seconds, 3),
        "checkpoints": sum(outcome.checkpoints for outcome in copied),
        "size_bytes": sum(outcome.size_bytes for outcome in copied),
        "threads": [outcome._asdict() for outcome in copied],
    }
