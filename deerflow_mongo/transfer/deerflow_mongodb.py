"""Checkpoints of another database of deerflow-mongo, read with its own saver and without its `setup()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ..contract.errors import StorageConfigError
from ..mongodb.checkpoints import queries
from ..mongodb.checkpoints.saver import MongoCheckpointSaver
from ..mongodb.documents.checkpoints import checkpoint_key
from ..mongodb.drivers.driver import long_running
from ..mongodb.schema import CHECKPOINTS
from ..mongodb.storage import MongoStorage
from .sources import Source, SourceThread, printable
from .stored_values import STORED_FORM, Key, ListedCheckpoint, Record, Write, record_of

PREFIX_OPTION = "collection_prefix"
"""An option of the URL: the prefix of the source's collections."""

_BATCH = 1_000


async def open_url(url: str) -> Source:
    """The database of a `mongodb://` URL. Raises `StorageConfigError`."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in options if name != PREFIX_OPTION])
    prefix = dict(options).get(PREFIX_OPTION, "")
    return DeerflowMongodbSource(
        MongoStorage.open({"url": urlunsplit(parts._replace(query=rest)), "collection_prefix": prefix})
    )


class MongoCheckpoints(Source):
    """The checkpoints of a storage, which may have none."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage
        config = storage.config
        self._data = storage.driver.collection(config.collection_prefix + CHECKPOINTS)
        self._saver = MongoCheckpointSaver(self._data, serde=STORED_FORM)

    @property
    def storage(self) -> MongoStorage:
        return self._storage

    async def threads(self) -> Sequence[SourceThread]:
        with long_running():
            rows = await self._data.aggregate(queries.checkpoints_by_thread(), batch_size=_BATCH)
        return [SourceThread(row["_id"], row["checkpoints"]) for row in rows]

    async def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        rows = await self._data.aggregate(queries.keys_of_checkpoints(thread_id), batch_size=_BATCH)
        return [
            ListedCheckpoint(Key(row["_id"]["ns"], row["_id"]["checkpoint"]), row.get("parent"))
            for row in rows
        ]

    async def read(self, thread_id: str, key: Key) -> Record | None:
        place = {"thread_id": thread_id, "checkpoint_ns": key.namespace, "checkpoint_id": key.checkpoint_id}
        # In this order, a write that comes meanwhile has a value and no place.
        documents = await self._data.aggregate(
            queries.places_of_writes(checkpoint_key(thread_id, *key)), batch_size=_BATCH
        )
        found = await self._saver.aget_tuple({"configurable": place})
        if found is None:
            return None
        return record_of(found, key, _writes(documents, found.pending_writes or []))

    async def ping(self) -> None:
        await self._storage.ping()

    async def aclose(self) -> None:
        await self._storage.aclose()


class DeerflowMongodbSource(MongoCheckpoints):
    """The database that a URL names."""

    async def threads(self) -> Sequence[SourceThread]:
        threads = await super().threads()
        if not threads:
            place = printable(self._storage.config.url)
            raise StorageConfigError(
                f"--from {place}: database {self._storage.config.database} has no checkpoints in "
                f"{self._data.name}; for those of langgraph-checkpoint-mongodb use mongodb-langgraph://"
            )
        return threads


def _writes(documents: Sequence[dict[str, Any]], values: Sequence[tuple[str, str, Any]]) -> list[Write]:
    """The writes that the saver returned, with their tasks' paths and places.

    Those of one task and channel are in the order of their places on both sides.
    """
    places: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for document in documents:
        for write in document["writes"]:
            key = (document["_id"]["task"], write["channel"])
            places.setdefault(key, []).append((write["idx"], document["path"]))
    for of_channel in places.values():
        of_channel.sort(reverse=True)
    writes: list[Write] = []
    for task_id, channel, value in values:
        if of_channel := places.get((task_id, channel)):
            index, path = of_channel.pop()
            writes.append(Write(task_id, path, index, channel, value))
    return writes
