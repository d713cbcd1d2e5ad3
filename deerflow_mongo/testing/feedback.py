"""Feedback: creating, listing, counting and deleting rows (CONTRACT section 4)."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from ..contract.actor import AUTO
from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as
from .values import assert_is_now, assert_row_time, exactly, now

_ON_RUN: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD}
_INVALID_RATINGS: tuple[Any, ...] = (
    0,
    5,
    -5,
    1.5,
    1.0,
    -1.0,
    "1",
    "+1",
    "",
    True,
    False,
    None,
    [1],
    {"$gt": 0},
    2**64,
)


async def _given(storage: Storage, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Create rows one after the other; the newest is first."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        arguments: dict[str, Any] = {**_ON_RUN, "rating": 1, "comment": str(number), **fields}
        rows.insert(0, dict(await storage.feedback.create(**arguments)))
    return rows


class FeedbackStoreContract(Contract):
    async def test_created_feedback_is_returned_and_stored(self, storage: Storage) -> None:
        since = now()
        row = await storage.feedback.create(
            **_ON_RUN, rating=-1, user_id=ALICE, message_id="m-1", comment="no"
        )
        expected: dict[str, Any] = {
            **_ON_RUN,
            "feedback_id": row["feedback_id"],
            "user_id": ALICE,
            "owner_id": ALICE,
            "message_id": "m-1",
            "rating": -1,
            "comment": "no",
            "created_at": row["created_at"],
        }
        assert exactly(dict(row)) == exactly(expected)
        assert_is_now(assert_row_time(row["created_at"]), since=since)
        assert await storage.feedback.get(row["feedback_id"]) == row

    async def test_absent_feedback_fields_are_none(self, storage: Storage) -> None:
        row = await storage.feedback.create(**_ON_RUN, rating=1)
        assert [row[name] for name in ("user_id", "owner_id", "message_id", "comment")] == [None] * 4
        assert await storage.feedback.get(row["feedback_id"]) == row

    async def test_feedback_id_is_a_uuid4_string(self, storage: Storage) -> None:
        rows = await _given(storage, 3)
        rows.append(dict(await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)))
        for row in rows:
            assert (str(UUID(row["feedback_id"])), UUID(row["feedback_id"]).version) == (
                row["feedback_id"],
                4,
            )
        assert len({row["feedback_id"] for row in rows}) == 4

    async def test_user_id_takes_precedence_over_owner_id(self, storage: Storage) -> None:
        """In a row, `owner_id` equals `user_id`."""
        table = ((ALICE, BOB, ALICE), (None, BOB, BOB), (ALICE, None, ALICE), ("", BOB, ""), (None, "", ""))
        for user_id, owner_id, expected in table:
            with case(user_id, owner_id):
                row = await storage.feedback.create(**_ON_RUN, rating=1, user_id=user_id, owner_id=owner_id)
                assert (row["user_id"], row["owner_id"]) == (expected, expected)
                assert await storage.feedback.get(row["feedback_id"]) == row

    async def test_user_may_have_several_feedback_rows(self, storage: Storage) -> None:
        rows = await _given(storage, 3, user_id=ALICE, message_id="m-1")
        rows = await _given(storage, 3, user_id=ALICE) + rows
        assert await storage.feedback.list_by_run(THREAD, RUN, user_id=ALICE) == rows

    async def test_invalid_rating_raises_and_writes_nothing(self, storage: Storage) -> None:
        """Anything but the integers 1 and -1 is a `ValueError` that names the value."""
        vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE, comment="first")
        for rating in _INVALID_RATINGS:
            for write in (storage.feedback.create, storage.feedback.upsert):
                with case(write.__name__, rating):
                    with pytest.raises(ValueError, match="rating") as raised:
                        await write(**_ON_RUN, rating=rating, user_id=ALICE, comment="second")
                    assert repr(rating) in str(raised.value)
        assert await storage.feedback.list_by_thread(THREAD) == [vote]

    async def test_get_of_unknown_feedback_returns_none(self, storage: Storage) -> None:
        await _given(storage, 1)
        for feedback_id in ("0b6ad8a6-3c0a-4b0e-9a37-0a8b0f6f2f11", "not a uuid", RUN):
            with case(feedback_id):
                assert await storage.feedback.get(feedback_id) is None
                assert await storage.feedback.delete(feedback_id) is False
        assert len(await storage.feedback.list_by_thread(THREAD)) == 1

    async def test_delete_removes_only_the_named_feedback(self, storage: Storage) -> None:
        rows = await _given(storage, 3, user_id=ALICE)
        assert await storage.feedback.delete(rows[1]["feedback_id"]) is True
        assert await storage.feedback.get(rows[1]["feedback_id"]) is None
        assert await storage.feedback.list_by_run(THREAD, RUN) == [rows[0], rows[2]]
        assert await storage.feedback.delete(rows[1]["feedback_id"]) is False

    async def test_exactly_one_of_a_hundred_concurrent_feedback_deletes_succeeds(
        self, storage: Storage
    ) -> None:
        feedback_id = (await storage.feedback.create(**_ON_RUN, rating=1))["feedback_id"]
        results = await asyncio.gather(*(storage.feedback.delete(feedback_id) for _ in range(100)))
        assert sorted(results) == [False] * 99 + [True]

    async def test_feedback_of_a_run_is_listed_newest_first(self, storage: Storage) -> None:
        """Only rows of this run in this thread; never tied or swapped, in the same order at every call."""
        rows = await _given(storage, 60, user_id=ALICE)
        await _given(storage, 2, run_id="run-2")
        await _given(storage, 2, thread_id="thread-2")
        for limit in (1, 2, 59, 60, 100):
            with case("limit", limit):
                assert await storage.feedback.list_by_run(THREAD, RUN, limit=limit) == rows[:limit]
        assert await storage.feedback.list_by_run("unknown", RUN) == []
        assert await storage.feedback.list_by_run(THREAD, "unknown") == []
        assert await storage.feedback.list_by_run("thread-2", "run-2") == []

    async def test_feedback_of_a_thread_is_listed_newest_first(self, storage: Storage) -> None:
        rows: list[dict[str, Any]] = []
        for number in range(20):
            rows = await _given(storage, 1, run_id=f"run-{number % 3}", user_id=f"user-{number % 2}") + rows
        await _given(storage, 2, thread_id="thread-2")
        assert await storage.feedback.list_by_thread(THREAD) == rows
        assert await storage.feedback.list_by_thread(THREAD, limit=7) == rows[:7]
        assert await storage.feedback.list_by_thread("unknown") == []

    async def test_feedback_lists_have_a_default_limit_of_100(self, storage: Storage) -> None:
        rows = await _given(storage, 105, user_id=ALICE)
        assert await storage.feedback.list_by_run(THREAD, RUN) == rows[:100]
        assert await storage.feedback.list_by_run(THREAD, RUN, user_id=ALICE) == rows[:100]
        assert await storage.feedback.list_by_thread(THREAD) == rows[:100]

    async def test_run_feedback_limit_counts_only_the_users_rows(self, storage: Storage) -> None:
        rows = await _given(storage, 5, user_id=ALICE)
        for number in range(25):
            await _given(storage, 1, user_id=BOB if number % 2 else None)
        assert await storage.feedback.list_by_run(THREAD, RUN, limit=20, user_id=ALICE) == rows
        assert await storage.feedback.list_by_run(THREAD, RUN, limit=2, user_id=ALICE) == rows[:2]
        assert len(await storage.feedback.list_by_run(THREAD, RUN, user_id=None)) == 30
        assert await storage.feedback.list_by_run(THREAD, RUN, user_id="") == []

    async def test_thread_feedback_limit_counts_only_the_users_rows(self, storage: Storage) -> None:
        rows: list[dict[str, Any]] = []
        for number in range(5):
            rows = await _given(storage, 1, run_id=f"run-{number % 2}", user_id=ALICE) + rows
            for owner in (BOB, None, "", BOB, None):
                await _given(storage, 1, run_id=f"run-{number % 2}", user_id=owner)
        await _given(storage, 2, thread_id="thread-2", user_id=ALICE)
        list_by_thread = storage.feedback.list_by_thread
        assert await list_by_thread(THREAD, user_id=ALICE, limit=20) == rows
        assert await list_by_thread(THREAD, user_id=ALICE, limit=2) == rows[:2]
        assert len(await list_by_thread(THREAD, user_id="")) == 5
        assert len(await list_by_thread(THREAD, user_id=None)) == 30
        assert await list_by_thread(THREAD, user_id="carol") == []

    async def test_feedback_can_be_listed_oldest_first(self, storage: Storage) -> None:
        """The first rows by age, not the newest ones reversed; the limit counts only the user's rows."""
        rows: list[dict[str, Any]] = []
        for number in range(30):
            rows += await _given(storage, 1, user_id=(ALICE, BOB, None)[number % 3])
        await _given(storage, 2, run_id="run-2", thread_id="thread-2")
        for limit in (1, 7, 100):
            for user_id in (None, ALICE, BOB):
                with case(limit, user_id):
                    expected = [row for row in rows if user_id in (None, row["user_id"])][:limit]
                    options: dict[str, Any] = {"limit": limit, "user_id": user_id, "order": "oldest_first"}
                    assert await storage.feedback.list_by_run(THREAD, RUN, **options) == expected
                    assert await storage.feedback.list_by_thread(THREAD, **options) == expected
        vote = await storage.feedback.upsert(**_ON_RUN, rating=-1, user_id=BOB)
        last = (await storage.feedback.list_by_thread(THREAD, order="oldest_first"))[-1]
        assert last == vote

    async def test_named_user_cannot_get_another_users_feedback(self, storage: Storage) -> None:
        for owner in (BOB, None, ""):
            with case(owner):
                row = await storage.feedback.create(**_ON_RUN, rating=1, user_id=owner)
                assert await storage.feedback.get(row["feedback_id"], user_id=ALICE) is None
                assert await storage.feedback.get(row["feedback_id"], user_id=owner) == row
                assert await storage.feedback.get(row["feedback_id"], user_id=None) == row

    async def test_deleting_another_users_feedback_returns_false_and_deletes_nothing(
        self, storage: Storage
    ) -> None:
        for owner in (BOB, None, ""):
            with case(owner):
                row = await storage.feedback.create(**_ON_RUN, rating=1, user_id=owner)
                assert await storage.feedback.delete(row["feedback_id"], user_id=ALICE) is False
                assert await storage.feedback.get(row["feedback_id"]) == row
                assert await storage.feedback.delete(row["feedback_id"], user_id=owner) is True
                assert await storage.feedback.get(row["feedback_id"]) is None

    async def test_auto_selects_the_actors_feedback(self, storage: Storage) -> None:
        own = await storage.feedback.create(**_ON_RUN, rating=1, user_id=ALICE)
        other = await storage.feedback.create(**_ON_RUN, rating=1, user_id=BOB)
        with acting_as(ALICE):
            assert await storage.feedback.list_by_thread(THREAD, user_id=AUTO) == [own]
            assert await storage.feedback.get(own["feedback_id"], user_id=AUTO) == own
            assert await storage.feedback.get(other["feedback_id"], user_id=AUTO) is None
            assert await storage.feedback.delete(other["feedback_id"], user_id=AUTO) is False
            assert await storage.feedback.get(other["feedback_id"]) == other

    async def test_feedback_totals_count_every_row(self, storage: Storage) -> None:
        """150 votes are counted as 150: no limit applies."""
        for number in range(150):
            await storage.feedback.upsert(**_ON_RUN, rating=1 if number % 3 else -1, user_id=f"user-{number}")
        await _given(storage, 2, run_id="run-2")
        await _given(storage, 2, thread_id="thread-2")
        expected = {"run_id": RUN, "total": 150, "positive": 100, "negative": 50}
        assert exactly(dict(await storage.feedback.aggregate_by_run(THREAD, RUN))) == exactly(expected)

    async def test_feedback_totals_of_one_rating_or_no_rows(self, storage: Storage) -> None:
        async def totals(run_id: str) -> tuple[object, ...]:
            found = await storage.feedback.aggregate_by_run(THREAD, run_id)
            assert found["run_id"] == run_id
            return found["total"], found["positive"], found["negative"]

        await _given(storage, 2, run_id="up", message_id="m")
        await _given(storage, 3, run_id="down", rating=-1)
        assert [await totals(run_id) for run_id in ("up", "down", "none")] == [
            (2, 2, 0),
            (3, 0, 3),
            (0, 0, 0),
        ]

    async def test_grouped_feedback_has_the_newest_row_of_each_of_the_users_runs(
        self, storage: Storage
    ) -> None:
        """For all of the user's runs in the thread: no limit applies."""
        expected: dict[str, Any] = {}
        for number in range(130):
            run_id = f"run-{number}"
            await _given(storage, 1, run_id=run_id, user_id=ALICE, rating=-1)
            [expected[run_id]] = await _given(
                storage, 1, run_id=run_id, user_id=ALICE, message_id=f"m-{number}"
            )
            await _given(storage, 1, run_id=run_id, user_id=BOB)
        await _given(storage, 1, run_id="without owner")
        await _given(storage, 1, thread_id="thread-2", run_id="other thread", user_id=ALICE)
        assert await storage.feedback.list_by_thread_grouped(THREAD, user_id=ALICE) == expected
        anonymous = await storage.feedback.list_by_thread_grouped(THREAD, user_id=None)
        assert [(run_id, row["user_id"]) for run_id, row in anonymous.items()] == [("without owner", None)]
        assert await storage.feedback.list_by_thread_grouped(THREAD, user_id="") == {}

    async def test_any_comment_text_round_trips(self, storage: Storage) -> None:
        for comment in ("", " ", "a\0b", "$rating", "%s", "'; --", "💬 x", "x" * 100_000, '{"_json":"1"}'):
            with case(comment[:20]):
                created = await storage.feedback.create(**_ON_RUN, rating=1, user_id=ALICE, comment=comment)
                voted = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=BOB, comment=comment)
                for row in (created, voted):
                    assert row["comment"] == comment
                    assert await storage.feedback.get(row["feedback_id"]) == row

    async def test_feedback_methods_need_no_actor_by_default(self, storage: Storage) -> None:
        """`user_id` is None by default, which is no filter."""
        with acting_as(ALICE):
            row = await storage.feedback.create(**_ON_RUN, rating=1)
            assert row["user_id"] is None
            await storage.feedback.create(**_ON_RUN, rating=1, user_id=BOB)
            assert len(await storage.feedback.list_by_run(THREAD, RUN)) == 2
            assert len(await storage.feedback.list_by_thread(THREAD)) == 2
            assert await storage.feedback.get(row["feedback_id"]) == row
            assert await storage.feedback.delete(row["feedback_id"]) is True
