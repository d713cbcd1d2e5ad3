"""A row is stored up to the size that the backend states; above it a write raises an error that names field
and size, and writes nothing (CONTRACT section 8). A backend that states no limit stores every size.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..contract.capabilities import max_payload_bytes
from ..contract.errors import PayloadTooLargeError
from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, snapshot, stored_run, stored_thread
from .limits import (
    MEBIBYTE,
    assert_as_stated,
    base_bytes,
    half_sized_text,
    more_than_half_text,
    must_raise,
    oversized_text,
)
from .payloads import NEW_EVENT, payload_error_of, payload_writes

_SURROGATE = "a\ud800b"
_MIN_LIMIT_BYTES = MEBIBYTE
"""What the Protocol promises: the conformance suite writes rows of nearly this size."""

_ON_RUN: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD, "rating": -1, "user_id": ALICE}

Write = Callable[[str], Awaitable[object]]


def _text_writes(storage: Storage) -> dict[str, Write]:
    """Every method that writes a text of any length: "field of method" -> the call."""
    runs, feedback, threads = storage.runs, storage.feedback, storage.threads
    return {
        "error of create": lambda text: runs.create("new", THREAD, user_id=None, error=text),
        "error of update_status": lambda text: runs.update_status(RUN, "running", error=text),
        "error of set_error": lambda text: runs.set_error(RUN, text),
        "error of update_run_completion": lambda text: runs.update_run_completion(
            RUN, status="error", error=text
        ),
        "first_human_message of update_run_completion": lambda text: runs.update_run_completion(
            RUN, status="success", first_human_message=text
        ),
        "last_ai_message of update_run_completion": lambda text: runs.update_run_completion(
            RUN, status="success", last_ai_message=text
        ),
        "comment of create": lambda text: feedback.create(**_ON_RUN, comment=text),
        "comment of upsert": lambda text: feedback.upsert(**_ON_RUN, comment=text),
        "display_name of update_thread_meta": lambda text: threads.update_thread_meta(
            THREAD, display_name=text
        ),
        "display_name of sync_thread_title": lambda text: threads.sync_thread_title(
            thread_id=THREAD, title=text
        ),
    }


def _large_writes(storage: Storage) -> dict[str, Write]:
    """Every method that writes a payload, given a text inside one: "field of method" -> the call."""
    events = storage.run_events

    def in_payload(write: Callable[[Any], Awaitable[object]]) -> Write:
        return lambda text: write({"k": text})

    return {
        **{name: in_payload(write) for name, write in payload_writes(storage).items()},
        "content of put": lambda text: events.put(**NEW_EVENT, content={"k": text}),
        "content of put, as text": lambda text: events.put(**NEW_EVENT, content=text),
        "content of put_if_absent": lambda text: events.put_if_absent(**NEW_EVENT, content=text),
        "content of put_batch": lambda text: events.put_batch([NEW_EVENT, {**NEW_EVENT, "content": text}]),  # pyright: ignore[reportArgumentType]
    }


async def _given(storage: Storage) -> list[object]:
    """One row of each kind, and nothing of an earlier case."""
    for run_id in (RUN, "new"):
        await storage.runs.delete(run_id, user_id=None)
    for row in await storage.feedback.list_by_thread(THREAD):
        await storage.feedback.delete(row["feedback_id"])
    for thread_id in (THREAD, "new"):
        await storage.threads.delete_thread(thread_id)
    await storage.run_events.delete_by_thread(THREAD)
    await given_run(storage, metadata={"a": 1})
    await storage.feedback.upsert(**_ON_RUN, comment="first")
    await storage.threads.ensure_thread(thread_id=THREAD, metadata={"a": 1}, user_id=ALICE)
    return await snapshot(storage)


async def _assert_sizes_are_stored_as_stated(storage: Storage, writes: dict[str, Write]) -> None:
    """A text of half the limit is stored, one above it raises; without a limit both are stored."""
    for text in (half_sized_text(storage), oversized_text(storage)):
        for name, write in writes.items():
            with case(name, f"{len(text):,} bytes"):
                before = await _given(storage)
                error = await payload_error_of(write(text))
                assert_as_stated(storage, len(text), error)
                if error is None:
                    assert text in _texts(await snapshot(storage))
                else:
                    _assert_names_field_and_size(storage, name, error, len(text))
                    assert await snapshot(storage) == before


def _assert_names_field_and_size(storage: Storage, name: str, error: object, text_bytes: int) -> None:
    assert isinstance(error, PayloadTooLargeError)
    assert name.partition(" ")[0] in error.field
    assert error.size_bytes is not None
    assert error.size_bytes > error.limit_bytes or not must_raise(storage, text_bytes)
    assert error.field in str(error)


def _texts(found: object) -> list[str]:
    """Every text in the result of `snapshot`."""
    if isinstance(found, str):
        return [found]
    if isinstance(found, dict):
        items: list[Any] = list(found.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    elif isinstance(found, list):
        items = list(found)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    else:
        items = [getattr(found, name, None) for name in ("display_name", "metadata")]
        items = [item for item in items if item is not None]
    return [text for item in items for text in _texts(item)]


class SizeContract(Contract):
    async def test_stated_limit_is_none_or_at_least_1_mebibyte(self, storage: Storage) -> None:
        limit_bytes = max_payload_bytes(storage)
        assert limit_bytes is None or (type(limit_bytes) is int and limit_bytes >= _MIN_LIMIT_BYTES)

    async def test_payloads_are_stored_up_to_the_stated_limit(self, storage: Storage) -> None:
        """Above it, a `PayloadTooLargeError` names the field and the size; nothing is written."""
        await _assert_sizes_are_stored_as_stated(storage, _large_writes(storage))

    async def test_texts_are_stored_up_to_the_stated_limit(self, storage: Storage) -> None:
        """The texts of a run, a comment and a title."""
        await _assert_sizes_are_stored_as_stated(storage, _text_writes(storage))

    async def test_run_merge_is_stored_up_to_the_stated_limit(self, storage: Storage) -> None:
        """Each payload fits into a row; where there is a limit, both together do not."""
        part = more_than_half_text(storage)
        await given_run(storage, metadata={"first": part})
        before = await stored_run(storage)
        error = await payload_error_of(storage.runs.update_status(RUN, "running", metadata={"second": part}))
        assert_as_stated(storage, 2 * len(part), error)
        if error is None:
            assert (await stored_run(storage))["metadata"] == {"first": part, "second": part}
        else:
            assert "metadata" in error.field
            assert await stored_run(storage) == before

    async def test_thread_merge_is_stored_up_to_the_stated_limit(self, storage: Storage) -> None:
        part = more_than_half_text(storage)
        await storage.threads.ensure_thread(thread_id=THREAD, metadata={"first": part}, user_id=ALICE)
        before = await stored_thread(storage)
        error = await payload_error_of(storage.threads.merge_thread_metadata(THREAD, {"second": part}))
        assert_as_stated(storage, 2 * len(part), error)
        if error is None:
            assert (await stored_thread(storage)).metadata == {"first": part, "second": part}
        else:
            assert "metadata" in error.field
            assert await stored_thread(storage) == before

    async def test_limit_counts_all_fields_of_a_row_together(self, storage: Storage) -> None:
        part = more_than_half_text(storage)
        payloads: dict[str, Any] = {"metadata": {"k": part}, "kwargs": {"k": part}}
        error = await payload_error_of(storage.runs.create(RUN, THREAD, user_id=None, **payloads))
        assert_as_stated(storage, 2 * len(part), error)
        if error is None:
            row = await stored_run(storage)
            assert (row["metadata"], row["kwargs"]) == ({"k": part}, {"k": part})
        else:
            assert error.field in {"metadata", "kwargs"}
            assert await storage.runs.get(RUN, user_id=None) is None

    async def test_large_payloads_below_the_limit_are_stored(self, storage: Storage) -> None:
        """Text of several bytes a character, and a list of many numbers."""
        size_bytes = base_bytes(storage)
        large = {"k": "é" * (size_bytes // 4), "l": list(range(size_bytes // 160))}
        assert (await given_run(storage, metadata=large))["metadata"] == large
        thread = await storage.threads.ensure_thread(thread_id=THREAD, metadata=large, user_id=ALICE)
        assert thread.metadata == large

    async def test_lists_can_be_larger_than_one_row(self, storage: Storage) -> None:
        """Four rows, each of nearly a third of the limit."""
        large = "x" * (base_bytes(storage) * 5 // 16)
        for number in range(4):
            await given_run(storage, f"run-{number}", metadata={"k": large})
            names: dict[str, Any] = {"run_id": f"run-{number}", "thread_id": THREAD, "user_id": ALICE}
            await storage.feedback.upsert(**names, rating=1, comment=large)
            await storage.threads.ensure_thread(
                thread_id=f"thread-{number}", metadata={"k": large}, user_id=ALICE
            )
        newest = [f"run-{number}" for number in (3, 2, 1, 0)]
        assert [row["run_id"] for row in await storage.runs.list_by_thread(THREAD, user_id=ALICE)] == newest
        assert [row["run_id"] for row in await storage.feedback.list_by_thread(THREAD)] == newest
        assert set(await storage.feedback.list_by_thread_grouped(THREAD, user_id=ALICE)) == set(newest)
        assert len(await storage.threads.search_threads(metadata={"k": large}, user_id=ALICE)) == 4

    async def test_lone_surrogate_in_a_text_round_trips_or_raises(self, storage: Storage) -> None:
        """The error names the field, and nothing is written."""
        for name, write in _text_writes(storage).items():
            with case(name):
                before = await _given(storage)
                error = await payload_error_of(write(_SURROGATE))
                if error is None:
                    assert _SURROGATE in _texts(await snapshot(storage))
                else:
                    assert name.partition(" ")[0] in str(error)
                    assert await snapshot(storage) == before

    async def test_run_texts_round_trip(self, storage: Storage) -> None:
        """Text with NUL, long text, empty text, text that looks like an expression or JSON."""
        await given_run(storage)
        for text in (
            "",
            " ",
            "a\0b",
            "$error",
            "$$ROOT",
            "é💬\u2028",
            "x" * (base_bytes(storage) // 16),
            '{"_json":"1"}',
            "None",
        ):
            with case(text[:20]):
                await storage.runs.update_run_completion(
                    RUN, status="error", first_human_message=text, last_ai_message=text, error=text
                )
                row = await stored_run(storage)
                assert [row["first_human_message"], row["last_ai_message"], row["error"]] == [text] * 3
                await storage.runs.set_error(RUN, text + "!")
                assert (await stored_run(storage))["error"] == text + "!"

    async def test_payload_of_many_keys_is_stored_or_too_large(self, storage: Storage) -> None:
        """Nothing in between: no error of the server, and no call that takes until its timeout."""
        payload = {f"key-{number}": number for number in range(50_000)}
        writes = payload_writes(storage)
        for name in ("kwargs of create", "metadata of ensure_thread", "metadata of put"):
            with case(name):
                before = await _given(storage)
                error = await payload_error_of(writes[name](payload))
                if error is not None:
                    assert isinstance(error, PayloadTooLargeError)
                    assert name.partition(" ")[0] in error.field
                    assert await snapshot(storage) == before

    async def test_thread_merges_many_keys_into_many(self, storage: Storage) -> None:
        stored, given = ({f"{name}-{number}": number for number in range(5_000)} for name in "ab")
        await storage.threads.ensure_thread(thread_id=THREAD, metadata=stored, user_id=ALICE)
        await storage.threads.merge_thread_metadata(THREAD, given)
        assert (await stored_thread(storage)).metadata == stored | given

    async def test_search_by_many_keys_finds_the_thread(self, storage: Storage) -> None:
        payload: dict[str, Any] = {f"key-{number}": number for number in range(1_000)}
        await storage.threads.ensure_thread(thread_id=THREAD, metadata=payload, user_id=ALICE)
        await storage.threads.ensure_thread(thread_id="other", metadata={"key-0": 0}, user_id=ALICE)
        found = await storage.threads.search_threads(metadata=payload, user_id=ALICE)
        assert [thread.thread_id for thread in found] == [THREAD]
        assert await storage.threads.search_threads(metadata={**payload, "x": 1}, user_id=ALICE) == []
