"""Serialisers other than LangGraph's default, and values that one cannot serialise."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from deerflow_mongo import MongoStorage

from .rows import checkpoint_with, config_of, listed, metadata, put, values_of

CONVERSATION = [{"id": number, "text": f"secret {number} " * 50} for number in range(200)]


@pytest.fixture
def driver() -> str:
    """Only one: values are serialised above the drivers."""
    return "pymongo"


class Reversing:
    """A cipher that is none."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "reversing", plaintext[::-1]

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "reversing"
        return ciphertext[::-1]


class Pickling:
    """A serialiser of another format, with the two old methods only."""

    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)  # noqa: S301 - the test's own data


class Unserialisable:
    pass


def _documents(raw_client: Any, storage: MongoStorage, thread_id: str) -> list[Any]:
    return list(raw_client[storage.config.database]["checkpoint_data"].find({"_id.thread": thread_id}))


async def test_encrypting_serde_leaves_no_plain_text(
    saver: Any, storage: MongoStorage, raw_client: Any, thread_id: str
) -> None:
    saver.serde = EncryptedSerializer(Reversing())
    config = await put(saver, config_of(thread_id), {"a": CONVERSATION, "b": "secret"}, note="secret")
    await saver.aput_writes(config, [("a", "secret")], "task")
    stored = _documents(raw_client, storage, thread_id)
    assert b"secret" not in pickle.dumps(stored)
    assert await values_of(saver, config) == {"a": CONVERSATION, "b": "secret"}
    [row] = await listed(saver, config_of(thread_id), filter={"note": "secret"})
    assert row.pending_writes == [("task", "a", "secret")]


@pytest.mark.parametrize("serde", [Pickling(), JsonPlusSerializer(pickle_fallback=True)])
async def test_any_serde_stores_large_and_small_values(saver: Any, thread_id: str, serde: Any) -> None:
    saver.serde = type(saver)(saver._collection, serde=serde).serde  # wrapped as LangGraph's base does
    values: dict[str, Any] = {"a": CONVERSATION, "b": {"s": {1, 2}}, "c": None, "d": bytearray(b"x" * 20_000)}
    config = await put(saver, config_of(thread_id), values)
    await saver.aput_writes(config, [("a", values["b"])], "task")
    assert await values_of(saver, config) == values


async def test_clone_with_an_allowlist_shares_the_storage(saver: Any, thread_id: str) -> None:
    saver.serde = JsonPlusSerializer(allowed_msgpack_modules=[("somewhere", "Thing")])
    clone = saver.with_allowlist([("elsewhere", "Other")])
    assert clone is not saver
    assert clone.serde is not saver.serde
    config = await put(clone, config_of(thread_id), {"a": CONVERSATION})
    assert await values_of(saver, config) == {"a": CONVERSATION}
    config = await put(saver, config, {"a": CONVERSATION[:-1]}, 2)
    assert await values_of(clone, config) == {"a": CONVERSATION[:-1]}


@pytest.mark.parametrize("place", ["a value", "an element", "the metadata", "a large value"])
async def test_error_of_serde_leaves_nothing_stored(
    saver: Any, storage: MongoStorage, raw_client: Any, thread_id: str, place: str
) -> None:
    values: dict[str, Any] = {
        "a value": {"a": 1, "b": Unserialisable()},
        "an element": {"a": [*CONVERSATION, Unserialisable()]},
        "the metadata": {"a": CONVERSATION},
        "a large value": {"a": [b"x" * 400_000, {"deep": [Unserialisable()]}]},
    }[place]
    fields = {"bad": Unserialisable()} if place == "the metadata" else {}
    checkpoint = checkpoint_with(values)
    with pytest.raises(TypeError):
        await saver.aput(config_of(thread_id), checkpoint, metadata(**fields), checkpoint["channel_versions"])
    assert _documents(raw_client, storage, thread_id) == []
    config = await put(saver, config_of(thread_id), {"a": CONVERSATION})  # the thread is usable
    assert await values_of(saver, config) == {"a": CONVERSATION}
    with pytest.raises(TypeError):
        await saver.aput_writes(config, [("a", 1), ("b", Unserialisable())], "task")
    assert (await saver.aget_tuple(config)).pending_writes == []


async def test_value_that_serde_reads_otherwise_is_read_as_langgraph_reads_it(
    saver: Any, thread_id: str
) -> None:
    """Tuples, sets and texts with lone surrogates come back as LangGraph's serde gives them back."""
    value = {"t": (1, 2), "s": {1}, "u": "\ud800", "f": float("inf"), "i": 2**63, "n": {1: {2.5: None}}}
    expected = saver.serde.loads_typed(saver.serde.dumps_typed(value))
    config = await put(saver, config_of(thread_id), {"a": value, "b": [value] * 500, "c": json.dumps([1])})
    found = await values_of(saver, config)
    assert (found["a"], found["b"]) == (expected, [expected] * 500)
