"""The graph whose turns are measured, and the messages of threads that are written beforehand.

A turn is the user's message of 1 KiB and five steps: the model calls a tool, the tool answers, twice, and the
model answers. Messages of the model have 1 KiB, those of tools 4 KiB. Ids and texts depend only on the thread
and the position, so all savers store the same. Needs langgraph, which only measuring processes import.
"""

from __future__ import annotations

import hashlib
import importlib
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

_add_messages: Any = importlib.import_module("langgraph.graph.message").add_messages
_state_graph: Any = importlib.import_module("langgraph.graph").StateGraph

KIB: Final = 1_024
_WORDS = 4_096
_TEXT_KIB = 256

STEPS: Final = ("plan", "search", "think", "fetch", "answer")
"""The nodes, in their order."""
MESSAGES_PER_TURN: Final = 1 + len(STEPS)
TURN_BYTES: Final = (4 * 1 + 2 * 4) * KIB
"""The texts of one turn."""


class State(TypedDict):
    messages: Annotated[list[AnyMessage], _add_messages]


def _words() -> str:
    """Text that compresses about as well as prose, with words as frequent; the same in every process."""
    chosen = random.Random(0)  # noqa: S311 - no secret
    letters = "eeeettaaooiinnsshhrrddllcumwfgypbvk"
    words = ["".join(chosen.choices(letters, k=chosen.randint(2, 10))) for _ in range(_WORDS)]
    frequencies = [1 / rank for rank in range(1, _WORDS + 1)]
    return " ".join(chosen.choices(words, frequencies, k=_TEXT_KIB * KIB // 5))


_TEXT = _words()


def text(kib: int, number: int) -> str:
    """Equal for equal arguments; different for different numbers."""
    length = kib * KIB
    first = number * 7_919 % (len(_TEXT) - length)
    return f"{number:08d} {_TEXT[first : first + length - 9]}"


def message(thread: str, position: int) -> AnyMessage:
    """The message at this position of the thread."""
    step = position % MESSAGES_PER_TURN
    name = f"{thread} {position}"
    if step == 0:
        return HumanMessage(text(1, position), id=name)
    if step in (2, 4):
        return ToolMessage(text(4, position), id=name, tool_call_id=f"call {position - 1}")
    calls: list[Any] = []
    if step != MESSAGES_PER_TURN - 1:
        calls = [{"name": STEPS[step], "args": {"query": text(1, position)[:60]}, "id": f"call {position}"}]
    return AIMessage(text(1, position), id=name, tool_calls=calls)


def messages_of(thread: str, size: int) -> Iterator[list[AnyMessage]]:
    """The messages of the turns that have this size, in parts of about 1 MiB."""
    turns = size // TURN_BYTES
    at_once = 80
    for first in range(0, turns, at_once):
        last = min(first + at_once, turns)
        yield [
            message(thread, position)
            for position in range(first * MESSAGES_PER_TURN, last * MESSAGES_PER_TURN)
        ]


async def _add_next_message(state: State, config: RunnableConfig) -> State:
    thread = config.get("configurable", {})["thread_id"]
    return {"messages": [message(thread, len(state["messages"]))]}


def compiled(saver: Any) -> Any:
    """The graph with this saver."""
    builder: Any = _state_graph(State)
    builder.add_sequence([(name, _add_next_message) for name in STEPS])
    builder.set_entry_point(STEPS[0])
    return builder.compile(checkpointer=saver)


def config_of(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


def digest(messages: Sequence[Any]) -> str:
    """The number of messages and a checksum of their ids, types and texts."""
    checksum = hashlib.blake2b(digest_size=8)
    for one in messages:
        for part in (one.id, one.type, one.content):
            checksum.update(f"{part}\0".encode())
    return f"{len(messages)} messages, {checksum.hexdigest()}"
