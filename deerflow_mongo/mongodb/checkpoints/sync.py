"""The synchronous methods of the checkpoint saver, and the saver for programs without an event loop.

Everything here waits for the asynchronous methods of `saver.py`; nothing is read or written here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol, maybe_add_typed_methods

from ..drivers.threads import in_thread
from ..storage import MongoStorage
from .loop_calls import BlockingCallError as BlockingCallError
from .loop_calls import LoopCalls
from .loop_thread import LoopThread

_Saver: TypeAlias = BaseCheckpointSaver[str]


class SyncCalls(BaseCheckpointSaver[str]):
    """The synchronous twins of an asynchronous saver's methods.

    They run the asynchronous method on the saver's event loop, the one in which it was built, and wait for
    it. They work from every other thread; in the loop's own thread they raise `BlockingCallError`, since they
    would wait for ever. Where the loop has ended they raise `StorageClosedError`.
    """

    def __init__(self, *, serde: SerializerProtocol | None = None) -> None:
        """Must be called in the saver's event loop."""
        super().__init__(serde=serde)
        self._calls = LoopCalls(asyncio.get_running_loop())

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        database: str | None = None,
        collection_prefix: str | None = None,
        serde: SerializerProtocol | None = None,
        **options: Any,
    ) -> StandaloneSaver:
        """A saver with a storage of its own, for scripts and everything else that has no event loop.

        ```python
        with MongoCheckpointSaver.from_url("mongodb://localhost/deerflow") as saver:
            graph = builder.compile(checkpointer=saver)
            graph.invoke({"messages": ["hello"]}, {"configurable": {"thread_id": "1"}})
        ```

        Its methods, the synchronous and the asynchronous ones, may be called from any thread and any event
        loop. `url`, which may be `embedded`, and the options are those of the storage. The storage is opened
        here, in a thread of its own; it is closed at the end of the `with` block, by `close()`, when nothing
        refers to the saver any more, and when the interpreter exits. Raises `StorageConfigError` for a wrong
        option, `StorageUnavailableError` where no server answers.
        """
        given = {"database": database, "collection_prefix": collection_prefix}
        config = {
            "url": url,
            **options,
            **{name: value for name, value in given.items() if value is not None},
        }
        storage = MongoStorage.open(config)
        thread = LoopThread(lambda: _opened(storage, serde), "deerflow-mongo-checkpoints")
        return StandaloneSaver(thread, thread.resource)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._calls.wait("get_tuple", lambda: self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        return self._calls.wait_for_each(
            "list", lambda: self.alist(config, filter=filter, before=before, limit=limit)
        )

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._calls.wait("put", lambda: self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._calls.wait("put_writes", lambda: self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        self._calls.wait("delete_thread", lambda: self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._calls.wait("delete_for_runs", lambda: self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._calls.wait("copy_thread", lambda: self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._calls.wait("prune", lambda: self.aprune(thread_ids, strategy=strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._calls.wait(
            "get_delta_channel_history",
            lambda: self.aget_delta_channel_history(config=config, channels=channels),
        )


class StandaloneSaver(SyncCalls):
    """A saver that owns its storage and the event loop of that; see `SyncCalls.from_url`."""

    def __init__(self, thread: LoopThread[_Saver], saver: _Saver) -> None:
        self._thread = thread
        self._calls = thread.calls
        self._saver = saver
        self.serde = saver.serde

    def __setattr__(self, name: str, value: Any) -> None:
        """A serde that is assigned later is the saver's."""
        super().__setattr__(name, value)
        if name == "serde":
            self._saver.serde = value

    def close(self) -> None:
        """Close the storage and end its thread; idempotent. Later calls raise `StorageClosedError`."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await in_thread(self.close)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._calls.run(lambda: self._saver.aget_tuple(config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        rows = self._calls.each(lambda: self._saver.alist(config, filter=filter, before=before, limit=limit))
        async with aclosing(rows):
            async for row in rows:
                yield row

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._calls.run(lambda: self._saver.aput(config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        await self._calls.run(lambda: self._saver.aput_writes(config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        await self._calls.run(lambda: self._saver.adelete_thread(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._calls.run(lambda: self._saver.adelete_for_runs(run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._calls.run(lambda: self._saver.acopy_thread(source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._calls.run(lambda: self._saver.aprune(thread_ids, strategy=strategy))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._calls.run(
            lambda: self._saver.aget_delta_channel_history(config=config, channels=channels)
        )

    def get_next_version(self, current: str | float | None, channel: None) -> Any:
        return self._saver.get_next_version(cast("Any", current), channel)

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> StandaloneSaver:
        """A clone on the same storage, which is closed when nothing refers to either of them any more."""
        saver = self._saver.with_allowlist(extra_allowlist)
        return self if saver is self._saver else StandaloneSaver(self._thread, saver)


@asynccontextmanager
async def _opened(storage: MongoStorage, serde: SerializerProtocol | None) -> AsyncGenerator[_Saver]:
    """The storage's saver; the storage is closed afterwards."""
    try:
        saver: _Saver = await storage.checkpointer()
        if serde is not None:
            saver.serde = maybe_add_typed_methods(serde)
        yield saver
    finally:
        await storage.aclose()
