"""DeerFlow's own SQL code, as its distribution `deerflow-kernel` has it (Python 3.12 or newer).

Maps the paths of the headline operations, and of the reads that check them, to DeerFlow's repositories and
its run event store, on an engine made by its own `init_engine`. Behaviour is unchanged: dropped fields stay
dropped, and errors reach the caller. The SQL baseline represents the other operations.

Rows have the keys of ours that its tables have: a run has no `started_at` and `ended_at`, feedback no
`owner_id`. Other differences: feedback lists return the oldest `limit` rows (here newest first); threads are
sorted by last update; a user has one feedback row per run; a trace's content is cut at 10,240 bytes. On
SQLite, concurrent writers of events of one thread use the same number and all but one get an
`IntegrityError`; on PostgreSQL so do concurrent first votes of one user.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

Call: TypeAlias = Callable[..., Awaitable[Any]]

_ENGINE = "deerflow.persistence.engine"
_REPOSITORIES = (
    ("deerflow.persistence.run", "RunRepository"),
    ("deerflow.persistence.feedback", "FeedbackRepository"),
    ("deerflow.persistence.thread_meta", "ThreadMetaRepository"),
    ("deerflow.runtime.events.store.db", "DbRunEventStore"),
)


def missing() -> str | None:
    """The reason why it cannot be used here, or None."""
    if sys.version_info < (3, 12):
        return f"deerflow-kernel needs Python 3.12 or newer, and this is {sys.version.split()[0]}"
    if importlib.util.find_spec("deerflow") is None:
        return "DeerFlow is not installed: install deerflow-kernel and sqlalchemy[asyncio]"
    try:
        for module in (_ENGINE, *(module for module, _ in _REPOSITORIES)):
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - imports of many packages fail in many ways
        return f"DeerFlow is installed but cannot be imported: {type(error).__name__}: {error}"
    return None


@asynccontextmanager
async def opened(url: str, _database: str = "") -> AsyncGenerator[Mapping[str, Call]]:
    """Path -> call, on `sqlite+aiosqlite:` or `postgresql+asyncpg:`.

    DeerFlow's engine is a module global, so only one can be open at a time. It creates missing tables and, on
    PostgreSQL, a missing database.
    """
    module: Any = importlib.import_module(_ENGINE)
    if url.startswith("sqlite"):
        folder = str(Path(url.partition(":///")[2]).parent)
        await module.init_engine("sqlite", url=url, sqlite_dir=folder)
    else:
        await module.init_engine("postgres", url=url)
    engine, sessions = module.get_engine(), module.get_session_factory()
    try:
        yield _calls(sessions)
    finally:
        await engine.dispose()


def metadata() -> Any:
    """SQLAlchemy's description of its tables."""
    importlib.import_module("deerflow.persistence.models")
    return importlib.import_module("deerflow.persistence.base").Base.metadata


def _calls(sessions: Any) -> Mapping[str, Call]:
    runs, feedback, threads, run_events = (
        getattr(importlib.import_module(module), name)(sessions) for module, name in _REPOSITORIES
    )
    list_by_run, search = _call(feedback.list_by_run), _call(threads.search)

    async def newest_first(**wanted: Any) -> Any:
        return (await list_by_run(**wanted))[::-1]

    async def search_threads(**wanted: Any) -> Any:
        rows = await search(**wanted)
        for row in rows:
            row["created_time"], row["updated_time"] = row.pop("created_at"), row.pop("updated_at")
        return rows

    return {
        "runs.get": _call(runs.get),
        "runs.list_by_thread": _call(runs.list_by_thread),
        "runs.create": _call(runs.put),
        "runs.update_status": _call(runs.update_status),
        "runs.update_run_completion": _call(runs.update_run_completion),
        "feedback.upsert": _call(feedback.upsert),
        "feedback.list_by_run": newest_first,
        "feedback.aggregate_by_run": _call(feedback.aggregate_by_run),
        "threads.search_threads": search_threads,
        "run_events.put_batch": run_events.put_batch,
        "run_events.list_messages": _call(run_events.list_messages),
        "run_events.list_events": _call(run_events.list_events),
    }


def _call(method: Any) -> Call:
    """The method for all users by default; keywords that it does not have are dropped."""
    known = inspect.signature(method).parameters

    async def call(**given: Any) -> Any:
        given = {"user_id": None, **given}
        return await method(**{name: value for name, value in given.items() if name in known})

    return call
