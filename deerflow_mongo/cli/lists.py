"""`deerflow-mongo threads` and `deerflow-mongo runs`: lists over a database; they change nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, TypeAlias

import typer

from ..contract.rows import RunRow, ThreadMeta
from ..contract.times import parse_time
from ..demo.text import first_words
from ..mongodb.reports.lists import list_runs, list_threads
from ..mongodb.storage import MongoStorage
from .ids import whole_id
from .options import JsonLinesOption, LimitOption, SinceOption, UserOption, identifier_text
from .storage_options import ReadStorageOptions
from .tables import Column, seconds_text, shortened, table_lines, time_text, width_of
from .terminal import (
    PROBLEM_EXIT,
    console_for,
    explained,
    failure,
    json_of,
    logged_errors,
    stoppable,
)

DEFAULT_LISTED = 20

StatusOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--status", metavar="STATUS", help="Only those in this status; may be given several times."),
]


# -- threads ---------------------------------------------------------------------------------------


def threads(
    where: ReadStorageOptions,
    user: UserOption = None,
    status: StatusOption = None,
    since: SinceOption = None,
    limit: LimitOption = DEFAULT_LISTED,
    as_json: JsonLinesOption = False,
) -> None:
    """List threads, newest first.

    Ids are shown by their beginning, which the commands accept in place of the whole id. Times are in UTC.
    The exit code is 1 if there is no such thread.
    """
    with explained():
        storage = where.existing_storage("threads")
        with logged_errors():
            found = asyncio.run(stoppable(_read_threads(storage, user, status, since, limit)))
        if not found:
            raise failure(f"no such thread in database {storage.config.database}", PROBLEM_EXIT)
        if as_json:
            _print_lines(json_of(asdict(thread)) for thread in found)
        else:
            _print_lines(_lines_of_threads(found, width_of(console_for())))


async def _read_threads(
    storage: MongoStorage, user: str | None, statuses: list[str] | None, since: datetime | None, limit: int
) -> list[ThreadMeta]:
    async with contextlib.aclosing(storage):
        return await list_threads(
            storage.driver,
            storage.config.collection_prefix,
            user_id=None if user is None else await whole_id(storage, "user", user),
            statuses=statuses,
            since=since,
            limit=limit,
        )


_THREAD_COLUMNS = tuple(map(Column, ("thread", "user", "status", "created", "updated", "title")))


def _lines_of_threads(found: Sequence[ThreadMeta], width: int | None) -> Iterator[str]:
    threads = shortened(thread.thread_id for thread in found)
    users = shortened(thread.user_id for thread in found)
    rows = (
        (
            threads[thread.thread_id],
            users[thread.user_id],
            thread.status,
            time_text(thread.created_time),
            time_text(thread.updated_time),
            thread.display_name or "-",
        )
        for thread in found
    )
    return table_lines(_THREAD_COLUMNS, rows, width)


# -- runs ------------------------------------------------------------------------------------------


def runs(
    where: ReadStorageOptions,
    thread: Annotated[
        str | None,
        typer.Argument(
            parser=identifier_text,
            metavar="[THREAD]",
            help="Only the runs of this thread; an id or its beginning.",
        ),
    ] = None,
    user: UserOption = None,
    status: StatusOption = None,
    since: SinceOption = None,
    limit: LimitOption = DEFAULT_LISTED,
    as_json: JsonLinesOption = False,
) -> None:
    """List runs of a thread or of all threads, newest first, with their duration, tokens and error.

    Ids are shown by their beginning, which the commands accept in place of the whole id. Times are in UTC.
    The exit code is 1 if there is no such run.
    """
    with explained():
        storage = where.existing_storage("runs")
        with logged_errors():
            found = asyncio.run(stoppable(_read_runs(storage, thread, user, status, since, limit)))
        if not found:
            raise failure(f"no such run in database {storage.config.database}", PROBLEM_EXIT)
        if as_json:
            _print_lines(json_of(row) for row in found)
        else:
            _print_lines(_lines_of_runs(found, width_of(console_for())))


async def _read_runs(
    storage: MongoStorage,
    thread: str | None,
    user: str | None,
    statuses: list[str] | None,
    since: datetime | None,
    limit: int,
) -> list[RunRow]:
    async with contextlib.aclosing(storage):
        return await list_runs(
            storage.driver,
            storage.config.collection_prefix,
            thread_id=None if thread is None else await whole_id(storage, "thread", thread),
            user_id=None if user is None else await whole_id(storage, "user", user),
            statuses=statuses,
            since=since,
            limit=limit,
        )


_RUN_COLUMNS = (
    *map(Column, ("run", "thread", "user", "status", "created")),
    *(Column(title, is_number=True) for title in ("took", "tokens")),
    *map(Column, ("model", "error")),
)


def _lines_of_runs(found: Sequence[RunRow], width: int | None) -> Iterator[str]:
    run_ids = shortened(row["run_id"] for row in found)
    threads = shortened(row["thread_id"] for row in found)
    users = shortened(row["user_id"] for row in found)
    rows = (
        (
            run_ids[row["run_id"]],
            threads[row["thread_id"]],
            users[row["user_id"]],
            row["status"],
            time_text(parse_time("created_at", row["created_at"])),
            _duration(row),
            f"{row['total_tokens']:,}",
            row["model_name"] or "-",
            first_words(row["error"] or ""),
        )
        for row in found
    )
    return table_lines(_RUN_COLUMNS, rows, width)


def _duration(row: RunRow) -> str:
    ended, started = row["ended_at"], row["started_at"] or row["created_at"]
    if ended is None:
        return "-"
    took = parse_time("ended_at", ended) - parse_time("started_at", started)
    return seconds_text(took.total_seconds())


def _print_lines(lines: Iterator[str]) -> None:
    for line in lines:
        typer.echo(line)
