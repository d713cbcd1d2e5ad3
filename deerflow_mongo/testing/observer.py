"""The observer: run lifecycle events are written to the stores (CONTRACT section 7)."""

from __future__ import annotations

import enum
import logging
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from ..contract.observer import LifecycleEvent, LifecycleEventType, StorageRunObserver
from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, snapshot, stored_run, stored_thread
from .values import COMPLETION_DATA

_AT = datetime(2026, 4, 22, 8, 56, 38, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
_AT_TEXT = "2026-04-22T03:26:38.123456+00:00"

_WITHOUT_COUNTS: tuple[Any, ...] = ({}, None, {"completion_data": None}, {"completion_data": "none"})

# event -> the run's status afterwards
_ENDINGS = {"run_completed": "success", "run_failed": "error", "run_cancelled": "interrupted"}


class HostEventType(enum.Enum):
    """Stands for a host's own enum."""

    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    THREAD_STATUS_UPDATED = "thread_status_updated"
    SOMETHING_ELSE = "something_else"


_STORED = [kind for kind in HostEventType if kind is not HostEventType.SOMETHING_ELSE]


def _event(kind: object, payload: Any = None, *, run_id: str = RUN, thread_id: str = THREAD) -> Any:
    """An event of a host: any object with these attributes."""
    return SimpleNamespace(
        event_type=kind, run_id=run_id, thread_id=thread_id, occurred_at=_AT, payload=payload, event_id="e-1"
    )


class _Recorder:
    """A run write repository and a thread storage that only record the calls."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._failing = failing

    def _record(self, name: str, arguments: dict[str, Any]) -> None:
        self.calls.append((name, arguments))
        if name in self._failing:
            raise ConnectionError("the database is down")

    async def update_status(self, run_id: str, status: str, **fields: Any) -> None:
        self._record("update_status", {"run_id": run_id, "status": status, **fields})

    async def set_error(self, run_id: str, error: str) -> None:
        self._record("set_error", {"run_id": run_id, "error": error})

    async def update_run_completion(self, run_id: str, *, status: str, **fields: Any) -> None:
        self._record("update_run_completion", {"run_id": run_id, "status": status, **fields})

    async def sync_thread_title(self, *, thread_id: str, title: str) -> None:
        self._record("sync_thread_title", {"thread_id": thread_id, "title": title})

    async def sync_thread_status(self, *, thread_id: str, status: str) -> None:
        self._record("sync_thread_status", {"thread_id": thread_id, "status": status})

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def _observing(runs: Any = None, threads: Any = None) -> StorageRunObserver:
    return StorageRunObserver(runs, threads)


async def _after(storage: Storage, kind: object, payload: Any, **fields: Any) -> dict[str, Any]:
    """The row of a new run after one event."""
    run_id = f"run {kind} {payload!r}"[:200]
    await given_run(storage, run_id, **{"status": "running", **fields})
    await storage.observer().on_event(_event(kind, payload, run_id=run_id))
    return dict(await stored_run(storage, run_id))


class ObserverContract(Contract):
    async def test_started_event_sets_running_and_started_at(self, storage: Storage) -> None:
        row = await _after(storage, "run_started", {"anything": 1}, status="pending")
        assert (row["status"], row["started_at"], row["ended_at"]) == ("running", _AT_TEXT, None)

    async def test_ending_event_without_counts_sets_status_and_ended_at(self, storage: Storage) -> None:
        """Every ending stores `ended_at`."""
        for kind, status in _ENDINGS.items():
            for payload in _WITHOUT_COUNTS:
                with case(kind, payload):
                    row = await _after(storage, kind, payload)
                    assert (row["status"], row["ended_at"]) == (status, _AT_TEXT)
                    assert (row["total_tokens"], row["last_ai_message"]) == (0, None)

    async def test_ending_event_with_counts_stores_them_and_ended_at(self, storage: Storage) -> None:
        for kind, status in _ENDINGS.items():
            with case(kind):
                row = await _after(storage, kind, {"completion_data": COMPLETION_DATA})
                assert (row["status"], row["ended_at"]) == (status, _AT_TEXT)
                assert {name: row[name] for name in COMPLETION_DATA} == COMPLETION_DATA

    async def test_ending_event_with_counts_by_model_stores_them(self, storage: Storage) -> None:
        by_model = {"gpt-4.1": {"input_tokens": 5, "output_tokens": 2, "llm_calls": 3}}
        expected = {"runs": 1, "tokens": 7, "input_tokens": 5, "output_tokens": 2, "llm_calls": 3}
        for kind in _ENDINGS:
            with case(kind):
                data = {**COMPLETION_DATA, "token_usage_by_model": by_model}
                await _after(storage, kind, {"completion_data": data}, thread_id=f"thread of {kind}")
                usage = await storage.runs.token_usage_by_thread(f"thread of {kind}", user_id=None)
                assert usage["by_model"] == {"gpt-4.1": expected}

    async def test_invalid_counts_by_model_are_left_out_and_logged(
        self, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All of them; the other counts are stored, and the counts by model stay as recorded."""
        invalid: tuple[Any, ...] = ("text", 5, ["m"], {"m": 5}, {5: {}}, {"a": {}, "b": {"llm_calls": -1}})
        for value in invalid:
            with case(value), caplog.at_level(logging.WARNING):
                caplog.clear()
                thread_id = f"thread {value!r}"
                await given_run(storage, thread_id, thread_id, status="running")
                await storage.runs.record_token_usage(
                    thread_id, caller="subagent", model_name="m", input_tokens=1
                )
                data = {**COMPLETION_DATA, "token_usage_by_model": value}
                await storage.observer().on_event(
                    _event("run_completed", {"completion_data": data}, run_id=thread_id)
                )
                row = dict(await stored_run(storage, thread_id))
                assert (row["status"], row["total_tokens"]) == ("success", COMPLETION_DATA["total_tokens"])
                usage = await storage.runs.token_usage_by_thread(thread_id, user_id=None)
                assert [(name, used["tokens"]) for name, used in usage["by_model"].items()] == [("m", 1)]
                [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
                assert thread_id in record.getMessage()
                assert "token_usage_by_model" in record.getMessage()

    async def test_ending_event_with_empty_completion_data_ends_the_run(self, storage: Storage) -> None:
        for kind, status in _ENDINGS.items():
            with case(kind):
                row = await _after(storage, kind, {"completion_data": {}})
                assert (row["status"], row["ended_at"], row["total_tokens"]) == (status, _AT_TEXT, 0)

    async def test_completion_data_may_contain_status_or_error(self, storage: Storage) -> None:
        """`error` or `status` inside `completion_data` never breaks the call."""
        own = {
            **COMPLETION_DATA,
            "status": "running",
            "error": "inner",
            "run_id": "another",
            "ended_at": "never",
            "extra": object(),
        }
        for kind, status in _ENDINGS.items():
            with case(kind):
                row = await _after(storage, kind, {"completion_data": own, "error": "outer"})
                assert (row["status"], row["ended_at"]) == (status, _AT_TEXT)
                assert {name: row[name] for name in COMPLETION_DATA} == COMPLETION_DATA

    async def test_payload_error_takes_precedence_over_completion_data(self, storage: Storage) -> None:
        inner = {"completion_data": {"error": "inner"}}
        table: tuple[tuple[dict[str, Any], str], ...] = (
            ({"error": "outer"}, "outer"),
            ({"error": "outer", **inner}, "outer"),
            (inner, "inner"),
            ({"error": ValueError("an exception")}, "an exception"),
            ({"error": ValueError("an exception"), **inner}, "an exception"),
        )
        for payload, expected in table:
            with case(payload):
                assert (await _after(storage, "run_failed", payload))["error"] == expected

    async def test_failed_run_always_has_an_error_text(self, storage: Storage) -> None:
        payloads: tuple[Any, ...] = (None, {}, {"completion_data": {}}, {"completion_data": {"error": None}})
        for payload in payloads:
            with case(payload):
                row = await _after(storage, "run_failed", payload)
                assert row["status"] == "error"
                assert row["error"]

    async def test_completed_event_sets_the_thread_title(self, storage: Storage) -> None:
        """Only if the payload has a `title`."""
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        for payload in ({"title": "First"}, {"title": "Second", "completion_data": COMPLETION_DATA}):
            with case(payload):
                await _after(storage, "run_completed", payload)
                assert (await stored_thread(storage)).display_name == payload["title"]
        await _after(storage, "run_completed", {"completion_data": {}})
        await _after(storage, "run_failed", {"title": "Third"})
        assert (await stored_thread(storage)).display_name == "Second"

    async def test_thread_status_event_sets_the_status_or_idle(self, storage: Storage) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        for payload, status in (
            ({"status": "busy"}, "busy"),
            ({}, "idle"),
            ({"status": "error"}, "error"),
            (None, "idle"),
        ):
            with case(payload):
                await storage.observer().on_event(_event("thread_status_updated", payload))
                assert (await stored_thread(storage)).status == status

    async def test_observer_matches_events_by_the_value_of_their_type(self) -> None:
        """A host's own enum works, and so does plain text."""
        for given in (*_STORED, *LifecycleEventType, *(kind.value for kind in LifecycleEventType)):
            with case(given):
                recorder = _Recorder()
                await _observing(recorder, recorder).on_event(_event(given, {"title": "T"}))
                assert recorder.calls

    async def test_observer_ignores_other_events(self, storage: Storage) -> None:
        await given_run(storage)
        before = await snapshot(storage)
        for kind in (
            "something_else",
            HostEventType.SOMETHING_ELSE,
            "RUN_STARTED",
            "",
            None,
            5,
            ["run_started"],
        ):
            with case(kind):
                await storage.observer().on_event(_event(kind, {"title": "T", "status": "busy"}))
        assert await snapshot(storage) == before

    async def test_observer_accepts_the_packages_lifecycle_event(self, storage: Storage) -> None:
        await given_run(storage)
        await storage.observer().on_event(
            LifecycleEvent(
                event_type=LifecycleEventType.RUN_COMPLETED, run_id=RUN, thread_id=THREAD, occurred_at=_AT
            )
        )
        row = await stored_run(storage)
        assert (row["status"], row["ended_at"]) == ("success", _AT_TEXT)

    async def test_late_started_event_does_not_reactivate_a_run(self, storage: Storage) -> None:
        """An ended run stays ended when `run_started` arrives late."""
        for kind, status in _ENDINGS.items():
            with case(kind):
                await given_run(storage, kind, status="running")
                await storage.observer().on_event(
                    _event(kind, {"completion_data": COMPLETION_DATA}, run_id=kind)
                )
                await storage.observer().on_event(_event("run_started", run_id=kind))
                assert (await stored_run(storage, kind))["status"] == status

    async def test_observer_logs_an_event_that_cannot_be_stored(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The record has its type and run id; nothing is raised, so the agent's run continues."""
        failing = ("update_status", "update_run_completion", "sync_thread_title", "sync_thread_status")
        payloads: tuple[Any, ...] = ({"title": "T"}, {"completion_data": {}})
        for kind in _STORED:
            for payload in payloads:
                with case(kind.value, payload), caplog.at_level(logging.ERROR):
                    caplog.clear()
                    recorder = _Recorder(failing)
                    await _observing(recorder, recorder).on_event(
                        _event(kind, payload, run_id="run-that-fails")
                    )
                    assert recorder.calls
                    errors = [
                        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
                    ]
                    assert errors
                    assert all(kind.value in text and "run-that-fails" in text for text in errors)

    async def test_observer_raises_nothing_after_the_storage_is_closed(
        self, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        observer = storage.observer()
        await storage.aclose()
        await observer.on_event(_event("run_started"))
        assert any(
            "run_started" in record.getMessage() and RUN in record.getMessage() for record in caplog.records
        )

    async def test_observer_works_with_either_store_missing(self) -> None:
        """Both stores are optional."""
        payload = {"title": "T", "status": "busy", "completion_data": {"total_tokens": 1}}
        for kind in HostEventType:
            with case(kind.value):
                await _observing().on_event(_event(kind, payload))
                runs, threads = _Recorder(), _Recorder()
                await _observing(runs, None).on_event(_event(kind, payload))
                await _observing(None, threads).on_event(_event(kind, payload))
                assert not [name for name in runs.names if "thread" in name]
                assert [name for name in threads.names if "thread" in name] == threads.names

    async def test_observer_drops_unknown_completion_fields(self) -> None:
        """Any run write repository gets only the fields of the contract."""
        known = {*COMPLETION_DATA, "error", "ended_at", "run_id", "status"}
        for kind, status in _ENDINGS.items():
            with case(kind):
                recorder = _Recorder()
                payload = {
                    "completion_data": {
                        **COMPLETION_DATA,
                        "unknown": 1,
                        "status": "x",
                        "run_id": "x",
                        "thread_id": 2,
                    }
                }
                await _observing(recorder).on_event(_event(kind, payload))
                [(name, arguments)] = recorder.calls
                assert name == "update_run_completion"
                assert set(arguments) <= known
                assert (arguments["run_id"], arguments["status"]) == (RUN, status)
                assert {name: arguments[name] for name in COMPLETION_DATA} == COMPLETION_DATA
                assert datetime.fromisoformat(str(arguments["ended_at"])) == _AT

    async def test_observer_does_not_modify_the_payload(self) -> None:
        for kind in HostEventType:
            with case(kind.value):
                payload: dict[str, Any] = {
                    "title": "T",
                    "error": "e",
                    "completion_data": {"error": "x", "y": 1},
                }
                await _observing(_Recorder(), _Recorder()).on_event(_event(kind, payload))
                assert payload == {"title": "T", "error": "e", "completion_data": {"error": "x", "y": 1}}
