"""Data too large for one document is stored, or raises an error with field and size (CONTRACT section 8)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from ..contract.errors import PayloadTooLargeError
from ..contract.protocols import Storage
from .contract import ALICE, RUN, THREAD, Contract, case, given_run, snapshot, stored_run, stored_thread
from .payloads import payload_error_of, payload_writes

_MEBIBYTE = 1024 * 1024
_TOO_LARGE = "x" * (17 * _MEBIBYTE)
_SURROGATE = "a\ud800b"

_ON_RUN: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD, "rating": -1, "user_id": ALICE}


def _text_writes(storage: Storage) -> dict[str, Callable[[str], Awaitable[object]]]:
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


async def _given(storage: Storage) -> list[object]:
    await given_run(storage, metadata={"a": 1})
    await storage.feedback.upsert(**_ON_RUN, comment="first")
    await storage.threads.ensure_thread(thread_id=THREAD, metadata={"a": 1}, user_id=ALICE)
    return await snapshot(storage)


async def _assert_stored_or_error(
    storage: Storage, name: str, write: Awaitable[object], text: str, before: list[object]
) -> None:
    """Either the text is stored, or the error names the field and nothing was written."""
    error = await payload_error_of(write)
    if error is None:
        assert text in _texts(await snapshot(storage))
        return
    assert name.partition(" ")[0] in str(error)
    if isinstance(error, PayloadTooLargeError):
        assert _size_in(str(error)) > 16_000_000
    assert await snapshot(storage) == before


def _size_in(text: str) -> int:
    return max(int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text))


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
    async def test_oversized_payload_is_stored_or_raises(self, storage: Storage) -> None:
        """A `PayloadTooLargeError` names the field and the size; nothing is written."""
        before = await _given(storage)
        for name, write in payload_writes(storage).items():
            with case(name):
                await _assert_stored_or_error(storage, name, write({"k": _TOO_LARGE}), _TOO_LARGE, before)

    async def test_oversized_text_is_stored_or_raises(self, storage: Storage) -> None:
        """The texts of a run, a comment and a title."""
        before = await _given(storage)
        for name, write in _text_writes(storage).items():
            with case(name):
                await _assert_stored_or_error(storage, name, write(_TOO_LARGE), _TOO_LARGE, before)

    async def test_run_merge_beyond_the_size_limit_is_stored_or_raises(self, storage: Storage) -> None:
        """Each payload fits into a document; both together may not."""
        half = "x" * (9 * _MEBIBYTE)
        await given_run(storage, metadata={"first": half})
        before = await stored_run(storage)
        error = await payload_error_of(storage.runs.update_status(RUN, "running", metadata={"second": half}))
        if error is None:
            assert (await stored_run(storage))["metadata"] == {"first": half, "second": half}
        else:
            assert "metadata" in str(error)
            assert await stored_run(storage) == before

    async def test_thread_merge_beyond_the_size_limit_is_stored_or_raises(self, storage: Storage) -> None:
        half = "x" * (9 * _MEBIBYTE)
        await storage.threads.ensure_thread(thread_id=THREAD, metadata={"first": half}, user_id=ALICE)
        before = await stored_thread(storage)
        error = await payload_error_of(storage.threads.merge_thread_metadata(THREAD, {"second": half}))
        if error is None:
            assert (await stored_thread(storage)).metadata == {"first": half, "second": half}
        else:
            assert "metadata" in str(error)
            assert await stored_thread(storage) == before

    async def test_fields_too_large_together_are_stored_or_raise(self, storage: Storage) -> None:
        half = "x" * (9 * _MEBIBYTE)
        payloads: dict[str, Any] = {"metadata": {"k": half}, "kwargs": {"k": half}}
        error = await payload_error_of(storage.runs.create(RUN, THREAD, user_id=None, **payloads))
        if error is None:
            row = await stored_run(storage)
            assert (row["metadata"], row["kwargs"]) == ({"k": half}, {"k": half})
        else:
            assert "metadata" in str(error) or "kwargs" in str(error)
            assert await storage.runs.get(RUN, user_id=None) is None

    async def test_large_payloads_below_the_limit_are_stored(self, storage: Storage) -> None:
        large = {"k": "é" * (6 * _MEBIBYTE), "l": list(range(100_000))}
        assert (await given_run(storage, metadata=large))["metadata"] == large
        thread = await storage.threads.ensure_thread(thread_id=THREAD, metadata=large, user_id=ALICE)
        assert thread.metadata == large

    async def test_lists_can_be_larger_than_one_document(self, storage: Storage) -> None:
        """Four rows of 5 MiB each."""
        large = "x" * (5 * _MEBIBYTE)
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
        before = await _given(storage)
        for name, write in _text_writes(storage).items():
            with case(name):
                await _assert_stored_or_error(storage, name, write(_SURROGATE), _SURROGATE, before)
                before = await snapshot(storage)

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
            "x" * _MEBIBYTE,
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
