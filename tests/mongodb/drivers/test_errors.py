"""The error that each driver exception becomes, its text, and its cause; no server needed."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from bson import Timestamp
from bson.errors import InvalidDocument
from pymongo import WriteConcern, errors

from deerflow_mongo import (
    InvalidPayloadError,
    PayloadTooLargeError,
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from deerflow_mongo.mongodb.drivers.changes import changes, max_await_ms
from deerflow_mongo.mongodb.drivers.collection import Collection
from deerflow_mongo.mongodb.drivers.driver import DriverOptions
from deerflow_mongo.mongodb.drivers.errors import (
    SERVER_ERRORS,
    UNAVAILABLE_LABELS,
    DuplicateKeyError,
    code_of,
    copied,
    translate,
    translating,
)
from deerflow_mongo.mongodb.drivers.event_loop import Owner
from deerflow_mongo.mongodb.drivers.groups.lane import GroupCounts, no_calls
from deerflow_mongo.mongodb.drivers.groups.places import Places
from deerflow_mongo.mongodb.drivers.pymongo_async import PyMongoDriver
from deerflow_mongo.mongodb.drivers.time_limit import TimeLimit
from deerflow_mongo.mongodb.observation import BackgroundObserver, CommandObserver, unobserved

NAMESPACE = "deerflow.runs"

_TEXTS: dict[str, tuple[Exception, type[StorageError], str]] = {
    "not authorized": (
        errors.OperationFailure("not authorized on deerflow", 13),
        StorageAccessError,
        "authentication or authorization failed: `find` on `deerflow.runs` (code 13)",
    ),
    "no server": (
        errors.ServerSelectionTimeoutError("localhost:1: refused, Timeout: 30s, Topology: ..."),
        StorageUnavailableError,
        "MongoDB cannot be reached or did not answer in time: `find` on `deerflow.runs`: "
        "ServerSelectionTimeoutError: localhost:1: refused",
    ),
    "timeout on the server": (
        errors.OperationFailure("operation exceeded time limit, full error: {...}", 50),
        StorageUnavailableError,
        "MongoDB cannot be reached or did not answer in time: `find` on `deerflow.runs` (code 50): "
        "OperationFailure: operation exceeded time limit",
    ),
    "closed client": (
        errors.InvalidOperation("Cannot use AsyncMongoClient after close"),
        StorageClosedError,
        "this storage is closed",
    ),
    "validator": (
        errors.WriteError("Document failed validation", 121, {}),
        StorageError,
        "the collection's validator refused the document: `find` on `deerflow.runs` (code 121); if another "
        "release set up the database, run setup() with this one",
    ),
    "client settings": (
        errors.ConfigurationError("TLS is not available"),
        StorageConfigError,
        "the MongoDB client refused its settings: `find` on `deerflow.runs`: "
        "ConfigurationError: TLS is not available",
    ),
    "not encodable": (
        InvalidDocument("cannot encode object: <object>"),
        InvalidPayloadError,
        "kwargs cannot be stored: InvalidDocument from the driver: `find` on `deerflow.runs`",
    ),
    "nested too deeply": (
        errors.WriteError("exceeded depth", 15, {}),
        InvalidPayloadError,
        "kwargs cannot be stored: MongoDB refused it: `find` on `deerflow.runs` (code 15)",
    ),
    "too large": (
        errors.DocumentTooLarge("BSON document too large"),
        PayloadTooLargeError,
        "kwargs is 26 bytes large; a stored row has at most 16,777,216 bytes",
    ),
    "anything else": (
        errors.OperationFailure("unknown stage", 40324),
        StorageError,
        "MongoDB reported an error: `find` on `deerflow.runs` (code 40324): OperationFailure: unknown stage",
    ),
}


@pytest.mark.parametrize(("code", "kind"), [(code, kind) for code, (_, kind) in SERVER_ERRORS.items()])
def test_error_of_the_server_becomes_what_the_table_says(code: int, kind: type[StorageError]) -> None:
    single = errors.OperationFailure("no", code, {"code": code})
    of_a_write = errors.BulkWriteError({"writeErrors": [{"index": 0, "code": code, "errmsg": "no"}]})
    of_its_concern = errors.BulkWriteError({"writeConcernErrors": [{"code": code, "errmsg": "no"}]})
    for error in (single, of_a_write, of_its_concern):
        translated = translate(error, "insert", NAMESPACE, {"_id": "r"})
        assert type(translated) is kind
        if kind is not PayloadTooLargeError:
            assert f"`insert` on `deerflow.runs` (code {code})" in str(translated)


@pytest.mark.parametrize("label", UNAVAILABLE_LABELS)
def test_label_of_a_passing_error_counts_for_any_code(label: str) -> None:
    details: Any = {"errorLabels": [label]}
    in_a_batch: Any = {"writeErrors": [], "writeConcernErrors": [{"code": 999, **details}]}
    for error in (
        errors.OperationFailure("no", 999, details),
        errors.BulkWriteError({"writeErrors": [{"index": 0, "code": 999}], **details}),
        errors.BulkWriteError(in_a_batch),
    ):
        assert type(translate(error, "insert", NAMESPACE)) is StorageUnavailableError
    refused = errors.OperationFailure("no", 13, details)
    assert type(translate(refused, "insert", NAMESPACE)) is StorageAccessError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "h:1: [Errno 111] refused (configured timeouts: connectTimeoutMS: 2000.0ms),i:2: timed out "
            "(configured timeouts: socketTimeoutMS: 25000.0ms, connectTimeoutMS: 2000.0ms), Timeout: 25.0s, "
            "Topology Description: <TopologyDescription id: 5>",
            "h:1: [Errno 111] refused,i:2: timed out",
        ),
        (
            "Timed out while checking out a connection from connection pool. maxPoolSize: 100, timeout: 25.0",
            "Timed out while checking out a connection from connection pool",
        ),
        (
            "operation would exceed time limit, remaining timeout:0.00000 <= network round trip time:0.00090",
            "operation would exceed time limit",
        ),
    ],
)
def test_text_has_no_settings_that_nobody_configured(text: str, shown: str) -> None:
    error = errors.ServerSelectionTimeoutError(text)
    assert str(translate(error, "find", NAMESPACE)).endswith(f": ServerSelectionTimeoutError: {shown}")


@pytest.mark.parametrize("name", _TEXTS)
def test_text_names_operation_and_namespace(name: str) -> None:
    error, kind, text = _TEXTS[name]
    translated = translate(error, "find", NAMESPACE, {"_id": "r", "kwargs": "a longer value"})
    assert type(translated) is kind
    assert str(translated) == text


def test_text_without_operation_has_no_empty_place() -> None:
    with pytest.raises(StorageError) as refused, translating():
        raise errors.OperationFailure("no", 13)
    assert str(refused.value) == "authentication or authorization failed (code 13)"
    assert isinstance(refused.value.__cause__, errors.OperationFailure)


@pytest.mark.parametrize("code", [20, 40573])
def test_change_stream_on_a_standalone_server_says_what_it_requires(code: int) -> None:
    translated = translate(errors.OperationFailure("only on replica sets", code), "watch", NAMESPACE)
    assert str(translated).startswith("change streams require a replica set (one member is enough): `watch`")


def test_duplicate_key_text_names_the_keys_and_no_value() -> None:
    details: Any = {
        "index": 2,
        "code": 11000,
        "errmsg": "dup key: { email: 'secret' }",
        "keyPattern": {"email": 1},
    }
    single = translate(errors.DuplicateKeyError("secret", 11000, details), "insert", "d.users")
    bulk = translate(errors.BulkWriteError({"writeErrors": [details]}), "insert", "d.users")
    for translated in (single, bulk):
        assert isinstance(translated, DuplicateKeyError)
        assert (
            str(translated)
            == "a unique index on (email) refused the document: `insert` on `d.users` (code 11000)"
        )
        assert translated.keys == ("email",)
    assert isinstance(bulk, DuplicateKeyError)
    assert bulk.stored == 2


def test_errors_of_several_documents_are_those_of_the_first() -> None:
    refused: Any = {"writeErrors": [{"index": 0, "code": 121, "errmsg": "no"}]}
    late: Any = {"writeConcernErrors": [{"code": 64, "errmsg": "waiting for replication timed out"}]}
    assert "validator" in str(translate(errors.BulkWriteError(refused)))
    assert isinstance(translate(errors.BulkWriteError(late)), StorageUnavailableError)
    assert type(translate(errors.BulkWriteError({}))) is StorageError


def test_code_is_found_in_the_error_and_in_its_cause() -> None:
    failure = errors.OperationFailure("no", 27)
    translated = translate(failure)
    assert code_of(translated) is None
    translated.__cause__ = failure
    assert code_of(translated) == code_of(failure) == 27
    assert code_of(errors.BulkWriteError({"writeErrors": [{"code": 20}]})) == 20
    assert code_of(None) is None


def test_copied_error_has_the_same_cause_and_its_own_traceback() -> None:
    with pytest.raises(StorageUnavailableError) as refused, translating("find", NAMESPACE):
        raise errors.AutoReconnect("lost")
    error = refused.value
    own = copied(error)
    assert own is not error
    assert (type(own), str(own)) == (type(error), str(error))
    assert own.__cause__ is error.__cause__
    assert own.__traceback__ is None
    assert "AutoReconnect" in "".join(traceback.format_exception(own))


def test_duplicate_key_error_pickles_and_copies() -> None:
    error = DuplicateKeyError("refused", 2, ["a", "b"])
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - made here
        assert (str(same), same.stored, same.keys) == ("refused", 2, ("a", "b"))


class _StubCursor:
    """A cursor whose reads fail with one error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def to_list(self, length: int | None) -> Any:
        raise self._error

    def __await__(self) -> Any:
        return self.to_list(None).__await__()

    async def close(self) -> None: ...


class _StubDriver:
    """A driver whose every operation fails with one error."""

    database_name = "deerflow"
    changes_pause_s = 0.0
    observer: CommandObserver | None = None
    observe_background: BackgroundObserver = staticmethod(unobserved)
    has_groups = True

    def __init__(self, error: Exception, *, is_closed: bool = False) -> None:
        self.error = error
        self.is_closed = is_closed
        self.owner = Owner()
        self.time_limit = TimeLimit(25_000)
        self.places = Places(lambda: 0.0)

    def handle_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return options

    def counts_of(self, collection: str, kind: str) -> GroupCounts:
        return no_calls()

    def get_collection(self, name: str) -> Any:
        return self

    async def opened(self) -> Any:
        return self

    def find(self, *args: Any, **options: Any) -> _StubCursor:
        return _StubCursor(self.error)

    async def rows(self, cursor: Any) -> Any:
        return await cursor

    async def session(self) -> Any:
        return nullcontext(self)

    def advance_operation_time(self, time: Timestamp) -> None: ...

    async def aggregate(self, handle: Any, pipeline: Any, options: Any) -> Any:
        raise self.error

    async def watch(self, database: Any, pipeline: Any) -> Any:
        raise self.error

    async def command(self, document: dict[str, Any]) -> dict[str, Any]:
        raise self.error

    def __getattr__(self, name: str) -> Any:
        async def fail(*args: Any, **options: Any) -> Any:
            raise self.error

        return fail


async def _watch(driver: _StubDriver) -> None:
    async with changes(driver, []):
        pass


_OPERATIONS: dict[str, tuple[str, Callable[[Collection], Awaitable[Any]]]] = {
    "find_one": ("find", lambda c: c.find_one({})),
    "find": ("find", lambda c: c.find({}, sort=[("_id", 1)], limit=1)),
    "find_as_of": ("find", lambda c: c.find_as_of({}, sort=[("_id", 1)], limit=1, as_of=Timestamp(1, 1))),
    "find_by_ids": ("find", lambda c: c.find_by_ids({}, 1)),
    "find_candidates": ("find", lambda c: c.find_candidates({}, [("_id", 1)], 1)),
    "find_page": ("find", lambda c: c.find_page({}, sort=[("_id", 1)], limit=1)),
    "stream": ("find", lambda c: anext(c.stream({}))),
    "aggregate": ("aggregate", lambda c: c.aggregate([])),
    "aggregate_few": ("aggregate", lambda c: c.aggregate_few([])),
    "insert_one": ("insert", lambda c: c.insert_one({})),
    "insert_many": ("insert", lambda c: c.insert_many([{}])),
    "insert_each": ("insert", lambda c: c.insert_each([{}])),
    "replace_one": ("update", lambda c: c.replace_one({}, {})),
    "update_one": ("update", lambda c: c.update_one({}, {})),
    "update_many": ("update", lambda c: c.update_many({}, {})),
    "update_all": ("update", lambda c: c.update_all({}, {})),
    "upsert_one": ("update", lambda c: c.upsert_one({}, {})),
    "upsert_many": ("update", lambda c: c.upsert_many([({}, {"$set": {}})])),
    "insert_if_absent": ("update", lambda c: c.insert_if_absent({}, {})),
    "find_one_and_update": ("findAndModify", lambda c: c.find_one_and_update({}, {})),
    "find_one_and_upsert": ("findAndModify", lambda c: c.find_one_and_upsert({}, {})),
    "delete_one": ("delete", lambda c: c.delete_one({})),
    "delete_many": ("delete", lambda c: c.delete_many({})),
    "delete_each": ("delete", lambda c: c.delete_each([{}])),
    "find_one_and_delete": ("findAndModify", lambda c: c.find_one_and_delete({}, sort=[("_id", 1)])),
}


def test_every_method_of_a_collection_is_in_the_table() -> None:
    methods = {name for name in vars(Collection) if not name.startswith("_")} - {
        "name",
        "handle",
        "drop_handle",
        "check_owner",
        "run",
        "translate",
        "no_answer",
        "end_groups",
    }
    assert methods == set(_OPERATIONS)


@pytest.mark.parametrize("method", _OPERATIONS)
async def test_every_method_names_its_command_and_has_the_drivers_error_as_cause(method: str) -> None:
    command, call = _OPERATIONS[method]
    driver = _StubDriver(errors.OperationFailure("not authorized", 13))
    with pytest.raises(StorageAccessError) as refused:
        await call(Collection(driver, "runs"))
    assert str(refused.value).endswith(f"failed: `{command}` on `deerflow.runs` (code 13)")
    assert refused.value.__cause__ is driver.error


@pytest.mark.parametrize("method", _OPERATIONS)
async def test_operation_that_a_close_interrupted_reports_a_closed_storage(method: str) -> None:
    _, call = _OPERATIONS[method]
    driver = _StubDriver(errors.AutoReconnect("connection closed"), is_closed=True)
    with pytest.raises(StorageClosedError) as refused:
        await call(Collection(driver, "runs"))
    assert refused.value.__cause__ is driver.error


@pytest.mark.parametrize("is_closed", [True, False])
async def test_command_that_a_close_interrupted_reports_a_closed_storage(is_closed: bool) -> None:
    lost = errors.AutoReconnect("connection pool paused")

    class Database:
        async def command(self, document: dict[str, Any]) -> None:
            if is_closed:
                await driver.close()
            raise lost

    def database(*_: object, **__: object) -> Database:
        return Database()

    async def options() -> DriverOptions:
        return DriverOptions("mongodb://localhost", "deerflow", 25_000)

    client = SimpleNamespace(write_concern=WriteConcern(), get_database=database)
    driver = PyMongoDriver(options, 25_000, client)
    with pytest.raises(StorageClosedError if is_closed else StorageUnavailableError) as refused:
        await driver.list_indexes("runs")
    assert refused.value.__cause__ is lost


async def test_change_stream_names_its_command_and_has_the_drivers_error_as_cause() -> None:
    driver = _StubDriver(errors.OperationFailure("not authorized", 13))
    with pytest.raises(StorageAccessError) as refused:
        await _watch(driver)
    assert str(refused.value).endswith("failed: `watch` on `deerflow` (code 13)")
    assert refused.value.__cause__ is driver.error


async def test_change_stream_that_a_close_interrupted_reports_a_closed_storage() -> None:
    driver = _StubDriver(errors.AutoReconnect("connection closed"), is_closed=True)
    with pytest.raises(StorageClosedError) as refused:
        await _watch(driver)
    assert refused.value.__cause__ is driver.error


@pytest.mark.parametrize(
    ("timeout_s", "socket_timeout_s", "await_ms"),
    [(None, None, 1_000), (25.0, None, 1_000), (0.4, None, 200), (25.0, 0.5, 250), (0.001, None, 1)],
)
def test_change_stream_waits_less_than_the_client_does(
    timeout_s: float | None, socket_timeout_s: float | None, await_ms: int
) -> None:
    pool_options = SimpleNamespace(socket_timeout=socket_timeout_s)
    assert max_await_ms(SimpleNamespace(timeout=timeout_s, pool_options=pool_options), 60_000) == await_ms
