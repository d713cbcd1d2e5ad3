"""`storage.checkpointer()`: one saver per storage, opened at its first call and closed with the storage."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import json
import operator
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ServerSelectionTimeoutError

from deerflow_mongo import (
    MissingDependencyError,
    MongoStorage,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
    create_storage,
)
from deerflow_mongo.mongodb.embedded import EmbeddedServer, hold
from deerflow_mongo.mongodb.schema import COLLECTIONS

from ..child_processes import CHILD_TIMEOUT_S, communicate

graphs: Any = pytest.importorskip("langgraph.graph")
types: Any = pytest.importorskip("langgraph.types")

Raw = MongoClient[dict[str, Any]]
Opener = Callable[..., MongoStorage]
ROOT = Path(__file__).parents[2]
SAVER_MODULE = "deerflow_mongo.mongodb.checkpoints.saver"
IN_THREAD: Any = {"configurable": {"thread_id": "t"}}
TIMEOUT_MS = 400
SLACK_S = 3.0


class State(TypedDict):
    steps: Annotated[list[str], operator.add]


def plan(state: State) -> dict[str, list[str]]:
    return {"steps": [f"planned by {os.getpid()}"]}


def ask(state: State) -> dict[str, list[str]]:
    return {"steps": [f"answered {types.interrupt('go on?')}"]}


def act(state: State) -> dict[str, list[str]]:
    return {"steps": [f"acted by {os.getpid()}"]}


def _graph(saver: Any) -> Any:
    builder = graphs.StateGraph(State)
    for node in (plan, ask, act):
        builder.add_node(node)
    for before, after in ((graphs.START, "plan"), ("plan", "ask"), ("ask", "act"), ("act", graphs.END)):
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver)


def _storage(url: str, **options: Any) -> MongoStorage:
    storage = create_storage({"backend": "mongodb", "url": url, **options})
    assert isinstance(storage, MongoStorage)
    return storage


async def work(folder: str, *answer: str) -> None:
    """Another process: run the graph up to its interrupt, or resume it; ends when stdin is closed."""
    async with _storage("embedded", data_dir=folder) as storage:
        graph = _graph(await storage.checkpointer())
        result = await graph.ainvoke(types.Command(resume=answer[0]) if answer else {"steps": []}, IN_THREAD)
        state = await graph.aget_state(IN_THREAD)
        report = {"steps": result["steps"], "next": state.next}
        await asyncio.to_thread(sys.stdout.write, json.dumps(report) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


def _worker(folder: Path, *answer: str) -> subprocess.Popen[str]:
    code = f"import asyncio, sys; from {__name__} import work; asyncio.run(work(*sys.argv[1:]))"
    return subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", code, str(folder), *answer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _report(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    return json.loads(worker.stdout.readline())


def _stop_normally(folder: Path, worker: subprocess.Popen[str]) -> None:
    communicate(worker)
    assert worker.returncode == 0
    assert not (folder / "server.json").exists()


def _kill_everything(folder: Path, worker: subprocess.Popen[str]) -> None:
    mongod: int = json.loads((folder / "server.json").read_text(encoding="utf-8"))["pid"]
    supervisor = Path(f"/proc/{mongod}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
    for pid in (worker.pid, mongod, int(supervisor)):
        os.kill(pid, signal.SIGKILL)
    communicate(worker)


@pytest.mark.parametrize("end", [_stop_normally, _kill_everything])
def test_graph_resumes_in_a_new_process(
    end: Callable[[Path, subprocess.Popen[str]], None], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    with _worker(folder) as first:
        assert _report(first) == {"steps": [f"planned by {first.pid}"], "next": ["ask"]}
        end(folder, first)
    with _worker(folder, "yes") as second:
        steps = [f"planned by {first.pid}", "answered yes", f"acted by {second.pid}"]
        assert _report(second) == {"steps": steps, "next": []}
        _stop_normally(folder, second)


@pytest.fixture
async def new_storage(mongodb_url: str, database_name: str) -> AsyncIterator[Opener]:
    opened: list[MongoStorage] = []

    def build(url: str = mongodb_url, **options: Any) -> MongoStorage:
        opened.append(_storage(url, database=database_name, **options))
        return opened[-1]

    yield build
    for storage in opened:
        await storage.aclose()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[EmbeddedServer]:
    """The holds that storages have taken on embedded servers."""
    start, holds = hold.start_embedded, list[EmbeddedServer]()

    def counted(*args: Any, **options: Any) -> EmbeddedServer:
        holds.append(start(*args, **options))
        return holds[-1]

    monkeypatch.setattr(hold, "start_embedded", counted)
    return holds


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not become true in time")


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_every_call_returns_the_same_saver(new_storage: Opener, driver: str) -> None:
    storage = new_storage(driver=driver)
    savers = await asyncio.gather(*(storage.checkpointer() for _ in range(20)))
    assert {id(saver) for saver in [*savers, await storage.checkpointer()]} == {id(savers[0])}
    graph = _graph(savers[0])
    await graph.ainvoke({"steps": []}, IN_THREAD)
    steps = (await graph.ainvoke(types.Command(resume="yes"), IN_THREAD))["steps"]
    assert steps[1] == "answered yes"
    assert len(steps) == 3


async def test_checkpoint_collections_have_the_prefix(
    new_storage: Opener, raw_client: Raw, database_name: str
) -> None:
    storage = new_storage(collection_prefix="p_")
    await _graph(await storage.checkpointer()).ainvoke({"steps": []}, IN_THREAD)
    database = raw_client[database_name]
    assert set(database.list_collection_names()) == {f"p_{schema.name}" for schema in COLLECTIONS}
    assert database["p_checkpoint_data"].distinct("_id.thread") == ["t"]


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_storage_and_saver_share_one_embedded_server(
    driver: str, tmp_path: Path, started: list[EmbeddedServer]
) -> None:
    storage = _storage("embedded", driver=driver, data_dir=str(tmp_path / "data"))
    await asyncio.gather(storage.checkpointer(), storage.setup(), storage.checkpointer())
    [server] = started
    with Raw(server.url) as client:
        assert {"runs", "checkpoint_data"} <= set(client["deerflow"].list_collection_names())
    await storage.aclose()
    assert not (tmp_path / "data" / "server.json").exists()


async def test_cancelled_and_repeated_start_hold_the_server_once(
    tmp_path: Path, started: list[EmbeddedServer]
) -> None:
    storage = _storage("embedded", data_dir=str(tmp_path / "data"))
    setup = asyncio.create_task(storage.setup())
    await asyncio.sleep(0.05)
    setup.cancel()
    await asyncio.gather(storage.setup(), storage.checkpointer())
    assert len(started) == 1
    await storage.aclose()
    assert not (tmp_path / "data" / "server.json").exists()


async def test_closing_the_storage_closes_the_saver(new_storage: Opener) -> None:
    storage = new_storage()
    saver = await storage.checkpointer()
    await storage.aclose()
    with pytest.raises(StorageError, match="this storage is closed"):
        await saver.aget_tuple(IN_THREAD)
    with pytest.raises(StorageError, match="this storage is closed"):
        await storage.checkpointer()


async def test_closed_storage_opens_no_saver(new_storage: Opener) -> None:
    storage = new_storage()
    await storage.aclose()
    with pytest.raises(StorageError, match="this storage is closed"):
        await storage.checkpointer()


async def test_closing_ends_a_pending_call(new_storage: Opener, silent_port: int) -> None:
    storage = new_storage(f"mongodb://127.0.0.1:{silent_port}", timeout_ms=60_000)
    calls = [asyncio.create_task(storage.checkpointer()) for _ in range(3)]
    opener: Any = storage._driver
    await _until(lambda: opener._client is not None)
    began = time.monotonic()
    await storage.aclose()
    for call in calls:
        with pytest.raises(StorageError, match="this storage is closed"):
            await call
    assert time.monotonic() - began < SLACK_S


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.01, 0.03, 0.1])
async def test_call_racing_a_close_returns_a_closed_saver_or_raises_closed_error(
    new_storage: Opener, delay_s: float
) -> None:
    storage = new_storage()
    call = asyncio.create_task(storage.checkpointer())
    await asyncio.sleep(delay_s)
    await storage.aclose()
    with suppress(StorageError):
        saver = await call
        with pytest.raises(StorageError, match="this storage is closed"):
            await saver.aget_tuple(IN_THREAD)
    if error := call.exception():
        assert str(error) == "this storage is closed"


async def test_closing_during_the_start_of_the_embedded_server_stops_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    storage = _storage("embedded", data_dir=str(folder))
    call = asyncio.create_task(storage.checkpointer())
    await _until(folder.exists)
    await storage.aclose()
    with pytest.raises(StorageError, match="this storage is closed"):
        await call
    await _until(lambda: not (folder / "server.json").exists())


async def test_cancelling_one_call_does_not_cancel_the_others(new_storage: Opener) -> None:
    storage = new_storage()
    first, second = (asyncio.create_task(storage.checkpointer()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is await storage.checkpointer()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_unreachable_server_fails_all_waiting_calls_and_the_next_call_tries_again(
    new_storage: Opener, silent_port: int
) -> None:
    storage = new_storage(f"mongodb://127.0.0.1:{silent_port}", timeout_ms=TIMEOUT_MS)
    await asyncio.to_thread(__import__, SAVER_MODULE)
    began = time.monotonic()
    failures: list[Any] = await asyncio.gather(
        *(storage.checkpointer() for _ in range(20)), return_exceptions=True
    )
    assert time.monotonic() - began < TIMEOUT_MS / 1000 + SLACK_S
    assert {type(error) for error in failures} == {StorageUnavailableError}
    assert len({id(error) for error in failures}) == 20
    assert {type(error.__cause__) for error in failures} == {ServerSelectionTimeoutError}
    with pytest.raises(StorageUnavailableError, match="cannot be reached") as again:
        await storage.checkpointer()
    assert again.value is not failures[0]


async def test_call_succeeds_after_a_failed_one(
    new_storage: Opener, mongodb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = new_storage()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, SAVER_MODULE, None)
        with pytest.raises(MissingDependencyError):
            await storage.checkpointer()
    await _graph(await storage.checkpointer()).ainvoke({"steps": []}, IN_THREAD)


async def test_missing_package_error_has_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, SAVER_MODULE, None)
    folder = tmp_path / "data"
    async with aclosing(_storage("embedded", data_dir=str(folder))) as storage:
        with pytest.raises(MissingDependencyError) as error:
            await storage.checkpointer()
    assert str(error.value) == (
        "storage.checkpointer() needs langgraph-checkpoint, which is not installed. "
        "Install it with: pip install 'deerflow-mongo[checkpointer]'"
    )
    assert not folder.exists()  # no server was started


async def test_mock_has_no_checkpointer() -> None:
    async with aclosing(_storage("", driver="mongomock")) as storage:
        with pytest.raises(StorageConfigError, match="InMemorySaver"):
            await storage.checkpointer()


async def test_saver_uses_the_callers_client_and_leaves_it_open(mongodb_url: str, database_name: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](mongodb_url) as client:
        async with create_storage(
            {"backend": "mongodb", "database": database_name}, client=client
        ) as storage:
            assert isinstance(storage, MongoStorage)
            await _graph(await storage.checkpointer()).ainvoke({"steps": []}, IN_THREAD)
        assert await client[database_name]["checkpoint_data"].find_one({}) is not None


def test_langgraph_is_imported_by_the_first_call_only(mongodb_url: str, database_name: str) -> None:
    code = """
import asyncio, sys
from deerflow_mongo import create_storage

def loaded():
    return {name.partition(".")[0] for name in sys.modules} & {"langgraph", "langchain_core"}

async def main(url, database):
    async with create_storage({"backend": "mongodb", "url": url, "database": database}) as storage:
        assert not loaded(), loaded()
        await storage.checkpointer()
        assert "langgraph" in loaded()

asyncio.run(main(*sys.argv[1:]))
"""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, mongodb_url, database_name],
        capture_output=True,
        text=True,
        check=False,
        timeout=CHILD_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
