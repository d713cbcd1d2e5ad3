"""`deerflow-mongo events`: prints a thread's stored run events and, with `--follow`, every new one.

Reads through the store of any backend that can be followed, a page at a time, and changes nothing: no
collection and no data folder is created.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, cast

import typer
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..contract.capabilities import Following, require_capabilities
from ..contract.errors import StorageConfigError, StorageUnavailableError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import RunEventRow
from ..demo.text import MAX_TEXT_SHOWN, cell, first_words, plain
from ..mongodb.reports.lists import seq_before_last
from ..mongodb.storage import MongoStorage
from .ids import whole_id
from .options import identifier_text
from .storage_options import ReadStorageOptions, require_existing_data
from .terminal import MAX_SENTENCE_SHOWN, PROBLEM_EXIT, console_for, explained, failure, json_of, stoppable

PAGE = 100
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
ESTABLISHED_S = 1.0
"""A connection that lasted this long counts as established: its loss is reported again."""

RECANCEL_S = 0.5

RUN_WIDTH, CATEGORY_WIDTH, TYPE_WIDTH = 8, 7, 13


def events(
    where: ReadStorageOptions,
    thread: Annotated[
        str,
        typer.Argument(parser=identifier_text, metavar="THREAD", help="The thread's id, or its beginning."),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Continue with every new event, until Ctrl-C.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            parser=identifier_text,
            metavar="RUN",
            help="Only the events of this run; an id or its beginning, as each line has it.",
        ),
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", metavar="N", min=1, help="Start with the last N events."),
    ] = None,
    after: Annotated[
        int, typer.Option("--after", metavar="SEQ", min=0, help="Start after the event of this number.")
    ] = 0,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Stop after so many events; the default is all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
) -> None:
    """Print a thread's run events, oldest first.

    Each line has the event's number, its time in UTC, the first 8 characters of its run's id, its category,
    its type and its first words. Nothing is changed. Without --follow, the exit code is 1 if there is no such
    event.
    """
    with explained():
        if tail is not None and after:
            raise StorageConfigError("--tail and --after both name the first event: omit one")
        storage = create_storage(where.configuration())
        require_capabilities(storage, "deerflow-mongo events", Following)
        require_existing_data(storage, "events")
        reading = _Reading(storage, thread, run, after, tail, limit, _printer(as_json=as_json))
        found = asyncio.run(stoppable(_read(storage, reading, follow=follow)))
    if not found:
        raise failure(f"{reading} has no events in {_place_of(storage)}", PROBLEM_EXIT)


def _place_of(storage: Storage) -> str:
    if isinstance(storage, MongoStorage):
        return f"database {storage.config.database}"
    return f"this {type(storage).__name__}"


# -- reading ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """How far the events of a thread, or of one of its runs, have been printed."""

    storage: Storage
    thread_id: str
    run_id: str | None
    last_seq: int
    tail: int | None
    remaining: int | None
    show: Callable[[RunEventRow], None]
    is_started: bool = False

    @property
    def events(self) -> Following:
        return cast("Following", self.storage.run_events)

    def __str__(self) -> str:
        thread = f"thread {plain(self.thread_id)}"
        return thread if self.run_id is None else f"run {plain(self.run_id)} in {thread}"

    @property
    def is_done(self) -> bool:
        return self.remaining == 0

    def _take(self, row: RunEventRow) -> None:
        self.show(row)
        self.last_seq = row["seq"]
        if self.remaining is not None:
            self.remaining -= 1

    async def _start(self) -> None:
        """Complete the ids, and go to the last events where only those are wanted; once."""
        if self.is_started:
            return
        self.thread_id = await whole_id(self.storage, "thread", self.thread_id)
        if self.run_id is not None:
            self.run_id = await whole_id(self.storage, "run", self.run_id)
        if self.tail is not None:
            self.last_seq = await self._seq_before_last(self.tail)
        self.is_started = True

    async def _seq_before_last(self, tail: int) -> int:
        """The number behind which the last `tail` events are."""
        if isinstance(self.storage, MongoStorage):
            driver, prefix = self.storage.driver, self.storage.config.collection_prefix
            return await seq_before_last(driver, prefix, self.thread_id, self.run_id, tail)
        last, seqs, is_end = 0, deque[int](maxlen=tail), False
        while not is_end:
            rows = await self.events.list_thread_events(
                self.thread_id, run_id=self.run_id, after_seq=last, limit=PAGE
            )
            seqs.extend(row["seq"] for row in rows)
            last, is_end = seqs[-1] if seqs else 0, len(rows) < PAGE
        return seqs[0] - 1 if seqs else 0

    async def print_stored(self) -> None:
        await self._start()
        rows: list[RunEventRow] | None = None
        while not self.is_done and (rows is None or len(rows) == PAGE):
            size = PAGE if self.remaining is None else min(PAGE, self.remaining)
            rows = await self.events.list_thread_events(
                self.thread_id, run_id=self.run_id, after_seq=self.last_seq, limit=size
            )
            for row in rows:
                self._take(row)

    async def print_new(self) -> None:
        following = self.events.follow(self.thread_id, run_id=self.run_id, after_seq=self.last_seq)
        async with contextlib.aclosing(following) as rows:
            async for row in rows:
                self._take(row)
                if self.is_done:
                    return

    async def has_any(self) -> bool:
        """Whether there is any such event, also before the first number to print."""
        return bool(await self.events.list_thread_events(self.thread_id, run_id=self.run_id, limit=1))


async def _read(storage: Storage, reading: _Reading, *, follow: bool) -> bool:
    """Print the events; False if there are none. Following waits for the first one."""
    try:
        if follow:
            await _until_cancelled(_follow(reading))
            return True
        await _until_cancelled(reading.print_stored())
        return await reading.has_any()
    finally:
        await storage.aclose()


async def _until_cancelled(work: Coroutine[Any, Any, None]) -> None:
    """`work`, cancelled until it ends: a driver may swallow a cancellation that comes with a reply."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=RECANCEL_S)
        if not task.cancelled():
            task.exception()  # an exception that is never retrieved would be logged
        raise


async def _follow(reading: _Reading) -> None:
    """Print the stored events and every new one, across any number of lost connections."""
    pause_s, loss_reported, wait_reported = FIRST_PAUSE_S, False, False
    while not reading.is_done:
        connected_at = float("inf")
        try:
            await reading.print_stored()
            connected_at = time.monotonic()
            if not wait_reported and not await reading.has_any():
                _report(f"{reading} has no events yet; waiting for the first")
            wait_reported = True
            if not reading.is_done:
                await reading.print_new()
        except StorageUnavailableError as error:
            if time.monotonic() - connected_at > ESTABLISHED_S:
                pause_s, loss_reported = FIRST_PAUSE_S, False
            if not loss_reported:
                _report(f"{error}; retrying until it can")
            loss_reported = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _report(sentence: str) -> None:
    console_for(stderr=True).print(Text(plain(sentence, MAX_SENTENCE_SHOWN), style="yellow"), soft_wrap=True)


# -- printing --------------------------------------------------------------------------------------


def _printer(*, as_json: bool) -> Callable[[RunEventRow], None]:
    if as_json:
        return lambda row: typer.echo(json_of(row))
    console = console_for()
    width = console.width if console.is_terminal else None
    return lambda row: typer.echo(line_of(row, width))


def line_of(row: RunEventRow, width: int | None) -> str:
    """An event as one line, cut to the width of a terminal, or to a fixed length where `width` is None."""
    columns = (
        (row["run_id"], RUN_WIDTH),
        (row["category"], CATEGORY_WIDTH),
        (row["event_type"], TYPE_WIDTH),
    )
    texts = (set_cell_size(plain(text)[:size], size) for text, size in columns)
    start = f"{row['seq']:>5} {plain(row['created_at'])[:19]}Z {' '.join(texts)} "
    room = MAX_TEXT_SHOWN if width is None else max(10, width - cell_len(start))
    return (start + cell(first_words(row["content"]), room).plain).rstrip()
