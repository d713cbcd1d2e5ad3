"""Shows progress: a bar with the remaining time on a terminal, one line per case elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """Counts measurements. `rich` draws the bar if it is installed and stderr is a terminal."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._total = total
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task: Any = None if self._bar is None else self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what)
        else:
            sys.stderr.write(f"[{self.done:,}/{self._total:,}] {what}\n")
            sys.stderr.flush()

    def step(self) -> None:
        self.skip_to(self.done + 1)

    def skip_to(self, done: int) -> None:
        """Sets the count; skipped measurements count as done."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)


def _bar() -> Any:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
