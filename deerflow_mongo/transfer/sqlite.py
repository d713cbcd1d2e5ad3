"""Checkpoints of langgraph-checkpoint-sqlite, read from its file, which may be in use by a running host.

The file is opened read-only and the library's `setup()` is never called; see `sqlite_files.py`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ..contract.errors import StorageConfigError
from .sources import Source, SourceInThread, SourceThread, library
from .sqlite_files import OpenedFile, file_of, open_file, read_current
from .stored_values import Key, ListedCheckpoint, Record, StoredFormSerializer, Write, record_of, write_of

PACKAGE = "langgraph-checkpoint-sqlite"

_Result = TypeVar("_Result")


async def open_url(url: str) -> Source:
    """The file of a `sqlite:///` URL. Raises `StorageConfigError`."""
    return SourceInThread(SqliteSource(file_of(url)))


class SqliteSource:
    def __init__(self, file: Path) -> None:
        self._saver_class = library("langgraph.checkpoint.sqlite", PACKAGE).SqliteSaver
        self._file = file
        self._opened = open_file(file)
        try:
            self._use(self._opened)
        except BaseException:
            self._connection.close()
            raise

    def _use(self, opened: OpenedFile) -> None:
        self._opened, self._connection = opened, opened.connection
        columns = self._columns_of_writes()
        self._task_path = "task_path" if "task_path" in columns else "''"
        self._saver = self._saver_class(self._connection, serde=StoredFormSerializer(decode_json=True))
        # What `setup()` would find out by changing the table.
        cast("dict[str, Any]", vars(self._saver)).update(is_setup=True, _has_task_path="task_path" in columns)

    def _reopen(self) -> None:
        self._connection.close()
        self._use(open_file(self._file))

    def _current(self, read: Callable[[], _Result]) -> _Result:
        return read_current(read, lambda: self._opened.is_outdated(), self._reopen, self._file)

    def _columns_of_writes(self) -> set[str]:
        with self._explained():
            tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
            if missing := {"checkpoints", "writes"} - tables:
                raise StorageConfigError(
                    f"--from sqlite: {self._file} has no table {min(missing)!r} of {PACKAGE}"
                )
            return {row[1] for row in self._connection.execute("PRAGMA table_info(writes)")}

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageConfigError(f"--from sqlite: {self._file} cannot be read: {error}") from error

    def threads(self) -> Sequence[SourceThread]:
        # The primary key's index holds all that is asked for, so that no checkpoint is read.
        query = "SELECT thread_id, count(*) FROM checkpoints GROUP BY thread_id ORDER BY thread_id"
        with self._explained():
            return self._current(lambda: [SourceThread(*row) for row in self._connection.execute(query)])

    def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        query = (
            "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints WHERE thread_id = ?"
        )
        rows = self._current(lambda: self._connection.execute(query, (thread_id,)).fetchall())
        return [
            ListedCheckpoint(Key(ns, checkpoint_id), parent or None) for ns, checkpoint_id, parent in rows
        ]

    def read(self, thread_id: str, key: Key) -> Record | None:
        return self._current(lambda: self._read(thread_id, key))

    def _read(self, thread_id: str, key: Key) -> Record | None:
        place = {"thread_id": thread_id, "checkpoint_ns": key.namespace, "checkpoint_id": key.checkpoint_id}
        found = self._saver.get_tuple({"configurable": place})
        if found is None:
            return None
        found = found._replace(pending_writes=None)  # without their places, and possibly large
        return record_of(found, key, self._writes(thread_id, key))

    def _writes(self, thread_id: str, key: Key) -> list[Write]:
        rows = self._connection.execute(
            f"SELECT task_id, {self._task_path}, idx, channel, type, value FROM writes "  # noqa: S608
            "WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? ORDER BY task_id, idx",
            (thread_id, *key),
        )
        return [
            write_of(task_id, task_path, index, channel, (type_, value))
            for task_id, task_path, index, channel, type_, value in rows
        ]

    def ping(self) -> None:
        self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()

    def close(self) -> None:
        self._connection.close()
