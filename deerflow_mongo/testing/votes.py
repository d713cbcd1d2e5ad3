"""A user's one vote on a run: created or replaced in one atomic operation (CONTRACT section 4)."""

from __future__ import annotations

import asyncio
from typing import Any

from ..contract.protocols import Storage
from ..contract.rows import FeedbackRow
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract
from .values import assert_is_now, assert_row_time, now

_ON_RUN: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD}
_USERS = (ALICE, "", None)


async def _rows(storage: Storage) -> list[FeedbackRow]:
    return await storage.feedback.list_by_thread(THREAD, limit=1_000)


class VoteContract(Contract):
    async def test_first_upsert_creates_the_vote(self, storage: Storage) -> None:
        for user_id in _USERS:
            with case(user_id):
                since = now()
                vote = await storage.feedback.upsert(**_ON_RUN, rating=-1, user_id=user_id, comment="no")
                assert_is_now(assert_row_time(vote["created_at"]), since=since)
                assert (vote["user_id"], vote["owner_id"], vote["message_id"]) == (user_id, user_id, None)
                assert (vote["rating"], vote["comment"]) == (-1, "no")
                assert await storage.feedback.get(vote["feedback_id"]) == vote
        assert len(await _rows(storage)) == len(_USERS)

    async def test_second_upsert_replaces_the_vote(self, storage: Storage) -> None:
        """`feedback_id` stays the same, `created_at` becomes now."""
        for user_id in _USERS:
            with case(user_id):
                first = await storage.feedback.upsert(**_ON_RUN, rating=-1, user_id=user_id, comment="no")
                since = now()
                second = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=user_id, comment="yes")
                moment = assert_row_time(second["created_at"])
                assert_is_now(moment, since=since)
                assert moment > assert_row_time(first["created_at"])
                changed = {"rating": 1, "comment": "yes", "created_at": second["created_at"]}
                assert second == {**first, **changed}
                assert await storage.feedback.get(first["feedback_id"]) == second
        assert len(await _rows(storage)) == len(_USERS)

    async def test_upsert_without_a_comment_removes_the_comment(self, storage: Storage) -> None:
        await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE, comment="first")
        assert (await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE))["comment"] is None
        assert [row["comment"] for row in await _rows(storage)] == [None]

    async def test_upsert_leaves_votes_of_other_users_runs_and_threads_unchanged(
        self, storage: Storage
    ) -> None:
        targets: list[dict[str, Any]] = [
            {**_ON_RUN, "user_id": BOB},
            {**_ON_RUN, "user_id": None},
            {**_ON_RUN, "user_id": ""},
            {**_ON_RUN, "user_id": ALICE, "run_id": "run-2"},
            {**_ON_RUN, "user_id": ALICE, "thread_id": "thread-2"},
        ]
        others = [await storage.feedback.upsert(**target, rating=-1) for target in targets]
        vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        assert vote["feedback_id"] not in [row["feedback_id"] for row in others]
        for row in others:
            assert await storage.feedback.get(row["feedback_id"]) == row

    async def test_feedback_on_a_message_is_not_the_vote(self, storage: Storage) -> None:
        for user_id in _USERS:
            with case(user_id):
                on_messages = [
                    await storage.feedback.create(
                        **_ON_RUN, rating=-1, user_id=user_id, message_id=message_id, comment=message_id
                    )
                    for message_id in ("m-1", "m-2", "")
                ]
                vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=user_id)
                assert vote["message_id"] is None
                for row in on_messages:
                    assert await storage.feedback.get(row["feedback_id"]) == row
                again = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=user_id)
                assert again["feedback_id"] == vote["feedback_id"]

    async def test_created_row_without_a_message_becomes_the_vote(self, storage: Storage) -> None:
        for user_id in _USERS:
            with case(user_id):
                created = await storage.feedback.create(
                    **_ON_RUN, rating=-1, user_id=user_id, comment="first"
                )
                vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=user_id)
                assert vote["feedback_id"] == created["feedback_id"]
                assert (vote["rating"], vote["comment"]) == (1, None)
                assert assert_row_time(vote["created_at"]) > assert_row_time(created["created_at"])
        assert len(await _rows(storage)) == len(_USERS)

    async def test_one_of_several_created_rows_becomes_and_remains_the_vote(self, storage: Storage) -> None:
        created = [await storage.feedback.create(**_ON_RUN, rating=-1, user_id=ALICE) for _ in range(4)]
        vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        later = await storage.feedback.create(**_ON_RUN, rating=-1, user_id=ALICE, comment="later")
        for rating in (-1, 1):
            again = await storage.feedback.upsert(**_ON_RUN, rating=rating, user_id=ALICE)
            assert again["feedback_id"] == vote["feedback_id"]
        rest = [row for row in (*created, later) if row["feedback_id"] != vote["feedback_id"]]
        assert len(rest) == 4
        for row in rest:
            assert await storage.feedback.get(row["feedback_id"]) == row

    async def test_upserts_from_a_hundred_tasks_leave_one_vote(self, storage: Storage) -> None:
        """The vote is that of one of the calls. Repeated, because a race shows only sometimes."""
        for attempt in range(15):
            user_id = _USERS[attempt % len(_USERS)]
            target: dict[str, Any] = {"run_id": f"run-{attempt}", "thread_id": THREAD, "user_id": user_id}
            with case(target):
                upserts = (
                    storage.feedback.upsert(**target, rating=1 if n % 2 else -1, comment=str(n))
                    for n in range(100)
                )
                votes = await asyncio.gather(*upserts)
                assert len({vote["feedback_id"] for vote in votes}) == 1
                [stored] = await storage.feedback.list_by_run(THREAD, f"run-{attempt}")
                assert stored in votes
                assert stored["rating"] == (1 if int(stored["comment"] or "") % 2 else -1)

    async def test_concurrent_upserts_of_a_hundred_users_leave_a_hundred_votes(
        self, storage: Storage
    ) -> None:
        upserts = (
            storage.feedback.upsert(**_ON_RUN, rating=1, user_id=f"user-{number % 100}", comment=str(number))
            for number in range(300)
        )
        await asyncio.gather(*upserts)
        rows = await _rows(storage)
        assert sorted(row["user_id"] or "" for row in rows) == sorted(
            f"user-{number}" for number in range(100)
        )
        assert await storage.feedback.aggregate_by_run(THREAD, RUN) == {
            "run_id": RUN,
            "total": 100,
            "positive": 100,
            "negative": 0,
        }

    async def test_upserts_from_a_hundred_tasks_reuse_one_created_row(self, storage: Storage) -> None:
        created = {
            (await storage.feedback.create(**_ON_RUN, rating=-1, user_id=ALICE))["feedback_id"]
            for _ in range(3)
        }
        upserts = (storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE) for _ in range(100))
        voted = {vote["feedback_id"] for vote in await asyncio.gather(*upserts)}
        rows = await _rows(storage)
        assert {row["feedback_id"] for row in rows} == created
        assert len(voted) == 1
        assert voted <= created
        assert sorted(row["rating"] for row in rows) == [-1, -1, 1]

    async def test_concurrent_creates_and_upserts_leave_one_vote(self, storage: Storage) -> None:
        work: list[Any] = []
        for _ in range(30):
            work.append(storage.feedback.create(**_ON_RUN, rating=-1, user_id=ALICE))
            work.append(storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE))
        await asyncio.gather(*work)
        votes = [row for row in await _rows(storage) if row["rating"] == 1]
        assert len(votes) == 1
        again = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        assert again["feedback_id"] == votes[0]["feedback_id"]

    async def test_replaced_vote_becomes_the_newest_row(self, storage: Storage) -> None:
        """Its `created_at` becomes now, so it is first in lists."""
        first = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        for number in range(3):
            await storage.feedback.create(**_ON_RUN, rating=1, user_id=BOB, comment=str(number))
        second = await storage.feedback.upsert(**_ON_RUN, rating=-1, user_id=ALICE)
        assert second["feedback_id"] == first["feedback_id"]
        assert (await _rows(storage))[0] == second
        assert await storage.feedback.list_by_run(THREAD, RUN, limit=1) == [second]

    async def test_delete_by_run_removes_only_the_users_vote(self, storage: Storage) -> None:
        for user_id in _USERS:
            with case(user_id):
                vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=user_id)
                message = await storage.feedback.create(**_ON_RUN, rating=1, user_id=user_id, message_id="m")
                for other in ({"user_id": BOB}, {"run_id": "run-2"}, {"thread_id": "thread-2"}):
                    target: dict[str, Any] = {**_ON_RUN, "user_id": user_id, **other}
                    assert await storage.feedback.delete_by_run(**target) is False
                assert await storage.feedback.get(vote["feedback_id"]) == vote
                assert await storage.feedback.delete_by_run(**_ON_RUN, user_id=user_id) is True
                assert await storage.feedback.get(vote["feedback_id"]) is None
                assert await storage.feedback.delete_by_run(**_ON_RUN, user_id=user_id) is False
                assert await storage.feedback.get(message["feedback_id"]) == message

    async def test_delete_by_run_leaves_other_created_rows(self, storage: Storage) -> None:
        await storage.feedback.create(**_ON_RUN, rating=-1, user_id=ALICE)
        vote = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        later = await storage.feedback.create(**_ON_RUN, rating=-1, user_id=ALICE)
        assert await storage.feedback.delete_by_run(**_ON_RUN, user_id=ALICE) is True
        assert await storage.feedback.get(vote["feedback_id"]) is None
        assert await _rows(storage) == [later]

    async def test_exactly_one_of_a_hundred_concurrent_vote_deletes_succeeds(self, storage: Storage) -> None:
        await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        deletes = (storage.feedback.delete_by_run(**_ON_RUN, user_id=ALICE) for _ in range(100))
        assert sorted(await asyncio.gather(*deletes)) == [False] * 99 + [True]

    async def test_upsert_after_a_delete_creates_a_new_vote(self, storage: Storage) -> None:
        first = await storage.feedback.upsert(**_ON_RUN, rating=1, user_id=ALICE)
        assert await storage.feedback.delete(first["feedback_id"]) is True
        second = await storage.feedback.upsert(**_ON_RUN, rating=-1, user_id=ALICE)
        assert second["feedback_id"] != first["feedback_id"]
        assert await _rows(storage) == [second]
