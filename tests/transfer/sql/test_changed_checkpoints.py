"""Which threads a second pass compares checkpoint by checkpoint: those that LangGraph may have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typing_extensions import TypedDict

from deerflow_mongo import MongoStorage
from deerflow_mongo.transfer.checkpoints import CheckpointCopy, CopyOptions
from deerflow_mongo.transfer.sources import open_source
from deerflow_mongo.transfer.sql.changed_checkpoints import changed_threads
from deerflow_mongo.transfer.sql.databases import open_database

graphs: Any = pytest.importorskip("langgraph.graph")
types: Any = pytest.importorskip("langgraph.types")


class State(TypedDict, total=False):
    answers: list[str]


async def ask_three_times(_: State) -> State:
    return {"answers": [types.interrupt(f"question {number}") for number in range(3)]}


def asking(saver: Any) -> Any:
    graph = graphs.StateGraph(State)
    graph.add_node("ask", ask_three_times)
    graph.add_edge(graphs.START, "ask")
    graph.add_edge("ask", graphs.END)
    return graph.compile(checkpointer=saver)


async def changed(url: str, storage: MongoStorage) -> list[str]:
    database, source = await open_database(url), await open_source(url)
    try:
        found = await changed_threads(database, storage, await source.threads())
        return [thread.thread_id for thread in found]
    finally:
        await source.aclose()
        await database.aclose()


async def copy(url: str, storage: MongoStorage, thread_id: str) -> str:
    source = await open_source(url)
    try:
        result = await CheckpointCopy(source, await storage.checkpointer(), CopyOptions()).copy(thread_id)
    finally:
        await source.aclose()
    return result.result


async def test_thread_whose_pending_answer_was_replaced_is_compared(
    tmp_path: Path, storage: MongoStorage
) -> None:
    aio: Any = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    file = tmp_path / "deerflow.db"
    url = f"sqlite:///{file}"
    async with aio.AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        graph = asking(saver)
        waiting: Any = {"configurable": {"thread_id": "waiting"}}
        for thread_id in ("waiting", "ended"):
            config: Any = {"configurable": {"thread_id": thread_id}}
            await graph.ainvoke({"answers": []}, config)
            await graph.ainvoke(types.Command(resume="one"), config)
        for answer in ("two", "three"):
            await graph.ainvoke(types.Command(resume=answer), {"configurable": {"thread_id": "ended"}})
        for thread_id in ("waiting", "ended"):
            assert await copy(url, storage, thread_id) == "copied"
        # LangGraph replaces the task's answers and its question: the counts stay the same.
        await graph.ainvoke(types.Command(resume="two"), waiting)
    assert await changed(url, storage) == ["waiting"]
