"""Graphs and what is done with them. Each scenario runs on any saver; equal savers give equal answers."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Annotated, Any, TypedDict

import pytest

from .runner import Runner

graphs: Any = pytest.importorskip("langgraph.graph")
types: Any = pytest.importorskip("langgraph.types")
channels: Any = pytest.importorskip("langgraph.channels")
messages: Any = pytest.importorskip("langchain_core.messages")

Scenario = Callable[[Runner], Coroutine[Any, Any, None]]
START, END = graphs.START, graphs.END


class Items(TypedDict):
    items: Annotated[list[Any], operator.add]


class Chat(TypedDict):
    messages: Annotated[list[Any], graphs.add_messages]


def _joined(old: list[Any], writes: Any) -> list[Any]:
    return [*old, *(item for write in writes for item in write)]


class Delta(TypedDict):
    items: Annotated[list[Any], channels.DeltaChannel(_joined, snapshot_frequency=3)]
    plain: str


def _add(name: str) -> Callable[[Any], dict[str, list[str]]]:
    return lambda state: {"items": [f"{name} after {len(state['items'])}"]}


def _ask(name: str) -> Callable[[Any], dict[str, list[str]]]:
    return lambda state: {"items": [f"{name} got {types.interrupt(name)}"]}


def _graph(
    saver: Any, nodes: dict[str, Any], *edges: tuple[str, str], state: Any = Items, **options: Any
) -> Any:
    builder = graphs.StateGraph(state)
    for name, node in nodes.items():
        builder.add_node(name, node)
    for before, after in edges:
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver, **options)


def _chain(saver: Any, nodes: dict[str, Any], state: Any = Items, **options: Any) -> Any:
    """The nodes one after the other."""
    names = [START, *nodes, END]
    return _graph(saver, nodes, *pairwise(names), state=state, **options)


def answering(saver: Any, item: Any) -> Any:
    """One node, `answer`, that adds an item."""

    def answer(state: Items) -> Any:
        return {"items": [item]}

    return _chain(saver, {"answer": answer})


def _parallel(saver: Any, nodes: dict[str, Any]) -> Any:
    """The nodes at once, then `join`."""
    edges = [edge for name in nodes for edge in ((START, name), (name, "join"))]
    return _graph(saver, {**nodes, "join": _add("join")}, *edges, ("join", END))


async def chain(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "b": _add("b"), "c": _add("c")})
    await run.invoke(graph, {"items": [1, 2.5, None, b"bytes", "\0", 2**60, {"a.b": {"$x": []}}]})
    await run.invoke(graph, {"items": ["again"]})
    await run.stream(graph, {"items": ["streamed"]}, stream_mode=["values", "updates", "checkpoints"])
    await run.history(graph)


async def parallel_branches(run: Runner) -> None:
    graph = _parallel(run.saver, {"a": _add("a"), "b": _add("b"), "c": _add("c")})
    await run.invoke(graph, {"items": ["start"]})
    await run.history(graph)


async def interrupts(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "ask": _ask("ask"), "b": _add("b")})
    await run.invoke(graph, {"items": []})
    await run.state(graph)
    await run.invoke(graph, types.Command(resume="yes"))
    await run.invoke(graph, {"items": ["second"]})
    await run.invoke(graph, types.Command(resume={"a": "dict"}, update={"items": ["beside"]}))
    await run.history(graph)


async def two_interrupts_in_one_node(run: Runner) -> None:
    def node(state: Items) -> Any:
        return {"items": [types.interrupt("first"), types.interrupt("second")]}

    graph = _chain(run.saver, {"node": node})
    await run.invoke(graph, {"items": []})
    await run.invoke(graph, types.Command(resume=1))
    await run.state(graph)
    await run.invoke(graph, types.Command(resume=None))
    await run.invoke(graph, types.Command(resume=2))


async def static_interrupts(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "b": _add("b")}, interrupt_before=["b"], interrupt_after=["a"])
    await run.invoke(graph, {"items": []})
    await run.invoke(graph, None)
    await run.state(graph)
    await run.update(graph, {"items": ["edited"]})
    await run.invoke(graph, None)


async def parallel_interrupts(run: Runner) -> None:
    graph = _parallel(run.saver, {"a": _ask("a"), "b": _ask("b"), "c": _add("c")})
    await run.invoke(graph, {"items": []})
    state = await run.state(graph)
    first, second = sorted(state.interrupts, key=lambda asked: asked.value)
    await run.invoke(graph, types.Command(resume={first.id: "one"}))
    await run.state(graph)
    await run.invoke(graph, types.Command(resume={second.id: "two"}))
    await run.invoke(graph, {"items": ["again"]})
    state = await run.state(graph)
    await run.invoke(graph, types.Command(resume={asked.id: asked.value for asked in state.interrupts}))
    await run.history(graph)


async def subgraph(run: Runner) -> None:
    inner = _chain(None, {"x": _add("x"), "ask": _ask("ask"), "y": _add("y")})
    graph = _chain(run.saver, {"a": _add("a"), "inner": inner, "b": _add("b")})
    await run.invoke(graph, {"items": []})
    state = await run.state(graph, subgraphs=True)
    inside = state.tasks[0].state.config
    await run.update(graph, {"items": ["inside"]}, inside)
    await run.invoke(graph, types.Command(resume="go"))
    await run.history(graph)
    await run.stream(graph, {"items": ["again"]}, subgraphs=True)


async def subgraph_with_its_own_memory(run: Runner) -> None:
    inner = _chain(True, {"x": _add("x"), "y": _add("y")})
    graph = _chain(run.saver, {"a": _add("a"), "inner": inner})
    await run.invoke(graph, {"items": ["one"]})
    await run.invoke(graph, {"items": ["two"]})
    await run.state(graph, subgraphs=True)
    await run.history(graph)


async def fan_out(run: Runner) -> None:
    def spread(state: Items) -> list[Any]:
        return [types.Send("work", {"items": [number]}) for number in range(5)]

    def work(state: Items) -> Any:
        return {"items": [state["items"][0] ** 2]}

    builder = graphs.StateGraph(Items)
    builder.add_node("plan", _add("plan"))
    builder.add_node("work", work)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", spread, ["work"])
    graph = builder.compile(checkpointer=run.saver)
    await run.invoke(graph, {"items": []})
    await run.invoke(graph, {"items": ["again"]})
    await run.history(graph)


async def commands(run: Runner) -> None:
    def route(state: Items) -> Any:
        return types.Command(goto=[types.Send("a", state), "b"], update={"items": ["routed"]})

    graph = _graph(
        run.saver, {"route": route, "a": _add("a"), "b": _add("b")}, (START, "route"), ("a", END), ("b", END)
    )
    await run.invoke(graph, {"items": []})
    await run.invoke(graph, types.Command(goto="b", update={"items": ["given"]}))
    await run.history(graph)


async def errors(run: Runner) -> None:
    broken = [True]

    def fragile(state: Items) -> Any:
        if broken:
            raise ValueError("not now")
        return {"items": ["worked"]}

    graph = _parallel(run.saver, {"a": _add("a"), "fragile": fragile})
    await run.invoke(graph, {"items": []})
    await run.state(graph)
    await run.invoke(graph, None)
    broken.clear()
    await run.invoke(graph, None)
    await run.history(graph)


async def replay(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "b": _add("b"), "c": _add("c")})
    await run.invoke(graph, {"items": ["first"]})
    await run.invoke(graph, {"items": ["second"]})
    past = (await run.history(graph))[6]
    await run.state(graph, past.config)
    await run.invoke(graph, None, past.config)
    await run.invoke(graph, {"items": ["instead"]}, past.config)
    await run.state(graph)
    await run.history(graph)


async def fork(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "b": _add("b")})
    await run.invoke(graph, {"items": ["question"]})
    past = next(state for state in await run.history(graph) if state.next == ("b",))
    once = await run.update(graph, {"items": ["correction"]}, past.config, as_node="b")
    twice = await run.update(graph, {"items": ["another"]}, past.config, as_node="b")
    for forked in (once, twice):
        await run.state(graph, forked)
    before_b = await run.update(graph, {"items": ["before b"]}, past.config)
    await run.invoke(graph, None, before_b)
    await run.update(graph, None, as_node=END)
    await run.update(graph, None, past.config, as_node="__copy__")
    await run.history(graph)


async def history_pages(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "b": _add("b")})
    for number in range(3):
        config = {**run.config, "metadata": {"user": f"u{number % 2}", "a.b": {"c": number}}}
        await run.invoke(graph, {"items": [number]}, config)
    whole = await run.history(graph)
    await run.history(graph, limit=4)
    for place in (0, 4, len(whole) - 1):
        await run.history(graph, before=whole[place].config, limit=3)
    for wanted in ({"user": "u0"}, {"source": "input"}, {"step": 2, "source": "loop"}, {"absent": 1}):
        await run.history(graph, filter=wanted)
    await run.history(graph, filter={"source": "loop"}, before=whole[2].config, limit=2)
    await run.history(graph, whole[5].config)


async def delta_channel(run: Runner) -> None:
    graph = _chain(run.saver, {"a": _add("a"), "ask": _ask("ask"), "b": _add("b")}, state=Delta)
    for turn in range(4):
        await run.invoke(graph, {"items": [f"turn {turn}", "x" * 5000], "plain": str(turn)})
        await run.state(graph)
        await run.invoke(graph, types.Command(resume=turn))
    states = await run.history(graph)
    for place in (1, len(states) // 2):
        await run.invoke(graph, None, states[place].config)
        await run.update(graph, {"items": ["forked"]}, states[place].config, as_node="b")
        await run.state(graph)
    for state in [*states[::4], await run.state(graph)]:
        found = await run.saver.aget_delta_channel_history(config=state.config, channels=["items", "plain"])
        run.answers.add("delta", found)


def _text(source: random.Random, size: int) -> str:
    return source.randbytes(size // 2).hex()


async def large_conversation(run: Runner) -> None:
    """Messages are appended, edited in place and removed; together they are larger than one document."""
    source = random.Random(3)  # noqa: S311 - equal texts on each saver
    large = 300_000

    def answer(state: Chat) -> Any:
        number = len(state["messages"])
        return {"messages": [messages.AIMessage(f"{number} {_text(source, large)}", id=f"answer-{number}")]}

    graph = _chain(run.saver, {"answer": answer}, state=Chat)
    for turn in range(4):
        asked = [messages.HumanMessage(_text(source, 3000), id=f"q{turn}-{place}") for place in range(10)]
        await run.invoke(graph, {"messages": asked})
    edited = messages.HumanMessage("edited " + _text(source, 20_000), id="q1-3")
    await run.update(graph, {"messages": [edited]})
    await run.update(graph, {"messages": [messages.RemoveMessage(id="q0-5")]})
    await run.invoke(graph, {"messages": [messages.HumanMessage("after", id="last")]})
    await run.history(graph)


async def messages_changed_by_a_node(run: Runner) -> None:
    """A node changes earlier messages themselves, which no reducer sees, beside a new one."""
    source = random.Random(4)  # noqa: S311 - equal texts on each saver
    call = {"name": "search", "args": {"query": "q"}, "id": "c", "type": "tool_call"}

    def edit(state: Chat) -> Any:
        number = len(state["messages"])
        state["messages"][0].content += f" changed {number}"
        state["messages"][3].tool_calls[0]["args"]["query"] += "!"
        state["messages"][5].response_metadata["seen"] = [number]
        return {"messages": [messages.AIMessage(_text(source, 2_000), id=f"answer-{number}")]}

    graph = _chain(run.saver, {"edit": edit, "again": edit}, state=Chat)
    first = [
        messages.AIMessage(_text(source, 3_000), id=f"first-{place}", tool_calls=[call]) for place in range(8)
    ]
    # Each checkpoint is stored before the next step changes what it refers to.
    await run.invoke(graph, {"messages": first}, durability="sync")
    await run.invoke(graph, {"messages": [messages.HumanMessage("more", id="more")]}, durability="sync")
    await run.invoke(graph, {"messages": [messages.HumanMessage("last", id="last")]}, durability="sync")
    await run.history(graph)


def _with_durability(durability: str) -> Scenario:
    async def scenario(run: Runner) -> None:
        graph = _chain(run.saver, {"a": _add("a"), "ask": _ask("ask"), "b": _add("b")})
        await run.invoke(graph, {"items": ["one"]}, durability=durability)
        await run.state(graph)
        await run.invoke(graph, types.Command(resume="two"), durability=durability)
        await run.stream(graph, {"items": ["three"]}, durability=durability)
        await run.history(graph)

    scenario.__name__ = f"durability_{durability}"
    return scenario


SCENARIOS: list[Scenario] = [
    chain,
    parallel_branches,
    interrupts,
    two_interrupts_in_one_node,
    static_interrupts,
    parallel_interrupts,
    subgraph,
    subgraph_with_its_own_memory,
    fan_out,
    commands,
    errors,
    replay,
    fork,
    history_pages,
    delta_channel,
    large_conversation,
    messages_changed_by_a_node,
    *(_with_durability(durability) for durability in ("sync", "async", "exit")),
]
