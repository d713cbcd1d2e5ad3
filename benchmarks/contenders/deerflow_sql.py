"""DeerFlow's own SQL code, as its distribution `deerflow-kernel` has it (Python 3.12 or newer).

Maps the paths of our stores to DeerFlow's repositories for runs, feedback and threads and its run event
store, on an engine made by its own `init_engine`. Behaviour is unchanged: dropped fields stay dropped, and
errors reach the caller. Paths without a method are missing: `threads.ensure_thread`,
`threads.ensure_thread_running`, `runs.record_token_usage` and `run_events.put_if_absent`.

Rows have the keys of ours that its tables have: a run has no `started_at` and `ended_at`, feedback no
`owner_id`. Other differences: feedback lists return the oldest `limit` rows (here newest first); threads are
sorted by last update; `token_usage_by_thread` sums the runs of all users that ended in success or error;
`update_status` ignores times and metadata; a thread's metadata is merged, not replaced; deleting a run or a
thread returns nothing; a user has one feedback row per run; a trace's content is cut at 10,240 bytes. Times
read from SQLite have no offset. On SQLite, concurrent writers of events of one thread use the same number and
all but one get an `IntegrityError`; on PostgreSQL so do concurrent first votes of one user.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from deerflow_mongo.contract.rows import ThreadMetaCreate

Call: TypeAlias = Callable[..., Awaitable[Any]]

DISTRIBUTION = "deerflow-kernel"

_MIN_PYTHON = (3, 12)
_ENGINE = "deerflow.persistence.engine"
_RUNS = ("deerflow.persistence.run", "RunRepository")
_FEEDBACK = ("deerflow.persistence.feedback", "FeedbackRepository")
_THREADS = ("deerflow.persistence.thread_meta", "ThreadMetaRepository")
_RUN_EVENTS = ("deerflow.runtime.events.store.db", "DbRunEventStore")


def missing() -> str | None:
    """The reason why it cannot be used here, or None."""
    if sys.version_info < _MIN_PYTHON:
        wanted = ".".join(map(str, _MIN_PYTHON))
        return f"{DISTRIBUTION} needs Python {wanted} or newer, and this is {sys.version.split()[0]}"
    try:
        importlib.import_module("deerflow")
    except ImportError:
        return f"DeerFlow is not installed: install {DISTRIBUTION} and sqlalchemy[asyncio]"
    try:
        importlib.import_module(_ENGINE)
        for module, name in (_RUNS, _FEEDBACK, _THREADS, _RUN_EVENTS):
            getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - imports of many packages fail in many ways
        return f"DeerFlow is installed but cannot be imported: {type(error).__name__}: {error}"
    return None


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Mapping[str, Call]]:
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
        getattr(importlib.import_module(module), name)(sessions)
        for module, name in (_RUNS, _FEEDBACK, _THREADS, _RUN_EVENTS)
    )
    return {
        **_run_calls(runs),
        **_feedback_calls(feedback),
        **_thread_calls(threads),
        **_run_event_calls(run_events),
    }


def _call(method: Any, **defaults: Any) -> Call:
    """The method with these defaults; keywords that it does not have are dropped."""
    known = inspect.signature(method).parameters

    async def call(**given: Any) -> Any:
        return await method(**{name: value for name, value in {**defaults, **given}.items() if name in known})

    return call


def _for_all_users(method: Any) -> Call:
    return _call(method, user_id=None)


def _run_calls(runs: Any) -> Mapping[str, Call]:
    return {
        "runs.get": _for_all_users(runs.get),
        "runs.list_by_thread": _for_all_users(runs.list_by_thread),
        "runs.create": _for_all_users(runs.put),
        "runs.update_status": _call(runs.update_status),
        "runs.set_error": _call(runs.update_status, status="error"),
        "runs.update_run_completion": _call(runs.update_run_completion),
        "runs.delete": _for_all_users(runs.delete),
        "runs.token_usage_by_thread": _call(runs.aggregate_tokens_by_thread),
    }


def _feedback_calls(feedback: Any) -> Mapping[str, Call]:
    def reversed_list(method: Any) -> Call:
        listed = _for_all_users(method)

        async def newest_first(**wanted: Any) -> Any:
            return (await listed(**wanted))[::-1]

        return newest_first

    return {
        "feedback.create": _for_all_users(feedback.create),
        "feedback.upsert": _for_all_users(feedback.upsert),
        "feedback.get": _for_all_users(feedback.get),
        "feedback.delete": _for_all_users(feedback.delete),
        "feedback.list_by_run": reversed_list(feedback.list_by_run),
        "feedback.list_by_thread": reversed_list(feedback.list_by_thread),
        "feedback.list_by_thread_grouped": _for_all_users(feedback.list_by_thread_grouped),
        "feedback.aggregate_by_run": _call(feedback.aggregate_by_run),
        "feedback.delete_by_run": _for_all_users(feedback.delete_by_run),
    }


def _thread_calls(threads: Any) -> Mapping[str, Call]:
    create, find, search = map(_for_all_users, (threads.create, threads.get, threads.search))

    async def create_thread_meta(*, data: ThreadMetaCreate) -> Any:
        return _thread_row(await create(**asdict(data)))

    async def get(**wanted: Any) -> Any:
        row = await find(**wanted)
        return None if row is None else _thread_row(row)

    async def search_threads(**wanted: Any) -> Any:
        return [_thread_row(row) for row in await search(**wanted)]

    async def update_thread_meta(*, thread_id: str, **fields: Any) -> None:
        """One update per given field; `assistant_id` cannot be changed."""
        updates = {
            "display_name": threads.update_display_name,
            "status": threads.update_status,
            "metadata": threads.update_metadata,
        }
        for name, value in fields.items():
            await updates[name](thread_id, value, user_id=None)

    async def sync_thread_title(*, thread_id: str, title: str) -> None:
        await threads.update_display_name(thread_id, title, user_id=None)

    return {
        "threads.create_thread_meta": create_thread_meta,
        "threads.get_thread_meta": get,
        "threads.get_thread": get,
        "threads.update_thread_meta": update_thread_meta,
        "threads.sync_thread_title": sync_thread_title,
        "threads.sync_thread_status": _for_all_users(threads.update_status),
        "threads.search_threads": search_threads,
        "threads.delete_thread": _for_all_users(threads.delete),
    }


def _thread_row(row: dict[str, Any]) -> dict[str, Any]:
    row["created_time"], row["updated_time"] = row.pop("created_at"), row.pop("updated_at")
    return row


def _run_event_calls(run_events: Any) -> Mapping[str, Call]:
    names = ("list_messages", "list_events", "list_messages_by_run", "count_messages", "delete_by_thread")
    return {
        "run_events.put_batch": run_events.put_batch,
        "run_events.put": run_events.put,
        **{
            f"run_events.{name}": _for_all_users(getattr(run_events, name))
            for name in (*names, "delete_by_run")
        },
    }
