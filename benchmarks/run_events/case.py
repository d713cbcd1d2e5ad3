"""What every case takes and gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .report import Table
from .servers import Servers

Raw = dict[str, Any]
"""One measurement, with its absolute figures."""


@dataclass(frozen=True, slots=True)
class Settings:
    seconds: float
    repetitions: int
    profiled: bool


@dataclass(slots=True)
class Result:
    title: str
    tables: list[Table] = field(default_factory=lambda: list[Table]())
    notes: list[str] = field(default_factory=lambda: list[str]())
    raw: list[Raw] = field(default_factory=lambda: list[Raw]())
    is_right: bool = True
    """Whether what put_batch answered was what it promises."""


Case = Callable[[Servers, Settings], Result]


def progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
