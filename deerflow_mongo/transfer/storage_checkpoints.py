"""The checkpoints of a storage: read for an export, and written by an import.

A storage without checkpoints has none to export, and refuses those of a file before anything is written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from ..contract.capabilities import Checkpointing
from ..contract.errors import MissingDependencyError, StorageConfigError
from ..contract.protocols import Storage
from ..mongodb.drivers.driver import long_running
from ..mongodb.schema import CHECKPOINTS, IS_CHECKPOINT
from ..mongodb.storage import MongoStorage
from .sources import Source, SourceThread


class Checkpoints(NamedTuple):
    """Where an export reads checkpoints, and which threads have some."""

    source: Source
    threads: Sequence[SourceThread]


async def checkpoints_of(storage: Storage) -> Checkpoints | None:
    """The checkpoints of a storage; None if it has none.

    Raises `MissingDependencyError` where some are stored and LangGraph's package is not installed.
    """
    source = await _source_of(storage)
    if source is None:
        return None
    threads = await source.threads()
    return Checkpoints(source, threads) if threads else None


async def _source_of(storage: Storage) -> Source | None:
    if not isinstance(storage, Checkpointing):
        return None
    if isinstance(storage, MongoStorage):
        if storage.driver.name == "mongomock" or not await _has_any(storage):
            return None
        _require_langgraph("exporting checkpoints")
        from .deerflow_mongodb import MongoCheckpoints

        return MongoCheckpoints(storage)
    if importlib.util.find_spec("langgraph") is None:
        return None  # what has no saver yet has no checkpoints
    return _SaverSource(await storage.checkpointer())


async def _has_any(storage: MongoStorage) -> bool:
    name = storage.config.collection_prefix + CHECKPOINTS
    with long_running():
        found = await storage.driver.collection(name).find_one(dict(IS_CHECKPOINT))
    return found is not None


def _require_langgraph(what: str) -> None:
    try:
        importlib.import_module("langgraph.checkpoint.base")
    except ImportError as error:
        raise MissingDependencyError(what, "langgraph-checkpoint", "checkpointer") from error


class Savers(NamedTuple):
    """The saver to write with, and one that has nothing of it in its memory."""

    target: Any
    reader: Any


async def savers_of(storage: Storage) -> Savers:
    """Raises `StorageConfigError` or `MissingDependencyError` for a storage that stores no checkpoints."""
    if not isinstance(storage, Checkpointing):
        raise StorageConfigError(
            f"the file has checkpoints, which {type(storage).__name__} does not store: leave them out with "
            "--no-checkpoints"
        )
    _require_langgraph("importing checkpoints")
    target = await storage.checkpointer()
    if not isinstance(storage, MongoStorage):
        return Savers(target, target)
    from ..mongodb.checkpoints.saver import MongoCheckpointSaver

    name = storage.config.collection_prefix + CHECKPOINTS
    return Savers(target, MongoCheckpointSaver(storage.driver.collection(name)))


class _SaverSource(Source):
    """The checkpoints of a saver in memory, by the methods of LangGraph's savers.

    No method returns the places of pending writes, or the paths of their tasks: LangGraph's `InMemorySaver`
    has them in an attribute.
    """

    def __init__(self, saver: Any) -> None:
        from .stored_values import STORED_FORM, with_serializer

        self._saver: Any = with_serializer(saver, STORED_FORM)

    async def threads(self) -> Sequence[SourceThread]:
        counts: dict[str, int] = {}
        async for found in self._saver.alist(None):
            thread_id = found.config["configurable"]["thread_id"]
            counts[thread_id] = counts.get(thread_id, 0) + 1
        return [SourceThread(thread_id, count) for thread_id, count in sorted(counts.items())]

    async def checkpoints(self, thread_id: str) -> Sequence[Any]:
        from .stored_values import ListedCheckpoint, key_of, parent_id

        config = {"configurable": {"thread_id": thread_id}}
        return [
            ListedCheckpoint(key_of(found), parent_id(found)) async for found in self._saver.alist(config)
        ]

    async def read(self, thread_id: str, key: Any) -> Any:
        from .stored_values import Write, record_of

        place = {"thread_id": thread_id, "checkpoint_ns": key.namespace, "checkpoint_id": key.checkpoint_id}
        found = await self._saver.aget_tuple({"configurable": place})
        if found is None:
            return None
        stored = cast("Mapping[Any, Any]", getattr(self._saver, "writes", {})).get((thread_id, *key), {})
        places = [(task_id, index, entry[3]) for (task_id, index), entry in stored.items()]
        values: Sequence[tuple[str, str, Any]] = found.pending_writes or []
        if len(places) != len(values):
            places = [(task_id, index, "") for index, (task_id, _, _) in enumerate(values)]
        writes = [
            Write(task_id, path, index, channel, value)
            for (task_id, index, path), (_, channel, value) in zip(places, values, strict=True)
        ]
        return record_of(found, key, writes)

    async def ping(self) -> None:
        """It is in this process."""

    async def aclose(self) -> None:
        """The storage closes its saver."""
