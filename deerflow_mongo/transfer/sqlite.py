"""Checkpoints of langgraph-checkpoint-sqlite, read from its file, which may be in use by a running host.

The file is opened read-only and the library's `setup()` is never called. In WAL mode SQLite may create the
file's `-shm` and `-wal` beside it, as any reader does.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

from ..contract.errors import StorageConfigError
from .sources import Source, SourceInThread, SourceThread, library
from .stored_values import Key, ListedCheckpoint, Record, StoredFormSerializer, Write, record_of, write_of

PACKAGE = "langgraph-checkpoint-sqlite"
BUSY_TIMEOUT_S = 30.0
"""How long a read waits for a host that holds the file; only without WAL mode."""


async def open_url(url: str) -> Source:
    """The file of a `sqlite:///` URL. Raises `StorageConfigError`."""
    return SourceInThread(SqliteSource(_file_of(url)))


def _file_of(url: str) -> Path:
    authority, slash, path = url.partition("://")[2].partition("/")
    if authority or not slash or not path or "?" in path:
        raise StorageConfigError(
            "--from sqlite: expected sqlite:///file, or sqlite:////file for an absolute path, without options"
        )
    file = Path(unquote(path)).expanduser()
    if not file.is_file():
        hint = "" if file.is_absolute() else "; an absolute path has four slashes: sqlite:////file"
        raise StorageConfigError(f"--from sqlite: there is no file {file}{hint}")
    return file


class SqliteSource:
    def __init__(self, file: Path) -> None:
        saver_class = library("langgraph.checkpoint.sqlite", PACKAGE).SqliteSaver
        self._file = file
        self._connection = _connected(file)
        try:
            columns = self._columns_of_writes()
        except BaseException:
            self._connection.close()
            raise
        self._task_path = "task_path" if "task_path" in columns else "''"
        self._saver = saver_class(self._connection, serde=StoredFormSerializer(decode_json=True))
        # What `setup()` would find out by changing the table.
        cast("dict[str, Any]", vars(self._saver)).update(is_setup=True, _has_task_path="task_path" in columns)

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
        with self._explained():
            # The primary key's index holds all that is asked for, so that no checkpoint is read.
            rows = self._connection.execute(
                "SELECT thread_id, count(*) FROM checkpoints GROUP BY thread_id ORDER BY thread_id"
            )
            return [SourceThread(*row) for row in rows]

    def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        rows = self._connection.execute(
            "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints WHERE thread_id = ?",
            (thread_id,),
        )
        return [
            ListedCheckpoint(Key(ns, checkpoint_id), parent or None) for ns, checkpoint_id, parent in rows
        ]

    def read(self, thread_id: str, key: Key) -> Record | None:
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


def _connected(file: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(file))}?mode=ro"
    if not _may_have_writers(file):
        address += "&immutable=1"
    try:
        return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    except sqlite3.Error as error:
        raise StorageConfigError(f"--from sqlite: {file} cannot be opened: {error}") from error


def _may_have_writers(file: Path) -> bool:
    """Whether to open the file as one in use.

    In a folder that is not writable, a file in WAL mode without its `-wal` can be opened as immutable only.
    """
    return os.access(file.parent, os.W_OK) or file.with_name(f"{file.name}-wal").exists()
