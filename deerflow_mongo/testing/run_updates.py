"""Runs: statuses, endings and completion counts, each in one atomic update (CONTRACT section 3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..contract.protocols import Storage
from ..contract.rows import ACTIVE_STATUSES, COMPLETION_TEXTS, ENDED_STATUSES, UNSET
from .cases import case
from .contract import RUN, THREAD, Contract, given_run, snapshot, stored_run
from .values import COMPLETION_DATA, assert_is_now, assert_row_time, exactly, now

_STATUSES = (*ACTIVE_STATUSES, *ENDED_STATUSES)
_EARLY, _LATE = "2026-04-22T03:00:00.000001+00:00", "2026-04-22T04:00:00+00:00"

_COMPLETION: dict[str, Any] = {**COMPLETION_DATA, "error": "an error text"}
_NO_COMPLETION: dict[str, Any] = {
    name: 0 if isinstance(value, int) else None for name, value in _COMPLETION.items()
}

_KEYS: dict[str, Any] = {
    "": "empty",
    ".": 1,
    "a.b": {"c.d": 2},
    "$set": {"$inc": 3},
    "$a": "$b",
    "_id": 4,
    "0": [5],
    "status": "not the run's",
    "a b": None,
    "ключ": "значение",
    "quote'\"`": "quote'\"`",
    "percent%": "%s",
}


def _expected_status(old: str, new: str) -> str:
    """An ended run never becomes active again; one ending may replace another."""
    return old if old in ENDED_STATUSES and new in ACTIVE_STATUSES else new


def _of(row: Any, names: Any) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _other_texts_unset(**texts: Any) -> dict[str, Any]:
    """These texts of a completion, and `UNSET` for the others."""
    return {**dict.fromkeys(COMPLETION_TEXTS, UNSET), **texts}


class RunUpdateContract(Contract):
    async def test_update_status_never_reactivates_an_ended_run(self, storage: Storage) -> None:
        """Such an update still merges its metadata and sets times that are not set."""
        for old in _STATUSES:
            for new in _STATUSES:
                with case(old, new):
                    run_id = f"{old} {new}"
                    await given_run(storage, run_id, status=old, metadata={"a": 1, "b": 1})
                    await storage.runs.update_status(
                        run_id, new, started_at=_EARLY, ended_at=_LATE, metadata={"b": 2}
                    )
                    row = await stored_run(storage, run_id)
                    assert row["status"] == _expected_status(old, new)
                    assert row["metadata"] == {"a": 1, "b": 2}
                    assert (row["started_at"], row["ended_at"]) == (_EARLY, _LATE)

    async def test_completion_never_reactivates_an_ended_run(self, storage: Storage) -> None:
        for old in _STATUSES:
            for new in _STATUSES:
                with case(old, new):
                    run_id = f"{old} {new}"
                    await given_run(storage, run_id, status=old)
                    await storage.runs.update_run_completion(run_id, status=new, ended_at=_LATE)
                    row = await stored_run(storage, run_id)
                    assert row["status"] == _expected_status(old, new)
                    assert row["ended_at"] == _LATE

    async def test_active_status_on_an_ended_run_leaves_set_times_unchanged(self, storage: Storage) -> None:
        for old in ENDED_STATUSES:
            for new in ACTIVE_STATUSES:
                with case(old, new):
                    run_id = f"{old} {new}"
                    await given_run(storage, run_id, status=old, started_at=_EARLY, ended_at=_EARLY)
                    await storage.runs.update_status(run_id, new, started_at=_LATE, ended_at=_LATE)
                    await storage.runs.update_run_completion(run_id, status=new, ended_at=_LATE)
                    row = await stored_run(storage, run_id)
                    assert (row["status"], row["started_at"], row["ended_at"]) == (old, _EARLY, _EARLY)

    async def test_active_completion_of_an_ended_run_leaves_counts_unchanged(self, storage: Storage) -> None:
        await given_run(storage)
        await storage.runs.update_run_completion(RUN, status="error", **_COMPLETION)
        await storage.runs.update_run_completion(RUN, status="running", total_tokens=1, error="late")
        row = await stored_run(storage)
        assert row["status"] == "error"
        assert _of(row, _COMPLETION) == _COMPLETION

    async def test_status_update_of_an_active_run_stores_given_times(self, storage: Storage) -> None:
        """Given times are stored, absent ones leave the stored times as they are."""
        await given_run(storage)
        await storage.runs.update_status(RUN, "running", started_at=_EARLY)
        await storage.runs.update_status(RUN, "running")
        row = await stored_run(storage)
        assert (row["started_at"], row["ended_at"]) == (_EARLY, None)
        await storage.runs.update_status(RUN, "running", started_at=_LATE)
        await storage.runs.update_status(RUN, "success", ended_at=_LATE)
        row = await stored_run(storage)
        assert (row["started_at"], row["ended_at"]) == (_LATE, _LATE)

    async def test_status_update_changes_nothing_else(self, storage: Storage) -> None:
        before = await given_run(
            storage, metadata={"a": 1}, kwargs={"k": 1}, model_name="m", assistant_id="x"
        )
        await storage.runs.update_status(RUN, "running", started_at=_EARLY, metadata={"b": 2})
        after = await stored_run(storage)
        changed = {"status": "running", "started_at": _EARLY, "metadata": {"a": 1, "b": 2}}
        assert after == {**before, **changed, "updated_at": after["updated_at"]}

    async def test_updated_at_is_empty_until_the_first_update(self, storage: Storage) -> None:
        updates: dict[str, Callable[[str], Awaitable[object]]] = {
            "update_status": lambda run_id: storage.runs.update_status(run_id, "running"),
            "set_error": lambda run_id: storage.runs.set_error(run_id, "broken"),
            "update_run_completion": lambda run_id: storage.runs.update_run_completion(
                run_id, status="error"
            ),
            "record_token_usage": lambda run_id: storage.runs.record_token_usage(run_id, caller="subagent"),
            "update_model_name": lambda run_id: storage.runs.update_model_name(run_id, "m"),
        }
        for name, update in updates.items():
            for status in ("pending", "success"):
                with case(name, status):
                    run_id = f"{name} of {status}"
                    assert (await given_run(storage, run_id, status=status))["updated_at"] == ""
                    since = now()
                    await update(run_id)
                    moment = assert_row_time((await stored_run(storage, run_id))["updated_at"])
                    assert_is_now(moment, since=since)

    async def test_update_changes_nothing_that_it_does_not_name(self, storage: Storage) -> None:
        """In any status: an absent time is neither set nor cleared, and counting tokens changes no status."""
        updates: tuple[tuple[Callable[[str, str], Awaitable[object]], dict[str, Any]], ...] = (
            (lambda run_id, status: storage.runs.update_status(run_id, status), {}),
            (
                lambda run_id, _: storage.runs.record_token_usage(run_id, caller="subagent"),
                {"llm_call_count": 1},
            ),
            (lambda run_id, _: storage.runs.update_model_name(run_id, "m"), {"model_name": "m"}),
            (lambda run_id, _: storage.runs.set_error(run_id, "e"), {"status": "error", "error": "e"}),
        )
        for status in (*_STATUSES, "odd"):
            for time in (None, _EARLY):
                run_id = f"{status} {time}"
                expected = dict(
                    await given_run(storage, run_id, status=status, started_at=time, ended_at=time)
                )
                for number, (update, changes) in enumerate(updates):
                    with case(status, time, number):
                        await update(run_id, status)
                        row = await stored_run(storage, run_id)
                        expected |= {**changes, "updated_at": row["updated_at"]}
                        assert row == expected

    async def test_status_metadata_is_merged_by_top_level_key(self, storage: Storage) -> None:
        await given_run(storage, metadata={"a": {"x": 1}, "b": [1], "c": 1})
        await storage.runs.update_status(RUN, "running", metadata={"a": {"y": 2}, "d": None})
        await storage.runs.update_status(RUN, "running", metadata={"c": None, "e": {}})
        await storage.runs.update_status(RUN, "running", metadata={})
        await storage.runs.update_status(RUN, "running", metadata=None)
        row = await stored_run(storage)
        assert exactly(row["metadata"]) == exactly({"a": {"y": 2}, "b": [1], "c": None, "d": None, "e": {}})

    async def test_status_metadata_merge_accepts_any_key(self, storage: Storage) -> None:
        """Keys with dots and dollar signs and empty keys are data."""
        await given_run(storage, "empty")
        await storage.runs.update_status("empty", "running", metadata=_KEYS)
        assert exactly((await stored_run(storage, "empty"))["metadata"]) == exactly(_KEYS)
        merged = dict(_KEYS)
        await given_run(storage, metadata=_KEYS)
        for key in _KEYS:
            with case(key):
                await storage.runs.update_status(RUN, "running", metadata={key: {"new": key}})
                merged[key] = {"new": key}
                row = await stored_run(storage)
                assert exactly(row["metadata"]) == exactly(merged)
                assert row["status"] == "running"

    async def test_a_hundred_concurrent_status_merges_lose_no_key(self, storage: Storage) -> None:
        await given_run(storage, metadata={"first": True})
        merges = (
            storage.runs.update_status(RUN, "running", metadata={f"key-{number}": number})
            for number in range(100)
        )
        await asyncio.gather(*merges)
        expected = {"first": True} | {f"key-{number}": number for number in range(100)}
        assert (await stored_run(storage))["metadata"] == expected

    async def test_completion_survives_a_hundred_concurrent_status_updates(self, storage: Storage) -> None:
        await given_run(storage)
        updates = [storage.runs.update_status(RUN, "running", started_at=_EARLY) for _ in range(99)]
        updates.insert(50, storage.runs.update_run_completion(RUN, status="success", total_tokens=5))
        await asyncio.gather(*updates)
        row = await stored_run(storage)
        assert (row["status"], row["total_tokens"]) == ("success", 5)

    async def test_set_error_sets_status_and_error_text(self, storage: Storage) -> None:
        for old in _STATUSES:
            with case(old):
                before = await given_run(storage, old, status=old, metadata={"a": 1}, started_at=_EARLY)
                await storage.runs.set_error(old, "first")
                await storage.runs.set_error(old, "broken $a.b")
                after = await stored_run(storage, old)
                assert (after["status"], after["error"]) == ("error", "broken $a.b")
                assert (after["metadata"], after["started_at"]) == (before["metadata"], _EARLY)

    async def test_update_status_stores_the_error_with_the_status(self, storage: Storage) -> None:
        """In one update, with or without metadata; an absent error leaves the stored one as it is."""
        for old in ACTIVE_STATUSES:
            for new in _STATUSES:
                for metadata in (None, {"a": 1}):
                    with case(old, new, metadata):
                        run_id = f"{old} {new} {metadata}"
                        await given_run(storage, run_id, status=old)
                        await storage.runs.update_status(run_id, new, error="$a", metadata=metadata)
                        row = await stored_run(storage, run_id)
                        assert (row["status"], row["error"]) == (new, "$a")
                        assert row["metadata"] == (metadata or {})
                        await storage.runs.update_status(run_id, new, ended_at=_LATE, metadata={"b": 2})
                        assert (await stored_run(storage, run_id))["error"] == "$a"

    async def test_later_ending_replaces_the_error_only_if_it_has_one(self, storage: Storage) -> None:
        for old in ENDED_STATUSES:
            for new in ENDED_STATUSES:
                with case(old, new):
                    run_id = f"{old} {new}"
                    await given_run(storage, run_id, status=old, error="first")
                    await storage.runs.update_status(run_id, new)
                    assert (await stored_run(storage, run_id))["error"] == "first"
                    await storage.runs.update_status(run_id, new, error="")
                    row = await stored_run(storage, run_id)
                    assert (row["status"], row["error"]) == (new, "")

    async def test_active_status_on_an_ended_run_leaves_its_error_unchanged(self, storage: Storage) -> None:
        """Whether the run has an error or not."""
        for old in ENDED_STATUSES:
            for new in ACTIVE_STATUSES:
                for error in ("first", None):
                    with case(old, new, error):
                        run_id = f"{old} {new} {error}"
                        await given_run(storage, run_id, status=old, error=error)
                        await storage.runs.update_status(run_id, new, error="late", metadata={"a": 1})
                        row = await stored_run(storage, run_id)
                        assert (row["status"], row["error"]) == (old, error)
                        assert row["metadata"] == {"a": 1}

    async def test_status_and_error_are_updated_atomically(self, storage: Storage) -> None:
        await given_run(storage)

        async def write() -> None:
            for number in range(100):
                status = ENDED_STATUSES[number % len(ENDED_STATUSES)]
                metadata = {"number": number} if number % 2 else None
                await storage.runs.update_status(RUN, status, error=status, metadata=metadata)

        async def read() -> None:
            while not writing.done():
                row = await stored_run(storage)
                assert row["error"] == (None if row["status"] == "pending" else row["status"])
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        await asyncio.gather(writing, read(), read())

    async def test_invalid_error_or_model_name_raises_and_changes_nothing(self, storage: Storage) -> None:
        before = await given_run(storage, error="first", model_name="m")
        others: tuple[Any, ...] = (5, 0, True, b"x", ["x"], {"$ne": None}, {"_json": "1"}, object())
        for value in others:
            with case(value):
                with pytest.raises((TypeError, ValueError), match="error"):
                    await storage.runs.create("new", THREAD, user_id=None, error=value)
                with pytest.raises((TypeError, ValueError), match="error"):
                    await storage.runs.update_status(RUN, "running", error=value)
                with pytest.raises((TypeError, ValueError), match="error"):
                    await storage.runs.update_run_completion(
                        RUN, status="success", **_other_texts_unset(error=value)
                    )
                with pytest.raises((TypeError, ValueError), match="model_name"):
                    await storage.runs.update_model_name(RUN, value)
        assert await storage.runs.list_by_thread(THREAD, user_id=None) == [before]

    async def test_update_model_name_changes_only_the_model_name(self, storage: Storage) -> None:
        """Also to None, and for an ended run."""
        before = await given_run(storage, status="success", metadata={"a": 1}, error="e", model_name="m")
        for name in ("gpt-4.1", "$model", "a.b", "", None, "модель", "x" * 1_000):
            with case(name):
                await storage.runs.update_model_name(RUN, name)
                after = await stored_run(storage)
                assert after == {**before, "model_name": name, "updated_at": after["updated_at"]}

    async def test_completion_stores_every_count_and_text(self, storage: Storage) -> None:
        before = await given_run(storage, metadata={"a": 1}, kwargs={"b": 2})
        await storage.runs.update_run_completion(RUN, status="success", ended_at=_LATE, **_COMPLETION)
        after = await stored_run(storage)
        changed = {**_COMPLETION, "status": "success", "ended_at": _LATE, "updated_at": after["updated_at"]}
        assert exactly(dict(after)) == exactly({**before, **changed})

    async def test_completion_resets_absent_counts_and_texts(self, storage: Storage) -> None:
        """Absent counts become 0, absent texts None."""
        await given_run(storage)
        await storage.runs.update_run_completion(RUN, status="error", **_COMPLETION)
        for name, value in _COMPLETION.items():
            with case(name):
                await storage.runs.update_run_completion(RUN, status="success", **{name: value})
                assert _of(await stored_run(storage), _COMPLETION) == {**_NO_COMPLETION, name: value}

    async def test_completion_leaves_unset_texts_as_they_are(self, storage: Storage) -> None:
        """Absent counts become 0 all the same; an empty text is a text, and None clears."""
        texts = [name for name, value in _COMPLETION.items() if isinstance(value, str)]
        await given_run(storage)
        await storage.runs.update_run_completion(RUN, status="error", **_COMPLETION, ended_at=_EARLY)
        expected = {**_NO_COMPLETION, **{name: _COMPLETION[name] for name in texts}}
        for ended_at in (None, _LATE):
            with case(ended_at):
                await storage.runs.update_run_completion(
                    RUN, status="success", ended_at=ended_at, **_other_texts_unset()
                )
                assert _of(await stored_run(storage), _COMPLETION) == expected
        for name in texts:
            for text in ("another $text", "", None):
                with case(name, text):
                    texts_given = _other_texts_unset(**{name: text})
                    await storage.runs.update_run_completion(RUN, status="success", **texts_given)
                    expected[name] = text
                    assert _of(await stored_run(storage), _COMPLETION) == expected
        await storage.runs.update_run_completion(RUN, status="success")
        assert _of(await stored_run(storage), _COMPLETION) == _NO_COMPLETION

    async def test_completion_with_unset_texts_stores_the_given_texts(self, storage: Storage) -> None:
        """Given texts are stored while the run is active, and nothing after it has ended."""
        await given_run(storage, status="running", error="first")
        await storage.runs.update_run_completion(
            RUN, status="running", total_tokens=3, **_other_texts_unset(first_human_message="hi")
        )
        await storage.runs.update_run_completion(
            RUN, status="success", **_other_texts_unset(last_ai_message="bye")
        )
        await storage.runs.update_run_completion(RUN, status="running", **_other_texts_unset(error="late"))
        row = await stored_run(storage)
        texts = (row["first_human_message"], row["last_ai_message"], row["error"])
        assert (row["status"], *texts) == ("success", "hi", "bye", "first")

    async def test_counts_are_not_limited_to_32_bits(self, storage: Storage) -> None:
        """Counts are 64-bit integers."""
        counts: dict[str, Any] = {
            name: 2**40 + number
            for number, name in enumerate(_COMPLETION)
            if isinstance(_COMPLETION[name], int)
        }
        await given_run(storage)
        await storage.runs.update_run_completion(RUN, status="success", **counts)
        assert exactly(_of(await stored_run(storage), counts)) == exactly(counts)

    async def test_completion_sets_ended_at_to_now_unless_set(self, storage: Storage) -> None:
        """`ended_at` is the given time, or now if it is not set yet."""
        for status in ENDED_STATUSES:
            with case(status):
                since = now()
                await given_run(storage, f"now {status}")
                await storage.runs.update_run_completion(f"now {status}", status=status)
                ended_at = (await stored_run(storage, f"now {status}"))["ended_at"]
                assert_is_now(assert_row_time(ended_at), since=since)
                await storage.runs.update_run_completion(f"now {status}", status=status)
                assert (await stored_run(storage, f"now {status}"))["ended_at"] == ended_at
                await storage.runs.update_run_completion(f"now {status}", status=status, ended_at=_LATE)
                assert (await stored_run(storage, f"now {status}"))["ended_at"] == _LATE
                await given_run(storage, f"ended {status}", ended_at=_EARLY)
                await storage.runs.update_run_completion(f"ended {status}", status=status)
                assert (await stored_run(storage, f"ended {status}"))["ended_at"] == _EARLY

    async def test_completion_sets_ended_at_only_with_an_ending(self, storage: Storage) -> None:
        """Every status but pending, starting and running is one, also a status that only the host knows."""
        for status in (*_STATUSES, "odd"):
            with case(status):
                await given_run(storage, status, status="running")
                await storage.runs.update_run_completion(status, status=status)
                row = await stored_run(storage, status)
                assert (row["status"], row["ended_at"] is None) == (status, status in ACTIVE_STATUSES)

    async def test_completion_is_one_atomic_update(self, storage: Storage) -> None:
        """A reader sees one whole completion, never parts of two."""
        await given_run(storage)

        async def write() -> None:
            for number in range(100):
                counts: dict[str, Any] = {
                    name: number if isinstance(value, int) else str(number)
                    for name, value in _COMPLETION.items()
                }
                status = ENDED_STATUSES[number % len(ENDED_STATUSES)]
                await storage.runs.update_run_completion(RUN, status=status, **counts)

        async def read() -> None:
            while not writing.done():
                row: dict[str, Any] = dict(await stored_run(storage))
                texts = {str(row[name]) for name in _COMPLETION}
                if row["status"] != "pending":
                    assert len(texts) == 1, row
                    assert row["status"] == ENDED_STATUSES[row["message_count"] % len(ENDED_STATUSES)]
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        await asyncio.gather(writing, read(), read(), read())

    async def test_update_of_a_missing_run_only_logs_a_warning(
        self, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """At WARNING, with the run's id; nothing is created."""
        await given_run(storage, "another")
        before = await snapshot(storage)
        missing: dict[str, Callable[[str], Awaitable[object]]] = {
            "update_status": lambda run_id: storage.runs.update_status(run_id, "running", metadata={"a": 1}),
            "set_error": lambda run_id: storage.runs.set_error(run_id, "broken"),
            "update_run_completion": lambda run_id: storage.runs.update_run_completion(
                run_id, status="error"
            ),
            "record_token_usage": lambda run_id: storage.runs.record_token_usage(
                run_id, caller="lead_agent", model_name="m", input_tokens=1
            ),
            "update_model_name": lambda run_id: storage.runs.update_model_name(run_id, "m"),
        }
        for name, update in missing.items():
            with case(name), caplog.at_level(logging.WARNING):
                caplog.clear()
                await update(f"missing {name}")
                warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
                assert [f"missing {name}" in record.getMessage() for record in warnings] == [True]
                assert await storage.runs.get(f"missing {name}", user_id=None) is None
        assert await snapshot(storage, THREAD) == before
