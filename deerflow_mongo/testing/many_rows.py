"""No count, sum, list or deletion stops at a number of rows that the caller did not ask for."""

from __future__ import annotations

import asyncio
from typing import Any

from ..contract.capabilities import Accounts, Following
from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, needs
from .run_events import event, seqs

_ROWS = 510
"""More than the default of every limit, and few enough for a slow backend."""


async def _given_runs(storage: Storage) -> None:
    """In the order of creation, with one token each."""
    for number in range(_ROWS):
        await storage.runs.create(f"run-{number}", THREAD, user_id=ALICE)
    await asyncio.gather(
        *(
            storage.runs.record_token_usage(
                f"run-{number}", caller="subagent", model_name="m", input_tokens=1
            )
            for number in range(_ROWS)
        )
    )


def _falling(prefix: str) -> list[str]:
    return [f"{prefix}-{number}" for number in reversed(range(_ROWS))]


class ManyRowsContract(Contract):
    @needs("many_rows")
    async def test_counts_and_lists_cover_more_than_500_events(self, storage: Storage) -> None:
        """`count_messages` has no limit, and a list has only the one that is given."""
        events = storage.run_events
        await events.put_batch([event(user_id=ALICE if n % 2 else BOB) for n in range(_ROWS)])
        await events.put_batch([event(category="trace")] * 10)
        assert await events.count_messages(THREAD) == _ROWS
        assert await events.count_messages(THREAD, user_id=ALICE) == _ROWS // 2
        numbers = list(range(1, _ROWS + 1))
        everything: dict[str, Any] = {"limit": 10_000}
        assert seqs(await events.list_messages(THREAD, **everything)) == numbers
        assert seqs(await events.list_messages(THREAD, after_seq=0, **everything)) == numbers
        assert seqs(await events.list_messages_by_run(THREAD, RUN, **everything)) == numbers
        assert len(await events.list_events(THREAD, RUN, **everything)) == _ROWS + 10
        if isinstance(events, Following):
            assert len(await events.list_thread_events(THREAD, **everything)) == _ROWS + 10

    @needs("many_rows")
    async def test_delete_by_run_removes_and_counts_more_than_500_events(self, storage: Storage) -> None:
        await storage.run_events.put_batch([event()] * _ROWS)
        assert await storage.run_events.delete_by_run(THREAD, RUN) == _ROWS
        assert await storage.run_events.list_events(THREAD, RUN) == []

    @needs("many_rows")
    async def test_delete_by_thread_removes_and_counts_more_than_500_events(self, storage: Storage) -> None:
        await storage.run_events.put_batch([event()] * _ROWS)
        assert await storage.run_events.delete_by_thread(THREAD) == _ROWS
        assert await storage.run_events.count_messages(THREAD) == 0

    @needs("many_rows")
    async def test_sums_and_lists_cover_more_than_500_runs(self, storage: Storage) -> None:
        """`list_pending` and `token_usage_by_thread` have no limit."""
        await _given_runs(storage)
        newest = _falling("run")
        listed = await storage.runs.list_by_thread(THREAD, user_id=ALICE, limit=10_000)
        assert [row["run_id"] for row in listed] == newest
        assert [row["run_id"] for row in await storage.runs.list_pending()] == newest[::-1]
        usage = await storage.runs.token_usage_by_thread(THREAD, user_id=ALICE)
        assert (usage["total_runs"], usage["total_tokens"], usage["llm_call_count"]) == (_ROWS,) * 3
        assert usage["by_caller"]["subagent"] == _ROWS
        assert (usage["by_model"]["m"]["runs"], usage["by_model"]["m"]["tokens"]) == (_ROWS, _ROWS)

    @needs("many_rows")
    async def test_totals_and_lists_cover_more_than_500_votes(self, storage: Storage) -> None:
        """`aggregate_by_run` has no limit."""
        feedback = storage.feedback
        for number in range(_ROWS):
            await feedback.create(
                run_id=RUN, thread_id=THREAD, rating=1 if number else -1, user_id=f"user-{number}"
            )
        totals = {"run_id": RUN, "total": _ROWS, "positive": _ROWS - 1, "negative": 1}
        assert await feedback.aggregate_by_run(THREAD, RUN) == totals
        newest = _falling("user")
        for rows in (
            await feedback.list_by_run(THREAD, RUN, limit=10_000),
            await feedback.list_by_thread(THREAD, limit=10_000),
        ):
            assert [row["user_id"] for row in rows] == newest

    @needs("many_rows")
    async def test_grouped_feedback_covers_more_than_500_runs(self, storage: Storage) -> None:
        votes = (
            storage.feedback.create(run_id=f"run-{number}", thread_id=THREAD, rating=-1, user_id=ALICE)
            for number in range(_ROWS)
        )
        await asyncio.gather(*votes)
        assert len(await storage.feedback.list_by_thread_grouped(THREAD, user_id=ALICE)) == _ROWS

    @needs("many_rows")
    async def test_search_covers_more_than_500_threads(self, storage: Storage) -> None:
        threads = storage.threads
        for number in range(_ROWS):
            await threads.ensure_thread(thread_id=f"thread-{number}", metadata={"k": 1}, user_id=ALICE)
        newest = _falling("thread")
        for order in ("newest_first", "last_updated_first"):
            with case(order):
                arguments: dict[str, Any] = {"metadata": {"k": 1}, "user_id": ALICE, "order": order}
                found = await threads.search_threads(**arguments, limit=10_000)
                assert [thread.thread_id for thread in found] == newest
                page = await threads.search_threads(**arguments, limit=10_000, offset=500)
                assert [thread.thread_id for thread in page] == newest[500:]

    @needs("many_rows")
    async def test_count_and_list_cover_more_than_500_accounts(self, storage: Storage) -> None:
        """Where the storage has accounts."""
        if not isinstance(storage, Accounts):
            return
        for number in range(_ROWS):
            await storage.users.create(f"user-{number}", email=f"{number}@example.org")
        assert await storage.users.count() == _ROWS
        assert await storage.users.count(system_role="user") == _ROWS
        rows = await storage.users.list_by_role("user", limit=10_000)
        assert [row["user_id"] for row in rows] == _falling("user")[::-1]
