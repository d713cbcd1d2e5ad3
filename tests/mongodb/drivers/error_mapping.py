"""Each kind of driver error becomes the package's own, with the driver's as its cause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from deerflow_mongo import (
    InvalidPayloadError,
    MongoStorage,
    PayloadTooLargeError,
    RunExistsError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    ThreadExistsError,
    ThreadMetaCreate,
    UserExistsError,
)

from ...busy_machine import connected, until_answered
from ...faults.proxy import FaultProxy
from .fixtures import (
    TIMEOUT_MS,
    DriverFixtures,
    DuplicateKeyError,
    Opener,
    assert_unavailable_in_time,
    close_client,
    contents,
    event,
)

_MEBIBYTE = 1024 * 1024
_SLOW = {"$where": "sleep(5000) || true"}

_UNSTORABLE: Mapping[str, Any] = {
    "an integer beyond 64 bits": 2**70,
    "a lone surrogate": "a\ud800b",
    "no type of BSON": object(),
    "a key that is no text": {1: 2},
    "a key with NUL": {"a\0b": 1},
}


async def _refused(kind: type[StorageError], words: str, call: Awaitable[Any]) -> StorageError:
    with pytest.raises(kind, match=words) as refused:
        await call
    assert refused.value.__cause__ is not None
    assert type(refused.value) is kind
    return refused.value


class ErrorMappingContract(DriverFixtures):
    @pytest.mark.parametrize("kind", ["dead_port", "silent_port"])
    async def test_unreachable_server_is_unavailable_within_the_timeout(
        self, kind: str, new_storage: Opener, request: pytest.FixtureRequest
    ) -> None:
        url = f"mongodb://127.0.0.1:{request.getfixturevalue(kind)}"
        storage = new_storage(url=url, timeout_ms=TIMEOUT_MS)
        await assert_unavailable_in_time(storage.setup)
        await assert_unavailable_in_time(lambda: storage.runs.get("r", user_id=None))
        await assert_unavailable_in_time(lambda: storage.runs.create("r", "t", user_id=None))
        await assert_unavailable_in_time(lambda: storage.run_events.list_messages("t"))
        await assert_unavailable_in_time(lambda: anext(storage.run_events.follow("t")))
        await storage.aclose()

    async def test_slow_operation_is_unavailable_within_the_timeout(
        self, storage: MongoStorage, new_storage: Opener
    ) -> None:
        """The server itself ends it; the storage stays usable."""
        await storage.runs.create("r", "t", user_id=None)
        async with connected(new_storage(timeout_ms=TIMEOUT_MS * 2)) as hasty:
            runs = hasty.driver.collection("runs")
            await assert_unavailable_in_time(lambda: runs.find_one(_SLOW))
            assert await until_answered(lambda: hasty.runs.get("r", user_id=None)) is not None

    async def test_exhausted_pool_is_unavailable(
        self, storage: MongoStorage, new_storage: Opener, mongodb_url: str
    ) -> None:
        await storage.runs.create("r", "t", user_id=None)
        # PyMongo applies the pool's own timeout only where no `timeoutMS` is set.
        url = f"{mongodb_url}&serverSelectionTimeoutMS=30000&maxPoolSize=1&waitQueueTimeoutMS=100"
        async with connected(new_storage(url=url)) as small:
            slow = asyncio.create_task(
                small.driver.collection("runs").find_one({"$where": "sleep(1500) || true"})
            )
            await asyncio.sleep(0.5)
            call = small.runs.get("r", user_id=None)
            await _refused(StorageUnavailableError, "did not answer in time", call)
            assert await slow is not None
            assert await small.runs.get("r", user_id=None) is not None

    @pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
    async def test_lost_connection_without_retries_is_unavailable(
        self, new_storage: Opener, proxy: FaultProxy, arrived: bool
    ) -> None:
        async with new_storage(url=f"{proxy.url}&retryWrites=false") as storage:
            proxy.lose("insert", after_it_arrived=arrived)
            call = storage.runs.create("r", "t", user_id=None)
            await _refused(StorageUnavailableError, "cannot be reached", call)
            assert (await storage.runs.get("r", user_id=None) is not None) is arrived

    @pytest.mark.parametrize("retried_by", ["driver", "store"])
    @pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
    async def test_lost_connection_never_stores_a_batch_twice(
        self, new_storage: Opener, proxy: FaultProxy, retried_by: str, arrived: bool
    ) -> None:
        """The driver repeats the write, or, told not to, leaves the decision to the store."""
        url = f"{proxy.url}&retryWrites={'true' if retried_by == 'driver' else 'false'}"
        lost_each = 1 if retried_by == "driver" or arrived else 2  # what arrived is found, not sent again
        async with new_storage(url=url) as storage:
            await storage.run_events.put(**event("before"))
            for round_ in range(3):
                proxy.lose("insert", lost_each, after_it_arrived=arrived)
                batches = [storage.run_events.put_batch([event(f"{round_} {n}")] * 5) for n in range(4)]
                await asyncio.gather(*batches)
            assert proxy.lost == 3 * lost_each
            stored = await contents(storage)
        assert stored == ["before", *(f"{r} {n}" for r in range(3) for n in range(4) for _ in range(5))]

    async def test_lost_connection_of_a_read_is_repeated(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        async with new_storage(url=proxy.url) as storage:
            await storage.runs.create("r", "t", user_id=None)
            for command in ("find", "aggregate"):
                proxy.lose(command)
                assert await storage.runs.get("r", user_id=None) is not None
                assert (await storage.runs.token_usage_by_thread("t", user_id=None))["total_runs"] == 1
            assert proxy.lost == 2

    async def test_taken_id_is_the_stores_own_error(self, storage: MongoStorage) -> None:
        thread = ThreadMetaCreate(thread_id="t")
        await storage.runs.create("r", "t", user_id=None)
        await storage.threads.create_thread_meta(thread)
        identity: dict[str, Any] = {"oauth_provider": "github", "oauth_id": "4711"}
        await storage.users.create("u", email="u@example.org", **identity)
        create = storage.users.create
        taken: list[tuple[type[StorageError], str, Awaitable[Any]]] = [
            (RunExistsError, "'r'", storage.runs.create("r", "t", user_id=None)),
            (ThreadExistsError, "'t'", storage.threads.create_thread_meta(thread)),
            (UserExistsError, "id", create("u", email="v@example.org")),
            (UserExistsError, "OAuth identity", create("w", email="w@example.org", **identity)),
        ]
        for kind, words, call in taken:
            await _refused(kind, words, call)
        with pytest.raises(UserExistsError, match="email"):  # found by the upsert: the driver has no error
            await create("v", email="u@example.org")

    async def test_duplicate_key_reports_what_is_stored_and_which_index(self, storage: MongoStorage) -> None:
        scratch = storage.driver.collection("scratch")
        await storage.driver.create_indexes("scratch", [{"name": "n", "key": {"n": 1}, "unique": True}])
        documents = [{"_id": number, "n": min(number, 2)} for number in range(5)]
        with pytest.raises(DuplicateKeyError) as refused:
            await scratch.insert_many(documents)
        assert (refused.value.stored, refused.value.keys) == (3, ("n",))
        for call in (
            scratch.insert_one({"_id": 9, "n": 2}),
            scratch.update_one({"_id": 0}, {"$set": {"n": 1}}),
            scratch.update_many({"_id": 0}, {"$set": {"n": 1}}),
            scratch.find_one_and_upsert({"_id": 9}, {"$set": {"n": 1}}),
        ):
            with pytest.raises(DuplicateKeyError) as refused:
                await call
            assert refused.value.keys == ("n",)
            assert refused.value.__cause__ is not None
        assert [row["_id"] for row in await scratch.find({}, sort=[("_id", 1)], limit=9)] == [0, 1, 2]

    async def test_too_large_document_names_its_largest_field(self, storage: MongoStorage) -> None:
        """Refused by the driver before it is sent, or by the server when a merge has grown."""
        half = "x" * (9 * _MEBIBYTE)
        with pytest.raises(PayloadTooLargeError, match="metadata is 18,"):
            await storage.runs.create("r", "t", user_id=None, metadata={"k": half * 2})
        await storage.runs.create("r", "t", user_id=None, metadata={"first": half})
        merge = storage.runs.update_status("r", "running", metadata={"second": half})
        await _refused(PayloadTooLargeError, "metadata", merge)
        scratch = storage.driver.collection("scratch_large")
        large: dict[str, Any] = {"_id": 1, "k": half * 2}
        for call in (
            scratch.insert_one(large),
            scratch.insert_many([large]),
            scratch.update_one({}, [large]),
        ):
            await _refused(PayloadTooLargeError, "k is 18,", call)

    async def test_unstorable_value_is_an_invalid_payload(self, storage: MongoStorage) -> None:
        scratch = storage.driver.collection("scratch")
        writes: list[Callable[[Any], Awaitable[Any]]] = [
            lambda value: scratch.insert_one({"value": value}),
            lambda value: scratch.insert_many([{"value": value}]),
            lambda value: scratch.update_one({}, {"$set": {"value": value}}),
            lambda value: scratch.find_one_and_upsert({}, {"$set": {"value": value}}),
        ]
        for value in _UNSTORABLE.values():
            for write in writes:
                await _refused(InvalidPayloadError, "cannot be stored", write(value))
        assert await scratch.find_one({"value": {"$exists": True}}) is None

    async def test_document_that_a_validator_refuses_is_a_storage_error(self, storage: MongoStorage) -> None:
        for write in ("insert_one", "insert_many"):
            document = {"_id": "no run"}
            runs = storage.driver.collection("runs")
            call = getattr(runs, write)(document if write == "insert_one" else [document])
            await _refused(StorageError, "validator refused", call)

    async def test_refused_login_is_an_access_error_without_the_password(
        self, new_storage: Opener, mongodb_url: str
    ) -> None:
        """The tests' server has no users: any login fails."""
        url = mongodb_url.replace("mongodb://", "mongodb://somebody:s3cret@")
        storage = new_storage(url=url, timeout_ms=5_000)
        refused = await _refused(StorageAccessError, "refused|failed", storage.setup())
        assert "s3cret" not in str(refused)
        await storage.aclose()

    async def test_other_server_error_is_a_storage_error_with_its_code(self, storage: MongoStorage) -> None:
        await _refused(StorageError, r"code 59", storage.driver.command({"noSuchCommand": 1}))
        runs = storage.driver.collection("runs")
        await _refused(StorageError, r"code 40324", runs.aggregate([{"$noSuchStage": {}}]))

    async def test_client_that_its_caller_closed_is_a_storage_error(
        self, new_storage: Opener, mongodb_url: str
    ) -> None:
        client = self.client_class(mongodb_url)
        storage = new_storage(client=client)
        await storage.setup()
        await close_client(client)
        with pytest.raises(StorageError):
            await storage.runs.get("r", user_id=None)
        await storage.aclose()
