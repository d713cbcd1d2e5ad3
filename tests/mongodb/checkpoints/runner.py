"""Calls graphs on a saver, by the asynchronous methods or by the synchronous ones from another thread."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from .answers import Answers, stored


class Runner:
    """One thread of conversation on one saver; every answer is added to `answers`."""

    def __init__(self, saver: Any) -> None:
        self.saver = saver
        self.answers = Answers()
        self.config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}

    async def invoke(self, graph: Any, given: Any, config: Any = None, **options: Any) -> Any:
        try:
            result = await self._invoke(graph, given, config or self.config, options)
        except Exception as error:  # noqa: BLE001 - the error is the answer
            result = error
        self.answers.add("invoke", result)
        return result

    async def stream(self, graph: Any, given: Any, **options: Any) -> list[Any]:
        chunks = await self._stream(graph, given, options)
        self.answers.add("stream", chunks)
        return chunks

    async def state(self, graph: Any, config: Any = None, **options: Any) -> Any:
        state = await self._state(graph, config or self.config, options)
        self.answers.add("state", state)
        return state

    async def history(self, graph: Any, config: Any = None, **options: Any) -> list[Any]:
        states = await self._history(graph, config or self.config, options)
        self.answers.add("history", states)
        return states

    async def update(self, graph: Any, values: Any, config: Any = None, **options: Any) -> Any:
        changed = await self._update(graph, config or self.config, values, options)
        self.answers.add("update", changed)
        return changed

    async def rows(self) -> list[Any]:
        """All that is stored of the thread."""
        thread: Any = {"configurable": {"thread_id": self.config["configurable"]["thread_id"]}}
        return stored(self.answers, [row async for row in self.saver.alist(thread)])

    async def _invoke(self, graph: Any, given: Any, config: Any, options: Any) -> Any:
        return await graph.ainvoke(given, config, **options)

    async def _stream(self, graph: Any, given: Any, options: Any) -> list[Any]:
        return [chunk async for chunk in graph.astream(given, self.config, **options)]

    async def _state(self, graph: Any, config: Any, options: Any) -> Any:
        return await graph.aget_state(config, **options)

    async def _history(self, graph: Any, config: Any, options: Any) -> list[Any]:
        return [state async for state in graph.aget_state_history(config, **options)]

    async def _update(self, graph: Any, config: Any, values: Any, options: Any) -> Any:
        return await graph.aupdate_state(config, values, **options)


class SyncRunner(Runner):
    """The same by the synchronous methods, in a thread that is not the saver's."""

    async def _invoke(self, graph: Any, given: Any, config: Any, options: Any) -> Any:
        return await asyncio.to_thread(graph.invoke, given, config, **options)

    async def _stream(self, graph: Any, given: Any, options: Any) -> list[Any]:
        return await asyncio.to_thread(lambda: list(graph.stream(given, self.config, **options)))

    async def _state(self, graph: Any, config: Any, options: Any) -> Any:
        return await asyncio.to_thread(graph.get_state, config, **options)

    async def _history(self, graph: Any, config: Any, options: Any) -> list[Any]:
        return await asyncio.to_thread(lambda: list(graph.get_state_history(config, **options)))

    async def _update(self, graph: Any, config: Any, values: Any, options: Any) -> Any:
        return await asyncio.to_thread(graph.update_state, config, values, **options)
