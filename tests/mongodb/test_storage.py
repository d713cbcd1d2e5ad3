"""The storage as a whole: clients, closing, unreachable servers, and the name in the server's log."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FunctionType
from typing import Any, cast

import pytest
from pymongo import AsyncMongoClient, MongoClient

from deerflow_mongo import (
    MongoStorage,
    Storage,
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
    __version__,
    create_storage,
)
from deerflow_mongo.mongodb.embedded import EmbeddedServer
from deerflow_mongo.mongodb.events.store import MongoRunEventStore
from deerflow_mongo.mongodb.stores.feedback import MongoFeedbackStore
from deerflow_mongo.mongodb.stores.runs import MongoRunStore
from deerflow_mongo.mongodb.stores.threads import MongoThreadStore
from deerflow_mongo.mongodb.stores.users import MongoUserStore

from ..busy_machine import until_answered

Raw = MongoClient[dict[str, Any]]
TIMEOUT_MS = 400
SLACK_S = 3.0
"""For a busy machine; the drivers' own default would be 30 s."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def dead_port() -> int:
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _config(url: str, database: str = "test", **options: Any) -> dict[str, Any]:
    return {"backend": "mongodb", "url": url, "database": database, **options}


async def _within_time(call: Callable[[], Awaitable[Any]]) -> None:
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError, match="cannot be reached or did not answer in time"):
        await call()
    assert time.monotonic() - began < TIMEOUT_MS / 1000 + SLACK_S


@pytest.mark.parametrize("driver", ["pymongo"])
@pytest.mark.parametrize("kind", ["dead_port", "silent_port"])
async def test_unreachable_server_is_an_error_within_the_timeout(
    kind: str, driver: str, request: pytest.FixtureRequest
) -> None:
    port: int = request.getfixturevalue(kind)
    storage = create_storage(_config(f"mongodb://127.0.0.1:{port}", driver=driver, timeout_ms=TIMEOUT_MS))
    await _within_time(storage.setup)
    await _within_time(lambda: storage.runs.get("r", user_id=None))
    await _within_time(lambda: storage.runs.create("r", "t", user_id=None))
    await _within_time(lambda: storage.feedback.upsert(run_id="r", thread_id="t", rating=1, user_id="u"))
    began = time.monotonic()
    await storage.aclose()
    assert time.monotonic() - began < SLACK_S


@pytest.mark.parametrize("driver", ["pymongo"])
async def test_failing_to_enter_the_context_closes_the_storage(driver: str, dead_port: int) -> None:
    storage = create_storage(
        _config(f"mongodb://127.0.0.1:{dead_port}", driver=driver, timeout_ms=TIMEOUT_MS)
    )
    await _within_time(storage.__aenter__)
    with pytest.raises(StorageError, match="this storage is closed"):
        await storage.runs.get("r", user_id=None)


@pytest.mark.parametrize("driver", ["pymongo"])
async def test_aclose_is_bounded_when_the_server_has_stopped(
    driver: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from deerflow_mongo.mongodb.embedded import start_embedded

    server = start_embedded(tmp_path_factory.mktemp("server"))
    async with create_storage(_config(server.url, driver=driver)) as ready:
        await ready.runs.create("r", "t", user_id=None)
    storage = create_storage(_config(server.url, driver=driver, timeout_ms=TIMEOUT_MS))
    await until_answered(storage.ping)
    await asyncio.to_thread(server.release)
    await _within_time(lambda: storage.runs.get("r", user_id=None))
    began = time.monotonic()
    await storage.aclose()
    assert time.monotonic() - began < SLACK_S


@pytest.mark.parametrize("driver", ["pymongo", "mongomock"])
async def test_closed_storage_raises_closed_error(driver: str, mongodb_url: str, database_name: str) -> None:
    storage = create_storage(_config(mongodb_url, database_name, driver=driver))
    await storage.setup()
    await storage.aclose()
    await storage.aclose()
    for call in (storage.setup, lambda: storage.runs.get("r", user_id=None)):
        with pytest.raises(StorageClosedError, match="this storage is closed"):
            await call()


CLIENT_CLASSES: list[Any] = [AsyncMongoClient]


@pytest.mark.parametrize("client_class", CLIENT_CLASSES)
async def test_client_of_the_caller_is_used_and_never_closed(
    client_class: Any, mongodb_url: str, database_name: str
) -> None:
    client: Any = client_class(mongodb_url)
    async with create_storage({"backend": "mongodb", "database": database_name}, client=client) as storage:
        await storage.runs.create("r", "t", user_id="u")
    assert (await client[database_name]["runs"].find_one({}))["_id"] == "r"
    with pytest.raises(StorageError, match="this storage is closed"):
        await storage.runs.get("r", user_id="u")
    closing = client.close()
    if closing is not None:
        await closing


async def test_mock_client_of_the_caller_is_used() -> None:
    from mongomock_motor import AsyncMongoMockClient  # pyright: ignore[reportMissingTypeStubs]

    client = cast("Any", AsyncMongoMockClient())
    async with create_storage({"backend": "mongodb", "database": "d"}, client=client) as storage:
        await storage.runs.create("r", "t", user_id="u")
    assert (await client["d"]["runs"].find_one({}))["_id"] == "r"


def test_client_of_another_kind_is_an_error_that_lists_the_known_ones(raw_client: Raw) -> None:
    with pytest.raises(StorageConfigError, match="MongoClient; expected an AsyncMongoClient of PyMongo"):
        create_storage({"backend": "mongodb"}, client=raw_client)


@pytest.mark.parametrize("driver", ["pymongo"])
async def test_server_log_has_the_package_name_and_version(
    driver: str, server: EmbeddedServer, database_name: str
) -> None:
    async with create_storage(_config(server.url, database_name, driver=driver)):
        pass
    log = (server.data_dir / "mongod.log").read_text(encoding="utf-8")
    names = [line for line in log.splitlines() if "client metadata" in line and "deerflow-mongo" in line]
    assert any(__version__ in line and ("Motor" in line) == (driver == "motor") for line in names)


@pytest.mark.parametrize("driver", ["pymongo"])
async def test_writes_are_acknowledged_by_a_majority(
    driver: str, mongodb_url: str, database_name: str
) -> None:
    for url, concern in ((mongodb_url, {"w": "majority"}), (mongodb_url + "&w=1", {"w": 1})):
        storage = MongoStorage(_mongo_config(url, database_name, driver))
        database = await storage.driver.opened()
        assert database.write_concern.document == concern
        await storage.aclose()


def _mongo_config(url: str, database: str, driver: str) -> Any:
    from deerflow_mongo.mongodb.config import mongo_config

    return mongo_config({"url": url, "database": database, "driver": driver})


async def test_failed_login_is_an_access_error_without_the_password(mongodb_url: str) -> None:
    # The tests' server has no users, so any login fails.
    url = mongodb_url.replace("mongodb://", "mongodb://somebody:s3cret@")
    storage = create_storage(_config(url, timeout_ms=5_000))
    with pytest.raises(StorageAccessError, match="authentication or authorization failed") as error:
        await storage.setup()
    assert "s3cret" not in str(error.value)
    assert error.value.__cause__ is not None
    await storage.aclose()


async def test_building_a_storage_opens_no_connection(silent_port: int) -> None:
    storage = create_storage(_config(f"mongodb://127.0.0.1:{silent_port}"))
    assert isinstance(storage, Storage)
    assert "closed" not in repr(storage)
    await storage.aclose()


async def test_embedded_server_stores_its_data_for_the_next_start(tmp_path: Any) -> None:
    config = {"backend": "mongodb", "url": "embedded", "data_dir": str(tmp_path / "data")}
    async with create_storage(config) as storage:
        await storage.runs.create("r", "t", user_id="u", metadata={"k": 1})
    async with create_storage(config) as storage:
        row = await storage.runs.get("r", user_id="u")
    assert row is not None
    assert row["metadata"] == {"k": 1}


async def test_cancelled_start_leaves_no_server_running(tmp_path: Any) -> None:
    folder = tmp_path / "data"
    storage = create_storage({"backend": "mongodb", "url": "embedded", "data_dir": str(folder)})
    starting = asyncio.create_task(storage.setup())
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await storage.aclose()
    for _ in range(200):  # the thread that starts the server releases it once it is up
        if (folder / "mongod.log").exists() and not (folder / "server.json").exists():
            break
        await asyncio.sleep(0.1)
    assert not (folder / "server.json").exists()


async def test_two_storages_with_one_data_folder_share_a_server(tmp_path: Any) -> None:
    config = {"backend": "mongodb", "url": "embedded", "data_dir": str(tmp_path / "data")}
    async with create_storage(config) as first:
        async with create_storage(config) as second:
            await first.runs.create("r", "t", user_id="u")
            assert await second.runs.get("r", user_id="u") is not None
        assert await first.runs.get("r", user_id="u") is not None


STORES = (MongoRunStore, MongoFeedbackStore, MongoThreadStore, MongoRunEventStore, MongoUserStore)


def _contract_methods(store: type) -> dict[str, type]:
    """The methods that a store implements, with the Protocol whose text it inherits."""
    methods: dict[str, type] = {}
    for protocol in store.__mro__[1:]:
        for name, member in vars(protocol).items():
            if isinstance(member, FunctionType) and not name.startswith("_") and name in vars(store):
                methods.setdefault(name, protocol)
    return methods


@pytest.mark.parametrize("store", STORES)
def test_help_of_every_store_method_shows_the_text_of_the_contract(store: type) -> None:
    methods = _contract_methods(store)
    assert methods
    for name, protocol in methods.items():
        text = inspect.getdoc(getattr(protocol, name))
        assert text, name
        assert inspect.getdoc(getattr(store, name)) == text, name
