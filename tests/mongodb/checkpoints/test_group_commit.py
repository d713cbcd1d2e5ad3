"""Concurrent inserts of checkpoints that share commands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deerflow_mongo import StorageClosedError, StorageUnavailableError
from deerflow_mongo.mongodb.checkpoints.group_commit import GroupCommit

Document = dict[str, Any]


class Server:
    """Records the commands; each is under way until `answer`."""

    def __init__(self) -> None:
        self.commands: list[list[Any]] = []
        self.has_begun = asyncio.Event()
        self._under_way: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def insert_many(self, documents: list[Document]) -> None:
        self.commands.append([document["_id"] for document in documents])
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.put_nowait(answer)
        self.has_begun.set()
        await answer

    async def answer(self, error: Exception | None = None) -> None:
        """End the command that has waited longest, or the next one."""
        under_way = await self._under_way.get()
        if error is None:
            under_way.set_result(None)
        else:
            under_way.set_exception(error)


def insert(commit: GroupCommit, key: str) -> asyncio.Task[None]:
    return asyncio.create_task(commit.insert([{"_id": key}], 100))


async def test_writes_share_a_command_with_the_checkpoint_that_waits_for_the_one_under_way() -> None:
    server = Server()
    commit = GroupCommit(server.insert_many)

    async def checkpoints() -> None:
        """As a graph puts them: each once the one before it is stored."""
        await insert(commit, "checkpoint 1")
        await insert(commit, "checkpoint 2")

    putting = asyncio.create_task(checkpoints())
    await server.has_begun.wait()
    writes = insert(commit, "writes 2")
    for _ in range(2):
        await server.answer()
    await asyncio.gather(putting, writes)
    assert server.commands == [["checkpoint 1"], ["writes 2", "checkpoint 2"]]


async def test_failed_command_fails_its_own_calls_only() -> None:
    server = Server()
    commit = GroupCommit(server.insert_many)
    first = insert(commit, "first")
    await server.has_begun.wait()
    second = insert(commit, "second")
    await server.answer(StorageUnavailableError("no server"))
    await server.answer()
    with pytest.raises(StorageUnavailableError):
        await first
    await second


async def test_close_waits_for_what_was_accepted_and_accepts_nothing_more() -> None:
    server = Server()
    commit = GroupCommit(server.insert_many)
    calls = [insert(commit, key) for key in "ab"]
    await asyncio.sleep(0)
    closing = asyncio.create_task(commit.close())
    await server.answer()
    await closing
    await asyncio.gather(*calls)
    assert server.commands == [["a", "b"]]
    with pytest.raises(StorageClosedError):
        await commit.insert([{"_id": "c"}], 100)
