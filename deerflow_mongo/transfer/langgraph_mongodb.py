"""Checkpoints of langgraph-checkpoint-mongodb, read with its saver on collections that refuse every write.

The saver's constructor would create indexes; the collections that it gets here have none of the methods that
change anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from ..contract.errors import StorageConfigError
from ..mongodb.drivers.threads import in_thread
from .sources import Source, SourceInThread, SourceThread, library, printable
from .stored_values import Key, ListedCheckpoint, Record, StoredFormSerializer, Write, record_of, write_of

PACKAGE = "langgraph-checkpoint-mongodb"
DEFAULT_DATABASE = "checkpointing_db"
SERVER_SELECTION_TIMEOUT_MS = 15_000

CHECKPOINTS_OPTION, WRITES_OPTION = "checkpoint_collection_name", "writes_collection_name"
"""Options of the URL, by the names of the library's own: its collections, if they have other names."""


async def open_url(url: str) -> Source:
    """The database of a `mongodb-langgraph://` URL. Raises `StorageConfigError`."""
    return SourceInThread(await in_thread(lambda: LanggraphMongodbSource(url)))


class _ReadOnlyCollection:
    """What the saver calls to read, and nothing that changes a collection."""

    def __init__(self, collection: Any) -> None:
        self.find = collection.find
        self.list_indexes = collection.list_indexes
        self.aggregate = collection.aggregate

    def create_index(self, *_: object, **__: object) -> None:
        """The saver's constructor asks for indexes; a source gets none."""


class _ReadOnlyDatabases:
    """A client, or one of its databases, whose collections cannot be changed."""

    def __init__(self, client: Any, database: str | None = None) -> None:
        self._client = client
        self._database = database

    def __getitem__(self, name: str) -> Any:
        if self._database is None:
            return _ReadOnlyDatabases(self._client, name)
        return _ReadOnlyCollection(self._client[self._database][name])


class LanggraphMongodbSource:
    def __init__(self, url: str) -> None:
        saver_class = library("langgraph.checkpoint.mongodb", PACKAGE).MongoDBSaver
        self._place = printable(url)
        address, options = _without_options(url, {CHECKPOINTS_OPTION, WRITES_OPTION})
        names = (
            options.get(CHECKPOINTS_OPTION, "checkpoints"),
            options.get(WRITES_OPTION, "checkpoint_writes"),
        )
        settings: dict[str, Any] = {"appname": "deerflow-mongo"}
        if "timeoutms=" not in address.lower():
            settings["serverSelectionTimeoutMS"] = SERVER_SELECTION_TIMEOUT_MS
        try:
            self._client: MongoClient[dict[str, Any]] = MongoClient(address, **settings)
        except (PyMongoError, ValueError) as error:
            raise StorageConfigError(f"--from {self._place} is not a valid MongoDB URI: {error}") from None
        database = self._client.get_default_database(DEFAULT_DATABASE)
        self._checkpoints, self._writes = (database[name] for name in names)
        try:
            self._saver = saver_class(_ReadOnlyDatabases(self._client), database.name, *names)
        except PyMongoError as error:
            self._client.close()
            raise StorageConfigError(f"--from {self._place} cannot be opened: {error}") from error
        self._saver.serde = StoredFormSerializer(decode_json=True)

    def threads(self) -> Sequence[SourceThread]:
        try:
            # The index holds all that is asked for, so that no checkpoint is read.
            rows = list(
                self._checkpoints.aggregate(
                    [
                        {"$sort": {"thread_id": 1, "checkpoint_ns": 1, "checkpoint_id": -1}},
                        {"$group": {"_id": "$thread_id", "checkpoints": {"$sum": 1}}},
                        {"$sort": {"_id": 1}},
                    ],
                    allowDiskUse=True,
                )
            )
        except PyMongoError as error:
            raise StorageConfigError(f"--from {self._place} cannot be read: {error}") from error
        return [SourceThread(row["_id"], row["checkpoints"]) for row in rows if isinstance(row["_id"], str)]

    def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        fields = {"_id": 0, "checkpoint_ns": 1, "checkpoint_id": 1, "parent_checkpoint_id": 1}
        rows = self._checkpoints.find({"thread_id": thread_id}, fields)
        return [
            ListedCheckpoint(
                Key(row["checkpoint_ns"], row["checkpoint_id"]), row.get("parent_checkpoint_id") or None
            )
            for row in rows
        ]

    def read(self, thread_id: str, key: Key) -> Record | None:
        place = {"thread_id": thread_id, "checkpoint_ns": key.namespace, "checkpoint_id": key.checkpoint_id}
        found = self._saver.get_tuple({"configurable": place})
        if found is None:
            return None
        found = found._replace(pending_writes=None)  # without their places, and possibly large
        return record_of(found, key, self._writes_of(place))

    def _writes_of(self, place: dict[str, str]) -> list[Write]:
        rows = self._writes.find(place).sort([("task_id", 1), ("idx", 1)])
        return [
            write_of(
                row["task_id"], row.get("task_path"), row["idx"], row["channel"], (row["type"], row["value"])
            )
            for row in rows
        ]

    def ping(self) -> None:
        self._client.admin.command("ping")

    def close(self) -> None:
        self._client.close()


def _without_options(url: str, names: set[str]) -> tuple[str, dict[str, str]]:
    """The URL for the driver, and the values of these options, which the driver does not know."""
    parts = urlsplit(url.replace("mongodb-langgraph", "mongodb", 1))
    options = parse_qsl(parts.query, keep_blank_values=True)
    rest = [(name, value) for name, value in options if name not in names]
    query = urlencode(cast("Sequence[tuple[str, str]]", rest))
    return urlunsplit(parts._replace(query=query)), {name: value for name, value in options if name in names}
