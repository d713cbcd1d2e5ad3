"""`deerflow-mongo transfer`: brings the data of DeerFlow's SQL databases into the storage.

The rules are in `transfer/sql/`; here are the options, the progress, what is printed and the exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import typer

from ..contract.errors import StorageConfigError
from ..mongodb.row_counts import count_rows
from ..mongodb.storage import MongoStorage
from ..transfer.checkpoints import CheckpointCopy, CopyOptions
from ..transfer.sources import Source, SourceThread, open_source
from ..transfer.sql.carrying import CarryOptions, Transfer
from ..transfer.sql.changed_checkpoints import changed_threads
from ..transfer.sql.databases import SqlDatabase, open_database
from ..transfer.sql.outcomes import TableOutcome
from ..transfer.sql.recognition import Recognised, has_checkpoints, recognise
from ..transfer.sql.stored import StoredSummaries
from ..transfer.sql.survey import Survey, survey
from .checkpoints import CopyProgress, savers
from .options import JsonOption
from .storage_options import StorageOptions
from .terminal import (
    PROBLEM_EXIT,
    RowProgress,
    console_for,
    counting_progress,
    explained,
    json_of,
    logged_errors,
    status,
    stoppable,
)
from .transfer_report import CheckpointsOutcome, Report, as_json, show_report, show_survey

SourceOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="URL",
        help="DeerFlow's database: sqlite:///file (sqlite:////file for an absolute path) or "
        "postgresql://...; '$NAME' for the value of an environment variable.",
    ),
]
CheckpointsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--checkpoints", metavar="URL", help="The database of the checkpoints, where they are in another one."
    ),
]
CompareAllOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--compare-all",
        help="Read and compare everything whole, also rows whose summaries (times, states, counts) are equal "
        "on both sides.",
    ),
]
DryRunOption: TypeAlias = Annotated[
    bool,
    typer.Option("--dry-run", help="Change nothing; print counts, sizes, time and what is not carried."),
]


def transfer(
    where: StorageOptions,
    source: SourceOption,
    checkpoints: CheckpointsOption = None,
    compare_all: CompareAllOption = False,
    dry_run: DryRunOption = False,
    with_json: JsonOption = False,
) -> None:
    """Bring accounts, threads, runs, run events, feedback and checkpoints from DeerFlow's SQL database.

    Databases of DeerFlow 0.1.7, 2.0.0 and main, and of the storage package before them, are recognised by
    their tables. The source is only read, and may be in use: run a first pass while the old host runs, stop
    the host, run a second one, which carries what has changed since, and start DeerFlow on MongoDB.

    The command may be interrupted and repeated at any time. A row that was changed here since it was carried
    stays as it is, and is listed. What is stored is read back and compared.

    The exit code is 0 if everything is in the target or a rule of the documentation explains why not, 1 if a
    row was refused or differs, and 2 if an option or the source is wrong; nothing is written then.
    """
    with explained():
        storage = None
        if not dry_run or where.names_a_storage:
            storage = where.storage_on_server("data that stays")
        options = TransferOptions(source, checkpoints, compare_all=compare_all)
        with logged_errors():
            work = _transfer(None if dry_run else storage, options, is_quiet=with_json)
            report = asyncio.run(stoppable(work))
        if with_json:
            typer.echo(json_of(as_json(report), indent=2))
        elif not dry_run:
            show_report(console_for(), report)
        if not report.is_complete:
            raise typer.Exit(PROBLEM_EXIT)


@dataclass(frozen=True, slots=True)
class TransferOptions:
    source: str
    checkpoints: str | None
    compare_all: bool


async def _transfer(storage: MongoStorage | None, options: TransferOptions, *, is_quiet: bool) -> Report:
    """Transfer into the storage; without one, only look at the source."""
    started = time.perf_counter()
    console = console_for(stderr=True)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(_opened(options.source, "--from"))
        with status(console, "looking at the source"):
            recognised = await recognise(database)
            found = await survey(database, recognised)
        copying = await _checkpoints_of(stack, options, found)
        if copying is not None:
            checkpoints = sum(thread.checkpoints for thread in copying.threads)
            found = replace(found, checkpoint_threads=len(copying.threads), checkpoints=checkpoints)
        if not is_quiet:
            show_survey(console_for(), found)
        report = Report(found, is_dry_run=storage is None)
        if storage is not None:
            await stack.enter_async_context(contextlib.aclosing(storage))
            await storage.setup()
            report.tables = await _tables(database, recognised, storage, found, options)
            if copying is not None:
                report.checkpoints = await _copied(copying, storage, options)
    report.seconds = time.perf_counter() - started
    return report


@contextlib.asynccontextmanager
async def _opened(url: str, option: str) -> AsyncGenerator[SqlDatabase]:
    database = await open_database(url, option=option)
    try:
        yield database
    finally:
        await database.aclose()


# -- tables ----------------------------------------------------------------------------------------


async def _tables(
    database: SqlDatabase,
    recognised: Recognised,
    storage: MongoStorage,
    found: Survey,
    options: TransferOptions,
) -> list[TableOutcome]:
    outcomes: list[TableOutcome] = []
    with counting_progress(console_for(stderr=True), "transferring", "rows") as report:
        progress = RowProgress(report, found.rows)
        work = Transfer(
            database,
            recognised,
            storage,
            CarryOptions(options.compare_all),
            stored=StoredSummaries(storage),
            on_progress=lambda outcome, rows: progress.add(outcome.table, rows),
        )
        async with contextlib.aclosing(work.run()) as tables:
            async for outcome in tables:
                outcome.rows_here = await count_rows(storage, outcome.kind)
                outcomes.append(outcome)
    return outcomes


# -- checkpoints -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Copying:
    """Where the checkpoints are, as tables and as LangGraph's saver reads them."""

    database: SqlDatabase
    source: Source
    threads: Sequence[SourceThread]


async def _checkpoints_of(
    stack: contextlib.AsyncExitStack, options: TransferOptions, found: Survey
) -> _Copying | None:
    """The checkpoints to copy, or None without any."""
    url = options.checkpoints or options.source
    if options.checkpoints is None and not found.has_checkpoints:
        return None
    database = await stack.enter_async_context(_opened(url, "--checkpoints"))
    if not has_checkpoints(database, await database.tables()):
        raise StorageConfigError(f"--checkpoints: {database.place} has no checkpoints of LangGraph")
    source = await open_source(url)
    stack.push_async_callback(source.aclose)
    return _Copying(database, source, await source.threads())


async def _copied(copying: _Copying, storage: MongoStorage, options: TransferOptions) -> CheckpointsOutcome:
    started = time.perf_counter()
    reader, target = await savers(storage, dry_run=False)
    threads = copying.threads
    if not options.compare_all:
        threads = await changed_threads(copying.database, storage, threads)
    with counting_progress(console_for(stderr=True), "copying", "checkpoints") as report:
        progress = CopyProgress(threads, report)
        copy = CheckpointCopy(
            copying.source, target, CopyOptions(), reader=reader, on_checkpoint=progress.on_checkpoint
        )
        copied = [progress.finished(thread, await copy.copy(thread.thread_id)) for thread in threads]
    equal = len(copying.threads) - len(threads)
    return CheckpointsOutcome(copied, equal, time.perf_counter() - started)
