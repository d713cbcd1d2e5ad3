"""Export and import of rows: the promises of `bulk_rows.BulkRows`, skipped for a storage without it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from ..contract.bulk_rows import ROW_KINDS, BulkRows, Imported, RowKind
from ..contract.capabilities import Accounts, RunOwnership, max_payload_bytes
from ..contract.checked_rows import key_of
from ..contract.errors import InvalidArgumentError
from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, stored_run, stored_thread
from .exported_rows import (
    AT,
    LATER,
    ROWS,
    event_row,
    feedback_row,
    numbered_row,
    owned_run_row,
    run_row,
    thread_row,
    user_row,
)
from .limits import oversized_text
from .run_events import event
from .values import exactly

# kind -> a field, and values that make a row malformed.
_MALFORMED: Sequence[tuple[RowKind, str, tuple[Any, ...]]] = (
    ("users", "email", (None, "", {"$ne": None}, 5)),
    ("users", "created_at", (None, "yesterday", 5)),
    ("users", "token_version", (-1, "1", None)),
    ("threads", "thread_id", (None, "", {"$gt": ""}, "é" * 513)),
    ("threads", "metadata", ([], "x", {"n": float("nan")})),
    ("threads", "updated_time", ("", None)),
    ("runs", "status", ("", None, 5)),
    ("runs", "total_tokens", (-1, 2**63, None, 1.0)),
    ("runs", "token_usage_by_model", (None, [], {"m": 5})),
    ("runs", "ended_at", ("", "tomorrow")),
    ("feedback", "rating", (0, True, 1.0, "1")),
    ("feedback", "owner_id", ("bob",)),
    ("feedback", "is_vote", (None, 1)),
    ("run_events", "seq", (0, -1, 1.0, "1", None, 2**63)),
    ("run_events", "content", (None,)),
    ("run_events", "once", (False, None, 1)),
    ("event_numbers", "next_seq", (0, None, "3")),
)


# Why a second row is refused -> its kind, the first row and the second one.
_CONFLICTS: Mapping[str, tuple[RowKind, dict[str, Any], dict[str, Any]]] = {
    "email": ("users", user_row("u-1"), user_row("u-2", email="u-1@example.org")),
    "email in another case": ("users", user_row("u-1"), user_row("u-2", email="U-1@example.org")),
    "OAuth identity": ("users", user_row("u-1"), user_row("u-2", oauth_id="u-1")),
    "active run": ("runs", owned_run_row("r-1", thread_id=THREAD), owned_run_row("r-2", thread_id=THREAD)),
    "idempotency key": ("runs", owned_run_row("r-1"), owned_run_row("r-2", idempotency_key="key-of-r-1")),
    "vote": ("feedback", feedback_row("f-1"), feedback_row("f-2")),
    "vote of nobody": (
        "feedback",
        feedback_row("f-1", user_id=None),
        feedback_row("f-2", user_id=None, rating=1),
    ),
    "event_id": (
        "run_events",
        event_row(1, thread_id="t-1", event_id="e"),
        event_row(2, thread_id="t-1", event_id="e"),
    ),
    "once": ("run_events", event_row(1, once=True), event_row(2, once=True)),
}


class BulkRowsContract(Contract):
    @pytest.fixture
    def bulk(self, storage: Storage) -> BulkRows:
        if not isinstance(storage, BulkRows):
            pytest.skip(f"{type(storage).__name__} does not have `BulkRows`")
        return storage

    # Every row, exactly.

    async def test_imported_rows_are_exported_exactly(self, bulk: BulkRows) -> None:
        for kind in ROW_KINDS:
            with case(kind):
                rows = ROWS[kind]
                assert await _import(bulk, kind, reversed(rows)) == Imported(stored=len(rows))
                assert exactly(await _export(bulk, kind)) == exactly(list(rows))

    async def test_repeated_import_changes_nothing(self, bulk: BulkRows) -> None:
        for kind in ROW_KINDS:
            with case(kind):
                rows = ROWS[kind]
                await _import(bulk, kind, rows)
                assert await _import(bulk, kind, rows) == Imported(unchanged=len(rows))
                overwritten = await bulk.import_rows(kind, cast("Any", rows), overwrite=True)
                assert overwritten == Imported(unchanged=len(rows))
                assert exactly(await _export(bulk, kind)) == exactly(list(rows))

    async def test_stores_read_imported_rows(self, storage: Storage, bulk: BulkRows) -> None:
        for kind in ROW_KINDS:
            await _import(bulk, kind, ROWS[kind])
        run, owned = run_row(), owned_run_row()
        del run["token_usage_by_model"], owned["token_usage_by_model"]["gpt-4.1"]["llm_calls"]
        assert exactly(await stored_run(storage)) == exactly(run)
        assert exactly(await stored_run(storage, "run-2")) == exactly(owned)
        usage = await storage.runs.token_usage_by_thread("thread-of-run-2", user_id=None)
        assert usage["by_model"]["gpt-4.1"]["llm_calls"] == 3
        thread = await stored_thread(storage)
        assert (thread.metadata, thread.display_name) == (thread_row()["metadata"], "A title\ud800")
        assert thread.updated_time.isoformat() == LATER
        found = await storage.threads.search_threads(metadata={"large": 2**80}, user_id=ALICE)
        assert [one.thread_id for one in found] == [THREAD]
        vote = (await storage.feedback.list_by_run_ids(THREAD, [RUN], user_id=ALICE))[RUN]
        assert vote["created_at"] == AT
        [event_stored] = await storage.run_events.list_messages(THREAD)
        assert exactly(event_stored) == exactly(event_row())

    async def test_accounts_are_found_after_an_import(self, storage: Storage, bulk: BulkRows) -> None:
        if not isinstance(storage, Accounts):
            pytest.skip(f"{type(storage).__name__} does not have `Accounts`")
        first, second = ROWS["users"]
        await _import(bulk, "users", ROWS["users"])
        assert await storage.users.get_by_email("U-1@EXAMPLE.org") == first
        assert await storage.users.get_by_email("ünï@example.org") == second
        assert await storage.users.get_by_oauth("github", "u-1") == first

    async def test_rows_of_the_stores_are_unchanged_by_their_import(
        self, storage: Storage, bulk: BulkRows
    ) -> None:
        await given_run(storage, metadata={"a": 1}, started_at=AT)
        await storage.runs.record_token_usage(RUN, caller="subagent", model_name="m.1", input_tokens=3)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=5, error="E: x")
        if isinstance(storage.runs, RunOwnership):
            await storage.runs.put("run-2", thread_id=THREAD, user_id=None, lease_expires_at=AT)
            await storage.runs.request_cancel("run-2", action="interrupt")
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, metadata={"b": 2}))
        await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, message_id="m")
        await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        await storage.run_events.put(**event(content="x", event_id="e"))
        await storage.run_events.put_if_absent(**event(event_type="start"))
        for kind in ROW_KINDS:
            with case(kind):
                rows = await _export(bulk, kind)
                assert bool(rows) == (kind not in ("users", "event_numbers"))
                assert await _import(bulk, kind, rows) == Imported(unchanged=len(rows))

    async def test_times_become_utc_and_payloads_json(self, bulk: BulkRows) -> None:
        await _import(bulk, "run_events", [event_row(created_at="2026-04-22T08:56:38.123456+05:30")])
        assert (await _export(bulk, "run_events"))[0]["created_at"] == AT

    # The order, and continuing.

    async def test_export_is_in_the_order_of_keys_and_continues_behind_one(self, bulk: BulkRows) -> None:
        ids = ("B", "a", "aa", "b", "é", "\U0001f600")
        rows = [event_row(seq, thread_id=name, content="") for name in ids for seq in (1, 2, 10)]
        await _import(bulk, "run_events", rows[::-1])
        await _import(bulk, "threads", [thread_row(name) for name in ids[::-1]])
        keys = [(row["thread_id"], row["seq"]) for row in rows]
        found: Mapping[RowKind, Sequence[Any]] = {"run_events": keys, "threads": [(name,) for name in ids]}
        for kind, expected in found.items():
            for size in (1, 2, 1_000):
                with case(kind, size):
                    assert [key_of(kind, row) for row in await _export(bulk, kind, size)] == expected
            for position, key in enumerate(expected):
                with case(kind, key):
                    batches = [batch async for batch in bulk.export_rows(kind, after=key)]
                    assert [key_of(kind, row) for batch in batches for row in batch] == expected[
                        position + 1 :
                    ]

    async def test_export_of_nothing_has_no_batch(self, bulk: BulkRows) -> None:
        for kind in ROW_KINDS:
            with case(kind):
                assert [batch async for batch in bulk.export_rows(kind)] == []

    async def test_wrong_arguments_raise(self, bulk: BulkRows) -> None:
        wrong: Sequence[dict[str, Any]] = (
            {"kind": "checkpoints"},
            {"kind": "runs", "batch_size": 0},
            {"kind": "runs", "batch_size": "5"},
            {"kind": "runs", "after": ()},
            {"kind": "runs", "after": ({"$ne": None},)},
            {"kind": "run_events", "after": ("t",)},
            {"kind": "run_events", "after": ("t", "1")},
        )
        for options in wrong:
            with case(repr(options)), pytest.raises(InvalidArgumentError):
                [batch async for batch in bulk.export_rows(**options)]
        for rows in ("rows", None, {"a": 1}, ["row"], [None]):
            with case(repr(rows)), pytest.raises(InvalidArgumentError):
                await bulk.import_rows("runs", cast("Any", rows))

    # A second import.

    async def test_row_that_was_not_changed_here_is_replaced(self, storage: Storage, bulk: BulkRows) -> None:
        changes: Mapping[RowKind, dict[str, Any]] = {
            "users": {"token_version": 4, "email": "new@example.org"},
            "threads": {"display_name": "new", "metadata": {}},
            "runs": {"status": "success", "updated_at": "2026-05-01T00:00:00+00:00"},
            "feedback": {"rating": 1, "created_at": "2026-05-01T00:00:00+00:00"},
        }
        for kind, fields in changes.items():
            with case(kind):
                row = numbered_row(kind, 1)
                await _import(bulk, kind, [row])
                for new in ({**row, **fields}, row, {**row, **fields}):
                    assert await _import(bulk, kind, [new]) == Imported(replaced=1)
                    assert exactly(await _export(bulk, kind)) == exactly([new])

    async def test_row_that_was_changed_here_stays(self, storage: Storage, bulk: BulkRows) -> None:
        for kind in ("threads", "runs", "feedback"):
            await _import(bulk, kind, [numbered_row(kind, 1)])
        await _import(bulk, "feedback", [feedback_row("f-2", message_id=None)])
        await storage.threads.merge_thread_metadata("t-1", {"here": 1}, touch=False)
        await storage.runs.update_model_name("r-1", "here")
        await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        sources: Mapping[RowKind, dict[str, Any]] = {
            "threads": numbered_row("threads", 1, status="busy"),
            "runs": numbered_row("runs", 1, status="success"),
            "feedback": feedback_row("f-2", comment="new"),
        }
        for kind, row in sources.items():
            with case(kind):
                before = await _export(bulk, kind)
                assert await _import(bulk, kind, [row]) == Imported(
                    changed_here=[key_of(kind, cast("Any", row))]
                )
                assert await _export(bulk, kind) == before
                overwritten = await bulk.import_rows(kind, cast("Any", [row]), overwrite=True)
                assert overwritten == Imported(replaced=1)
                assert row in await _export(bulk, kind)

    async def test_account_that_was_changed_here_stays(self, storage: Storage, bulk: BulkRows) -> None:
        if not isinstance(storage, Accounts):
            pytest.skip(f"{type(storage).__name__} does not have `Accounts`")
        await _import(bulk, "users", [user_row()])
        fields = {name: value for name, value in user_row().items() if name not in ("user_id", "created_at")}
        await storage.users.update("u-1", **cast("Any", {**fields, "token_version": 4}))
        assert await _import(bulk, "users", [user_row(system_role="user")]) == Imported(
            changed_here=[("u-1",)]
        )

    async def test_row_that_no_import_stored_stays(self, storage: Storage, bulk: BulkRows) -> None:
        await given_run(storage)
        assert await _import(bulk, "runs", [run_row()]) == Imported(changed_here=[(RUN,)])
        assert (await stored_run(storage))["status"] == "pending"

    async def test_thread_is_free_once_its_run_has_ended_in_the_source(self, bulk: BulkRows) -> None:
        """Whatever the order of the rows."""
        await _import(bulk, "runs", [owned_run_row("r-2", thread_id=THREAD)])
        ended = owned_run_row("r-2", thread_id=THREAD, status="success")
        outcome = await _import(bulk, "runs", [owned_run_row("r-1", thread_id=THREAD), ended])
        assert outcome == Imported(stored=1, replaced=1)

    # What cannot be stored.

    async def test_conflicting_rows_are_refused_and_others_stored(self, bulk: BulkRows) -> None:
        for name, (kind, first, second) in _CONFLICTS.items():
            with case(name):
                await _import(bulk, kind, [first])
                before = await _export(bulk, kind)
                outcome = await _import(bulk, kind, [second])
                [refused] = outcome.refused
                assert outcome == Imported(refused=[refused])
                assert refused.key == key_of(kind, cast("Any", second))
                assert refused.reason
                assert refused.is_conflict == (kind != "run_events")
                assert await _export(bulk, kind) == before

    async def test_another_event_of_a_number_is_refused(self, bulk: BulkRows) -> None:
        await _import(bulk, "run_events", [event_row(1), event_row(2)])
        changed = event_row(2, content="another")
        outcome = await _import(bulk, "run_events", [event_row(1), changed, event_row(3)])
        assert (outcome.stored, outcome.unchanged) == (1, 1)
        assert [(one.key, one.is_conflict) for one in outcome.refused] == [((THREAD, 2), False)]
        overwritten = await bulk.import_rows("run_events", cast("Any", [changed]), overwrite=True)
        assert len(overwritten.refused) == 1

    async def test_malformed_rows_are_refused_and_name_the_field(self, bulk: BulkRows) -> None:
        for kind, field, values in _MALFORMED:
            for value in values:
                with case(kind, field, value):
                    rows = [
                        numbered_row(kind, 1),
                        numbered_row(kind, 2, **{field: value}),
                        numbered_row(kind, 3),
                    ]
                    outcome = await _import(bulk, kind, rows)
                    assert outcome.stored + outcome.unchanged == 2
                    [refused] = outcome.refused
                    assert field in refused.reason
                    assert not refused.is_conflict

    async def test_unknown_and_missing_keys_are_refused(self, bulk: BulkRows) -> None:
        for kind in ROW_KINDS:
            row = dict(ROWS[kind][0])
            required = [name for name in row if name not in ("user_id", "event_id")]
            lacking = [{key: row[key] for key in row if key != name} for name in required]
            for number, wrong in enumerate([{**row, "unknown": 1}, *lacking]):
                with case(kind, "unknown" if number == 0 else required[number - 1]):
                    assert len((await _import(bulk, kind, [wrong])).refused) == 1

    async def test_oversized_rows_are_refused_and_others_stored(
        self, storage: Storage, bulk: BulkRows
    ) -> None:
        if max_payload_bytes(storage) is None:
            pytest.skip(f"{type(storage).__name__} stores payloads of any size")
        fields: Mapping[RowKind, str] = {"run_events": "content", "runs": "kwargs", "threads": "metadata"}
        for kind, field in fields.items():
            with case(kind):
                large = {field: {"text": oversized_text(storage)}}
                rows = [numbered_row(kind, 1), numbered_row(kind, 2, **large), numbered_row(kind, 3)]
                outcome = await _import(bulk, kind, rows)
                assert outcome.stored == 2
                assert field in outcome.refused[0].reason

    async def test_same_key_twice_in_one_call(self, bulk: BulkRows) -> None:
        equal = await _import(bulk, "run_events", [event_row(1), event_row(1)])
        assert equal == Imported(stored=1)
        different = await _import(bulk, "run_events", [event_row(2), event_row(2, content="x")])
        assert (different.stored, len(different.refused)) == (1, 1)

    # Numbers of events.

    async def test_numbers_continue_after_imported_events(self, storage: Storage, bulk: BulkRows) -> None:
        await _import(bulk, "run_events", [event_row(1), event_row(5)])
        assert (await storage.run_events.put(**event()))["seq"] == 6
        await _import(bulk, "run_events", [event_row(3)])
        assert (await storage.run_events.put(**event()))["seq"] == 7

    async def test_cached_number_is_not_given_below_imported_ones(
        self, storage: Storage, bulk: BulkRows
    ) -> None:
        assert (await storage.run_events.put(**event()))["seq"] == 1
        await _import(bulk, "run_events", [event_row(5), event_row(6)])
        assert (await storage.run_events.put(**event()))["seq"] == 7
        # The gap is still open for the events that the source has there.
        assert await _import(bulk, "run_events", [event_row(2), event_row(3)]) == Imported(stored=2)
        assert [row["seq"] for row in await storage.run_events.list_messages(THREAD)] == [1, 2, 3, 5, 6, 7]

    async def test_imported_numbers_are_not_given_again(self, storage: Storage, bulk: BulkRows) -> None:
        await storage.run_events.put(**event())
        for thread_id in ("new", THREAD):
            with case(thread_id):
                await _import(bulk, "event_numbers", [{"thread_id": thread_id, "next_seq": 7}])
                assert (await storage.run_events.put(**event(thread_id=thread_id)))["seq"] == 7
                assert await _export(bulk, "event_numbers") == []

    async def test_numbers_of_deleted_events_are_exported(self, storage: Storage, bulk: BulkRows) -> None:
        await _import(bulk, "run_events", [event_row(1), event_row(2, run_id="run-2")])
        await storage.run_events.delete_by_run(THREAD, "run-2")
        assert await _export(bulk, "event_numbers") == [{"thread_id": THREAD, "next_seq": 3}]
        await storage.run_events.delete_by_thread(THREAD)
        assert await _export(bulk, "event_numbers") == [{"thread_id": THREAD, "next_seq": 3}]

    async def test_event_that_was_deleted_here_stays_deleted(self, storage: Storage, bulk: BulkRows) -> None:
        await _import(bulk, "run_events", [event_row(1), event_row(2)])
        await storage.run_events.delete_by_thread(THREAD)
        outcome = await _import(bulk, "run_events", [event_row(1), event_row(2), event_row(3)])
        assert outcome == Imported(stored=1, changed_here=[(THREAD, 1), (THREAD, 2)])

    async def test_imported_event_is_found_by_its_id_and_by_once(
        self, storage: Storage, bulk: BulkRows
    ) -> None:
        rows = [event_row(1, event_id="e"), event_row(2, event_type="start", once=True)]
        await _import(bulk, "run_events", rows)
        assert (await storage.run_events.put(**event(event_id="e")))["seq"] == 1
        found, is_new = await storage.run_events.put_if_absent(**event(event_type="start"))
        assert (found["seq"], is_new) == (2, False)

    # Leases, and several imports at once.

    async def test_lease_of_an_imported_run_is_judged_by_its_time(
        self, storage: Storage, bulk: BulkRows
    ) -> None:
        if not isinstance(storage.runs, RunOwnership):
            pytest.skip(f"{type(storage).__name__} does not have `RunOwnership`")
        rows = [
            owned_run_row("run-1"),
            owned_run_row("run-2", lease_expires_at="9000-01-01T00:00:00+00:00"),
            owned_run_row("run-3", lease_expires_at=None),
        ]
        await _import(bulk, "runs", rows)
        expired = await storage.runs.list_inflight_with_expired_lease()
        assert {row["run_id"] for row in expired} == {"run-1", "run-3"}

    async def test_same_rows_imported_at_once_are_stored_once(self, bulk: BulkRows) -> None:
        for kind in ROW_KINDS:
            with case(kind):
                rows = ROWS[kind]
                outcomes = await asyncio.gather(*(_import(bulk, kind, rows) for _ in range(4)))
                assert sum(outcome.stored for outcome in outcomes) <= len(rows) * 4
                total = Imported()
                for outcome in outcomes:
                    total.add(outcome)
                assert (total.rows, total.refused, total.changed_here) == (4 * len(rows), [], [])
                assert exactly(await _export(bulk, kind)) == exactly(list(rows))


async def _import(bulk: BulkRows, kind: RowKind, rows: Any) -> Imported:
    return await bulk.import_rows(kind, list(rows))


async def _export(bulk: BulkRows, kind: RowKind, batch_size: int = 1_000) -> list[Any]:
    found: list[Any] = []
    async for batch in bulk.export_rows(kind, batch_size=batch_size):
        assert 0 < len(batch) <= batch_size
        found += batch
    return found
