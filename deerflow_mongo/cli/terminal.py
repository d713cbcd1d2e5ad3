"""What the commands show and how they fail: one line, an exit code, no secret, no traceback."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import sys
from collections.abc import Coroutine, Generator, Sequence
from datetime import datetime
from typing import Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..contract.errors import StorageConfigError, StorageError
from ..demo.replay import RecordingError

T = TypeVar("T")

USAGE_EXIT = 2
PROBLEM_EXIT = 1
INTERRUPTED_EXIT = 130

MAX_TEXT_SHOWN = 160
MAX_SENTENCE_SHOWN = 1_000
STOP_TIMEOUT_S = 15.0
"""How long Ctrl-C waits for the work to end; the embedded server stops within."""


def console_for(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def failure(message: str, exit_code: int) -> typer.Exit:
    console_for(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)
    return typer.Exit(exit_code)


class FailedEvents(logging.Handler):
    """Counts and tells, in a line each, what the stores and the observer log as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        cause = record.exc_info[1] if record.exc_info else None
        message = record.getMessage() if cause is None else f"{record.getMessage()}: {cause}"
        line = plain(message, MAX_SENTENCE_SHOWN)  # it may name a key of a recording
        console_for(stderr=True).print(Text(line, style="red"), soft_wrap=True)


@contextlib.contextmanager
def failed_events() -> Generator[FailedEvents]:
    logger, failed = logging.getLogger("deerflow_mongo"), FailedEvents()
    logger.addHandler(failed)
    try:
        yield failed
    finally:
        logger.removeHandler(failed)


async def stoppable(work: Coroutine[Any, Any, T]) -> T:
    """`work` in a task of its own, so that Ctrl-C always ends it: a driver may swallow a cancellation."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
        if task.done() and not task.cancelled():
            task.exception()  # a task's error that nobody asks for would be logged
        raise
    except Exception as error:
        if (current := asyncio.current_task()) is not None and current.cancelling():
            raise asyncio.CancelledError from error  # what failed did so because it was stopped
        raise


@contextlib.contextmanager
def explained() -> Generator[None]:
    """Our own errors become one sentence and an exit code; any other is a bug and keeps its traceback."""
    try:
        yield
    except (StorageConfigError, RecordingError) as error:
        raise failure(str(error), USAGE_EXIT) from None
    except StorageError as error:
        raise failure(str(error), PROBLEM_EXIT) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise failure("stopped; the storage is closed", INTERRUPTED_EXIT) from None


def plain(text: object, length: int = MAX_TEXT_SHOWN) -> str:
    """Text from a recording or a database as one line that cannot steer the terminal."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= length else f"{line[:length]}… ({len(line):,} characters)"


def cell(text: str | None, width: int) -> Text:
    """Such a line cut to a table's column; a Chinese character is two wide."""
    cell = Text(plain(text or "-", MAX_TEXT_SHOWN))
    cell.truncate(width, overflow="ellipsis")
    return cell


def counted(number: int, noun: str) -> str:
    plural = "indexes" if noun == "index" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def table_of(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def and_more(console: Console, shown: int, total: int) -> None:
    if total > shown:
        console.print(f"... and {total - shown:,} more")


def json_of(value: object, *, indent: int | None = None) -> str:
    """JSON that stays JSON on standard output, whatever its encoding can say."""
    is_utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name == "utf-8"
    return json.dumps(value, ensure_ascii=not is_utf8, indent=indent, default=json_text)


def json_text(value: object) -> str:
    """What JSON cannot say itself: times, and what somebody else may have put into a document."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
