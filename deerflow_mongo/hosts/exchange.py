"""Names of DeerFlow's modules, exchanged while one application starts and restored right after.

DeerFlow's start imports by name, inside its functions, the classes that it builds. What is exchanged here is
seen by the start that asked for it and by nobody else: a name stands for its original in every other task and
thread, so two applications may start in one process at the same time. It is restored when the last start that
exchanged it has ended, also after an error or a cancellation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .deerflow import import_deerflow
from .releases import Name


@dataclass(slots=True, eq=False)
class _Start:
    """What one start sees in place of the originals; tasks that it made outlive it, with its context."""

    replacements: Mapping[Name, Callable[..., Any]]
    is_active: bool = True


@dataclass(slots=True)
class _Exchanged:
    original: Callable[..., Any]
    stand_in: Callable[..., Any]
    starts: int = 0


@dataclass(slots=True)
class _Names:
    """The names that are exchanged now, in this process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    exchanged: dict[Name, _Exchanged] = field(default_factory=dict[Name, _Exchanged])


_names = _Names()
_starts: ContextVar[tuple[_Start, ...]] = ContextVar("deerflow_mongo_starts", default=())


def original(name: Name) -> Any:
    """What DeerFlow has under this name, also while it is exchanged."""
    module = import_deerflow(name[0])
    with _names.lock:
        exchanged = _names.exchanged.get(name)
        return getattr(module, name[1]) if exchanged is None else exchanged.original


@contextmanager
def exchanged(replacements: Mapping[Name, Callable[..., Any]]) -> Generator[None]:
    """Within the block, in its task and in tasks made in it, these names stand for the replacements.

    Raises `AttributeError` if a name does not exist; nothing is exchanged then.
    """
    for name in replacements:
        original(name)  # imports the module before any name is exchanged
    start = _Start(replacements)
    with _names.lock:
        for name in replacements:
            _exchange(name)
    token = _starts.set((*_starts.get(), start))
    try:
        yield
    finally:
        start.is_active = False
        with _names.lock:
            for name in replacements:
                _restore(name)
        _starts.reset(token)


def _exchange(name: Name) -> None:
    if name not in _names.exchanged:
        module = import_deerflow(name[0])
        found = getattr(module, name[1])
        _names.exchanged[name] = _Exchanged(found, _stand_in(name, found))
        setattr(module, name[1], _names.exchanged[name].stand_in)
    _names.exchanged[name].starts += 1


def _restore(name: Name) -> None:
    entry = _names.exchanged[name]
    entry.starts -= 1
    if entry.starts:
        return
    del _names.exchanged[name]
    module = import_deerflow(name[0])
    if getattr(module, name[1], None) is entry.stand_in:  # else somebody else has set it meanwhile
        setattr(module, name[1], entry.original)


def _stand_in(name: Name, found: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return (_replacement(name) or found)(*arguments, **options)

    return call


def _replacement(name: Name) -> Callable[..., Any] | None:
    """What the innermost start of this context has for the name."""
    for start in reversed(_starts.get()):
        if start.is_active and name in start.replacements:
            return start.replacements[name]
    return None
