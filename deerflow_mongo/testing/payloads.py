"""Payloads round-trip, or raise and nothing is written (CONTRACT section 8)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..contract.errors import InvalidPayloadError, PayloadTooLargeError
from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, snapshot, stored_run, stored_thread
from .payload_values import (
    BORDERLINE,
    CONVERSIONS,
    INVALID,
    MAPPINGS,
    ROUND_TRIPS,
    nested,
    random_json,
    random_text,
    self_referencing,
    with_own_keys,
)
from .values import assert_plain, exactly

_CONTROL = "".join(map(chr, range(32)))

NEW_EVENT: dict[str, Any] = {
    "thread_id": THREAD,
    "run_id": "new",
    "event_type": "ai_message",
    "category": "message",
}

Write = Callable[[Any], Awaitable[object]]


def payload_writes(storage: Storage) -> dict[str, Write]:
    """Every method that writes a payload: "field of method" -> the call."""
    runs, threads = storage.runs, storage.threads
    return {
        "metadata of create": lambda value: runs.create("new", THREAD, user_id=None, metadata=value),
        "kwargs of create": lambda value: runs.create("new", THREAD, user_id=None, kwargs=value),
        "metadata of update_status": lambda value: runs.update_status(RUN, "running", metadata=value),
        "metadata of create_thread_meta": lambda value: threads.create_thread_meta(
            ThreadMetaCreate(thread_id="new", metadata=value)
        ),
        "metadata of update_thread_meta": lambda value: threads.update_thread_meta(THREAD, metadata=value),
        "metadata of merge_thread_metadata, an update": lambda value: threads.merge_thread_metadata(
            THREAD, value
        ),
        "metadata of sync_thread_metadata": lambda value: threads.sync_thread_metadata(
            thread_id=THREAD, metadata=value
        ),
        "metadata of ensure_thread": lambda value: threads.ensure_thread(
            thread_id="new", metadata=value, user_id=ALICE
        ),
        "metadata of ensure_thread_running": lambda value: threads.ensure_thread_running(
            thread_id="new", metadata=value
        ),
        "metadata of put": lambda value: storage.run_events.put(**NEW_EVENT, metadata=value),
        "metadata of put_if_absent": lambda value: storage.run_events.put_if_absent(
            **NEW_EVENT, metadata=value
        ),
    }


async def _stored_payload(storage: Storage, name: str) -> Any:
    """The payload that `payload_writes(storage)[name]` has written."""
    if "put" in name:
        [event] = await storage.run_events.list_events(THREAD, "new")
        return event["metadata"]
    if "thread" in name:
        meta = await stored_thread(storage, THREAD if "update" in name or "sync" in name else "new")
        return meta.metadata
    row = await stored_run(storage, RUN if "update" in name else "new")
    return row["kwargs"] if name.startswith("kwargs") else row["metadata"]


def _depth_of(value: Any) -> int:
    depth = 0
    while not isinstance(value, str):
        [value] = value.values() if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        depth += 1
    return depth


async def _delete_new(storage: Storage) -> None:
    await storage.runs.delete("new", user_id=None)
    await storage.threads.delete_thread("new")
    await storage.run_events.delete_by_run(THREAD, "new")


async def _given(storage: Storage) -> None:
    await given_run(storage)
    await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)


async def _assert_raises(storage: Storage, name: str, payload: Any) -> None:
    """The call raises an error that names the field, and nothing is written."""
    before = await snapshot(storage)
    with pytest.raises((InvalidPayloadError, PayloadTooLargeError)) as raised:
        await payload_writes(storage)[name](payload)
    assert name.partition(" ")[0] in str(raised.value)
    assert await snapshot(storage) == before


async def payload_error_of(write: Awaitable[object]) -> InvalidPayloadError | PayloadTooLargeError | None:
    """The payload error that the write raised, or None if it succeeded."""
    try:
        await write
    except (InvalidPayloadError, PayloadTooLargeError) as error:
        return error
    return None


async def _assert_round_trip_or_error(storage: Storage, name: str, payload: Any) -> None:
    before = await snapshot(storage)
    error = await payload_error_of(payload_writes(storage)[name](payload))
    if error is None:
        assert exactly((await _stored_payload(storage, name))["k"]) == exactly(payload["k"])
    else:
        assert name.partition(" ")[0] in str(error)
        assert await snapshot(storage) == before


class PayloadContract(Contract):
    async def test_run_payloads_round_trip(self, storage: Storage) -> None:
        """With every key and value of `ROUND_TRIPS`."""
        for name, value in ROUND_TRIPS.items():
            with case(name):
                payload = with_own_keys(value)
                row = await given_run(storage, name, metadata=payload, kwargs=payload)
                assert exactly(row["metadata"]) == exactly(payload)
                assert exactly(row["kwargs"]) == exactly(payload)

    async def test_payloads_of_every_write_method_round_trip(self, storage: Storage) -> None:
        await _given(storage)
        for value_name, value in ROUND_TRIPS.items():
            payload = with_own_keys(value)
            for name, write in payload_writes(storage).items():
                with case(name, value_name):
                    await _delete_new(storage)
                    await write(payload)
                    stored = await _stored_payload(storage, name)
                    assert exactly({key: stored[key] for key in payload}) == exactly(payload)

    async def test_all_payload_values_round_trip_together(self, storage: Storage) -> None:
        row = await given_run(storage, metadata=ROUND_TRIPS, kwargs={"all": ROUND_TRIPS})
        assert exactly(row["metadata"]) == exactly(ROUND_TRIPS)
        assert exactly(row["kwargs"]) == exactly({"all": ROUND_TRIPS})
        await storage.runs.update_status(RUN, "running", metadata={"$more": 1})
        assert exactly((await stored_run(storage))["metadata"]) == exactly({**ROUND_TRIPS, "$more": 1})

    async def test_every_character_round_trips(self, storage: Storage) -> None:
        text = (
            _CONTROL + "".join(chr(code) for code in range(32, 0x3000)) + "\ufffe\uffff\U0001f600\U0010ffff"
        )
        row = await given_run(storage, metadata={"text": text}, kwargs={text.replace("\0", ""): 1})
        assert row["metadata"] == {"text": text}
        assert row["kwargs"] == {text.replace("\0", ""): 1}

    async def test_random_payloads_round_trip(self, storage: Storage) -> None:
        source = random.Random(20260422)  # noqa: S311 - the same values in every run
        for number in range(300):
            payload = {random_text(source): random_json(source) for _ in range(source.randrange(6))}
            with case(number, payload):
                run_id = f"run-{number}"
                row = await given_run(storage, run_id, metadata=payload, kwargs={"payload": payload})
                assert exactly(row["metadata"]) == exactly(payload)
                assert exactly(row["kwargs"]) == exactly({"payload": payload})
                more = {random_text(source): random_json(source) for _ in range(source.randrange(4))}
                await storage.runs.update_status(run_id, "running", metadata=more)
                assert exactly((await stored_run(storage, run_id))["metadata"]) == exactly(
                    {**payload, **more}
                )

    async def test_objects_are_converted_to_json(self, storage: Storage) -> None:
        """Messages, models, dataclasses, datetimes, UUIDs, bytes, and other objects as their `str`."""
        for name, given, expected in CONVERSIONS:
            with case(name):
                row = await given_run(storage, name, metadata={"k": given}, kwargs={"k": [given]})
                assert exactly(row["metadata"]) == exactly({"k": expected})
                assert exactly(row["kwargs"]) == exactly({"k": [expected]})

    async def test_every_write_method_converts_objects_to_json(self, storage: Storage) -> None:
        await _given(storage)
        given = {name: value for name, value, _ in CONVERSIONS}
        expected = {name: value for name, _, value in CONVERSIONS}
        for name, write in payload_writes(storage).items():
            with case(name):
                await _delete_new(storage)
                await write(given)
                assert exactly(await _stored_payload(storage, name)) == exactly(expected)

    async def test_sets_are_stored_as_lists(self, storage: Storage) -> None:
        sets: list[tuple[Any, list[Any]]] = [
            ({3, 1, 2}, [1, 2, 3]),
            (frozenset({"b", "a"}), ["a", "b"]),
            ({1, "a"}, [1, "a"]),
            (set[int](), []),
            ({(1, 2)}, [[1, 2]]),
        ]
        for number, (given, expected) in enumerate(sets):
            with case(given):
                row = await given_run(storage, f"run-{number}", metadata={"k": given})
                stored: Any = row["metadata"]["k"]
                assert_plain(stored)
                assert sorted(map(repr, stored)) == sorted(map(repr, expected))

    async def test_models_and_dataclasses_can_be_payloads(self, storage: Storage) -> None:
        """The fields of the model or dataclass are the payload."""
        for name, given, expected in CONVERSIONS:
            if name in MAPPINGS:
                with case(name):
                    row = await given_run(storage, name, metadata=given)
                    assert exactly(row["metadata"]) == exactly(expected)

    async def test_borderline_payload_round_trips_or_raises(self, storage: Storage) -> None:
        """The error is `InvalidPayloadError` or `PayloadTooLargeError` and names the field."""
        await _given(storage)
        for value_name, value in BORDERLINE.items():
            payload = with_own_keys(value)
            for name in payload_writes(storage):
                with case(name, value_name):
                    await _delete_new(storage)
                    await _assert_round_trip_or_error(storage, name, payload)

    async def test_non_finite_number_round_trips_or_raises(self, storage: Storage) -> None:
        await _given(storage)
        for value in (math.nan, math.inf, -math.inf):
            for name in payload_writes(storage):
                with case(name, value):
                    await _delete_new(storage)
                    await _assert_round_trip_or_error(storage, name, {"k": [value]})

    async def test_self_referencing_payload_raises(self, storage: Storage) -> None:
        await _given(storage)
        for value_name, value in INVALID.items():
            for name in payload_writes(storage):
                with case(name, value_name):
                    await _assert_raises(storage, name, {"k": value})

    async def test_very_deep_payload_round_trips_or_raises(self, storage: Storage) -> None:
        await _given(storage)
        for depth, kind in ((2_000, dict), (2_000, list), (100_000, dict), (100_000, list)):
            with case(depth, kind.__name__):
                error = await payload_error_of(
                    payload_writes(storage)["metadata of create"]({"k": nested(depth, of=kind)})
                )
                if error is None:
                    value = (await stored_run(storage, "new"))["metadata"]["k"]
                    assert _depth_of(value) == depth
                else:
                    assert "metadata" in str(error)
                    assert await storage.runs.get("new", user_id=None) is None
                await _delete_new(storage)

    async def test_payload_that_is_not_a_mapping_raises(self, storage: Storage) -> None:
        await _given(storage)
        for value in ("text", 5, ["a"], [("a", 1)], b"bytes", True):
            for name in payload_writes(storage):
                with case(name, value):
                    await _assert_raises(storage, name, value)

    async def test_payload_error_names_the_field_and_path(self, storage: Storage) -> None:
        """The error is an `InvalidPayloadError`, and a `ValueError` too."""
        payload = {"steps": [{"ok": 1}, {"broken": self_referencing(list)}]}
        for field in ("metadata", "kwargs"):
            with case(field):
                arguments: dict[str, Any] = {field: payload}
                with pytest.raises(InvalidPayloadError, match=field) as raised:
                    await storage.runs.create(RUN, THREAD, user_id=None, **arguments)
                assert raised.value.field.startswith(f"{field}.steps[1].broken")
                assert isinstance(raised.value, ValueError)

    async def test_row_survives_a_json_round_trip(self, storage: Storage) -> None:
        row = await given_run(storage, metadata=ROUND_TRIPS)
        assert exactly(json.loads(json.dumps(row))) == exactly(dict(row))
