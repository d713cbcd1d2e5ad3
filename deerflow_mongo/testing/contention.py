"""Several processes on one database: exact counts, one winner (CONTRACT sections 3, 4, 5, 8)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import CALLERS
from .cases import case
from .contract import (
    ALICE,
    RUN,
    THREAD,
    Contract,
    given_run,
    needs,
    on_new_database,
    stored_run,
    stored_thread,
)
from .processes import TASKS, run_in_processes

_PROCESSES = 4


async def _read_until(storage: Storage, last: int) -> list[int]:
    """The seqs that a reader sees that pages forwards until it has seen `last`."""
    seen: list[int] = []
    while not seen or seen[-1] < last:
        after = seen[-1] if seen else 0
        seen += [row["seq"] for row in await storage.run_events.list_messages(THREAD, after_seq=after)]
        await asyncio.sleep(0.001)
    return seen


class ContentionContract(Contract):
    @needs("processes")
    async def test_a_thousand_upserts_from_four_processes_leave_one_vote(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        names: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD, "user_id": ALICE}
        answers = await run_in_processes(storage_config, "upsert_votes", **names, rounds=10)
        [vote] = await storage.feedback.list_by_run(THREAD, RUN)
        assert vote["user_id"] == ALICE
        assert answers == [[vote["feedback_id"]]] * _PROCESSES

    @needs("processes")
    async def test_upserts_from_four_processes_reuse_one_created_row(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        """For the anonymous user, whose None a unique index may ignore."""
        names: dict[str, Any] = {"run_id": RUN, "thread_id": THREAD, "user_id": None}
        created = [await storage.feedback.create(**names, rating=1, comment="created") for _ in range(3)]
        answers = await run_in_processes(storage_config, "upsert_votes", **names, rounds=2)
        rows = await storage.feedback.list_by_run(THREAD, RUN)
        assert {row["feedback_id"] for row in rows} == {row["feedback_id"] for row in created}
        [vote] = [row for row in rows if row["comment"] != "created"]
        assert answers == [[vote["feedback_id"]]] * _PROCESSES

    @needs("processes")
    async def test_ten_thousand_token_records_from_four_processes_are_counted_exactly(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        await given_run(storage)
        await run_in_processes(storage_config, "record_tokens", run_id=RUN, rounds=100)
        each = _PROCESSES * 100
        row = await stored_run(storage)
        assert row["total_input_tokens"] == each * sum(range(TASKS))
        assert row["total_output_tokens"] == row["llm_call_count"] == each * TASKS == 10_000
        usage = await storage.runs.token_usage_by_thread(THREAD, user_id=ALICE)
        for number, caller in enumerate(CALLERS):
            with case(caller):
                spent = each * sum(task + 1 for task in range(TASKS) if task % len(CALLERS) == number)
                assert usage["by_caller"][caller] == spent
        for number in range(2):
            tasks = [task for task in range(TASKS) if task % 2 == number]
            assert usage["by_model"][f"model-{number}.0"] == {
                "runs": 1,
                "tokens": each * sum(task + 1 for task in tasks),
                "input_tokens": each * sum(tasks),
                "output_tokens": each * len(tasks),
                "llm_calls": each * len(tasks),
            }

    @needs("processes")
    async def test_a_thousand_ensure_thread_calls_from_four_processes_create_one_thread(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        names: dict[str, Any] = {"thread_id": THREAD, "user_id": ALICE}
        answers = await run_in_processes(storage_config, "ensure_threads", **names, rounds=10)
        thread = await stored_thread(storage)
        assert await storage.threads.search_threads(user_id=None) == [thread]
        assert answers == [[f"{thread.created_time.isoformat()} {thread.metadata}"]] * _PROCESSES

    @needs("processes")
    async def test_creates_from_four_processes_create_each_run_once(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        answers = await run_in_processes(storage_config, "create_runs", thread_id=THREAD, rounds=4)
        winners = Counter(run_id for created in answers for run_id in created)
        rows = await storage.runs.list_by_thread(THREAD, limit=1_000, user_id=None)
        assert len(rows) == TASKS * 4
        assert winners == Counter(row["run_id"] for row in rows)

    @needs("processes")
    async def test_updates_from_four_processes_lose_no_key_and_no_completion(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        await given_run(storage)
        await run_in_processes(storage_config, "merge_and_end", run_id=RUN)
        row = await stored_run(storage)
        assert (row["status"], row["total_tokens"]) == ("success", 7)
        assert Counter(row["metadata"].values()) == Counter(dict.fromkeys(range(TASKS), _PROCESSES))

    @needs("processes")
    async def test_events_from_four_processes_have_no_gaps_and_no_reader_misses_one(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        """Three readers page by `after_seq` while 100 tasks write; the seqs of a batch are consecutive."""
        rounds, size = 6, 3
        total = _PROCESSES * TASKS * rounds * size
        arguments: dict[str, Any] = {"thread_id": THREAD, "rounds": rounds, "size": size}
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(_read_until(storage, total)) for _ in range(3)]
            answers = await run_in_processes(storage_config, "put_events", **arguments)
        batches = [batch for answer in answers for batch in answer]
        assert sorted(number for batch in batches for number in batch) == list(range(1, total + 1))
        assert all(batch == list(range(batch[0], batch[0] + size)) for batch in batches)
        for reader in readers:
            assert reader.result() == list(range(1, total + 1))

    @needs("processes")
    async def test_put_if_absent_from_four_processes_stores_one_event_per_run(
        self, storage: Storage, storage_config: Mapping[str, Any]
    ) -> None:
        rounds = 4
        answers = await run_in_processes(storage_config, "put_once", thread_id=THREAD, rounds=rounds)
        assert sum(answers) == rounds
        for round_ in range(rounds):
            assert len(await storage.run_events.list_events(THREAD, f"run-{round_}")) == 1

    @needs("processes")
    @on_new_database
    async def test_concurrent_setup_from_six_processes_works(self, storage_config: Mapping[str, Any]) -> None:
        """On an empty database."""
        await run_in_processes(storage_config, "set_up", processes=6)
        async with create_storage(storage_config) as storage:
            votes = (
                storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
                for _ in range(50)
            )
            await asyncio.gather(*votes)
            assert len(await storage.feedback.list_by_run(THREAD, RUN)) == 1
