"""The storage as a whole: building, setup, ping, closing, configuration (CONTRACT section 8)."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ..contract.errors import StorageConfigError, StorageError, StorageUnavailableError
from ..contract.factory import create_storage
from ..contract.protocols import FeedbackStore, RunEventStore, RunStore, Storage, ThreadStore
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, needs, on_new_database, snapshot, stored_run
from .methods import METHODS
from .network import no_connections
from .run_events import event
from .values import assert_pickles_and_copies

_SECRET = "s3cr3t-w0rd"  # noqa: S105 - not a real password


_STORES: Mapping[str, type] = {
    "runs": RunStore,
    "feedback": FeedbackStore,
    "threads": ThreadStore,
    "run_events": RunEventStore,
}


class _TestError(Exception):
    pass


def _with_short_timeout(config: Mapping[str, Any]) -> Mapping[str, Any]:
    with_timeout = {**config, "timeout_ms": 1_000}
    try:
        create_storage(with_timeout)
    except StorageConfigError:
        return config  # the backend does not have this option
    return with_timeout


def _contract_methods() -> list[tuple[str, str, str | None]]:
    """Store, method and docstring of each method of the core Protocols."""
    return [
        (store, name, inspect.getdoc(method))
        for store, protocol in _STORES.items()
        for name, method in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    ]


class StorageContract(Contract):
    @pytest.fixture
    def unreachable_storage_config(self, storage_config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The configuration with a `url` on which nothing listens; a backend may override this fixture.

        Where the backend has an option `timeout_ms`, it is short.
        """
        scheme, _, rest = str(storage_config["url"]).partition("?")[0].partition("://")
        _, slash, path = rest.rpartition("@")[2].partition("/")
        with socket.socket() as unused:  # bound and not listening, so that nobody else gets the port
            unused.bind(("127.0.0.1", 0))
            config = {**storage_config, "url": f"{scheme}://127.0.0.1:{unused.getsockname()[1]}{slash}{path}"}
            yield _with_short_timeout(config)

    async def test_building_a_storage_opens_no_connection(self, storage_config: Mapping[str, Any]) -> None:
        """Building needs no event loop either."""
        with no_connections():
            storage = await asyncio.to_thread(create_storage, storage_config)
            assert isinstance(storage, Storage)
            assert storage.runs is not None
            assert storage.feedback is not None
            assert storage.threads is not None
            assert storage.run_events is not None
            assert storage.observer() is not None
            repr(storage)
        await storage.aclose()

    async def test_storage_built_outside_the_event_loop_works_inside(
        self, storage_config: Mapping[str, Any]
    ) -> None:
        async with await asyncio.to_thread(create_storage, storage_config) as storage:
            await given_run(storage)

    async def test_unused_storage_can_be_closed(self, storage_config: Mapping[str, Any]) -> None:
        storage = create_storage(storage_config)
        with no_connections():
            await storage.aclose()
            await storage.aclose()

    async def test_context_manager_sets_up_and_closes(self, storage_config: Mapping[str, Any]) -> None:
        storage = create_storage(storage_config)
        async with storage as entered:
            assert entered is storage
            await given_run(storage)
            assert (await stored_run(entered))["run_id"] == RUN
        with pytest.raises(StorageError):
            await storage.runs.get(RUN, user_id=None)

    async def test_context_manager_closes_after_an_error(self, storage_config: Mapping[str, Any]) -> None:
        storage = create_storage(storage_config)
        with pytest.raises(_TestError):
            async with storage:
                raise _TestError
        with pytest.raises(StorageError):
            await storage.runs.get(RUN, user_id=None)

    async def test_storage_works_without_the_context_manager(self, storage_config: Mapping[str, Any]) -> None:
        storage = create_storage(storage_config)
        try:
            await storage.setup()
            await given_run(storage)
        finally:
            await storage.aclose()

    async def test_closing_is_idempotent(self, storage: Storage) -> None:
        await given_run(storage)
        await storage.aclose()
        await storage.aclose()
        await asyncio.gather(storage.aclose(), storage.aclose())

    async def test_every_method_of_a_closed_storage_raises_a_storage_error(self, storage: Storage) -> None:
        await given_run(storage)
        await storage.aclose()
        for method in METHODS:
            with case(method.path), pytest.raises(StorageError):
                await method(storage)

    async def test_ping_returns_while_the_storage_is_open(self, storage: Storage) -> None:
        await storage.ping()
        await asyncio.gather(*(storage.ping() for _ in range(10)))
        await storage.aclose()
        with pytest.raises(StorageError):
            await storage.ping()

    @needs("server")
    async def test_unreachable_server_raises_storage_unavailable_error(
        self, unreachable_storage_config: Mapping[str, Any]
    ) -> None:
        """In `ping`, in `setup` and in a method; building and closing work without a server."""
        storage = create_storage(unreachable_storage_config)
        try:
            async with asyncio.timeout(120):
                results = await asyncio.gather(
                    storage.ping(),
                    storage.setup(),
                    storage.runs.get(RUN, user_id=None),
                    storage.run_events.list_messages(THREAD),
                    return_exceptions=True,
                )
            for result in results:
                assert isinstance(result, StorageUnavailableError), repr(result)
                assert result.__cause__ is not None
                assert_pickles_and_copies(result)
        finally:
            await storage.aclose()

    async def test_store_methods_have_the_contracts_docstring(self, storage: Storage) -> None:
        """`help(storage.runs.create)` and an editor show the contract."""
        for store, name, text in _contract_methods():
            with case(store, name):
                assert text
                assert inspect.getdoc(getattr(getattr(storage, store), name)) == text

    async def test_setup_is_idempotent_and_preserves_stored_data(self, storage: Storage) -> None:
        for method in METHODS[:12]:
            if "delete" not in method.name:
                await method(storage)
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        before = await snapshot(storage)
        for _ in range(3):
            await storage.setup()
        assert await snapshot(storage) == before
        await asyncio.gather(*(storage.setup() for _ in range(5)))
        assert await snapshot(storage) == before

    @on_new_database
    async def test_concurrent_setup_of_many_storages_works(self, storage_config: Mapping[str, Any]) -> None:
        """On an empty database, from one process; each storage works afterwards."""

        async def open_and_write(number: int) -> None:
            async with create_storage(storage_config) as storage:
                await storage.runs.create(f"run-{number}", THREAD, user_id=None)
                assert (await stored_run(storage, f"run-{number}"))["status"] == "pending"

        await asyncio.gather(*(open_and_write(number) for number in range(10)))

    @on_new_database
    async def test_every_method_works_after_setup(self, storage_config: Mapping[str, Any]) -> None:
        async with create_storage(storage_config) as storage:
            for method in METHODS:
                await method(storage)

    @on_new_database
    async def test_new_database_is_empty(self, storage_config: Mapping[str, Any]) -> None:
        async with create_storage(storage_config) as storage:
            assert await snapshot(storage, THREAD) == [[], [], [], []]

    @needs("durability")
    async def test_acknowledged_writes_are_visible_to_the_next_storage(
        self, storage_config: Mapping[str, Any]
    ) -> None:
        """A second storage reads exactly what the first one wrote."""
        async with create_storage(storage_config) as first:
            await given_run(first, metadata={"$a.b": 2**70})
            await first.runs.update_status(RUN, "running", metadata={"c": None})
            await first.runs.record_token_usage(RUN, caller="subagent", model_name="gpt-4.1", input_tokens=3)
            await first.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE, comment="yes")
            await first.threads.ensure_thread(thread_id=THREAD, metadata={"": {"$gt": ""}}, user_id=ALICE)
            await first.run_events.put_batch([event(content={"$a.b": 2**70}), event(content="text")])
            written = await snapshot(first)
            usage = await first.runs.token_usage_by_thread(THREAD, user_id=ALICE)
        async with create_storage(storage_config) as second:
            assert await snapshot(second) == written
            assert await second.runs.token_usage_by_thread(THREAD, user_id=ALICE) == usage

    @needs("durability")
    async def test_two_storages_see_each_others_writes(self, storage_config: Mapping[str, Any]) -> None:
        async with create_storage(storage_config) as first, create_storage(storage_config) as second:
            await given_run(first)
            await second.runs.update_status(RUN, "running")
            assert (await stored_run(first))["status"] == "running"
            assert await first.runs.delete(RUN, user_id=ALICE) is True
            assert await second.runs.get(RUN, user_id=None) is None

    async def test_unknown_option_raises_config_error(self, storage_config: Mapping[str, Any]) -> None:
        """The error names the unknown key."""
        with pytest.raises(StorageConfigError, match="no_such_option") as raised:
            create_storage({**storage_config, "no_such_option": 1})
        assert_pickles_and_copies(raised.value)

    @needs("server")
    async def test_repr_and_errors_never_show_the_password(self, storage_config: Mapping[str, Any]) -> None:
        """Neither `repr`, `str` nor the error text and its cause contain the password of the URL."""
        scheme, _, rest = str(storage_config["url"]).partition("://")
        url = f"{scheme}://someone:{_SECRET}@{rest.rpartition('@')[2]}"
        storage = create_storage({**storage_config, "url": url})
        for text in (repr(storage), str(storage), f"{storage}"):
            assert _SECRET not in text
        await storage.aclose()
        with pytest.raises(StorageConfigError) as raised:
            create_storage({**storage_config, "url": url, "no_such_option": 1})
        assert _SECRET not in f"{raised.value!s}{raised.value!r}{raised.value.__cause__!r}"
