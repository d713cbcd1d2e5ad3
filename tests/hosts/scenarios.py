"""Scenarios over two workers of DeerFlow main on one database, with their outcomes and times.

    DEERFLOW_BACKEND=<checkout>/backend python -m tests.hosts.scenarios [number ...]

Prints a table, and exits with 1 where an outcome is not the expected one. Workers are killed with `kill -9`
and paused with SIGSTOP, and so is the server. A scenario is a coroutine function that returns what was
observed, and raises `AssertionError` for anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from deerflow_mongo import create_storage
from deerflow_mongo.contract.errors import ActiveRunError
from deerflow_mongo.mongodb.embedded import start_embedded

from .checkout import backend
from .two_workers import BEAT_S, DATABASE, GRACE_S, LEASE_S, ORPHAN_PASS_S, Workers, paused, two_workers

SLACK_S: Final = 3.0
"""For a machine with other work."""

TAKEN_OVER_S: Final = LEASE_S + GRACE_S
LATEST_TAKEOVER_S: Final = TAKEN_OVER_S + ORPHAN_PASS_S + SLACK_S
RACES: Final = 8
ABSENT: Final = "another:worker"
"""The owner of what no worker here has started."""

Scenario = Callable[[Workers], Awaitable[str]]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    number: int
    situation: str
    observed: str
    seconds: float
    is_expected: bool

    def __str__(self) -> str:
        mark = "" if self.is_expected else "**UNEXPECTED** "
        return f"| {self.number} | {self.situation} | {mark}{self.observed} | {self.seconds:.1f} |"


# -- admission -------------------------------------------------------------------------------------


async def second_run_at_the_other_worker(workers: Workers) -> str:
    """run active on A; B gets a run (reject)"""
    async with workers.person() as person:
        run_id = await person.running(workers.a, 30)
        answer = await person.start(workers.b, "me too")
        assert answer.status == 409, answer
        assert workers.count_runs(person.thread_id) == 1
        await workers.until_status(run_id, "success")
        return f"409 {answer.answer['detail']!r}; one row; the run ends as success"


async def interrupt_at_the_other_worker(workers: Workers) -> str:
    """the same with interrupt and rollback"""
    async with workers.person() as person:
        run_id = await person.running(workers.a, 30)
        answers = [await person.start(workers.b, "me", how) for how in ("interrupt", "rollback")]
        assert [answer.status for answer in answers] == [409, 409], answers
        await workers.until_status(run_id, "success")
        return "409 twice; A's run ends as success"


async def interrupt_at_the_owner(workers: Workers) -> str:
    """interrupt at A itself"""
    async with workers.person() as person:
        old = await person.running(workers.a)
        answer = await person.start(workers.a, "instead", "interrupt")
        assert answer.status == 200, answer
        new = answer.answer["run_id"]
        row = workers.stored(old)
        assert (row["status"], row["error"]) == ("interrupted", "Cancelled by newer run"), row
        await workers.until_status(new, "success")
        return f"200; the old run interrupted, {row['error']!r}; the new one ends as success"


async def twenty_starts_at_once(workers: Workers) -> str:
    """20 starts at once on one thread, over A and B"""
    async with workers.person() as person:
        gateways = [workers.a, workers.b] * 10
        answers = await asyncio.gather(*(person.start(at, "slowly 10: hello") for at in gateways))
        statuses = Counter(answer.status for answer in answers)
        assert statuses == {200: 1, 409: 19}, statuses
        assert workers.count_runs(person.thread_id) == 1
        return "one 200, nineteen 409, one row"


async def reservations_hold_the_thread(workers: Workers) -> str:
    """checkpoint_write, artifact_write, delete held on A"""
    runs = workers.storage.runs
    for kind in ("checkpoint_write", "artifact_write", "delete"):
        async with workers.person() as person:
            held = await _reserve(workers, person.thread_id, kind, lease_s=60)
            assert (await person.start(workers.b, "hello")).status == 409
            try:
                await _reserve(workers, person.thread_id, "delete", lease_s=60)
            except ActiveRunError:
                pass
            else:
                raise AssertionError("two reservations of one thread")
            await runs.delete(held, user_id=None)
            answer = await person.start(workers.b, "hello")
            assert answer.status == 200, answer
            await workers.until_status(answer.answer["run_id"], "success")
    async with workers.person() as person:
        held = await _reserve(workers, person.thread_id, "delete", lease_s=-GRACE_S - 1)
        took = await workers.until_status(held, "error", limit_s=ORPHAN_PASS_S + SLACK_S)
        assert await _receipts(workers, person.thread_id, held) == 0
        return (
            f"409 for each kind until it is deleted; a dead holder's is taken over ({took:.1f} s), no receipt"
        )


async def _reserve(workers: Workers, thread_id: str, kind: Any, *, lease_s: float) -> str:
    """A run or a reservation of a worker that is not there."""
    run_id = uuid.uuid4().hex
    await workers.storage.runs.create_thread_operation_atomic(
        run_id,
        thread_id=thread_id,
        owner_worker_id=ABSENT,
        lease_expires_at=datetime.now(UTC) + timedelta(seconds=lease_s),
        operation_kind=kind,
        user_id=None,
    )
    return run_id


async def _receipts(workers: Workers, thread_id: str, run_id: str) -> int:
    events = await workers.storage.run_events.list_events(
        thread_id, run_id, event_types=["run.delivery"], user_id=None
    )
    return len(events)


# -- cancellation ----------------------------------------------------------------------------------


async def cancel_at_the_other_worker(workers: Workers) -> str:
    """B cancels A's run, lease valid"""
    async with workers.person() as person:
        run_id = await person.running(workers.a)
        await workers.until_status(run_id, "running")
        status = await person.cancel(workers.b, run_id)
        assert status == 202, status
        assert workers.stored(run_id)["cancel_action"] == "interrupt"
        took = await workers.until_status(run_id, "interrupted", limit_s=BEAT_S + SLACK_S)
        return f"202; stored; A stops after {took:.1f} s; interrupted"


async def cancel_twice_at_the_other_worker(workers: Workers) -> str:
    """cancelled again at B"""
    async with workers.person() as person:
        run_id = await person.running(workers.a)
        await workers.until_status(run_id, "running")
        statuses = [await person.cancel(workers.b, run_id) for _ in range(2)]
        assert statuses == [202, 202], statuses
        await workers.until_status(run_id, "interrupted", limit_s=BEAT_S + SLACK_S)
        return "202"


async def two_actions_at_once(workers: Workers) -> str:
    """two different actions requested at B at once"""
    ends: Counter[str] = Counter()
    for _ in range(4):
        async with workers.person() as person:
            run_id = await person.running(workers.a)
            await workers.until_status(run_id, "running")
            statuses = await asyncio.gather(
                *(person.cancel(workers.b, run_id, action) for action in ("interrupt", "rollback"))
            )
            assert statuses == [202, 202], statuses
            await workers.until_status(run_id, limit_s=BEAT_S + SLACK_S)
            row = workers.stored(run_id)
            end = (row["cancel_action"], row["status"], row.get("error"))
            assert end in {
                ("interrupt", "interrupted", None),
                ("rollback", "error", "Rolled back by user"),
            }, end
            ends[f"{end[0]} -> {end[1]}"] += 1
    return f"both 202; the first stands: {dict(ends)}"


async def cancel_races_completion(workers: Workers) -> str:
    """cancel and completion race"""
    ends: Counter[str] = Counter()
    for number in range(RACES):
        async with workers.person() as person:
            run_id = await person.running(workers.a, 8)
            await workers.until_status(run_id, "running")
            await asyncio.sleep(0.7 + number * 0.05)
            status = await person.cancel(workers.b, run_id)
            await workers.until_status(run_id, limit_s=BEAT_S + SLACK_S + 2)
            row = workers.stored(run_id)
            if row["status"] == "success":
                assert row.get("cancel_action") is None, row
                assert status == 409, status
            else:
                assert (row["status"], row["cancel_action"], status) == ("interrupted", "interrupt", 202), row
            ends[f"{row['status']} and {status}"] += 1
    return f"exactly one: {dict(ends)}"


# -- reading ---------------------------------------------------------------------------------------


async def other_worker_joins(workers: Workers) -> str:
    """B joins or streams A's run (bridge in memory)"""
    async with workers.person() as person:
        run_id = await person.running(workers.a, 30)
        for path in ("join", "stream"):
            answer = await person.browser.send("GET", f"{workers.b.url}{person.runs}/{run_id}/{path}")
            assert answer.status == 409, answer
        await workers.until_status(run_id, "success")
        return "409"


async def other_worker_reads(workers: Workers) -> str:
    """B reads A's run, events, messages, totals"""
    async with workers.person() as person:
        answer = await person.start(workers.a, "hello")
        run_id = answer.answer["run_id"]
        await workers.until_status(run_id, "success")
        await person.get(workers.a, f"{person.runs}/{run_id}/join")
        thread = f"/api/threads/{person.thread_id}"
        for path in ("/runs", f"/runs/{run_id}/events", "/messages", "/token-usage", f"/runs/{run_id}"):
            at_b = await person.get(workers.b, thread + path)
            at_a = await person.get(workers.a, thread + path)
            assert _durable(at_a) == _durable(at_b), (path, at_a, at_b)
        return "as at A, at once"


def _durable(answer: Any) -> Any:
    """Without a run's `updated_at`, which the worker that made it has in memory."""
    if isinstance(answer, list):
        return [_durable(item) for item in cast("list[Any]", answer)]
    if isinstance(answer, dict):
        fields = cast("dict[str, Any]", answer)
        return {name: _durable(value) for name, value in fields.items() if name != "updated_at"}
    return answer


async def merges_of_different_keys(workers: Workers) -> str:
    """20 merges of different keys into one thread's metadata over A and B"""
    async with workers.person() as person:
        path = f"/api/threads/{person.thread_id}"
        await asyncio.gather(
            *(
                person.browser.ask(
                    "PATCH", f"{gateway.url}{path}", json={"metadata": {f"key{number}": number}}
                )
                for number, gateway in enumerate([workers.a, workers.b] * 10)
            )
        )
        metadata = (await person.get(workers.a, path))["metadata"]
        assert {f"key{number}": number for number in range(20)}.items() <= metadata.items(), metadata
        return "20 keys"


async def events_from_both_workers(workers: Workers) -> str:
    """events of one thread from A and B"""
    async with workers.person() as person:
        stop, read = asyncio.Event(), list[int]()
        reading = asyncio.create_task(_follow(workers, person.thread_id, read, stop))
        async with create_storage(
            {"backend": "mongodb", "url": workers.server.url, "database": DATABASE}
        ) as other:
            writing = [
                asyncio.create_task(_write_events(storage, person.thread_id))
                for storage in (workers.storage, other)
            ]
            for gateway in (workers.a, workers.b) * 2:
                answer = await person.start(gateway, "slowly 5: hello")
                await workers.until_status(answer.answer["run_id"], "success")
            await asyncio.gather(*writing)
        # The last events of a run follow its status.
        await asyncio.sleep(2)
        stop.set()
        await reading
        rows = workers.client[DATABASE]["run_events"].find(
            {"thread_id": person.thread_id, "seq": {"$gt": 0}}  # 0: the anchor of the numbers
        )
        numbers = sorted(row["seq"] for row in rows)
        assert numbers == list(range(1, len(numbers) + 1)), numbers
        assert read == numbers, sorted({*numbers} ^ {*read})
        return f"{len(numbers)} events: numbers unique and without gaps; a reader by after_seq missed none"


async def _write_events(storage: Any, thread_id: str) -> None:
    for number in range(100):
        await storage.run_events.put(
            thread_id=thread_id, run_id="beside", event_type="x", category="trace", content=str(number)
        )
        await asyncio.sleep(0.01)


async def _follow(workers: Workers, thread_id: str, read: list[int], stop: asyncio.Event) -> None:
    while True:
        is_last = stop.is_set()
        after = read[-1] if read else 0
        rows = await workers.storage.run_events.list_thread_events(thread_id, after_seq=after, limit=500)
        read += [row["seq"] for row in rows]
        if is_last and not rows:
            return
        await asyncio.sleep(0.02)


# -- leases ----------------------------------------------------------------------------------------


async def renewed_between_scan_and_claim(workers: Workers) -> str:
    """B's scan saw an expired lease, A renewed before B's claim"""
    runs = workers.storage.runs
    for _ in range(5):
        run_id = await _reserve(workers, uuid.uuid4().hex, "run", lease_s=-GRACE_S - 1)
        found = await runs.list_inflight_with_expired_lease(grace_seconds=GRACE_S)
        later = datetime.now(UTC) + timedelta(seconds=60)
        if (await runs.renew_lease(run_id, owner_worker_id=ABSENT, lease_expires_at=later)).renewed:
            break  # neither worker's orphan pass came in between
    else:
        raise AssertionError("an orphan pass was first every time")
    assert run_id in {row["run_id"] for row in found}
    assert not await runs.claim_for_takeover(run_id, grace_seconds=GRACE_S, error="gone")
    assert workers.stored(run_id)["status"] == "pending"
    await runs.delete(run_id, user_id=None)
    return "claim False; the run goes on"


async def lease_within_grace(workers: Workers) -> str:
    """lease expired, grace not yet over (exactly equal: tests/mongodb/test_run_ownership.py)"""
    run_id = await _reserve(workers, uuid.uuid4().hex, "run", lease_s=-GRACE_S / 4)
    found = await workers.storage.runs.list_inflight_with_expired_lease(grace_seconds=GRACE_S)
    assert run_id not in {row["run_id"] for row in found}
    took = await workers.until_status(run_id, "error", limit_s=GRACE_S + ORPHAN_PASS_S + SLACK_S)
    assert took > GRACE_S / 2, took
    return f"alive within the grace period; taken over {took:.1f} s later"


async def cancel_after_the_lease(workers: Workers) -> str:
    """cancel at B after lease + grace, before the orphan pass"""
    for _ in range(6):
        async with workers.person() as person:
            run_id = await person.running(workers.a)
            await workers.until_status(run_id, "running")
            await asyncio.sleep(BEAT_S + 0.5)
            with paused(workers.a.process.pid):
                await workers.until_unrenewed_for(run_id, TAKEN_OVER_S + 0.1)
                if workers.stored(run_id)["status"] != "running":
                    continue  # the pass was first
                status = await person.cancel(workers.b, run_id)
                row = workers.stored(run_id)
            if status == 202 and row["status"] == "error":
                return f"taken over: error, {row['error']!r}, 202"
            assert row.get("stop_reason") == "orphan_recovered", (status, row)
    raise AssertionError("the orphan pass was first every time")


async def paused_for_longer_than_the_lease(workers: Workers) -> str:
    """A paused for longer than lease + grace"""
    async with workers.person() as person:
        old = await person.running(workers.a, 300)
        await workers.until_status(old, "running")
        await asyncio.sleep(BEAT_S + 0.5)
        with paused(workers.a.process.pid):
            await workers.until_status(old, "error", limit_s=LATEST_TAKEOVER_S)
            took = workers.seconds_since_renewal(old)
            assert TAKEN_OVER_S <= took <= LATEST_TAKEOVER_S, took
            answer = await person.start(workers.b, "slowly 50: new")
            assert answer.status == 200, answer
        new = answer.answer["run_id"]
        await workers.until_status(new, "success")
        await asyncio.sleep(2 * BEAT_S)
        row = workers.stored(old)
        assert (row["status"], row["stop_reason"]) == ("error", "orphan_recovered"), row
        return (
            f"taken over {took:.1f} s after the last renewal; the new run ends as success, the old row stays"
        )


async def paused_for_less_than_lease_and_grace(workers: Workers) -> str:
    """A paused for 5.9 s: its lease has expired, lease + grace not"""
    async with workers.person() as person:
        run_id = await person.running(workers.a, 300)
        await workers.until_status(run_id, "running")
        await asyncio.sleep(BEAT_S + 0.5)
        with paused(workers.a.process.pid):
            await workers.until_unrenewed_for(run_id, LEASE_S + 0.9)
        took = await workers.until_status(run_id, "error", limit_s=LATEST_TAKEOVER_S)
        row = workers.stored(run_id)
        assert row["stop_reason"] == "orphan_recovered", row
        return f"A gives the run up; recovered {took:.1f} s later as error"


# -- a frozen server ---------------------------------------------------------------------------------


async def server_frozen_for_less_than_the_lease(workers: Workers) -> str:
    """database frozen for 2.5 s"""
    async with workers.person() as person:
        run_id = await person.running(workers.a, 60)
        await workers.until_status(run_id, "running")
        await asyncio.sleep(BEAT_S + 0.5)
        with paused(workers.server.pid):
            await asyncio.sleep(LEASE_S / 2)
        await workers.until_status(run_id)
        row = workers.stored(run_id)
        assert row["status"] == "success", row
        return "the run ends as success"


async def server_frozen_for_longer(workers: Workers) -> str:
    """database frozen for 9 s"""
    async with workers.person() as person, workers.person() as other:
        runs = [await person.running(workers.a, 400), await other.running(workers.b, 400)]
        for run_id in runs:
            await workers.until_status(run_id, "running")
        await asyncio.sleep(BEAT_S + 0.5)
        with paused(workers.server.pid):
            await asyncio.sleep(TAKEN_OVER_S + GRACE_S)
        took = [
            await workers.until_status(run_id, "error", limit_s=ORPHAN_PASS_S + LEASE_S + SLACK_S)
            for run_id in runs
        ]
        for run_id in runs:
            assert workers.stored(run_id)["stop_reason"] == "orphan_recovered"
        answers = [await person.start(workers.a, "new"), await other.start(workers.b, "new")]
        assert [answer.status for answer in answers] == [200, 200], answers
        for answer in answers:
            await workers.until_status(answer.answer["run_id"], "success")
        return f"both runs recovered as error {max(took):.1f} s after it is back; new runs end as success"


# -- kill -9 ---------------------------------------------------------------------------------------


async def owner_killed(workers: Workers) -> str:
    """A killed (-9); a new run at B before lease + grace"""
    async with workers.person() as person:
        run_id = await person.running(workers.a)
        await workers.until_status(run_id, "running")
        workers.a.kill()
        answers = [(await person.start(workers.b, "new", how)).status for how in ("reject", "interrupt")]
        assert answers == [409, 409], answers
        status = await person.cancel(workers.b, run_id)
        assert status == 202, status
        await workers.until_status(run_id, "error", limit_s=LATEST_TAKEOVER_S)
        return "409; interrupt 409; cancel 202"


async def orphan_is_recovered(workers: Workers) -> str:
    """... B's orphan pass"""
    await workers.restart("a")
    async with workers.person() as person:
        run_id = await person.running(workers.a)
        await workers.until_status(run_id, "running")
        await asyncio.sleep(BEAT_S + 0.5)
        workers.a.kill()
        await workers.until_status(run_id, "error", limit_s=LATEST_TAKEOVER_S)
        took = workers.seconds_since_renewal(run_id)
        assert TAKEN_OVER_S <= took <= LATEST_TAKEOVER_S, took
        row = workers.stored(run_id)
        assert row["stop_reason"] == "orphan_recovered", row
        await asyncio.sleep(1)
        receipts = await _receipts(workers, person.thread_id, run_id)
        assert receipts == 1, receipts
        answer = await person.start(workers.b, "new")
        assert answer.status == 200, answer
        await workers.until_status(answer.answer["run_id"], "success")
        return (
            f"error, orphan_recovered, {took:.1f} s after the last renewal; one run.delivery; a new run 200"
        )


async def owner_restarts(workers: Workers) -> str:
    """A restarts and finds its own old rows"""
    await workers.restart("a")
    async with workers.person() as person:
        run_id = await person.running(workers.a)
        await workers.until_status(run_id, "running")
        await asyncio.sleep(BEAT_S + 0.5)
        workers.a.kill()
        starting = asyncio.create_task(workers.start("a"))
        await workers.until_status(run_id, "error", limit_s=LATEST_TAKEOVER_S)
        took = workers.seconds_since_renewal(run_id)
        await starting
        assert took >= TAKEN_OVER_S, took
        return f"recovered {took:.1f} s after the last renewal, not before lease + grace"


SCENARIOS: Final[dict[int, Scenario]] = {
    1: second_run_at_the_other_worker,
    2: interrupt_at_the_other_worker,
    3: interrupt_at_the_owner,
    4: twenty_starts_at_once,
    5: cancel_at_the_other_worker,
    6: cancel_twice_at_the_other_worker,
    7: two_actions_at_once,
    8: cancel_races_completion,
    9: other_worker_joins,
    10: other_worker_reads,
    16: renewed_between_scan_and_claim,
    17: lease_within_grace,
    21: reservations_hold_the_thread,
    28: merges_of_different_keys,
    29: events_from_both_workers,
    13: cancel_after_the_lease,
    14: paused_for_longer_than_the_lease,
    15: paused_for_less_than_lease_and_grace,
    19: server_frozen_for_less_than_the_lease,
    20: server_frozen_for_longer,
    11: owner_killed,
    12: orphan_is_recovered,
    18: owner_restarts,
}
"""By number, in the order in which they are run: those that kill a worker come last."""


async def run_scenario(workers: Workers, number: int) -> Row:
    """The scenario's line; a failure is one too."""
    scenario = SCENARIOS[number]
    situation, began = str(scenario.__doc__), time.monotonic()
    try:
        observed, is_expected = await scenario(workers), True
    except Exception as error:  # noqa: BLE001 - a line of the table
        sys.stderr.write(traceback.format_exc())
        observed, is_expected = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False
    return Row(number, situation, observed, time.monotonic() - began, is_expected)


async def run_scenarios(
    numbers: Iterable[int], folder: Path, progress: Callable[[str], None]
) -> Sequence[Row]:
    """Run these on two workers and a server of their own."""
    server = await asyncio.to_thread(start_embedded, folder / "data")
    try:
        async with two_workers(folder, server) as workers:
            rows: list[Row] = []
            for number in [number for number in SCENARIOS if number in {*numbers}]:
                rows.append(await run_scenario(workers, number))
                progress(str(rows[-1]))
            return rows
    finally:
        server.release()


def _progress(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run them; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hosts.scenarios",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("numbers", nargs="*", type=int, choices=[*SCENARIOS, []], help="all by default")
    asked = parser.parse_args()
    backend()
    _progress("| # | situation | outcome | seconds |\n| --- | --- | --- | --: |")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, suppress(KeyboardInterrupt):
        rows = asyncio.run(run_scenarios(asked.numbers or SCENARIOS, Path(folder), _progress))
        return 0 if all(row.is_expected for row in rows) else 1
    return 130


if __name__ == "__main__":
    sys.exit(main())
