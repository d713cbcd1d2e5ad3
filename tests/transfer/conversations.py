"""Runs graphs whose checkpoints have all that a copy must carry: forks, interrupts, subgraphs, tasks."""

from __future__ import annotations

import dataclasses
import operator
import uuid
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

graphs: Any = pytest.importorskip("langgraph.graph")


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], graphs.add_messages]
    notes: Annotated[list[Any], operator.add]
    artifact: Any


@dataclasses.dataclass
class Artifact:
    """A class of the application."""

    name: str
    tags: set[str]


async def talk(state: State) -> State:
    number = len(state.get("messages", []))
    return {
        "messages": [AIMessage(f"answer {number}", id=str(uuid.uuid4()))],
        "artifact": Artifact("file", {"a"}),
    }


async def ask(state: State) -> State:
    answer = interrupt("continue?")
    second = interrupt({"really": answer})
    return {"notes": [f"{answer} {second}"]}


async def note(argument: Any) -> State:
    return {"notes": [argument]}


def route(_: State) -> list[Any]:
    return [*(Send("note", {"n": number}) for number in range(2)), "ask"]


def build_graph(saver: BaseCheckpointSaver[Any]) -> Any:
    inner: Any = graphs.StateGraph(State)
    inner.add_node("note", note)
    inner.add_edge(graphs.START, "note")
    outer: Any = graphs.StateGraph(State)
    outer.add_node("talk", talk)
    outer.add_node("ask", ask)
    outer.add_node("inner", inner.compile(checkpointer=True))
    outer.add_node("note", note)
    outer.add_edge(graphs.START, "talk")
    outer.add_conditional_edges("talk", route)
    outer.add_edge("ask", "inner")
    outer.add_edge("inner", graphs.END)
    return outer.compile(checkpointer=saver)


async def converse(saver: BaseCheckpointSaver[Any], thread_id: str, turns: int = 2) -> None:
    """Turns with two interrupts each, a fork of an earlier checkpoint, and a turn that waits to be resumed.

    Each turn has a run id of its own: LangGraph takes a repeated one for a repeated run.
    """
    graph = build_graph(saver)
    config: Any = {"configurable": {"thread_id": thread_id}}
    for number in range(turns):
        config = {**config, "metadata": {"user": "héé", "run_id": str(uuid.uuid4())}}
        await graph.ainvoke({"messages": [HumanMessage(f"question {number}")]}, config)
        await graph.ainvoke(Command(resume="yes"), config)
        await graph.ainvoke(Command(resume="sure"), config)
    history = [state async for state in graph.aget_state_history(config)]
    await graph.aupdate_state(history[-2].config, {"notes": ["a fork"]}, as_node="talk")
    await graph.ainvoke({"messages": [HumanMessage("unanswered")]}, config)
    await graph.ainvoke(Command(resume="half"), config)
