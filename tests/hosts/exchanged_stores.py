"""A pytest plugin for DeerFlow's own tests: their SQL stores become our adapters on MongoDB.

`python -m pytest -p tests.hosts.exchanged_stores` in DeerFlow's `backend/` folder exchanges the classes
before the tests are collected. They build each one as `Class(session_factory)`; each test begins on an empty
database, and opens it again where it restarts DeerFlow's engine. No file of DeerFlow is changed.
`host_suite.py` runs it and judges the outcome; this module only reports it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import uuid
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pymongo
import pytest

from deerflow_mongo import create_storage
from deerflow_mongo.mongodb.schema import COLLECTIONS

URL_VARIABLE: Final = "HOST_SUITE_MONGODB_URL"
REPORT_VARIABLE: Final = "HOST_SUITE_REPORT"
"""The file that gets the outcome of every test, as JSON."""

MEMORY_VARIABLE: Final = "HOST_SUITE_EXCHANGES_MEMORY"
"""Set to exchange DeerFlow's run store in memory as well."""

MAX_REASON_CHARACTERS: Final = 300

EXCHANGED: Final[Mapping[str, tuple[str, ...]]] = {
    "RunRepository": ("deerflow.persistence.run", "deerflow.persistence.run.sql"),
    "ThreadMetaRepository": ("deerflow.persistence.thread_meta", "deerflow.persistence.thread_meta.sql"),
    "FeedbackRepository": ("deerflow.persistence.feedback", "deerflow.persistence.feedback.sql"),
    "DbRunEventStore": ("deerflow.runtime.events.store.db",),
    "SQLiteUserRepository": ("app.gateway.auth.repositories.sqlite",),
}
"""DeerFlow's classes, and the modules that tests import each one from."""

EXCHANGED_IN_MEMORY: Final[Mapping[str, tuple[str, ...]]] = {
    "MemoryRunStore": ("deerflow.runtime.runs.store.memory", "deerflow.runtime.runs.store"),
}

_ENGINE: Final = "deerflow.persistence.engine"


@dataclass
class Outcome:
    """What one test did."""

    built: bool = False
    """Whether it built one of the exchanged classes."""

    outcome: str = "passed"
    reason: str = ""


@dataclass
class _Session:
    url: str
    database: str
    outcomes: dict[str, Outcome] = field(default_factory=lambda: dict[str, Outcome]())
    current: Outcome = field(default_factory=Outcome)
    storages: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = field(
        default_factory=lambda: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any]()
    )
    """The open storage of each event loop: a test may have several, one after the other."""

    locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = field(
        default_factory=lambda: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()
    )

    async def storage(self) -> Any:
        """The storage on the test's database, opened at its first use in this event loop."""
        loop = asyncio.get_running_loop()
        async with self.locks.setdefault(loop, asyncio.Lock()):
            opened = self.storages.get(loop)
            if opened is None:
                options = {"backend": "mongodb", "url": self.url, "database": self.database}
                opened = create_storage(options)
                await opened.__aenter__()
                self.storages[loop] = opened
        return opened

    def clear(self) -> None:
        """Delete what a test has stored: setting up a database of its own would take longer than the test."""
        with pymongo.MongoClient[dict[str, Any]](self.url) as client:
            for schema in COLLECTIONS:
                client[self.database][schema.name].delete_many({})

    async def close(self) -> None:
        """Close this event loop's storage, if it is open."""
        opened = self.storages.pop(asyncio.get_running_loop(), None)
        if opened is not None:
            await opened.__aexit__(None, None, None)


class _Part:
    """One store of the storage that is opened when it is first used; only its coroutine functions."""

    def __init__(self, session: _Session, part: str) -> None:
        self._session = session
        self._part = part

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            store = getattr(await self._session.storage(), self._part)
            return await getattr(store, name)(*arguments, **options)

        return call


def _adapters(session: _Session) -> dict[str, tuple[str, Callable[..., tuple[list[Any], dict[str, Any]]]]]:
    """By the name of DeerFlow's class: our adapter, and its arguments for those of a test."""

    def over(*parts: str) -> Callable[..., tuple[list[Any], dict[str, Any]]]:
        def arguments(*_given: Any, **options: Any) -> tuple[list[Any], dict[str, Any]]:
            return [_Part(session, part) for part in parts], options

        return arguments

    adapters = "deerflow_mongo.hosts.adapters"
    return {
        "RunRepository": (f"{adapters}.runs:RunStoreAdapter", over("runs")),
        "MemoryRunStore": (f"{adapters}.runs:RunStoreAdapter", over("runs")),
        "ThreadMetaRepository": (f"{adapters}.threads:ThreadMetaStoreAdapter", over("threads", "runs")),
        "FeedbackRepository": (f"{adapters}.feedback:FeedbackRepositoryAdapter", over("feedback")),
        "DbRunEventStore": (f"{adapters}.run_events:RunEventStoreAdapter", over("run_events")),
        "SQLiteUserRepository": (f"{adapters}.users:UserRepositoryAdapter", over("users")),
    }


def _exchange(session: _Session, names: Mapping[str, tuple[str, ...]]) -> None:
    adapters = _adapters(session)
    for name, modules in names.items():
        path, arguments = adapters[name]
        module, _, adapter = path.partition(":")
        base: Any = getattr(importlib.import_module(module), adapter)
        exchanged = type(name, (base,), {"__init__": _constructor(session, base, arguments)})
        for holder in modules:
            setattr(importlib.import_module(holder), name, exchanged)


def _constructor(session: _Session, base: Any, arguments: Callable[..., Any]) -> Callable[..., None]:
    def construct(self: Any, *given: Any, **options: Any) -> None:
        session.current.built = True
        parts, rest = arguments(*given, **options)
        base.__init__(self, *parts, **rest)

    return construct


def _close_with_the_engine(session: _Session) -> None:
    """DeerFlow's tests close its engine at their end: our storage of that event loop is closed with it."""
    engine: Any = importlib.import_module(_ENGINE)
    close_engine = engine.close_engine

    async def close_both() -> None:
        await session.close()
        await close_engine()

    engine.close_engine = close_both


_session = pytest.StashKey[_Session]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Exchange the classes: DeerFlow's `conftest.py` has been loaded, its tests have not."""
    state = _Session(os.environ[URL_VARIABLE], f"host_suite_{uuid.uuid4().hex[:12]}")
    session.config.stash[_session] = state
    _close_with_the_engine(state)
    _exchange(state, EXCHANGED)
    if os.environ.get(MEMORY_VARIABLE):
        _exchange(state, EXCHANGED_IN_MEMORY)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The database is empty again afterwards."""
    state = item.config.stash[_session]
    state.current = state.outcomes[item.nodeid] = Outcome()
    try:
        return (yield)
    finally:
        if state.current.built:
            state.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the first part of the test that did not pass."""
    report = yield
    outcome = item.config.stash[_session].outcomes[item.nodeid]
    if not report.passed and outcome.outcome == "passed":
        outcome.outcome = report.outcome
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(report.longrepr)
        outcome.reason = " ".join(text.split())[:MAX_REASON_CHARACTERS]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Drop the database and write the report."""
    state, file = session.config.stash[_session], os.environ.get(REPORT_VARIABLE)
    with pymongo.MongoClient[dict[str, Any]](state.url) as client:
        client.drop_database(state.database)
    if file is not None:
        outcomes = state.outcomes
        Path(file).write_text(json.dumps({name: vars(outcome) for name, outcome in outcomes.items()}))
