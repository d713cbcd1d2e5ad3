"""Checkpoints of langgraph-checkpoint-postgres, read with its saver in a session that cannot write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..contract.errors import StorageConfigError
from ..mongodb.drivers.threads import in_thread
from .sources import Source, SourceInThread, SourceThread, library, printable
from .stored_values import Key, ListedCheckpoint, Record, StoredFormSerializer, Write, record_of, write_of

PACKAGE = "langgraph-checkpoint-postgres"
INSTALL = " 'psycopg[binary]'"
CONNECT_TIMEOUT_S = 15


async def open_url(url: str) -> Source:
    """The database of a `postgresql://` URL, of libpq or SQLAlchemy. Raises `StorageConfigError`."""
    return SourceInThread(await _opened(url))


async def _opened(url: str) -> PostgresqlSource:
    return await in_thread(lambda: PostgresqlSource(url))


class PostgresqlSource:
    def __init__(self, url: str) -> None:
        psycopg: Any = library("psycopg", PACKAGE, INSTALL)
        saver_class: Any = library("langgraph.checkpoint.postgres", PACKAGE, INSTALL).PostgresSaver
        self._place = printable(url)
        self._error: type[Exception] = psycopg.Error
        address = re.sub(r"^\w+(\+\w+)?://", "postgresql://", url)
        try:
            self._connection = psycopg.connect(
                address,
                autocommit=True,
                prepare_threshold=None,  # works behind a pooler too
                row_factory=psycopg.rows.dict_row,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="deerflow-mongo checkpoints copy",
            )
        except self._error as error:
            raise StorageConfigError(f"--from {self._place} cannot be opened: {_line(error)}") from error
        self._execute("SET default_transaction_read_only = on")
        self._saver = saver_class(self._connection, serde=StoredFormSerializer())

    def _execute(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        cursor = self._connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def threads(self) -> Sequence[SourceThread]:
        try:
            rows = self._execute(
                "SELECT thread_id, count(*) AS checkpoints FROM checkpoints "
                "GROUP BY thread_id ORDER BY thread_id"
            )
        except self._error as error:
            raise StorageConfigError(
                f"--from {self._place} has no checkpoints of {PACKAGE}: {_line(error)}"
            ) from error
        return [SourceThread(row["thread_id"], row["checkpoints"]) for row in rows]

    def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        rows = self._execute(
            "SELECT checkpoint_ns AS ns, checkpoint_id AS id, parent_checkpoint_id AS parent "
            "FROM checkpoints WHERE thread_id = %s",
            thread_id,
        )
        return [ListedCheckpoint(Key(row["ns"], row["id"]), row["parent"] or None) for row in rows]

    def read(self, thread_id: str, key: Key) -> Record | None:
        place = {"thread_id": thread_id, "checkpoint_ns": key.namespace, "checkpoint_id": key.checkpoint_id}
        found = self._saver.get_tuple({"configurable": place})
        if found is None:
            return None
        found = found._replace(pending_writes=None)  # without their places, and possibly large
        return record_of(found, key, self._writes(thread_id, key))

    def _writes(self, thread_id: str, key: Key) -> list[Write]:
        rows = self._execute(
            "SELECT task_id, task_path, idx, channel, type, blob FROM checkpoint_writes "
            "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s ORDER BY task_id, idx",
            thread_id,
            *key,
        )
        return [
            write_of(row["task_id"], row["task_path"], row["idx"], row["channel"], (row["type"], row["blob"]))
            for row in rows
        ]

    def ping(self) -> None:
        self._execute("SELECT 1")

    def close(self) -> None:
        self._connection.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
