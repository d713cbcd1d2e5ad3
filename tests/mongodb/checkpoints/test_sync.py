"""The synchronous methods work from other threads than the loop's; `from_url` needs no event loop at all."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from deerflow_mongo import (
    MongoStorage,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from deerflow_mongo.mongodb.checkpoints.loop_calls import BlockingCallError
from deerflow_mongo.mongodb.checkpoints.sync import StandaloneSaver

from ...child_processes import run_child
from .answers import difference
from .rows import checkpoint_with, config_of, listed, metadata, put, values_of
from .runner import Runner, SyncRunner
from .scenarios import Scenario, chain, interrupts

ROOT = Path(__file__).parents[3]
THREAD_NAME = "deerflow-mongo-checkpoints"


@pytest.fixture
def open_saver(mongodb_url: str, database_name: str) -> Callable[..., StandaloneSaver]:
    saver_class = importlib.import_module("deerflow_mongo.mongodb.checkpoints.saver").MongoCheckpointSaver

    def build(**options: Any) -> StandaloneSaver:
        return saver_class.from_url(mongodb_url, database=database_name, **options)

    return build


@pytest.fixture
def standalone(open_saver: Callable[..., StandaloneSaver]) -> Iterator[StandaloneSaver]:
    with open_saver() as opened:
        yield opened


def _calls(saver: Any, thread_id: str) -> dict[str, Callable[[], Any]]:
    """Every synchronous method, with arguments that are right."""
    config, checkpoint = config_of(thread_id), checkpoint_with({"a": 1})
    versions = checkpoint["channel_versions"]
    return {
        "put": lambda: saver.put(config, checkpoint, metadata(run_id="r"), versions),
        "put_writes": lambda: saver.put_writes(
            config_of(thread_id, checkpoint_id=checkpoint["id"]), [("a", 2)], "task", "path"
        ),
        "get_tuple": lambda: saver.get_tuple(config),
        "list": lambda: list(saver.list(config, filter={"run_id": "r"}, limit=3)),
        "get_delta_channel_history": lambda: saver.get_delta_channel_history(config=config, channels=["a"]),
        "copy_thread": lambda: saver.copy_thread(thread_id, thread_id + "-copy"),
        "prune": lambda: saver.prune([thread_id]),
        "delete_for_runs": lambda: saver.delete_for_runs(["r"]),
        "delete_thread": lambda: saver.delete_thread(thread_id + "-copy"),
    }


def _call_all(saver: Any, thread_id: str) -> None:
    results = {name: call() for name, call in _calls(saver, thread_id).items()}
    found = results["get_tuple"]
    assert found.checkpoint["channel_values"] == {"a": 1}
    assert found.pending_writes == [("task", "a", 2)]
    assert results["list"] == [found]
    assert results["put"] == found.config
    assert results["get_delta_channel_history"] == {"a": {"writes": []}}
    assert saver.get_tuple(config_of(thread_id)) is None
    assert saver.get_tuple(config_of(thread_id + "-copy")) is None


async def test_every_synchronous_method_works_from_another_thread(saver: Any, thread_id: str) -> None:
    await asyncio.to_thread(_call_all, saver, thread_id)


async def test_synchronous_methods_refuse_the_thread_of_the_loop(saver: Any, thread_id: str) -> None:
    for method, call in _calls(saver, thread_id).items():
        with pytest.raises(BlockingCallError, match=rf"await a{method}\(\)") as raised:
            call()
        assert isinstance(raised.value, StorageError)
        assert isinstance(raised.value, asyncio.InvalidStateError)  # as LangGraph's asynchronous savers raise


def test_synchronous_methods_report_that_the_loop_has_ended(new_storage: Callable[..., MongoStorage]) -> None:
    async def opened() -> Any:
        async with new_storage() as storage:
            return await storage.checkpointer()

    saver = asyncio.run(opened())
    with pytest.raises(StorageClosedError, match="event loop"):
        saver.get_tuple(config_of("t"))
    with pytest.raises(StorageClosedError, match="event loop"):
        next(saver.list(config_of("t")))


async def test_errors_of_the_asynchronous_method_reach_the_calling_thread(saver: Any, thread_id: str) -> None:
    checkpoint = checkpoint_with({"a": object()})
    with pytest.raises(TypeError):
        await asyncio.to_thread(
            saver.put, config_of(thread_id), checkpoint, metadata(), checkpoint["channel_versions"]
        )


def test_list_fetches_rows_as_they_are_asked_for(standalone: StandaloneSaver, thread_id: str) -> None:
    config = config_of(thread_id)
    for number in range(3):
        checkpoint = checkpoint_with({"a": number})
        config = standalone.put(config, checkpoint, metadata(), checkpoint["channel_versions"])
    rows: Any = standalone.list(config_of(thread_id))
    assert next(rows).checkpoint["channel_values"] == {"a": 2}
    standalone.delete_thread(thread_id)  # no lock is held between two rows
    rows.close()


@pytest.mark.parametrize("runner", [Runner, SyncRunner])
@pytest.mark.parametrize("scenario", [chain, interrupts])
def test_script_uses_graphs_without_an_event_loop_of_its_own(
    standalone: StandaloneSaver, scenario: Scenario, runner: type[Runner]
) -> None:
    runs = [runner(saver) for saver in (standalone, InMemorySaver())]
    for run in runs:
        asyncio.run(scenario(run))
    assert difference(runs[0].answers.collected, runs[1].answers.collected) is None


def test_standalone_saver_serves_many_threads_and_loops(standalone: StandaloneSaver, thread_id: str) -> None:
    def synchronous(number: int) -> Any:
        checkpoint = checkpoint_with({"a": number})
        config = config_of(f"{thread_id}-{number}")
        standalone.put(config, checkpoint, metadata(), checkpoint["channel_versions"])
        return asyncio.run(values_of(standalone, config))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(synchronous, range(24))) == [{"a": number} for number in range(24)]


async def test_standalone_saver_lists_for_a_coroutine_of_another_loop(
    open_saver: Callable[..., StandaloneSaver], thread_id: str
) -> None:
    async with await asyncio.to_thread(open_saver) as saver:
        config = config_of(thread_id)
        for number in range(3):
            config = await put(saver, config, {"a": number})
        rows = await listed(saver, config_of(thread_id), limit=2)
        assert [row.checkpoint["channel_values"]["a"] for row in rows] == [2, 1]
        async for row in saver.alist(config_of(thread_id)):
            assert row.config == config
            break
        assert saver.get_tuple(config) is not None  # this loop is not the saver's
    with pytest.raises(StorageClosedError):
        await saver.aget_tuple(config)


def test_closed_standalone_saver_refuses_calls(open_saver: Callable[..., StandaloneSaver]) -> None:
    saver = open_saver()
    saver.close()
    saver.close()
    for call in _calls(saver, "t").values():
        with pytest.raises(StorageClosedError):
            call()
    assert _all_threads_end()


def test_dropped_standalone_saver_is_closed(open_saver: Callable[..., StandaloneSaver]) -> None:
    saver = open_saver(serde=JsonPlusSerializer(allowed_msgpack_modules=[("somewhere", "Thing")]))
    clone = saver.with_allowlist([("tests.mongodb.checkpoints.nowhere", "Thing")])
    assert clone is not saver
    del saver
    gc.collect()
    assert clone.get_tuple(config_of("absent")) is None  # the clone uses the same storage
    del clone
    gc.collect()
    assert _all_threads_end()


def _all_threads_end() -> bool:
    """Whether the threads of all savers end soon."""
    deadline = time.monotonic() + 30
    while any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class _Recording(JsonPlusSerializer):
    dumped = 0

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.dumped += 1
        return super().dumps_typed(obj)


def test_standalone_saver_uses_the_given_serde(
    open_saver: Callable[..., StandaloneSaver], thread_id: str
) -> None:
    first, second = _Recording(), _Recording()
    with open_saver(serde=first) as saver:
        assert saver.serde is first
        for serde in (first, second):
            saver.serde = serde
            checkpoint = checkpoint_with({"a": [serde is first]})
            saver.put(config_of(thread_id), checkpoint, metadata(), checkpoint["channel_versions"])
            assert serde.dumped


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colour": "red"}, "unknown key `colour`"),
        ({"client": object()}, "unknown key `client`"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"collection_prefix": "a.b"}, "collection_prefix"),
        ({"driver": "mongomock"}, "mongomock"),
    ],
)
def test_standalone_saver_checks_its_options(
    open_saver: Callable[..., StandaloneSaver], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(StorageConfigError, match=text):
        open_saver(**options)
    assert _all_threads_end()


def test_standalone_saver_reports_a_server_that_does_not_answer() -> None:
    saver_class = importlib.import_module("deerflow_mongo.mongodb.checkpoints.saver").MongoCheckpointSaver
    with pytest.raises(StorageUnavailableError):
        saver_class.from_url("mongodb://127.0.0.1:9/x", timeout_ms=200)
    assert _all_threads_end()


SCRIPT = """
import os, sys
from deerflow_mongo import StorageError
from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver
saver = MongoCheckpointSaver.from_url("embedded", data_dir=sys.argv[1])
config = {"configurable": {"thread_id": "t"}}
assert saver.get_tuple(config) is None
if os.fork() == 0:
    try:
        saver.get_tuple(config)
    except StorageError as error:
        os.write(1, str(error).encode())
    os._exit(0)
os.wait()
"""


def test_interpreter_exit_closes_the_standalone_saver_and_a_fork_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    done = run_child(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, str(folder)], cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "one checkpoint saver per process" in done.stdout
    assert folder.exists()
    assert not (folder / "server.json").exists()  # the server was stopped as well
