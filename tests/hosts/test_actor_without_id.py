"""A user without an id (an anonymous request) has the access of a stranger at every adapter."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from deerflow_mongo import ActorMissingError, create_storage

from .gateway_process import needs_deerflow
from .host_stores import FEEDBACK, RUN_EVENTS, RUNS, THREADS, acting, named

pytestmark = needs_deerflow

RUN = {"run_id": "r", "thread_id": "t"}
EVENT = {**RUN, "event_type": "e", "category": "message", "content": "what only alice knows"}


@contextmanager
def anonymous() -> Generator[None]:
    """A user of DeerFlow without an id."""
    user_context: Any = importlib.import_module("deerflow.runtime.user_context")
    token = user_context.set_current_user(SimpleNamespace(id=None))
    try:
        yield
    finally:
        user_context.reset_current_user(token)


@pytest_asyncio.fixture
async def stores() -> AsyncGenerator[Any]:
    """Every adapter over a storage in memory, with a thread of alice, a run, an event and a vote."""
    async with create_storage({"backend": "memory"}) as storage:
        adapters = SimpleNamespace(
            runs=named(RUNS.ours)(storage.runs),
            events=named(RUN_EVENTS.ours)(storage.run_events),
            threads=named(THREADS.ours)(storage.threads, storage.runs),
            feedback=named(FEEDBACK.ours)(storage.feedback),
        )
        with acting("alice"):
            await adapters.threads.create("t")
            await adapters.runs.put("r", thread_id="t")
            await adapters.events.put(**EVENT)
            await adapters.feedback.upsert(**RUN, rating=1)
        yield adapters


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(*positional: Any, **named_ones: Any) -> Arguments:
    return positional, named_ones


async def call(stores: Any, method: str, given: Arguments, **more: Any) -> Any:
    part, _, name = method.partition(".")
    return await getattr(getattr(stores, part), name)(*given[0], **given[1], **more)


CALLS: dict[str, Arguments] = {
    "runs.put": arguments("new", thread_id="t"),
    "runs.get": arguments("r"),
    "runs.list_by_thread": arguments("t"),
    "runs.delete": arguments("r"),
    "events.list_messages": arguments("t"),
    "events.list_events": arguments("t", "r"),
    "events.list_messages_by_run": arguments("t", "r"),
    "events.count_messages": arguments("t"),
    "events.delete_by_thread": arguments("t"),
    "events.delete_by_run": arguments("t", "r"),
    "threads.create": arguments("new"),
    "threads.get": arguments("t"),
    "threads.search": arguments(),
    "threads.update_display_name": arguments("t", "x"),
    "threads.update_status": arguments("t", "x"),
    "threads.update_metadata": arguments("t", {"x": 1}),
    "threads.delete": arguments("t"),
    "feedback.create": arguments(**RUN, rating=-1),
    "feedback.upsert": arguments(**RUN, rating=-1),
    "feedback.get": arguments("id"),
    "feedback.delete": arguments("id"),
    "feedback.list_by_run": arguments("t", "r"),
    "feedback.list_by_thread": arguments("t"),
    "feedback.list_by_thread_grouped": arguments("t"),
    "feedback.delete_by_run": arguments(**RUN),
}
"""Every method that takes a user."""

WITHOUT_USER: dict[str, Arguments] = {
    "events.put": arguments(**EVENT),
    "events.put_batch": arguments([{**EVENT, "user_id": "alice"}]),
    "runs.aggregate_tokens_by_thread": arguments("t"),
    "feedback.aggregate_by_run": arguments("t", "r"),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("user", [{}, {"user_id": None}], ids=["default", "none"])
async def test_methods_with_a_user_refuse_an_actor_without_an_id(
    stores: Any, method: str, user: dict[str, Any]
) -> None:
    with anonymous(), pytest.raises(ActorMissingError):
        await call(stores, method, CALLS[method], **user)
    await _assert_untouched(stores)


@pytest.mark.parametrize("method", WITHOUT_USER)
async def test_other_methods_refuse_an_actor_without_an_id(stores: Any, method: str) -> None:
    with anonymous(), pytest.raises(ActorMissingError):
        await call(stores, method, WITHOUT_USER[method])
    await _assert_untouched(stores)


async def test_actor_without_an_id_has_access_to_nobodys_threads_only(stores: Any) -> None:
    await stores.threads.create("nobody's", user_id=None)
    await stores.threads.create("of a user called None", user_id="None")
    await stores.runs.put("r2", thread_id="deleted", user_id="None")
    with anonymous():
        for user_id in ("None", "alice"):
            assert await stores.threads.check_access("nobody's", user_id)
            assert await stores.threads.check_access("missing", user_id)
            assert not await stores.threads.check_access("missing", user_id, require_existing=True)
            for thread_id in ("t", "of a user called None", "deleted"):
                assert not await stores.threads.check_access(thread_id, user_id)


async def _assert_untouched(stores: Any) -> None:
    """Alice's rows are there, and none is beside them."""
    with acting("alice"):
        assert (await stores.threads.get("t"))["display_name"] is None
        assert [row["run_id"] for row in await stores.runs.list_by_thread("t")] == ["r"]
        assert await stores.events.count_messages("t") == 1
    assert len(await stores.threads.search(user_id=None)) == 1
    assert [row["rating"] for row in await stores.feedback.list_by_thread("t", user_id=None)] == [1]
