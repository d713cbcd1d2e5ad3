"""`SqlStorage`: the stores on one engine, as DeerFlow's gateway creates them at startup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import text

from deerflow_mongo import RunLifecycleEvent, Storage, StorageConfigError, StorageRunObserver

from .engine import Sessions, SqlConfig, sql_config
from .feedback import SqlFeedbackStore
from .run_events import SqlRunEventStore
from .runs import SqlRunStore
from .tables import Base
from .threads import SqlThreadStore


class SqlRunObserver(StorageRunObserver):
    """Reproduces a bug of the adapters' observer: an `error` or a `status` inside `completion_data` is passed
    to the call twice, and the resulting TypeError is only logged.
    """

    async def _end(self, event: RunLifecycleEvent, status: str, error: str | None) -> None:
        counts = (event.payload or {}).get("completion_data")
        if self._runs is None or not isinstance(counts, dict):
            await super()._end(event, status, error)
            return
        given = {} if error is None else {"error": error}
        fields = cast("dict[str, Any]", counts)
        await self._runs.update_run_completion(run_id=event.run_id, status=status, **given, **fields)


class SqlStorage(Storage):
    """`Storage` on SQLite or PostgreSQL. The constructor does not connect."""

    def __init__(self, config: SqlConfig) -> None:
        self._config = config
        self._sessions = Sessions(config)
        self.engine = self._sessions.engine
        self._runs = SqlRunStore(self._sessions)
        self._feedback = SqlFeedbackStore(self._sessions)
        self._threads = SqlThreadStore(self._sessions)
        self._run_events = SqlRunEventStore(self._sessions, self._threads, config)

    def __repr__(self) -> str:
        return f"SqlStorage({self._config.url.render_as_string(hide_password=True)!r})"

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
