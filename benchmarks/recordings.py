"""Takes the payloads and sessions of the benchmarks from recorded threads.

A recording is replayed once against stores that only record their calls. These calls are the mixed workload;
the events, metadata and texts in them are the payloads of the single operations.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deerflow_mongo
from deerflow_mongo.contract import protocols
from deerflow_mongo.contract.actor import AUTO, resolve_user_id
from deerflow_mongo.contract.observer import StorageRunObserver
from deerflow_mongo.demo.recording import load_thread
from deerflow_mongo.demo.replay import Replayer

from .dataset import Call, Payloads, Script

_SAMPLES = Path(deerflow_mongo.__file__).parent / "demo" / "samples"
PROTOCOLS: Mapping[str, type] = {
    "runs": protocols.RunStore,
    "feedback": protocols.FeedbackStore,
    "threads": protocols.ThreadStore,
    "run_events": protocols.RunEventStore,
}
_USERS = ("user-1", "user-2")
_RUN_CONFIG = {
    "recursion_limit": 100,
    "configurable": {"model_name": "gpt-4.1", "thinking_enabled": True, "is_plan_mode": False},
}


def payloads_of(folder: Path | None) -> Payloads:
    """Payloads from the recordings in `folder`, or from the packaged sample if it is None."""
    files = sorted((folder or _SAMPLES).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"no recorded thread (*.json) in {folder}")
    scripts = tuple(_script(file) for file in files)
    calls = list(itertools.chain.from_iterable(scripts))
    created = [call.arguments for call in calls if call.path == "runs.create"]
    batches = [call.arguments["events"] for call in calls if call.path == "run_events.put_batch"]
    return Payloads(
        f"{len(files)} recorded threads" if folder else "the packaged sample thread",
        tuple(run["metadata"] for run in created),
        tuple(run["kwargs"] for run in created),
        tuple(
            {name: value for name, value in call.arguments.items() if name != "run_id"}
            for call in calls
            if call.path == "runs.update_run_completion" and call.arguments.get("last_ai_message")
        ),
        tuple(
            {name: value for name, value in event.items() if name not in ("thread_id", "run_id")}
            for event in itertools.chain.from_iterable(batches)
        ),
        tuple(_with_reads(script) for script in scripts),
    )


# -- recording calls -------------------------------------------------------------------------------


class _RecordingStore:
    """A store that records every call with the contract's argument names."""

    def __init__(self, name: str, calls: list[Call]) -> None:
        self._name = name
        self._calls = calls

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        signature = inspect.signature(getattr(PROTOCOLS[self._name], method))

        async def record(*args: Any, **kwargs: Any) -> Any:
            arguments = dict(signature.bind(None, *args, **kwargs).arguments)
            del arguments["self"]
            parameter = signature.parameters.get("user_id")
            if parameter is not None and arguments.get("user_id", parameter.default) is AUTO:
                arguments["user_id"] = resolve_user_id(AUTO, method_name=method)
            self._calls.append(Call(f"{self._name}.{method}", arguments))
            return arguments.get("events")

        return record


def _script(file: Path) -> Script:
    """A replay's calls, with the recorded metadata and the settings that hosts pass to `runs.create`."""
    calls: list[Call] = []
    storage: Any = SimpleNamespace(**{name: _RecordingStore(name, calls) for name in PROTOCOLS})
    storage.observer = lambda: StorageRunObserver(storage.runs, storage.threads)
    asyncio.run(Replayer(storage, _USERS).replay([load_thread(file)]))
    recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("metadata") or {}
    ids = ("thread_id", "run_id", "user_id")
    metadata = {name: value for name, value in recorded.items() if name not in ids}

    def with_settings(call: Call) -> Call:
        if call.path != "runs.create":
            return call
        kwargs = {**call.arguments["kwargs"], "config": _RUN_CONFIG}
        return replace(call, arguments={**call.arguments, "metadata": metadata, "kwargs": kwargs})

    return tuple(map(with_settings, calls))


def _with_reads(script: Script) -> Script:
    """The script with the reads of the user's browser."""
    return tuple(itertools.chain.from_iterable((call, *_reads_after(call, script)) for call in script))


def _reads_after(call: Call, script: Script) -> Iterator[Call]:
    thread_id = next(given.arguments["thread_id"] for given in script)
    owner = next(given.arguments["user_id"] for given in script if given.path == "threads.ensure_thread")
    if call.path in ("runs.create", "runs.update_run_completion"):
        yield Call("runs.get", {"run_id": call.arguments["run_id"], "user_id": owner})
    if call.path == "run_events.put_batch":
        yield Call("run_events.list_messages", {"thread_id": thread_id, "limit": 50})
    if call.path == "runs.update_run_completion":
        yield Call("runs.list_by_thread", {"thread_id": thread_id, "limit": 20, "user_id": owner})
        yield Call("runs.token_usage_by_thread", {"thread_id": thread_id, "user_id": owner})
        yield Call("feedback.list_by_thread_grouped", {"thread_id": thread_id, "user_id": owner})
        yield Call("threads.search_threads", {"user_id": owner, "limit": 20})
