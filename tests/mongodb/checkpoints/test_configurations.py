"""Ids, metadata, filters and writes that a run's configuration may have, as SQLite's saver takes them."""

from __future__ import annotations

import functools
import json
import uuid
from typing import Any

import pytest
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from deerflow_mongo import ArgumentTypeError, ArgumentValueError, StorageError

from .rows import checkpoint_with, config_of, id_of, listed, metadata, put
from .scenarios import answering


@pytest.fixture
def driver() -> str:
    """Only one: arguments are read above the drivers."""
    return "pymongo"


def _nested(levels: int) -> Any:
    return functools.reduce(lambda inner, _: {"a": inner}, range(levels), 1)


METADATA: dict[str, Any] = {
    "NUL in a key": {"a\0b": 1},
    "NUL in a value": {"a": ["x\0y"]},
    "NUL in a text at the top": {"a": "x\0y"},
    "integer beyond 64 bits": {"n": 2**70, "m": -(2**70)},
    "60 levels": {"deep": _nested(60)},
    "200 levels": {"deep": _nested(200)},
    "dots and dollars": {"a.b": {"$x": 1}, "$where": "1", "": "empty"},
    "reserved looking": {"_id": 1, "schema_version": "x", "seq": 3},
    "surrogate": {"a": ["\ud800"]},
    "large": {"text": "x" * 1_000_000},
}


@pytest.mark.parametrize("given", METADATA.values(), ids=METADATA)
async def test_run_with_any_metadata_ends_well(saver: Any, thread_id: str, given: dict[str, Any]) -> None:
    config: Any = {"configurable": {"thread_id": thread_id}, "metadata": given}
    assert await answering(saver, 1).ainvoke({"items": [0]}, config) == {"items": [0, 1]}
    found = await put(saver, config_of(thread_id), {}, **given)
    stored = (await saver.aget_tuple(found)).metadata
    without_nul = {key: v.replace("\0", "") if isinstance(v, str) else v for key, v in given.items()}
    expected: Any = json.loads(json.dumps(without_nul).encode().replace(rb"\ud800", b"?"))
    assert {key: stored[key] for key in given} == expected


@pytest.mark.parametrize("is_integer", [False, True], ids=["uuid", "integer"])
async def test_thread_ids_are_taken_by_their_text(saver: Any, is_integer: bool) -> None:
    unique = uuid.uuid4()
    thread = unique.int if is_integer else unique
    config = await put(saver, config_of(thread), {"a": 1}, run_id="by text")
    assert id_of(config) == id_of((await saver.aget_tuple(config_of(str(thread)))).config)
    await saver.aput_writes(config_of(thread, checkpoint_id=id_of(config)), [("a", 2)], "task")
    [row] = await listed(saver, config_of(thread))
    assert row.config["configurable"]["thread_id"] == str(thread)
    assert row.pending_writes == [("task", "a", 2)]
    await saver.adelete_thread(thread)
    assert await listed(saver, config_of(str(thread))) == []


async def test_no_writes_are_stored_without_error(saver: Any, thread_id: str) -> None:
    config = config_of(thread_id, checkpoint_id="unknown")
    await saver.aput_writes(config, [], "task")
    assert await listed(saver, config_of(thread_id)) == []
    config = await put(saver, config_of(thread_id), {})
    await saver.aput_writes(config, [], "task", "path")
    assert (await saver.aget_tuple(config)).pending_writes == []


async def test_writes_may_come_before_their_checkpoint(saver: Any, thread_id: str) -> None:
    checkpoint = checkpoint_with({"a": 1})
    config = config_of(thread_id, checkpoint_id=checkpoint["id"])
    await saver.aput_writes(config, [("a", 1)], "task")
    assert await saver.aget_tuple(config_of(thread_id)) is None
    await saver.aput(config_of(thread_id), checkpoint, metadata(), {})
    assert (await saver.aget_tuple(config_of(thread_id))).pending_writes == [("task", "a", 1)]


async def test_special_writes_are_replaced_and_others_stay(saver: Any, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {})
    await saver.aput_writes(config, [("a", 1), ("b", 2)], "task")
    await saver.aput_writes(config, [("a", "late"), ("b", "late"), ("c", 3)], "task")
    for value in (1, 2):
        await saver.aput_writes(config, [(INTERRUPT, value), (RESUME, [value])], "task")
    await saver.aput_writes(config, [("a", "late"), (RESUME, "not alone"), (ERROR, "new")], "task")
    writes = {channel: value for _, channel, value in (await saver.aget_tuple(config)).pending_writes}
    assert writes == {"a": 1, "b": 2, "c": 3, INTERRUPT: 2, RESUME: [2], ERROR: "new"}


async def test_writes_are_sorted_by_task_path_task_and_place(saver: Any, thread_id: str) -> None:
    config = await put(saver, config_of(thread_id), {})
    for task, path in (("t1", "~__pull, b"), ("t3", ""), ("t2", "~__pull, a"), ("t0", "~__pull, b")):
        await saver.aput_writes(config, [(f"c{place}", path) for place in range(12)], task, path)
    found = (await saver.aget_tuple(config)).pending_writes
    assert [task for task, _, _ in found[::12]] == ["t3", "t2", "t0", "t1"]
    assert [channel for _, channel, _ in found[:12]] == [f"c{place}" for place in range(12)]


async def test_history_pages_back_by_checkpoint_id(saver: Any, thread_id: str) -> None:
    """`alist` with a checkpoint_id gives that checkpoint, which clients that page back ask for."""
    config, ids = config_of(thread_id), list[str]()
    for number in range(6):
        config = await put(saver, config, {"n": number})
        ids.insert(0, id_of(config))
    for options in ({"limit": 3}, {}, {"limit": 1}):
        rows = await listed(saver, config_of(thread_id, checkpoint_id=ids[3]), **options)
        assert [id_of(row.config) for row in rows] == [ids[3]]
    without_ns: Any = {"configurable": {"thread_id": thread_id, "checkpoint_id": ids[2]}}
    assert [id_of(row.config) for row in await listed(saver, without_ns)] == [ids[2]]
    before = config_of(thread_id, checkpoint_id=ids[3])
    rows = await listed(saver, config_of(thread_id), before=before, limit=2)
    assert [id_of(row.config) for row in rows] == ids[4:6]
    both = await listed(saver, before, before=before)
    assert both == []


async def test_list_covers_all_namespaces_and_all_threads(saver: Any, thread_id: str) -> None:
    other = thread_id + "-other"
    wanted: list[str] = []
    for thread, ns in ((thread_id, ""), (thread_id, "a|b:1"), (other, ""), (thread_id, "a")):
        config = await put(saver, config_of(thread, ns=ns), {}, test=thread_id)
        wanted.insert(0, id_of(config))
    everywhere = await listed(saver, None, filter={"test": thread_id})
    assert [id_of(row.config) for row in everywhere] == wanted
    anywhere: Any = {"configurable": {"thread_id": thread_id}}
    rows = await listed(saver, anywhere)
    assert [row.config["configurable"]["checkpoint_ns"] for row in rows] == ["a", "a|b:1", ""]
    assert len(await listed(saver, config_of(thread_id))) == 1


async def test_filters_compare_any_key_of_the_metadata(saver: Any, thread_id: str) -> None:
    given: list[dict[str, Any]] = [
        {"a.b": 1, "user": "u"},
        {"a": {"b": 1}},
        {"a.b": "1"},
        {"a.b": None},
        {"a": [1, {"c": 2}]},
    ]
    for step, fields in enumerate(given):
        await put(saver, config_of(thread_id), {}, step=step, **fields)

    async def matching(wanted: dict[str, Any]) -> list[int]:
        rows = await listed(saver, config_of(thread_id), filter=wanted)
        return sorted(row.metadata["step"] for row in rows)

    assert await matching({"a.b": 1}) == [0]
    assert await matching({"a.b": 1, "user": "u"}) == [0]
    assert await matching({"a.b": 1, "user": "v"}) == []
    assert await matching({"a": {"b": 1}}) == [1]
    assert await matching({"a.b": "1"}) == [2]
    assert await matching({"a": [1, {"c": 2}]}) == [4]
    assert await matching({"$where": "1"}) == []
    assert len(await matching({"source": "loop"})) == 5


async def test_update_of_an_earlier_checkpoint_forks(saver: Any, thread_id: str) -> None:
    graph = answering(saver, "answer")
    config: Any = {"configurable": {"thread_id": thread_id}}
    await graph.ainvoke({"items": ["question"]}, config)
    [past] = [state async for state in graph.aget_state_history(config) if state.next == ("answer",)]
    for text in ("corrected", "corrected again"):
        forked = await graph.aupdate_state(past.config, {"items": [text]}, as_node="answer")
        assert (await graph.aget_state(forked)).values == {"items": ["question", text]}


WRONG: list[tuple[Any, type[StorageError]]] = [
    ({"configurable": {}}, ArgumentValueError),
    ({"configurable": {"thread_id": "\ud800"}}, ArgumentValueError),
    ({"configurable": {"thread_id": "t", "checkpoint_ns": 1}}, ArgumentTypeError),
    ({"configurable": {"thread_id": "t", "checkpoint_id": {"$gt": ""}}}, ArgumentTypeError),
]


@pytest.mark.parametrize(("config", "error"), WRONG)
async def test_wrong_configurations_are_named(saver: Any, config: Any, error: type[StorageError]) -> None:
    with pytest.raises(error, match=r"thread_id|checkpoint_ns|checkpoint_id"):
        await saver.aget_tuple(config)
    with pytest.raises(error):
        await saver.aput(config, checkpoint_with({}), metadata(), {})


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 900, "ключ", "{}", "a.b$c"])
async def test_thread_ids_and_namespaces_may_be_any_text(saver: Any, thread_id: str, text: str) -> None:
    config = await put(saver, config_of(thread_id + text, ns=text), {"a": 1})
    await saver.aput_writes(config, [(text, 1)], text, text)
    found = await saver.aget_tuple(config_of(thread_id + text, ns=text))
    assert (found.config, found.pending_writes) == (config, [(text, text, 1)])
