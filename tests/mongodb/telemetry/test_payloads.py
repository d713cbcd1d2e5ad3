"""Nothing that a user wrote or was given is in a span, a metric or a log record, also where a call fails."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest

from deerflow_mongo import MongoStorage, StorageError, ThreadMetaCreate
from deerflow_mongo.mongodb.drivers.errors import DuplicateKeyError
from deerflow_mongo.mongodb.telemetry.prometheus import StorageCollector
from deerflow_mongo.testing.methods import METHODS, OWNERSHIP_METHODS

from ..checkpoints.puts import listed, put, put_writes
from ..drivers.fixtures import event
from .conftest import OpenObserved
from .reports import Reports

MARKER = "zebra-crossing"
EMAIL = f"{MARKER}@example.org"
RUN, THREAD = "run-1", "thread-1"


async def _write_users_text(storage: MongoStorage) -> None:
    """The marker in everything that a host stores for a user."""
    payload = {MARKER: [MARKER]}
    await storage.users.create(
        "user-1", email=EMAIL, password_hash=MARKER, oauth_provider=MARKER, oauth_id=MARKER
    )
    await storage.users.get_by_email(EMAIL)
    await storage.users.get_by_oauth(MARKER, MARKER)
    await storage.threads.create_thread_meta(
        ThreadMetaCreate(thread_id=THREAD, user_id=MARKER, display_name=MARKER, metadata=payload)
    )
    await storage.threads.search_threads(metadata=payload, user_id=MARKER)
    await storage.threads.sync_thread_title(thread_id=THREAD, title=MARKER)
    await storage.runs.create(
        RUN, THREAD, user_id=MARKER, metadata=payload, kwargs=payload, model_name=MARKER
    )
    await storage.runs.set_error(RUN, MARKER)
    await storage.runs.update_run_completion(
        RUN, status="error", first_human_message=MARKER, last_ai_message=MARKER, error=MARKER
    )
    await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=MARKER, comment=MARKER)
    await storage.run_events.put_batch([event(MARKER, THREAD, RUN), event(payload, THREAD, RUN)])
    saver = await storage.checkpointer()
    checkpoint = await put(saver, THREAD, payload, source=MARKER)
    await put_writes(saver, THREAD, checkpoint, payload)
    await listed(saver, THREAD)


async def _fail_with_users_text(storage: MongoStorage) -> None:
    """Errors whose texts, ours or the server's, quote the marker."""
    with contextlib.suppress(StorageError):
        await storage.users.create("user-2", email=EMAIL)
    with contextlib.suppress(StorageError):
        await storage.runs.create(RUN, MARKER, user_id=MARKER, created_at=MARKER)
    telemetry = storage.telemetry
    assert telemetry is not None
    users = storage.driver.collection("users")
    await storage.users.create("user-2", email="other@example.org")
    with telemetry.background("users.refused"), pytest.raises(DuplicateKeyError):
        await users.find_one_and_update({"_id": "user-2"}, {"$set": {"email": EMAIL}})


def _without_ids(text: str) -> str:
    """Without the one id that holds the marker: ids of threads and runs are recorded on purpose."""
    return text.replace(f'"deerflow.thread_id": "{MARKER}"', "").replace(f"'thread_id': '{MARKER}'", "")


async def test_no_text_of_a_user_is_recorded(open_observed: OpenObserved, reports: Reports) -> None:
    async with open_observed(slow_ms=1) as storage:
        await _write_users_text(storage)
        await _fail_with_users_text(storage)
        registry = CollectorRegistry()
        registry.register(StorageCollector(storage))
        found = reports.everything() + generate_latest(registry).decode()
    assert "users.create" in found
    assert "run_events.put_batch" in found
    assert MARKER not in _without_ids(found)
    refused = [span for span in reports.spans if span.status.description][-1]
    assert (refused.status.status_code, refused.status.description) == (StatusCode.ERROR, "DuplicateKey")


@pytest.mark.parametrize("bad", [MARKER * 100, {"$ne": MARKER}, "", None, [MARKER], "\ud800" + MARKER])
async def test_argument_that_is_no_id_is_not_recorded(
    observed: MongoStorage, reports: Reports, bad: Any
) -> None:
    for call in (
        lambda: observed.runs.get(bad, user_id="alice"),
        lambda: observed.runs.list_by_thread(thread_id=bad, user_id="alice"),
        lambda: observed.run_events.put_batch([bad]),
        lambda: observed.run_events.put_batch(bad),
        lambda: observed.threads.create_thread_meta(bad),
    ):
        with contextlib.suppress(Exception):
            await call()
    assert len([span for span in reports.spans if not span.name.startswith("test")]) >= 5
    assert MARKER not in reports.everything()


def test_every_method_of_the_contract_is_an_operation(open_observed: OpenObserved) -> None:
    storage = open_observed()
    for method in (*METHODS, *OWNERSHIP_METHODS):
        store: object = getattr(storage, method.path.partition(".")[0])
        observed, plain = type(store).__mro__[:2]
        assert getattr(observed, method.name) is not getattr(plain, method.name), method.path
