"""A checkpoint that another program has damaged is named; the others of its thread stay readable.

`aget_tuple` raises `CorruptDocumentError`; `alist` leaves the checkpoint out and logs it, as the other lists
of this package do.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.collection import Collection

from deerflow_mongo import CorruptDocumentError, MongoStorage

from .rows import config_of, id_of, listed, put, values_of

SOURCE = random.Random(11)  # noqa: S311 - data, not secrets


@pytest.fixture
def driver() -> str:
    """Only one: what is read is the same with each."""
    return "pymongo"


@pytest.fixture
def raw(raw_client: Any, storage: MongoStorage) -> Collection[dict[str, Any]]:
    return raw_client[storage.config.database]["checkpoint_data"]


@pytest.fixture
async def reader(new_storage: Callable[..., MongoStorage]) -> Any:
    """A saver that has read nothing yet, so that it has no piece in its cache."""
    async with new_storage() as opened:
        yield await opened.checkpointer()


async def _three(saver: Any, thread_id: str) -> list[Any]:
    """Three checkpoints that share nothing, with writes."""
    configs: list[Any] = []
    for number in range(3):
        values = {"large": SOURCE.randbytes(40_000), "small": number}
        config = await put(saver, configs[-1] if configs else config_of(thread_id), values, number + 1)
        await saver.aput_writes(config, [("small", number), ("other", b"x" * 300_000)], "task")
        configs.append(config)
    return configs


def _edit(raw: Collection[dict[str, Any]], found: dict[str, Any], update: dict[str, Any]) -> None:
    """As another program does it that goes round the validators."""
    assert raw.update_many(found, update, bypass_document_validation=True).modified_count


Damage = Callable[[Collection[dict[str, Any]], dict[str, Any]], object]
CHANNEL = {"channels.name": "small"}

DAMAGES: dict[str, tuple[str, Damage]] = {
    "piece is missing": ("large", lambda raw, key: raw.delete_many(_pieces_of(raw, key))),
    "piece has other bytes": (
        "large",
        lambda raw, key: _edit(raw, _pieces_of(raw, key), {"$set": {"data": b"edited"}}),
    ),
    "piece has text": (
        "large",
        lambda raw, key: _edit(raw, _pieces_of(raw, key), {"$set": {"data": "edited"}}),
    ),
    "channel has no data": (
        "small",
        lambda raw, key: _edit(raw, {"_id": key, **CHANNEL}, {"$unset": {"channels.$.data": 1}}),
    ),
    "channel has other bytes": (
        "small",
        lambda raw, key: _edit(raw, {"_id": key, **CHANNEL}, {"$set": {"channels.$.data": b"\xc1"}}),
    ),
    "channels are text": (
        "channels",
        lambda raw, key: _edit(raw, {"_id": key}, {"$set": {"channels": "x"}}),
    ),
    "body is missing": ("body", lambda raw, key: _edit(raw, {"_id": key}, {"$unset": {"body": 1}})),
    "body has other bytes": (
        "body",
        lambda raw, key: _edit(raw, {"_id": key}, {"$set": {"body.data": b"\xc1"}}),
    ),
    "metadata is missing": (
        "metadata",
        lambda raw, key: _edit(raw, {"_id": key}, {"$unset": {"metadata": 1}}),
    ),
    "metadata has other bytes": (
        "metadata",
        lambda raw, key: _edit(raw, {"_id": key}, {"$set": {"metadata.data": b"\xc1"}}),
    ),
    "schema version is of a newer release": (
        "schema_version",
        lambda raw, key: _edit(raw, {"_id": key}, {"$set": {"schema_version": 99}}),
    ),
    "writes are text": (
        "writes",
        lambda raw, key: _edit(raw, {"_id": {**key, "task": "task"}}, {"$set": {"writes": "x"}}),
    ),
    "write has no data": (
        "small",
        lambda raw, key: _edit(
            raw, {"_id": {**key, "task": "task"}, "writes.idx": 0}, {"$unset": {"writes.$.data": 1}}
        ),
    ),
    "write has other bytes": (
        "small",
        lambda raw, key: _edit(
            raw, {"_id": {**key, "task": "task"}, "writes.idx": 0}, {"$set": {"writes.$.data": b"\xc1"}}
        ),
    ),
    "part of a write is missing": (
        "other",
        lambda raw, key: raw.delete_many(
            {"_id.checkpoint": key["checkpoint"], "_id.part": {"$exists": True}}
        ),
    ),
}
"""What is damaged -> the place that the error names, and how."""


def _pieces_of(raw: Collection[dict[str, Any]], key: dict[str, Any]) -> dict[str, Any]:
    document = raw.find_one({"_id": key})
    assert document is not None
    [large] = [channel for channel in document["channels"] if channel["name"] == "large"]
    pieces = [large["pieces"][start : start + 16] for start in range(0, len(large["pieces"]), 16)]
    return {"_id": {"$in": [{"thread": key["thread"], "piece": piece} for piece in pieces]}}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_checkpoint_is_named_and_others_stay_readable(
    saver: Any,
    reader: Any,
    raw: Collection[dict[str, Any]],
    thread_id: str,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configs = await _three(saver, thread_id)
    place, apply = DAMAGES[damage]
    apply(raw, {"thread": thread_id, "ns": "", "checkpoint": id_of(configs[1])})
    with pytest.raises(CorruptDocumentError) as raised:
        await reader.aget_tuple(configs[1])
    text = str(raised.value)
    assert thread_id in text
    assert id_of(configs[1]) in text
    assert place in text
    assert raised.value.collection.endswith("checkpoint_data")
    for number in (0, 2):
        assert (await values_of(reader, configs[number]))["small"] == number
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        rows = await listed(reader, config_of(thread_id))
    assert [id_of(row.config) for row in rows] == [id_of(configs[2]), id_of(configs[0])]
    assert id_of(configs[1]) in caplog.text
    # A new checkpoint does not need the damaged one.
    after = await put(reader, configs[2], {"small": 4}, 5)
    assert await values_of(reader, after) == {"small": 4}


async def test_list_with_a_limit_goes_on_behind_a_damaged_checkpoint(
    saver: Any, reader: Any, raw: Collection[dict[str, Any]], thread_id: str
) -> None:
    configs = await _three(saver, thread_id)
    _edit(
        raw,
        {"_id": {"thread": thread_id, "ns": "", "checkpoint": id_of(configs[2])}},
        {"$unset": {"body": 1}},
    )
    rows = await listed(reader, config_of(thread_id), limit=2)
    assert [id_of(row.config) for row in rows] == [id_of(configs[1]), id_of(configs[0])]
    rows = await listed(reader, config_of(thread_id), limit=1, filter={"source": "loop"})
    assert [id_of(row.config) for row in rows] == [id_of(configs[1])]
