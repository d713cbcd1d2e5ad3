"""Owners, leases and cancellation of runs on a real server: clocks, races over clients, and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pymongo import MongoClient

from deerflow_mongo import (
    ActiveRunError,
    CorruptDocumentError,
    IdempotencyKeyError,
    MongoStorage,
    RunExistsError,
    ThreadOperation,
)
from deerflow_mongo.contract import times
from deerflow_mongo.contract.rows import OPERATION_KINDS, SUPERSEDED_ERROR
from deerflow_mongo.mongodb.documents.run_ownership import lease_has_expired
from deerflow_mongo.mongodb.documents.stored_times import NOW
from deerflow_mongo.mongodb.schema import ACTIVE_OPERATION_INDEX, IDEMPOTENCY_INDEX
from deerflow_mongo.mongodb.stores.runs import MongoRunStore

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]

THREAD = "thread-1"


@pytest.fixture
async def workers(new_storage: Callable[..., MongoStorage]) -> AsyncIterator[list[MongoRunStore]]:
    """The stores of four workers, each with a client of its own."""
    storages = [new_storage() for _ in range(4)]
    await storages[0].setup()
    yield [storage.runs for storage in storages]
    await asyncio.gather(*(storage.aclose() for storage in storages))


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def admit(
    runs: MongoRunStore, run_id: str, worker: str = "w1", strategy: str = "reject", **fields: Any
) -> ThreadOperation:
    lease = fields.pop("lease_expires_at", in_seconds(60))
    return await runs.create_thread_operation_atomic(
        run_id,
        thread_id=fields.pop("thread_id", THREAD),
        owner_worker_id=worker,
        lease_expires_at=lease,
        multitask_strategy=strategy,
        user_id=None,
        **fields,
    )


async def stored(runs: MongoRunStore, run_id: str) -> Any:
    return await runs.get(run_id, user_id=None)


async def active_ids(runs: MongoRunStore) -> list[str]:
    return [row["run_id"] for row in await runs.list_inflight()]


# -- leases and clocks -----------------------------------------------------------------------------

RENEWED = datetime(2026, 4, 22, 3, 30)  # noqa: DTZ001 - as the driver returns dates


LEASES: list[tuple[Document, bool]] = [
    ({"lease_renewed_at": RENEWED, "lease_ms": 5_000}, False),  # ends exactly a grace period ago
    ({"lease_renewed_at": RENEWED, "lease_ms": 4_999}, True),
    ({"lease_renewed_at": RENEWED, "lease_ms": 5_001}, False),
    ({"lease_renewed_at": RENEWED - timedelta(milliseconds=1), "lease_ms": 5_000}, True),
    ({"lease_renewed_at": RENEWED, "lease_ms": -1}, True),
    ({"lease_renewed_at": RENEWED, "lease_ms": 2**62}, False),
    ({"lease_renewed_at": None, "lease_ms": None}, True),
    ({}, True),
    ({"lease_renewed_at": "now", "lease_ms": 10**9}, True),
    ({"lease_renewed_at": RENEWED, "lease_ms": "long"}, True),
    ({"lease_renewed_at": [RENEWED], "lease_ms": 10**9}, True),
]
"""Leases, and whether they have expired 5 s and the grace period after `RENEWED`."""


def test_lease_that_ends_exactly_a_grace_period_ago_is_valid(raw_client: Raw, database_name: str) -> None:
    runs = raw_client[database_name]["runs"]
    runs.insert_many({**lease, "_id": number} for number, (lease, _) in enumerate(LEASES))
    expected = [number for number, (_, has_expired) in enumerate(LEASES) if has_expired]
    for grace_seconds in (0, 2, 2.3, 0.001, 86_400.0):
        now = RENEWED + timedelta(seconds=5) + timedelta(seconds=grace_seconds)
        condition = _with_now(lease_has_expired(grace_seconds), now)
        found = runs.find({"$expr": condition}).sort("_id")
        assert [document["_id"] for document in found] == expected


def _with_now(expression: Any, now: datetime) -> Any:
    """The expression at a fixed time in place of the server's clock."""
    if isinstance(expression, dict):
        document = cast("Document", expression)
        return {name: _with_now(value, now) for name, value in document.items()}
    if isinstance(expression, list):
        return [_with_now(item, now) for item in cast("list[Any]", expression)]
    return now if expression == NOW else expression


async def test_lease_of_a_worker_whose_clock_is_wrong_is_as_long_as_it_asked_for(
    workers: list[MongoRunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker w1's clock is a day late or early: its runs are neither taken over nor kept."""
    honest, wrong = workers[0], workers[1]
    for days in (-1, 1):
        shift = timedelta(days=days)
        with monkeypatch.context() as patched:
            _shift_clock(patched, shift)
            lease = (datetime.now(UTC) + shift + timedelta(seconds=60)).isoformat()
            await admit(wrong, f"valid{days}", lease_expires_at=lease, thread_id=f"valid{days}")
            lapsed = (datetime.now(UTC) + shift - timedelta(seconds=5)).isoformat()
            await admit(wrong, f"expired{days}", lease_expires_at=lapsed, thread_id=f"expired{days}")
            assert (await stored(wrong, f"valid{days}"))["lease_expires_at"] == lease
        expired = await honest.list_inflight_with_expired_lease(before="2999-01-01", grace_seconds=1)
        assert [row["run_id"] for row in expired] == [f"expired{days}"]
        assert not await honest.claim_for_takeover(f"valid{days}", grace_seconds=1, error="x")
        assert await honest.claim_for_takeover(f"expired{days}", grace_seconds=1, error="x")
        with pytest.raises(ActiveRunError) as refused:
            await admit(honest, "new", "w2", "interrupt", thread_id=f"valid{days}")
        assert refused.value.is_protected
        with monkeypatch.context() as patched:
            _shift_clock(patched, shift)
            renewed_until = (datetime.now(UTC) + shift + timedelta(seconds=60)).isoformat()
            renewal: Any = {"owner_worker_id": "w1", "lease_expires_at": renewed_until}
            assert (await wrong.renew_lease(f"valid{days}", **renewal)).renewed
        assert await honest.list_inflight_with_expired_lease(before="2999-01-01") == []
        await honest.end_runs_of_worker("w1", status="interrupted", error="x")


async def test_worker_whose_clock_is_wrong_does_not_steal_runs(
    workers: list[MongoRunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, wrong = workers[0], workers[1]
    await admit(honest, "r", "w1", lease_expires_at=in_seconds(60))
    for days in (-1, 1):
        with monkeypatch.context() as patched:
            _shift_clock(patched, timedelta(days=days))
            for before in (None, "2999-01-01"):
                listed = await wrong.list_inflight_with_expired_lease(before=before, grace_seconds=0)
                assert listed == []
            assert not await wrong.claim_for_takeover("r", grace_seconds=0, error="x")
            with pytest.raises(ActiveRunError):
                await admit(wrong, "new", "w2", "rollback", grace_seconds=0)
    assert await active_ids(honest) == ["r"]


def _shift_clock(patched: pytest.MonkeyPatch, shift: timedelta) -> None:
    """The clock of the machine, for this package only."""
    shift_s, real = shift.total_seconds(), times.time
    shifted = SimpleNamespace(
        time=lambda: real.time() + shift_s, time_ns=lambda: real.time_ns() + round(shift_s * 10**9)
    )
    patched.setattr(times, "time", shifted)
    patched.setattr(times.clock, "_last_us", 0)


async def test_expired_lease_that_nobody_took_over_is_renewed(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    await admit(runs, "r", lease_expires_at=in_seconds(-20))
    assert [row["run_id"] for row in await runs.list_inflight_with_expired_lease()] == ["r"]
    renewal = await runs.renew_lease("r", owner_worker_id="w1", lease_expires_at=in_seconds(5))
    assert renewal == (True, None)
    assert await runs.list_inflight_with_expired_lease() == []
    assert not await workers[1].claim_for_takeover("r", grace_seconds=10, error="x")


async def test_run_without_a_lease_counts_as_expired(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    await runs.put("r", thread_id=THREAD, user_id=None)
    await runs.create("without an owner", "other", user_id=None)
    expired = await runs.list_inflight_with_expired_lease(grace_seconds=1_000)
    assert [row["run_id"] for row in expired] == ["r", "without an owner"]
    for row in expired:
        claim: Any = {"grace_seconds": 1_000, "error": "Lost: x", "stop_reason": "orphan"}
        assert await runs.claim_for_takeover(row["run_id"], **claim)
        assert not await runs.claim_for_takeover(row["run_id"], **claim)
    assert (await stored(runs, "r"))["stop_reason"] == "orphan"


# -- admission -------------------------------------------------------------------------------------


async def test_two_hundred_racing_admissions_have_one_winner(workers: list[MongoRunStore]) -> None:
    calls = (admit(workers[number % 4], f"r{number}", f"w{number % 4}") for number in range(200))
    results = await asyncio.gather(*calls, return_exceptions=True)
    admitted = [result for result in results if isinstance(result, ThreadOperation)]
    refused = [result for result in results if isinstance(result, ActiveRunError)]
    assert (len(admitted), len(refused)) == (1, 199)
    assert not any(error.is_protected for error in refused)
    assert await active_ids(workers[0]) == [admitted[0].row["run_id"]]
    assert len(await workers[0].list_by_thread(THREAD, user_id=None)) == 1


@pytest.mark.parametrize("owners", [("w1", "w1"), ("w1", "w2")])
async def test_interrupts_at_once_leave_one_active_run(
    owners: tuple[str, str], workers: list[MongoRunStore]
) -> None:
    """Every run that was ended is in exactly one result, and the number of active runs is never two."""
    for round_number in range(10):
        thread = f"t{round_number}"
        await admit(workers[0], f"{thread}-old", "w1", thread_id=thread)
        calls = (
            admit(workers[n], f"{thread}-{n}", owners[n % 2], "interrupt", thread_id=thread) for n in range(4)
        )
        results = await asyncio.gather(*calls, return_exceptions=True)
        admitted = [result for result in results if isinstance(result, ThreadOperation)]
        assert admitted
        assert {type(result) for result in results} <= {ThreadOperation, ActiveRunError}
        active = [row for row in await workers[1].list_inflight() if row["thread_id"] == thread]
        assert len(active) == 1
        assert active[0]["run_id"] in {result.row["run_id"] for result in admitted}
        ended = sorted(row["run_id"] for result in admitted for row in result.interrupted)
        rows = await workers[2].list_by_thread(thread, user_id=None)
        expected = {row["run_id"] for row in rows if row["status"] == "interrupted"}
        # An admission that gave up after all had ended a run raises, and returns no rows.
        assert set(ended) <= expected
        assert len(ended) == len(set(ended))
        if len(admitted) == len(results):
            assert set(ended) == expected


async def test_interruption_ends_the_run_and_sets_owner_and_times(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    await admit(runs, "old", lease_expires_at=in_seconds(-60))
    await runs.start_run("old")
    operation = await admit(runs, "new", "w2", "rollback")
    [ended] = operation.interrupted
    assert ended == await stored(runs, "old")
    assert (ended["status"], ended["error"]) == ("interrupted", SUPERSEDED_ERROR)
    assert (ended.get("owner_worker_id"), ended["ended_at"]) == ("w2", ended["updated_at"])
    assert operation.row == await stored(runs, "new")
    assert (operation.row["status"], operation.row["updated_at"]) == ("pending", "")


@pytest.mark.parametrize("kind", OPERATION_KINDS[1:])
async def test_reservation_is_ended_only_once_its_lease_has_expired(
    kind: str, workers: list[MongoRunStore]
) -> None:
    runs = workers[0]
    for lease in (in_seconds(60), in_seconds(-5), None):
        await admit(runs, "r", "w1", operation_kind=kind, lease_expires_at=lease)
        for worker in ("w1", "w2"):
            with pytest.raises(ActiveRunError) as refused:
                await admit(runs, "new", worker, "interrupt", grace_seconds=10)
            assert refused.value.is_protected
            assert "'thread-1'" in str(refused.value)
        assert await stored(runs, "new") is None
        assert await runs.delete("r", user_id=None)
    await admit(runs, "r", "w1", operation_kind=kind, lease_expires_at=in_seconds(-15))
    operation = await admit(runs, "new", "w1", "interrupt", grace_seconds=10)
    assert [row["run_id"] for row in operation.interrupted] == ["r"]


async def test_run_of_another_worker_without_a_lease_is_interrupted(workers: list[MongoRunStore]) -> None:
    await admit(workers[0], "old", "w1", lease_expires_at=None)
    operation = await admit(workers[1], "new", "w2", "interrupt")
    assert [row["run_id"] for row in operation.interrupted] == ["old"]


async def test_admission_for_a_known_key_interrupts_nothing(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    await admit(runs, "first", "w1", idempotency_key="k")
    await admit(runs, "elsewhere", "w1", thread_id="other")
    for strategy in ("reject", "interrupt", "rollback"):
        for thread in (THREAD, "other", "free"):
            with pytest.raises(IdempotencyKeyError, match="'first'") as known:
                await admit(runs, "new", "w1", strategy, thread_id=thread, idempotency_key="k")
            assert known.value.existing == await stored(runs, "first")
    assert await active_ids(runs) == ["first", "elsewhere"]


async def test_racing_admissions_for_one_key_have_one_winner(workers: list[MongoRunStore]) -> None:
    """On a thread with an active run of the same worker, which the winner ends."""
    for round_number in range(10):
        thread = f"t{round_number}"
        await admit(workers[0], f"{thread}-old", "w1", thread_id=thread)
        calls = (
            admit(
                workers[n % 4], f"{thread}-{n}", "w1", "interrupt", thread_id=thread, idempotency_key=thread
            )
            for n in range(8)
        )
        results = await asyncio.gather(*calls, return_exceptions=True)
        [winner] = [result for result in results if isinstance(result, ThreadOperation)]
        others = [result for result in results if not isinstance(result, ThreadOperation)]
        for error in others:
            assert isinstance(error, IdempotencyKeyError), repr(error)
            assert error.existing["run_id"] == winner.row["run_id"]
        rows = await workers[0].list_by_thread(thread, user_id=None)
        assert {row["run_id"]: row["status"] for row in rows} == {
            f"{thread}-old": "interrupted",
            winner.row["run_id"]: "pending",
        }


@pytest.mark.parametrize("strategy", ["reject", "interrupt"])
async def test_admission_for_a_known_run_id_changes_nothing(
    strategy: str, workers: list[MongoRunStore]
) -> None:
    runs = workers[0]
    await admit(runs, "r")
    with pytest.raises(RunExistsError):
        await admit(runs, "r", "w1", strategy)
    assert (await stored(runs, "r"))["status"] == "pending"
    await runs.update_status("r", "success")
    before = await stored(runs, "r")
    with pytest.raises(RunExistsError):
        await admit(runs, "r", "w1", strategy)
    assert await stored(runs, "r") == before


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("is_sent", [True, False], ids=["sent", "not sent"])
@pytest.mark.parametrize("step", [1, 2, 3])
async def test_crash_at_each_step_of_an_interrupt_leaves_a_usable_thread(
    step: int, is_sent: bool, workers: list[MongoRunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are the refused insert, the end of the old run, and the insert."""
    runs, other = workers[0], workers[1]
    await admit(runs, "old", "w1", lease_expires_at=in_seconds(-60))
    with monkeypatch.context() as patched:
        _crash_at(patched, runs, step, is_sent=is_sent)
        with pytest.raises(Crash):
            await admit(runs, "new", "w1", "interrupt", lease_expires_at=in_seconds(-60))
    was_ended = step > 2 or (step == 2 and is_sent)
    assert (await stored(other, "old"))["status"] == ("interrupted" if was_ended else "pending")
    was_inserted = step == 3 and is_sent
    assert (await stored(other, "new") is not None) == was_inserted
    operation = await admit(other, "next", "w2", "interrupt")
    expected = ["new"] if was_inserted else [] if was_ended else ["old"]
    assert [row["run_id"] for row in operation.interrupted] == expected
    assert await active_ids(other) == ["next"]


def _crash_at(patched: pytest.MonkeyPatch, runs: MongoRunStore, step: int, *, is_sent: bool) -> None:
    """The command of this number ends in a crash, before or after the server has executed it."""
    collection: Any = vars(runs)["_collection"]
    run, sent = collection.run, 0

    async def crashing(operation: str, call: Any, *written: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent != step:
            return await run(operation, call, *written)
        if is_sent:
            with contextlib.suppress(Exception):
                await run(operation, call, *written)
        raise Crash

    patched.setattr(collection, "run", crashing)


async def test_cancelled_admissions_leave_one_active_run_at_most(workers: list[MongoRunStore]) -> None:
    """Tasks are cancelled at any moment of their steps."""
    chance = random.Random(14)  # noqa: S311 - repeatable
    for round_number in range(40):
        runs = workers[round_number % 2]
        task = asyncio.ensure_future(admit(runs, f"r{round_number}", "w1", "interrupt"))
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(task, chance.random() * 0.005)
        assert len(await active_ids(workers[2])) <= 1
    await admit(workers[3], "last", "w1", "interrupt")
    assert await active_ids(workers[2]) == ["last"]


# -- cancellation ----------------------------------------------------------------------------------


async def test_first_requested_action_and_its_time_stand(workers: list[MongoRunStore]) -> None:
    for round_number in range(10):
        run_id = f"r{round_number}"
        await admit(workers[0], run_id, thread_id=run_id)
        actions: list[Any] = ["interrupt", "rollback"] * 4
        answers = await asyncio.gather(
            *(workers[n % 4].request_cancel(run_id, action=action) for n, action in enumerate(actions))
        )
        row = await stored(workers[0], run_id)
        assert set(answers) == {row["cancel_action"]}
        requested_at = row["cancel_requested_at"]
        other = "rollback" if answers[0] == "interrupt" else "interrupt"
        assert await workers[1].request_cancel(run_id, action=other) == answers[0]
        again = await stored(workers[0], run_id)
        assert (again["cancel_action"], again["cancel_requested_at"]) == (answers[0], requested_at)


async def test_of_completion_and_cancellation_exactly_one_wins(workers: list[MongoRunStore]) -> None:
    outcomes: set[str] = set()
    for round_number in range(60):
        run_id = f"r{round_number}"
        await admit(workers[0], run_id, thread_id=run_id)
        await workers[0].start_run(run_id)
        finish = workers[0].finalize_if_not_cancelled(run_id, status="success")
        cancels = (workers[n].request_cancel(run_id, action="interrupt") for n in (1, 2))
        calls: list[Any] = [finish, *cancels]
        if round_number % 2:
            calls.reverse()
        answers: list[Any] = await asyncio.gather(*calls)
        finalization, *cancelled = reversed(answers) if round_number % 2 else answers
        row = await stored(workers[3], run_id)
        outcomes.add(row["status"])
        if finalization.finalized:
            assert (row["status"], row["cancel_action"]) == ("success", None)
            assert cancelled == [None, None]
        else:
            assert (row["status"], row["cancel_action"]) == ("running", "interrupt")
            assert finalization.cancel_action == "interrupt"
            assert "interrupt" in cancelled
    assert outcomes == {"success", "running"}


async def test_take_over_and_renewal_exclude_each_other(workers: list[MongoRunStore]) -> None:
    outcomes: set[bool] = set()
    for round_number in range(30):
        run_id = f"r{round_number}"
        await admit(workers[0], run_id, thread_id=run_id, lease_expires_at=in_seconds(-20))
        renewal = workers[0].renew_lease(run_id, owner_worker_id="w1", lease_expires_at=in_seconds(30))
        claims = [workers[n].claim_for_takeover(run_id, grace_seconds=10, error="x") for n in (1, 2)]
        calls: list[Any] = [renewal, *claims] if round_number % 2 else [*claims, renewal]
        answers: list[Any] = await asyncio.gather(*calls)
        renewed, *claimed = answers if round_number % 2 else [answers[-1], *answers[:-1]]
        assert [renewed.renewed, *claimed].count(True) == 1
        outcomes.add(renewed.renewed)
    assert True in outcomes


async def test_request_to_cancel_a_run_without_an_owner_is_in_its_row(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    await runs.create("r", THREAD, user_id=None)
    assert "cancel_action" not in await stored(runs, "r")
    assert await runs.request_cancel("r", action="interrupt") == "interrupt"
    row = await stored(runs, "r")
    assert (row["cancel_action"], row["operation_kind"], row["owner_worker_id"]) == ("interrupt", None, None)


# -- put and the other stores' methods -------------------------------------------------------------


async def test_repeated_put_changes_nothing_but_its_own_fields(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    fields: Any = {
        "thread_id": THREAD,
        "user_id": "alice",
        "metadata": {"a.b": {"$gt": 1}, "big": 2**70, "_json": 1},
        "created_at": "2026-04-22T03:30:00.000123Z",
        "owner_worker_id": "w1",
        "idempotency_key": "k",
    }
    await runs.put("r", **fields)
    first = await stored(runs, "r")
    assert first["updated_at"] == ""
    await runs.put("r", **fields)
    again = await stored(runs, "r")
    assert again["updated_at"] != ""
    assert {**again, "updated_at": ""} == first
    await runs.start_run("r")
    await runs.update_run_progress("r", total_tokens=5, last_ai_message="hi")
    await runs.request_cancel("r", action="interrupt")
    before = await stored(runs, "r")
    await runs.put(
        "r", thread_id="other", user_id=None, status="error", error="E: x", created_at="2020-01-01"
    )
    after = await stored(runs, "r")
    replaced: Document = {
        "thread_id": "other",
        "user_id": None,
        "status": "error",
        "error": "E: x",
        "metadata": {},
    }
    replaced |= {"owner_worker_id": None, "idempotency_key": None, "updated_at": after["updated_at"]}
    assert after == before | replaced


async def test_racing_puts_of_one_run_store_it_once(workers: list[MongoRunStore]) -> None:
    calls = (
        workers[n % 4].put("r", thread_id=THREAD, user_id=None, owner_worker_id=f"w{n}") for n in range(40)
    )
    await asyncio.gather(*calls)
    assert await active_ids(workers[0]) == ["r"]


async def test_put_is_refused_on_an_occupied_thread_and_for_a_known_key(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    await runs.put("r", thread_id=THREAD, user_id=None, idempotency_key="k")
    with pytest.raises(ActiveRunError, match="'thread-1'"):
        await runs.put("s", thread_id=THREAD, user_id=None)
    with pytest.raises(IdempotencyKeyError, match="'r'"):
        await runs.put("s", thread_id="other", user_id=None, idempotency_key="k")
    await runs.put("s", thread_id=THREAD, user_id=None, status="success")
    await runs.put("without kind", thread_id=THREAD, user_id=None, operation_kind=None)
    with pytest.raises(ActiveRunError):
        await runs.put("s", thread_id=THREAD, user_id=None, status="running")
    assert (await stored(runs, "s"))["status"] == "success"


async def test_change_of_status_that_would_activate_a_second_run_is_refused(
    workers: list[MongoRunStore],
) -> None:
    """A host's own status is no ending, so that a run may leave it."""
    runs = workers[0]
    await admit(runs, "waiting")
    await runs.update_status("waiting", "cancelling")
    await admit(runs, "active")
    for change in (
        runs.update_status("waiting", "running"),
        runs.update_run_completion("waiting", status="running"),
    ):
        with pytest.raises(ActiveRunError, match="'thread-1'"):
            await change
    assert (await stored(runs, "waiting"))["status"] == "cancelling"


async def test_endings_set_the_derived_fields(
    workers: list[MongoRunStore], raw_client: Raw, database_name: str
) -> None:
    runs = workers[0]
    endings: dict[str, Callable[[str], Any]] = {
        "finalize": lambda r: runs.finalize_if_not_cancelled(r, status="error", error="E: x"),
        "claim": lambda r: runs.claim_for_takeover(r, grace_seconds=0, error="E: x"),
        "end": lambda r: runs.end_runs_of_worker(r, status="error", error="E: x"),
    }
    for name, end in endings.items():
        await admit(runs, name, name, thread_id=name, lease_expires_at=in_seconds(-5))
        await runs.start_run(name)
        await asyncio.sleep(0.01)
        assert await end(name)
        document = raw_client[database_name]["runs"].find_one({"_id": name}) or {}
        took = document["ended_at"] - document["started_at"]
        assert document["duration_ms"] == took // timedelta(milliseconds=1) >= 10
        assert (document["status"], document["error_type"]) == ("error", "E")
        assert document["ended_at"] == document["updated_at"]


async def test_put_of_an_ended_run_has_a_duration_only_while_it_is_ended(
    workers: list[MongoRunStore], raw_client: Raw, database_name: str
) -> None:
    runs, raw = workers[0], raw_client[database_name]["runs"]
    for status, duration in (("success", int), ("running", type(None)), ("error", int)):
        await runs.put("r", thread_id=THREAD, user_id=None, status=status)
        document = raw.find_one({"_id": "r"}) or {}
        assert isinstance(document["duration_ms"], duration)
        assert document["ended_at"] is None


async def test_lists_of_runs_leave_out_reservations(workers: list[MongoRunStore]) -> None:
    runs = workers[0]
    for kind in OPERATION_KINDS:
        await admit(runs, kind, thread_id=THREAD if kind == "run" else f"of {kind}", operation_kind=kind)
        await runs.put(f"ended {kind}", thread_id=THREAD, user_id=None, status="success", operation_kind=kind)
    await runs.put("without kind", thread_id=THREAD, user_id=None, operation_kind=None)
    await runs.create("created", THREAD, user_id=None)
    listed = [row["run_id"] for row in await runs.list_by_thread(THREAD, user_id=None)]
    assert listed == ["created", "without kind", "ended run", "run"]
    assert [row["run_id"] for row in await runs.list_pending()] == ["run", "without kind", "created"]
    assert (await runs.token_usage_by_thread(THREAD, user_id=None))["total_runs"] == 4
    assert await active_ids(runs) == [*OPERATION_KINDS, "without kind", "created"]
    assert (await stored(runs, "delete"))["operation_kind"] == "delete"
    assert await runs.delete("delete", user_id=None)


async def test_documents_of_a_newer_version_are_not_changed(
    workers: list[MongoRunStore], raw_client: Raw, database_name: str
) -> None:
    runs, raw = workers[0], raw_client[database_name]["runs"]
    await admit(runs, "r", lease_expires_at=in_seconds(-60))
    raw.update_one({"_id": "r"}, {"$set": {"schema_version": 99}})
    before = raw.find_one({"_id": "r"})
    lease: Any = {"owner_worker_id": "w1", "lease_expires_at": in_seconds(5)}
    calls: dict[str, Any] = {
        "put": runs.put("r", thread_id=THREAD, user_id=None),
        "start_run": runs.start_run("r"),
        "update_lease": runs.update_lease("r", **lease),
        "renew_lease": runs.renew_lease("r", **lease),
        "request_cancel": runs.request_cancel("r", action="interrupt"),
        "finalize_if_not_cancelled": runs.finalize_if_not_cancelled("r", status="success"),
        "claim_for_takeover": runs.claim_for_takeover("r", grace_seconds=0, error="x"),
    }
    for name, call in calls.items():
        with pytest.raises(CorruptDocumentError, match="schema_version"):
            pytest.fail(f"{name}: {await call!r}")
    # No running run of this id, of whatever version.
    assert not await runs.update_run_progress("r", total_tokens=1)
    assert await runs.renew_leases_of_worker("w1", lease_expires_at=in_seconds(5)) == 0
    assert await runs.end_runs_of_worker("w1", status="error", error="x") == 0
    with pytest.raises(ActiveRunError):
        await admit(runs, "new", "w1", "interrupt")
    assert raw.find_one({"_id": "r"}) == before


# -- the schema ------------------------------------------------------------------------------------


def test_partial_filters_work_on_mongodb_5() -> None:
    """Which knows no `$in` in them."""
    for index in (ACTIVE_OPERATION_INDEX, IDEMPOTENCY_INDEX):
        operators = {name for value in (index.partial or {}).values() for name in value}
        assert operators <= {"$gte", "$lte"}


@pytest.mark.usefixtures("new_database")
async def test_missing_index_of_active_runs_is_reported(
    workers: list[MongoRunStore], storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    for index in (ACTIVE_OPERATION_INDEX, IDEMPOTENCY_INDEX):
        raw_client[database_name]["runs"].drop_index(index.name)
        assert not (await storage.inspect()).complete
        await storage.setup()
        assert (await storage.inspect()).complete
