"""`deerflow-mongo events`: prints a thread's run events, those that are there and those that come.

Reads through the store, a page at a time, and changes nothing: no collection is made, and no data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import typer
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..contract.arguments import identifier
from ..contract.errors import StorageConfigError, StorageUnavailableError
from ..contract.factory import create_storage
from ..contract.rows import JSONValue, RunEventRow
from ..demo.replay import text_of
from ..mongodb.config import EMBEDDED
from ..mongodb.embedded.folder import DATABASE
from ..mongodb.events.store import MongoRunEventStore
from ..mongodb.storage import MongoStorage
from .options import (
    DEFAULT_SECTION,
    DEMO_DATABASE,
    ConfigOption,
    DataDirOption,
    DriverOption,
    SectionOption,
    UrlOption,
    options_given,
    options_of_file,
)
from .terminal import (
    MAX_SENTENCE_SHOWN,
    MAX_TEXT_SHOWN,
    PROBLEM_EXIT,
    cell,
    console_for,
    explained,
    failure,
    json_of,
    plain,
    stoppable,
)

PAGE = 100
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
HELD_S = 1.0
"""A connection that lasted so long was no try: when it is lost, that is told anew."""

RECANCEL_S = 0.5

RUN_WIDTH, CATEGORY_WIDTH, TYPE_WIDTH = 8, 7, 13
_MAX_READ = 1_000


def _identifier(text: str) -> str:
    try:
        return identifier("it", text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def events(
    thread: Annotated[str, typer.Argument(parser=_identifier, metavar="THREAD", help="The thread's id.")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with every new event as it comes, until Ctrl-C.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            parser=_identifier,
            metavar="RUN",
            help="One run's events only; its whole id, as in --json.",
        ),
    ] = None,
    after: Annotated[
        int, typer.Option("--after", metavar="SEQ", min=0, help="Begin after the event of this number.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="End after so many; without it, all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
    config: ConfigOption = None,
    section: SectionOption = DEFAULT_SECTION,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    database: Annotated[
        str | None, typer.Option("--database", help=f"The database; default: the demo's, {DEMO_DATABASE}.")
    ] = None,
    driver: DriverOption = None,
) -> None:
    """Print a thread's run events, oldest first.

    A line has the event's number, its time in UTC, the first 8 characters of its run's id, its category, its
    type and its first words. Nothing is changed. The exit code is 1 if there is no such event, unless
    --follow waits for one.
    """
    with explained():
        given = options_given(url, data_dir, database, driver)
        options = given if config is None else options_of_file(config, section, given)
        storage = _with_something_to_read(
            create_storage({"database": DEMO_DATABASE, **options} if config is None else options)
        )
        reading = _Reading(storage.run_events, thread, run, after, limit, _printer(as_json=as_json))
        is_there = asyncio.run(stoppable(_read(storage, reading, follow=follow)))
    if not is_there:
        raise failure(f"{reading} has no events in database {storage.config.database}", PROBLEM_EXIT)


def _with_something_to_read(storage: object) -> MongoStorage:
    """The storage, unless opening it would make what there is nothing to read in."""
    if not isinstance(storage, MongoStorage):
        raise StorageConfigError(f"{type(storage).__name__} is another package's: its events cannot be read")
    config = storage.config
    if config.url == EMBEDDED and config.driver != "mongomock":
        if config.data_dir is None:
            raise StorageConfigError(
                "a temporary server has no events yet: say where they are, with --url, --data-dir or --config"
            )
        if not os.path.isdir(config.data_dir.expanduser() / DATABASE):  # noqa: PTH112 - Path's raises
            raise StorageConfigError(f"data_dir {config.data_dir} holds no data of an embedded server")
    return storage


# -- reading ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """How far the events of a thread, or of one run in it, are printed."""

    events: MongoRunEventStore
    thread_id: str
    run_id: str | None
    last_seq: int
    left: int | None
    show: Callable[[RunEventRow], None]

    def __str__(self) -> str:
        thread = f"thread {plain(self.thread_id)}"
        return thread if self.run_id is None else f"run {plain(self.run_id)} in {thread}"

    @property
    def is_over(self) -> bool:
        return self.left == 0

    def take(self, row: RunEventRow) -> None:
        self.show(row)
        self.last_seq = row["seq"]
        if self.left is not None:
            self.left -= 1

    async def what_is_there(self) -> None:
        rows: list[RunEventRow] | None = None
        while not self.is_over and (rows is None or len(rows) == PAGE):
            size = PAGE if self.left is None else min(PAGE, self.left)
            rows = await self.events.list_thread_events(
                self.thread_id, run_id=self.run_id, after_seq=self.last_seq, limit=size
            )
            for row in rows:
                self.take(row)

    async def what_comes(self) -> None:
        coming = self.events.follow(self.thread_id, run_id=self.run_id, after_seq=self.last_seq)
        async with contextlib.aclosing(coming) as rows:
            async for row in rows:
                self.take(row)
                if self.is_over:
                    return

    async def has_any(self) -> bool:
        """Whether there is any such event, be it before the first that is asked for."""
        return bool(await self.events.list_thread_events(self.thread_id, run_id=self.run_id, limit=1))


async def _read(storage: MongoStorage, reading: _Reading, *, follow: bool) -> bool:
    """Whether there is such a thread; one that is waited for will be."""
    try:
        if follow:
            await _surely_cancelled(_follow(reading))
            return True
        await _surely_cancelled(reading.what_is_there())
        return await reading.has_any()
    finally:
        await storage.aclose()


async def _surely_cancelled(work: Coroutine[Any, Any, None]) -> None:
    """`work`, which a cancellation ends even if the driver swallows the first: it may come with an answer."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=RECANCEL_S)
        if not task.cancelled():
            task.exception()  # a task's error that nobody asks for would be logged
        raise


async def _follow(reading: _Reading) -> None:
    """Print what is there and what comes, over any number of lost connections."""
    pause_s, told, greeted = FIRST_PAUSE_S, False, False
    while not reading.is_over:
        reached_at = float("inf")
        try:
            await reading.what_is_there()
            reached_at = time.monotonic()
            if not greeted and not await reading.has_any():
                _tell(f"{reading} has no events yet; waiting for the first")
            greeted = True
            if not reading.is_over:
                await reading.what_comes()
        except StorageUnavailableError as error:
            if time.monotonic() - reached_at > HELD_S:
                pause_s, told = FIRST_PAUSE_S, False
            if not told:
                _tell(f"{error}; trying again until it can be")
            told = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _tell(sentence: str) -> None:
    console_for(stderr=True).print(Text(plain(sentence, MAX_SENTENCE_SHOWN), style="yellow"), soft_wrap=True)


# -- printing --------------------------------------------------------------------------------------


def _printer(*, as_json: bool) -> Callable[[RunEventRow], None]:
    if as_json:
        return lambda row: typer.echo(json_of(row))
    console = console_for()
    width = console.width if console.is_terminal else None
    return lambda row: typer.echo(line_of(row, width))


def line_of(row: RunEventRow, width: int | None) -> str:
    """An event as one line, cut to a terminal of `width`; a pipe has none and gets more words."""
    columns = (
        (row["run_id"], RUN_WIDTH),
        (row["category"], CATEGORY_WIDTH),
        (row["event_type"], TYPE_WIDTH),
    )
    texts = (set_cell_size(plain(text)[:size], size) for text, size in columns)
    start = f"{row['seq']:>5} {plain(row['created_at'])[:19]}Z {' '.join(texts)} "
    room = MAX_TEXT_SHOWN if width is None else max(10, width - cell_len(start))
    return (start + cell(words_of(row["content"]), room).plain).rstrip()


def words_of(content: JSONValue) -> str:
    """The first words of an event's content: its text, or a message's text or calls, or else its JSON."""
    told = content if isinstance(content, str) else ""
    if isinstance(content, dict):
        told = text_of(content).strip() or _calls_of(content)
    if not told and not isinstance(content, str):
        told = json.dumps(content, ensure_ascii=False)
    words = " ".join(told.lstrip()[:_MAX_READ].split())
    return words if len(words) <= MAX_TEXT_SHOWN else f"{words[: MAX_TEXT_SHOWN - 1]}…"


def _calls_of(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return ""
    named = [
        cast("Mapping[str, Any]", call) for call in cast("list[Any]", calls) if isinstance(call, Mapping)
    ]
    return f"calls {', '.join(str(call.get('name')) for call in named)}" if named else ""
