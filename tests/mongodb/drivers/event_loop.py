"""A storage belongs to one event loop and one process; every method raises a `StorageError` in others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, StorageError
from deerflow_mongo.testing.methods import METHODS

from .fixtures import DriverFixtures, Opener, event

_LIMIT_S = 20


def _calls(storage: MongoStorage) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
    for method in METHODS:
        yield method.path, lambda method=method: method(storage)
    yield "setup", storage.setup
    yield "inspect", storage.inspect
    yield "ping", storage.ping
    yield "checkpointer", storage.checkpointer
    yield "run_events.put_batch", lambda: storage.run_events.put_batch([event()])
    yield "run_events.follow", lambda: anext(storage.run_events.follow("t"))
    yield "run_events.flush", storage.run_events.flush
    yield "run_events.aclose", storage.run_events.aclose
    yield "aclose", storage.aclose


def _wrong_answers(storage: MongoStorage) -> list[str]:
    """Of every method, each called in an event loop of its own: what is not the package's refusal."""
    wrong: list[str] = []
    for name, call in _calls(storage):

        async def bounded(call: Callable[[], Awaitable[Any]] = call) -> None:
            await asyncio.wait_for(call(), _LIMIT_S)

        try:
            asyncio.run(bounded())
        except StorageError as error:
            if "one storage per event loop" not in str(error):
                wrong.append(f"{name}: {error!r}")
        except Exception as error:  # noqa: BLE001 - any other error is what the test looks for
            wrong.append(f"{name}: {error!r}")
        else:
            wrong.append(f"{name}: no error")
    return wrong


def _in_child(call: Callable[[], bool]) -> bool:
    """What `call` returns in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if call() else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class EventLoopContract(DriverFixtures):
    def test_every_method_refuses_another_event_loop_and_another_process(self, new_storage: Opener) -> None:
        storage = new_storage()
        with asyncio.Runner() as first:
            first.run(storage.setup())
            assert _wrong_answers(storage) == []
            assert _in_child(lambda: not _wrong_answers(storage))
            first.run(storage.runs.create("r", "t", user_id=None))
            first.run(storage.aclose())

    def test_unused_storage_belongs_to_the_loop_and_process_of_its_first_call(
        self, new_storage: Opener
    ) -> None:
        storage = new_storage()

        async def use() -> bool:
            await storage.ping()
            await storage.aclose()
            return True

        assert _in_child(lambda: asyncio.run(use()))
        assert asyncio.run(use())

    def test_client_of_another_event_loop_is_refused(self, new_storage: Opener, mongodb_url: str) -> None:
        client = self.client_class(mongodb_url)
        with asyncio.Runner() as first:
            first.run(new_storage(client=client).ping())
            storage = new_storage(client=client)
            with pytest.raises(StorageError, match="one storage per event loop"):
                asyncio.run(storage.ping())
            with pytest.raises(StorageError, match="one storage per event loop"):
                asyncio.run(new_storage(client=client).runs.get("r", user_id=None))
            closing = client.close()
            if closing is not None:
                first.run(closing)
