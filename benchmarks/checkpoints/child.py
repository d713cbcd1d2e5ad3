"""The measuring process of one saver: `python -m benchmarks.checkpoints.child CONTENDER`.

Requests and responses are those of `benchmarks.child`: the first request opens a database, `close` closes it,
and those between them are the methods of `_Bench`. An answer is what all savers must return alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint

from ..child import next_request, peak_memory_bytes, reset_peak_memory, respond
from ..children import Request, Response
from . import savers
from .conversation import (
    KIB,
    MESSAGES_PER_TURN,
    STEPS,
    compiled,
    config_of,
    digest,
    message,
    messages_of,
    text,
)

_EXECUTOR_THREADS: Final = 6
"""As many as asyncio's default executor has on two cores."""
_BUSY_S: Final = 0.5
"""The duration of one blocking call of a busy thread."""
_LARGE_MESSAGE_KIB: Final = 128
_ERROR_TEXT: Final = 120
_AGREED = "agreed"


def _named(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_ERROR_TEXT]


class _Timer:
    """Latencies, failures, CPU time and peak memory of a number of calls."""

    def __init__(self) -> None:
        gc.collect()
        reset_peak_memory()
        self._latencies_us: list[int] = []
        self._failures: Counter[str] = Counter()
        self._cpu_begin_s = time.process_time()
        self._begin = time.perf_counter()

    async def call(self, call: Awaitable[Any]) -> Any:
        """What the call returns; None if it fails."""
        begin = time.perf_counter()
        try:
            result = await call
        except Exception as error:  # noqa: BLE001 - failures are a result
            self._failures[_named(error)] += 1
            return None
        self._latencies_us.append(int((time.perf_counter() - begin) * 1e6))
        return result

    @property
    def has_failed(self) -> bool:
        return bool(self._failures)

    def response(self, answers: object = None) -> Response:
        return {
            "latencies_us": self._latencies_us,
            "took_s": time.perf_counter() - self._begin,
            "cpu_s": time.process_time() - self._cpu_begin_s,
            "peak_memory_bytes": peak_memory_bytes(),
            "failures": dict(self._failures),
            "answers": answers,
        }


class _Bench:
    """Handles requests; each public method is a request's `do`."""

    def __init__(self, name: str, url: str, database: str) -> None:
        self._arguments = name, url, database
        self._stack = contextlib.AsyncExitStack()
        self._saver: Any = None
        self._graph: Any = None

    async def open(self) -> None:
        self._saver = await self._stack.enter_async_context(savers.opened(*self._arguments))
        self._graph = compiled(self._saver)

    async def close(self) -> None:
        await self._stack.aclose()

    async def reopen(self, request: Request) -> Response:
        """A new saver, which has read nothing but the small thread that opens its connections."""
        await self.close()
        await self.open()
        await self._digest(request["warm_up"])
        return {}

    async def agree(self, _: Request) -> Response:
        """What the saver returns for a short conversation: its state, history and pages of the history."""
        await self._turns(_AGREED, 2, _Timer())
        return {"answers": await _answers(self._graph, self._saver)}

    async def turns(self, request: Request) -> Response:
        """So many turns on each of these threads, which run concurrently; the answer is their last states."""
        threads: Sequence[str] = request["threads"]
        timer = _Timer()
        await asyncio.gather(*(self._turns(thread, request["turns"], timer) for thread in threads))
        response = timer.response()
        response["answers"] = None if timer.has_failed else [await self._digest(one) for one in threads]
        return response

    async def _turns(self, thread: str, turns: int, timer: _Timer) -> None:
        config = config_of(thread)
        state = await self._graph.aget_state(config)
        position = len(state.values.get("messages", ()))
        for _ in range(turns):
            given = {"messages": [message(thread, position)]}
            if await timer.call(self._graph.ainvoke(given, config)) is None:
                return
            position += MESSAGES_PER_TURN

    async def fill(self, request: Request) -> Response:
        """Writes a thread of this size; the answer is its state."""
        config = config_of(request["thread"])
        for messages in messages_of(request["thread"], request["size"]):
            await self._graph.aupdate_state(config, {"messages": messages}, as_node=STEPS[-1])
        return {"answers": await self._digest(request["thread"])}

    async def read(self, request: Request) -> Response:
        """So many calls of `aget_state` or `aget_tuple` in sequence; the answer is the last state."""
        config, timer = config_of(request["thread"]), _Timer()
        read = self._graph.aget_state if request["method"] == "aget_state" else self._saver.aget_tuple
        found: Any = None
        for _ in range(request["calls"]):
            found = await timer.call(read(config))
        response = timer.response()
        if found is not None and request["method"] == "aget_state":
            response["answers"] = digest(found.values["messages"])
        elif found is not None:
            response["answers"] = digest(found.checkpoint["channel_values"]["messages"])
        return response

    async def read_beside_tools(self, request: Request) -> Response:
        """`aget_tuple` again and again for so long, while other tasks block this number of threads."""
        config, timer = config_of(request["thread"]), _Timer()
        until = time.perf_counter() + request["seconds"]
        async with _blocked_threads(request["busy"]):
            while time.perf_counter() < until:
                await timer.call(self._saver.aget_tuple(config))
            return timer.response()

    async def _digest(self, thread: str) -> str:
        state = await self._graph.aget_state(config_of(thread))
        return digest(state.values["messages"])

    # -- states of any size, with nothing else in the process ------------------------------------------

    async def write_state(self, request: Request) -> Response:
        """Stores a checkpoint of this size; the peak memory is that above the process without the state."""
        await self._turns("small", 1, _Timer())
        before = _memory_bytes()
        messages = _large_messages(request["size"])
        timer = _Timer()
        await timer.call(_put(self._saver, request["thread"], messages))
        return _above(timer.response(None if timer.has_failed else digest(messages)), before)

    async def read_state(self, request: Request) -> Response:
        await self._digest("small")
        before, timer = _memory_bytes(), _Timer()
        found = await timer.call(self._saver.aget_tuple(config_of(request["thread"])))
        response = timer.response()
        if found is not None:
            response["answers"] = digest(found.checkpoint["channel_values"]["messages"])
        return _above(response, before)


async def _answers(graph: Any, saver: Any) -> list[Any]:
    """Without ids of checkpoints, times and what only some savers add."""
    config = config_of(_AGREED)
    state = await graph.aget_state(config)
    history = [one async for one in graph.aget_state_history(config)]
    page = [one async for one in saver.alist(config, before=history[3].config, limit=3)]
    inputs = [one async for one in saver.alist(config, filter={"source": "input"})]
    earlier = await saver.aget_tuple(history[2].config)
    return [
        digest(state.values["messages"]),
        list(state.next),
        [[one.metadata["source"], one.metadata["step"], list(one.next)] for one in history],
        [digest(one.values.get("messages", ())) for one in history],
        [_tuple(one) for one in (*page, *inputs, earlier)],
    ]


def _tuple(found: Any) -> list[Any]:
    values = found.checkpoint["channel_values"]
    writes = sorted(channel for _, channel, _ in found.pending_writes or ())
    has_parent = found.parent_config is not None
    return [found.metadata["step"], digest(values.get("messages", ())), sorted(values), writes, has_parent]


@contextlib.asynccontextmanager
async def _blocked_threads(count: int) -> AsyncGenerator[None]:
    """So many threads of the default executor are in blocking calls, as tools are that wait for an answer."""
    loop, is_over = asyncio.get_running_loop(), asyncio.Event()

    async def block() -> None:
        while not is_over.is_set():
            await loop.run_in_executor(None, time.sleep, _BUSY_S)

    tools = [asyncio.create_task(block()) for _ in range(count)]
    await asyncio.sleep(0.05 if count else 0)
    try:
        yield
    finally:
        is_over.set()
        await asyncio.gather(*tools)  # the threads must be free for the next request


def _large_messages(size: int) -> list[HumanMessage]:
    count = max(1, size // (_LARGE_MESSAGE_KIB * KIB))
    return [HumanMessage(text(_LARGE_MESSAGE_KIB, number), id=str(number)) for number in range(count)]


async def _put(saver: Any, thread: str, messages: Sequence[HumanMessage]) -> None:
    """The first checkpoint of a thread, with this one channel."""
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"messages": messages}
    version = saver.get_next_version(None, None)
    checkpoint["channel_versions"] = {"messages": version}
    configurable = {**config_of(thread)["configurable"], "checkpoint_ns": ""}
    metadata: dict[str, Any] = {"source": "input", "step": -1, "parents": {}}
    await saver.aput({"configurable": configurable}, checkpoint, metadata, {"messages": version})


def _memory_bytes() -> int:
    """The resident memory of this process; 0 where there is no /proc."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1_024
    return 0


def _above(response: Response, before: int) -> Response:
    """The response with the peak memory above what the process had before."""
    peak = response["peak_memory_bytes"]
    return {**response, "peak_memory_bytes": None if peak is None else peak - before}


# -- the process -----------------------------------------------------------------------------------


async def _serve(name: str, request: Request) -> None:
    """Handles the requests from the opening to `close`."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_EXECUTOR_THREADS))
    bench = _Bench(name, request["url"], request["database"])
    await bench.open()
    try:
        respond({})
        while (request := await asyncio.to_thread(next_request))["do"] != "close":
            handle = cast("Callable[[Request], Awaitable[Response]]", getattr(bench, request["do"]))
            respond(await handle(request))
    finally:
        await bench.close()
    respond({})


def _main(name: str) -> None:
    with contextlib.suppress(EOFError):
        while True:
            asyncio.run(_serve(name, next_request()))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent stops it
    _main(*sys.argv[1:])
