"""Tests of many cases: each case is run, and the test's failure lists every one that failed."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

_FAILURES = (Exception, pytest.fail.Exception)
"""What fails one case. A skip, an interrupt and a cancellation end the whole test, as they do elsewhere."""

_MAX_REASON = 600
_MAX_LISTED = 100


class _CaseFailures:
    """The failed cases of one test, as texts: an exception would keep its payloads in memory."""

    def __init__(self) -> None:
        self.cases = 0
        self.failed: list[str] = []
        self.afterwards: list[str] = []
        self.first: BaseException | None = None

    def add(self, name: str, error: BaseException) -> None:
        self.first = self.first or error
        self.failed.append(f"case {name}: {_place(error)}{_reason(error)}")

    def raise_if_any(self) -> None:
        """Raise one error that lists all failed cases, with the traceback of the first one."""
        __tracebackhide__ = True
        if self.first is None:
            return
        rest = len(self.failed) - _MAX_LISTED
        listed = self.failed[:_MAX_LISTED] + ([f"... and {rest} more"] if rest > 0 else []) + self.afterwards
        text = "\n".join(f"  {line}" for line in listed)
        error = AssertionError(f"{len(self.failed)} of {self.cases} cases failed\n{text}")
        raise error.with_traceback(self.first.__traceback__) from None


_current: ContextVar[_CaseFailures | None] = ContextVar("failures", default=None)


@contextmanager
def case(*names: object) -> Generator[None]:
    """One row of a table of cases. In a test of a `Contract` a failure inside does not end the test.

    All failed cases are reported when the test ends. Elsewhere the failure is raised at once, and names the
    case in a note.
    """
    failures = _current.get()
    if failures is not None:
        failures.cases += 1
    name = ", ".join(name if isinstance(name, str) else repr(name) for name in names)
    try:
        yield
    except _FAILURES as error:
        if failures is None:
            error.add_note(f"case: {name}")
            raise
        failures.add(name, error)


def collecting_cases(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test, which reports all its failed cases at its end, and what failed outside of any case."""
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def collected_async(*arguments: Any, **fixtures: Any) -> None:
            __tracebackhide__ = True
            with _collecting():
                await test(*arguments, **fixtures)

        return collected_async

    @functools.wraps(test)
    def collected(*arguments: Any, **fixtures: Any) -> None:
        __tracebackhide__ = True
        with _collecting():
            test(*arguments, **fixtures)

    return collected


@contextmanager
def _collecting() -> Generator[None]:
    __tracebackhide__ = True
    failures = _CaseFailures()
    token = _current.set(failures)
    try:
        yield
    except _FAILURES as error:
        if failures.first is None:
            raise
        failures.afterwards.append(f"after the cases: {_place(error)}{_reason(error)}")
    finally:
        _current.reset(token)
    failures.raise_if_any()


def _place(error: BaseException) -> str:
    """The line of the test that failed: such as "runs.py:107: "."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    if not frames:
        return ""
    line = [frame.lineno for frame in frames if frame.filename == frames[0].filename][-1]
    return f"{Path(frames[0].filename).name}:{line}: "


def _reason(error: BaseException) -> str:
    """The error's type and text; those of its members for a group."""
    if isinstance(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return "; ".join(_reason(member) for member in members)
    lines = str(error).splitlines()
    # pytest's explanation of an assertion has several lines; in a list, its first ones are enough.
    text = "\n      ".join(line for line in lines[:6] if line.strip())
    return f"{type(error).__name__}: {text}"[:_MAX_REASON]
