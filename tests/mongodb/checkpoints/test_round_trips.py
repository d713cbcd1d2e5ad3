"""How many commands a call sends, counted by command monitoring."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage

from .rows import checkpoint_with, config_of, listed, metadata, put

SOURCE = random.Random(7)  # noqa: S311 - data, not secrets
CLIENTS: dict[str, Any] = {"pymongo": AsyncMongoClient, "motor": AsyncIOMotorClient}


class CommandLog(CommandListener):
    """The commands that a client sent: their names, and the number of documents of an insert."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        documents = event.command.get("documents")
        self.sent.append(event.command_name if documents is None else f"insert {len(documents)}")

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


@pytest.fixture
def log() -> CommandLog:
    return CommandLog()


@pytest.fixture
async def storage(
    new_storage: Callable[..., MongoStorage], mongodb_url: str, driver: str, log: CommandLog
) -> AsyncIterator[MongoStorage]:
    """On a client that is listened to."""
    client = CLIENTS[driver](mongodb_url, event_listeners=[log])
    async with new_storage(client=client, url="", driver=driver) as opened:
        yield opened
    closing = client.close()
    if closing is not None:
        await closing


async def _sent(log: CommandLog, call: Awaitable[Any]) -> list[str]:
    log.sent.clear()
    await call
    return list(log.sent)


def _messages(count: int, size: int = 6_000) -> list[dict[str, Any]]:
    return [{"id": number, "text": SOURCE.randbytes(size // 2).hex()} for number in range(count)]


async def test_first_put_of_a_thread_reads_its_last_number(
    saver: Any, log: CommandLog, thread_id: str
) -> None:
    assert await _sent(log, put(saver, config_of(thread_id), {"a": 1})) == ["find", "insert 1"]


async def test_put_of_a_small_state_is_one_insert(saver: Any, log: CommandLog, thread_id: str) -> None:
    parent = await put(saver, config_of(thread_id), {"a": 1})
    assert await _sent(log, put(saver, parent, {"a": 2, "b": "x" * 2000}, 2)) == ["insert 1"]


async def test_put_after_a_get_is_one_insert(
    new_storage: Callable[..., MongoStorage], saver: Any, log: CommandLog, thread_id: str
) -> None:
    """As the first step of a run after DeerFlow's worker has started: it reads, then it writes."""
    async with new_storage() as other:
        await put(await other.checkpointer(), config_of(thread_id), {"a": _messages(3)})
    found = await saver.aget_tuple(config_of(thread_id))
    values = found.checkpoint["channel_values"]
    sent = await _sent(log, put(saver, found.config, {"a": values["a"], "b": 1}, 2))
    assert sent in (["insert 1"], ["find", "insert 1"])


async def test_appending_a_message_inserts_a_document_or_two(
    saver: Any, log: CommandLog, thread_id: str
) -> None:
    messages = _messages(100)
    config = await put(saver, config_of(thread_id), {"messages": messages})
    inserts: list[str] = []
    for version in range(2, 22):
        messages = [*messages, *_messages(1, 2_000)]
        checkpoint = checkpoint_with({"messages": messages, "title": "t"}, version)
        [command] = await _sent(log, saver.aput(config, checkpoint, metadata(), {"messages": version}))
        inserts.append(command)
        config = config_of(thread_id, checkpoint_id=checkpoint["id"])
    documents = sum(int(command.split()[1]) for command in inserts)
    assert documents <= 20 * 2  # mostly the checkpoint alone, whose open end has the new message


async def test_put_of_unchanged_channels_serialises_none_of_them(
    saver: Any, log: CommandLog, thread_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = _messages(50)
    config = await put(saver, config_of(thread_id), {"messages": messages})
    dumped: list[int] = []
    original = JsonPlusSerializer.dumps_typed

    def counting(serde: JsonPlusSerializer, value: Any) -> tuple[str, bytes]:
        kind, data = original(serde, value)
        dumped.append(len(data))
        return kind, data

    monkeypatch.setattr(JsonPlusSerializer, "dumps_typed", counting)
    checkpoint = checkpoint_with({"messages": messages, "b": 1}, 1)
    checkpoint["channel_versions"]["b"] = "2"
    assert await _sent(log, saver.aput(config, checkpoint, metadata(), {"b": "2"})) == ["insert 1"]
    assert sum(dumped) < 5_000


async def test_writes_of_a_task_are_one_insert(saver: Any, log: CommandLog, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {"a": 1})
    writes = [("a", 1), ("b", "x" * 100_000)]
    assert await _sent(log, saver.aput_writes(config, writes, "task", "path")) == ["insert 1"]
    assert await _sent(log, saver.aput_writes(config, [], "task")) == []


async def test_writes_of_concurrent_tasks_share_commands(saver: Any, log: CommandLog, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {"a": 1})

    async def together() -> None:
        await asyncio.gather(*(saver.aput_writes(config, [("a", n)], f"task {n}") for n in range(50)))

    sent = await _sent(log, together())
    assert len(sent) <= 4
    assert len((await saver.aget_tuple(config)).pending_writes) == 50


async def test_get_is_one_find(saver: Any, log: CommandLog, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {"a": 1})
    assert await _sent(log, saver.aget_tuple(config)) == ["find"]
    assert await _sent(log, saver.aget_tuple(config_of(thread_id))) == ["find"]
    await saver.aput_writes(config, [("a", 1)], "task")
    assert await _sent(log, saver.aget_tuple(config)) == ["find"]
    assert await _sent(log, saver.aget_tuple(config_of(thread_id))) == ["find"]
    assert await _sent(log, saver.aget_tuple(config_of(thread_id + "x"))) == ["find"]


async def test_get_reads_all_pieces_by_one_more_find_and_once(
    new_storage: Callable[..., MongoStorage], saver: Any, log: CommandLog, thread_id: str
) -> None:
    async with new_storage() as other:
        writer: Any = await other.checkpointer()
        values = {"a": _messages(60), "b": _messages(30), "c": SOURCE.randbytes(100_000)}
        await put(writer, config_of(thread_id), values)
    assert await _sent(log, saver.aget_tuple(config_of(thread_id))) == ["find", "find"]
    assert await _sent(log, saver.aget_tuple(config_of(thread_id))) == ["find"]


async def test_page_of_a_list_reads_checkpoints_writes_and_pieces_once(
    new_storage: Callable[..., MongoStorage], saver: Any, log: CommandLog, thread_id: str
) -> None:
    async with new_storage() as other:
        writer: Any = await other.checkpointer()
        config, messages = config_of(thread_id), list[Any]()
        for version in range(20):
            messages = [*messages, *_messages(5)]
            config = await put(writer, config, {"messages": messages}, version + 1)
            await writer.aput_writes(config, [("messages", version)], "task")
    sent = await _sent(log, listed(saver, config_of(thread_id), limit=10))
    # One find for the page, and one for the pieces of the newest, which has nearly all of the others'.
    assert sent.count("find") <= 12
    assert set(sent) <= {"find"}
    assert (await _sent(log, listed(saver, config_of(thread_id), limit=10))) == ["find"]
    one = {"configurable": {"thread_id": thread_id, "checkpoint_id": config["configurable"]["checkpoint_id"]}}
    assert len(await _sent(log, listed(saver, one))) <= 2
