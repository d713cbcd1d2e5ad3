"""`SqlStorage`: the stores on one engine, as DeerFlow's gateway creates them at startup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deerflow_mongo import Storage, StorageConfigError

from .config import SqlConfig, sql_config
from .engine import Sessions
from .feedback import SqlFeedbackStore
from .observer import SqlRunObserver
from .run_events import SqlRunEventStore
from .runs import SqlRunStore
from .tables import Base
from .threads import SqlThreadStore


class SqlStorage(Storage):
    """`Storage` on SQLite or PostgreSQL. The constructor does not connect."""

    def __init__(self, config: SqlConfig) -> None:
        self._config = config
        self._sessions = Sessions(config)
        self._runs = SqlRunStore(self._sessions)
        self._feedback = SqlFeedbackStore(self._sessions)
        self._threads = SqlThreadStore(self._sessions)
        self._run_events = SqlRunEventStore(self._sessions, self._threads, config)

    def __repr__(self) -> str:
        return f"SqlStorage({self._config.url.render_as_string(hide_password=True)!r})"

    @property
    def engine(self) -> AsyncEngine:
        """The SQLAlchemy engine of the stores, for tools that inspect the database."""
        return self._sessions.engine

    @property
    def runs(self) -> SqlRunStore:
        return self._runs

    @property
    def feedback(self) -> SqlFeedbackStore:
        return self._feedback

    @property
    def threads(self) -> SqlThreadStore:
        return self._threads

    @property
    def run_events(self) -> SqlRunEventStore:
        return self._run_events

    def observer(self) -> SqlRunObserver:
        """An observer that writes to these stores."""
        return SqlRunObserver(self._runs, self._threads)

    async def setup(self) -> None:
        """Creates missing tables. As in DeerFlow, not safe with concurrent processes."""
        self._sessions.check_open()
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def ping(self) -> None:
        """One `SELECT 1`."""
        async with self._sessions.reading() as session:
            await session.execute(text("SELECT 1"))

    async def aclose(self) -> None:
        """Closes the connections; idempotent."""
        await self._sessions.close()


def create_sql_storage(options: Mapping[str, Any], *, client: Any = None) -> SqlStorage:
    """The entry point of the backend `sql`: validates the options and returns the storage."""
    if client is not None:
        raise StorageConfigError("the backend `sql` opens its own engine and takes no client: give `url`")
    return SqlStorage(sql_config(options))
