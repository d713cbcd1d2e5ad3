"""How the commands report: progress, errors of one line with an exit code, no secret, no traceback."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ..contract.errors import InvalidArgumentError, StorageConfigError, StorageError
from ..demo.text import json_text, plain

T = TypeVar("T")

USAGE_EXIT = 2
PROBLEM_EXIT = 1
INTERRUPTED_EXIT = 130
CLOSED_PIPE_EXIT = 141
"""As a shell reports a program that wrote into a closed pipe: 128 and the number of SIGPIPE."""

MAX_SENTENCE_SHOWN = 1_000
STOP_TIMEOUT_S = 15.0
"""How long Ctrl-C waits for the work to end; the embedded server stops within that time."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Report it as any other writer does; the library would exit with 1."""
        raise BrokenPipeError


def console_for(*, stderr: bool = False) -> Console:
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def failure(message: str, exit_code: int) -> typer.Exit:
    """Print the error to standard error; raise what is returned."""
    console_for(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)
    return typer.Exit(exit_code)


class ErrorLog(logging.Handler):
    """Counts the errors that the stores and the observer log, and prints each as one line."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        cause = record.exc_info[1] if record.exc_info else None
        message = record.getMessage() if cause is None else f"{record.getMessage()}: {cause}"
        line = plain(message, MAX_SENTENCE_SHOWN)  # it may contain text of a recording
        console_for(stderr=True).print(Text(line, style="red"), soft_wrap=True)


@contextlib.contextmanager
def logged_errors() -> Generator[ErrorLog]:
    """Print and count what the package logs as an error inside the block."""
    logger, errors = logging.getLogger("deerflow_mongo"), ErrorLog()
    logger.addHandler(errors)
    try:
        yield errors
    finally:
        logger.removeHandler(errors)


@contextlib.contextmanager
def status(console: Console, text: str) -> Generator[None]:
    """Show the text on a terminal while the block runs."""
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def progress(console: Console, text: str, total: int, unit: str) -> Generator[Callable[[], None]]:
    """Show a progress bar on a terminal; call what is yielded once for each of the `total` units."""
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def counting_progress(console: Console, text: str, unit: str) -> Generator[Callable[[int, int, str], None]]:
    """Show a progress bar on a terminal; call what is yielded with units done, all units, and details."""
    if not console.is_terminal:
        yield lambda completed, total, details: None
        return
    columns = (
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + "{task.fields[details]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, details="")
        yield lambda completed, total, details: bar.update(
            task, completed=completed, total=total, details=f"  {details}"
        )


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5_400 else f"{seconds / 3_600:,.1f} h"


class RowProgress:
    """Shows with `counting_progress` the rows that are done, per second, and the time left at this rate."""

    def __init__(self, report: Callable[[int, int, str], None], total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0
        self._started = time.perf_counter()

    def add(self, what: str, rows: int) -> None:
        """So many more rows are done, of what is named."""
        self._done += rows
        seconds = max(time.perf_counter() - self._started, 0.001)
        left_s = seconds * max(0, self._total - self._done) / max(self._done, 1)
        details = f"{what}  {self._done / seconds:,.0f}/s  {duration(left_s)} left"
        self._report(self._done, max(self._done, self._total), details)


async def stoppable(work: Coroutine[Any, Any, T]) -> T:
    """`work` in a task of its own, so that Ctrl-C always ends it: a driver may swallow a cancellation."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
        if task.done() and not task.cancelled():
            task.exception()  # an exception that is never retrieved would be logged
        raise
    except Exception as error:
        if (current := asyncio.current_task()) is not None and current.cancelling():
            raise asyncio.CancelledError from error  # the work failed because it was cancelled
        raise


@contextlib.contextmanager
def explained() -> Generator[None]:
    """Turn the package's errors into one sentence and an exit code; any other is a bug with a traceback."""
    try:
        yield
    except (StorageConfigError, InvalidArgumentError) as error:
        raise failure(str(error), USAGE_EXIT) from None
    except StorageError as error:
        raise failure(str(error), PROBLEM_EXIT) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise failure("stopped; the storage is closed", INTERRUPTED_EXIT) from None


@contextlib.contextmanager
def quiet_end() -> Generator[None]:
    """End without a traceback when the reader of the output has gone, or Ctrl-C comes between two steps."""
    try:
        yield
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(CLOSED_PIPE_EXIT) from None
    except KeyboardInterrupt:
        raise failure("stopped", INTERRUPTED_EXIT) from None


def _discard_output() -> None:
    """What is still buffered cannot be written: the interpreter would report that at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file, or none
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


_NOT_PRINTABLE = re.compile(
    "[\x7f-\x9f\u2028\u2029"  # DEL, C1 controls with NEL and CSI; separators of lines and paragraphs
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder what a terminal shows
    "\ufeff\ud800-\udfff]"
)
"""What JSON allows in a text and a terminal or a reader of lines obeys, and what UTF-8 cannot encode."""


def json_of(value: object, *, indent: int | None = None) -> str:
    """JSON for standard output, as one line without `indent`; it cannot control the terminal.

    Escaped to ASCII where the output's encoding is not UTF-8.
    """
    is_utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name == "utf-8"
    text = json.dumps(value, ensure_ascii=not is_utf8, indent=indent, default=json_text)
    return _NOT_PRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
