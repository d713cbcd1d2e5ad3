"""The command `python -m benchmarks`: datasets, plan, comparison of answers, results file and clean-up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import agreement, plan, servers
from benchmarks.child import DAY
from benchmarks.contenders.known import CONTENDERS, OURS, RAW_PYMONGO, SINGLE, SQL, Contender
from benchmarks.dataset import EVENTS_PER_RUN, OTHER_VOTES, Dataset, Payloads, an_id, session
from benchmarks.measuring import Bench, Case, Settings
from benchmarks.operations import NOT_MEASURED, OPERATIONS
from benchmarks.recordings import PROTOCOLS, payloads_of
from benchmarks.results import Disagreement, Part, Record, Results
from deerflow_mongo import MongoStorage, create_storage
from deerflow_mongo.contract.methods import METHOD_KINDS
from deerflow_mongo.testing.methods import METHODS

from ..child_processes import CHILD_TIMEOUT_S, communicate, run_child

ROOT = Path(__file__).parents[2]
CALLS = range(12)
SHORT_RUN = ("--seconds", "0.05", "--repetitions", "2")


@pytest.fixture(scope="module")
def payloads() -> Payloads:
    return payloads_of(None)


# -- operations and datasets -----------------------------------------------------------------------


def test_every_method_of_the_protocols_is_in_the_tables() -> None:
    declared = {
        f"{store}.{name}"
        for store, protocol in PROTOCOLS.items()
        for name in dir(protocol)
        if not name.startswith("_")
    }
    assert set(METHOD_KINDS) == declared
    assert {method.path for method in METHODS} == declared


def test_every_method_is_measured_or_has_a_reason_why_not() -> None:
    measured = {operation.path for operation in OPERATIONS.values()}
    assert measured | set(NOT_MEASURED) == set(METHOD_KINDS)
    assert measured.isdisjoint(NOT_MEASURED)


def test_dataset_and_arguments_are_deterministic(payloads: Payloads) -> None:
    data, again = Dataset(200, payloads), Dataset(200, payloads)
    assert list(data.batches()) == list(again.batches())
    for operation in OPERATIONS.values():
        assert operation.arguments(data, 12_345) == operation.arguments(again, 12_345)


def test_dataset_has_the_documented_row_counts(payloads: Payloads) -> None:
    runs = 1_000
    [rows] = Dataset(runs, payloads).batches()
    assert len(rows.runs) == runs
    assert len(rows.threads) == runs // 10
    assert len(rows.feedback) == runs + runs // 10 * OTHER_VOTES
    assert len(rows.run_events) == runs // 10 * EVENTS_PER_RUN
    assert Counter(run["status"] == "pending" for run in rows.runs) == {True: 500, False: 500}
    assert {frozenset(run) for run in rows.runs} == {frozenset(rows.runs[0])}, "one statement inserts all"
    assert len({run["run_id"] for run in rows.runs}) == runs
    numbers: dict[str, list[int]] = {}
    for event in rows.run_events:
        numbers.setdefault(event["thread_id"], []).append(event["seq"])
    assert all(found == list(range(1, 101)) for found in numbers.values())


def test_consumed_rows_exist_for_every_call(payloads: Payloads) -> None:
    data = Dataset(200, payloads)
    calls = range(2_000_000, 2_000_030)
    for operation in OPERATIONS.values():
        if operation.consumes is None:
            continue
        rows = operation.consumes(data, calls)
        loaded = [*rows.runs, *rows.threads, *rows.feedback, *rows.run_events]
        for call in calls:
            arguments = operation.arguments(data, call).items()
            assert any(arguments <= row.items() for row in loaded), (operation.name, arguments)


def test_session_is_replayed_with_new_ids(payloads: Payloads) -> None:
    [script] = payloads.scripts
    calls = list(session(script, lambda name: f"new {name}"))
    assert [call.path for call in calls] == [call.path for call in script]
    for call in calls:
        ids = {name: call.arguments[name] for name in ("thread_id", "run_id") if name in call.arguments}
        assert all(value.startswith("new ") for value in ids.values())
        for event in call.arguments.get("events", ()):
            assert event["thread_id"].startswith("new ")
            assert not event["thread_id"].startswith("new new ")
    assert {call.path.partition(".")[0] for call in calls} == {"runs", "feedback", "threads", "run_events"}


async def test_session_calls_are_valid_for_a_storage(payloads: Payloads) -> None:
    async with create_storage({"backend": "mongodb", "driver": "mongomock"}) as storage:
        for call in session(payloads.scripts[0], lambda name: an_id(name, 1)):
            store, method = call.path.split(".")
            await getattr(getattr(storage, store), method)(**call.arguments)


def test_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recorded thread"):
        payloads_of(tmp_path)


# -- the plan --------------------------------------------------------------------------------------


def test_quick_plan_omits_slow_cases() -> None:
    available = (OURS, RAW_PYMONGO, "sqlite", "postgresql")
    quick, full = (plan.cases_of(plan.Options(is_quick=is_quick), available) for is_quick in (True, False))
    assert {case.part for case in quick} == {"operations", "growth", "day", "contention"}
    assert {case.part for case in full} | {"gateway"} == set(plan.PARTS), "the gateway has no cases"
    assert max(max(case.datasets) for case in quick) < 100_000 <= max(max(case.datasets) for case in full)
    measured = {case.operation for case in full if case.part == "operations"}
    assert measured == {name for name, operation in OPERATIONS.items() if not operation.is_hot}


def test_every_contender_has_the_main_operations_and_raw_pymongo_no_others() -> None:
    available = (OURS, RAW_PYMONGO, "sqlite", "deerflow-sqlite")
    for case in plan.cases_of(plan.Options(), available):
        if case.part == "operations":
            assert (RAW_PYMONGO in case.contenders) is (case.operation in plan.MAIN_OPERATIONS)


def test_tasks_are_the_main_operations_and_the_mixed_workload_by_few_and_many_tasks() -> None:
    options = plan.Options(parts=("tasks",))
    contenders = plan.contenders_of(options)
    assert {OURS, SINGLE, RAW_PYMONGO, *SQL} <= set(contenders)
    cases = plan.cases_of(options, contenders)
    operations = {case.operation: case for case in cases if case.operation != DAY}
    assert set(operations) == set(plan.MAIN_OPERATIONS)
    for case in operations.values():
        assert (case.contenders, case.concurrency, case.processes) == (contenders, (1, 8, 32, 256), (1,))
    mixed = [case for case in cases if case.operation == DAY]
    assert [load for case in mixed for load in case.loads] == [(8, 4), (32, 1)]
    assert {case.contenders for case in mixed} == {(OURS, *SQL, SINGLE)}, "those that have every method"
    assert len(plan.cases_of(plan.Options(is_quick=True, parts=("tasks",)), contenders)) < len(cases)


def test_single_calls_are_measured_by_the_option_of_the_storage() -> None:
    on, off = (CONTENDERS[name].config("mongodb://x", "d") for name in (OURS, SINGLE))
    assert off == {**on, "groups": False}


def test_deerflow_mongo_is_always_measured() -> None:
    options = plan.Options(backends=("sqlite",), operations=("runs.get",), concurrency=(4,))
    assert plan.contenders_of(options) == (OURS, "sqlite")
    [case] = plan.cases_of(options, (OURS, "sqlite"))
    assert (case.operation, case.contenders, case.concurrency) == ("runs.get", (OURS, "sqlite"), (4,))


def test_every_contender_has_a_durability() -> None:
    assert all(contender.durability for contender in CONTENDERS.values())


# -- comparison of answers -------------------------------------------------------------------------


def test_times_and_generated_ids_are_not_compared() -> None:
    ours = {"feedback_id": "a", "created_at": "2026-01-01T00:00:00+00:00", "rating": 1}
    theirs = {"feedback_id": "b", "created_at": "2026-01-02T00:00:00+00:00", "rating": 1}
    assert agreement.comparable(ours) == agreement.comparable(theirs) == {"rating": 1}


@pytest.mark.parametrize(
    ("ours", "theirs", "place"),
    [
        ([{"a": 1}], [{"a": 2}], "answers[0].a"),
        ([{"a": [1, 2]}], [{"a": [1]}], "answers[0].a"),
        ([{"a": 1}], [{"b": 1}], "answers[0].a"),
        ([True], [None], "answers[0]"),
        ([1], [1, 2], "answers"),
    ],
)
def test_difference_is_found_with_its_place(ours: Any, theirs: Any, place: str) -> None:
    found = agreement.difference(ours, theirs)
    assert found is not None
    assert found.startswith(f"{place}:")
    assert agreement.difference(ours, ours) is None


def test_deerflow_sql_is_compared_on_common_keys() -> None:
    ours, theirs = [{"a": 1, "b": 2}, True], [{"a": 1}, None]
    assert agreement.difference(ours, theirs) is not None
    assert agreement.difference(ours, theirs, common_keys_only=True) is None
    assert agreement.difference(ours, [{"a": 3}, None], common_keys_only=True) is not None
    assert agreement.difference([{"a": 1}], [None], common_keys_only=True) is not None


async def test_writes_are_read_back(payloads: Payloads) -> None:
    operation, data = OPERATIONS["runs.create"], Dataset(100, payloads)
    async with create_storage({"backend": "mongodb", "driver": "mongomock"}) as storage:

        def run(path: str) -> Callable[..., Any]:
            store, method = path.split(".")
            return getattr(getattr(storage, store), method)

        created, stored = await agreement.answers(run, operation, data, [7])
        [again, _] = await agreement.answers(run, operation, data, [7])
    assert created is None
    assert stored["run_id"] == an_id("new run", 7)
    assert "RunExistsError" in again["raises"]


async def test_answers_at_once_are_those_of_calls_one_after_another(payloads: Payloads) -> None:
    operation, data = OPERATIONS["runs.get"], Dataset(100, payloads)
    waiting = asyncio.Barrier(len(CALLS))

    async def get(run_id: str, user_id: str | None) -> dict[str, Any]:
        return {"run_id": run_id, "user_id": user_id}

    async def get_with_others(run_id: str, user_id: str | None) -> dict[str, Any]:
        async with asyncio.timeout(CHILD_TIMEOUT_S), waiting:
            return await get(run_id, user_id)

    at_once = await agreement.answers_at_once(lambda _: get_with_others, operation, data, CALLS)
    assert at_once == await agreement.answers(lambda _: get, operation, data, CALLS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("runs.get", "find"), ("runs.create", "insert"), ("runs.update_run_completion", "update")],
)
def test_answers_at_once_are_those_of_groups(
    mongodb_url: str, payloads: Payloads, name: str, kind: str
) -> None:
    """The comparison of the part `tasks` covers commands that calls share."""
    data = Dataset(100, payloads)

    async def ask(contender: Contender, target: servers.Target) -> tuple[list[Any], int]:
        async with create_storage(contender.config(target.url, target.database)) as storage:
            assert isinstance(storage, MongoStorage)
            found = await agreement.answers_at_once(
                lambda path: attrgetter(path)(storage), OPERATIONS[name], data, CALLS
            )
            counts = storage.statistics().get("runs", {}).get(kind)
            return found, 0 if counts is None else counts["grouped"]

    answers: dict[str, list[Any]] = {}
    grouped: dict[str, int] = {}
    running = servers.Servers({"mongodb": mongodb_url})
    for contender in (CONTENDERS[OURS], CONTENDERS[SINGLE]):
        with running.loaded(contender, data) as target:
            answers[contender.name], grouped[contender.name] = asyncio.run(ask(contender, target))
    assert answers[OURS] == answers[SINGLE]
    assert grouped[OURS] > len(CALLS) // 2
    assert grouped[SINGLE] == 0


# -- the command -----------------------------------------------------------------------------------


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *map(str, arguments)]


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_child(_command(*arguments), cwd=ROOT)


def test_run_writes_results_that_report_reads(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    operations = ("runs.get", "feedback.upsert", "run_events.put_batch")
    done = _run(
        "run", "--backends", RAW_PYMONGO, "--operations", *operations, "--concurrency", "1", "4",
        *SHORT_RUN, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = Results.load(out)
    assert results.finished
    assert results.disagreements == []
    assert results.versions["mongodb"]
    assert {(record.operation, record.backend, record.concurrency) for record in results.records} == {
        (operation, backend, tasks)
        for operation in operations
        for backend in (OURS, RAW_PYMONGO)
        for tasks in (1, 4)
    }
    for record in results.records:
        assert len(record.rounds) == 2
        assert not record.failures
        for one in record.rounds:
            assert one.ops_per_s > 0
            assert 0 < (one.p50_ms or 0) <= (one.p95_ms or 0) <= (one.p99_ms or 0)
            assert (one.cpu_us_per_op or 0) > 0
            assert (one.peak_memory_mb or 0) > 1
    reported = _run("report", out)
    assert reported.returncode == 0, reported.stderr
    assert "`runs.get`" in reported.stdout


def test_tasks_go_into_a_results_file_whose_other_parts_stay(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    key: Any = {"operation": "runs.get", "backend": OURS, "dataset": 1_000}
    parts: tuple[Part, Part] = ("operations", "tasks")
    other, stale = (Record(part=part, concurrency=1, rounds=[], **key) for part in parts)
    of_other, of_stale = (Disagreement(part=part, why="x", **key) for part in parts)
    Results(records=[other, stale], disagreements=[of_other, of_stale]).save(out)
    done = _run("tasks", "--quick", "--backends", SINGLE, RAW_PYMONGO, *SHORT_RUN, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "| throughput relative to groups off | 1 task | 32 tasks |" in done.stdout
    results = Results.load(out)
    assert results.records[0] == other
    assert results.disagreements == [of_other], "groups change no answer"
    measured = {(one.operation, one.backend, one.concurrency) for one in results.records[1:]}
    operations = ("runs.get", "runs.create", "runs.update_run_completion")
    assert measured == {
        *itertools.product(operations, (OURS, SINGLE, RAW_PYMONGO), (1, 32)),
        *itertools.product([DAY], (OURS, SINGLE), (32,)),
    }
    for record in results.records[1:]:
        assert record.part == "tasks"
        assert not record.failures
        assert all(one.ops_per_s > 0 for one in record.rounds)


def test_operation_that_a_contender_lacks_is_not_measured(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = _run("run", "--backends", RAW_PYMONGO, "--operations", "runs.delete", "--concurrency", "1",
                *SHORT_RUN, "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    [record] = Results.load(out).records
    assert (record.operation, record.backend) == ("runs.delete", OURS)


def test_different_answer_excludes_the_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(ours: object, theirs: object, **_: object) -> str | None:
        return None if ours is theirs else "answers[0]: 1 here, 2 there"

    monkeypatch.setattr(agreement, "difference", differ)
    case = Case("operations", "runs.get", (OURS, "mongodb-motor"), (1,), (100,))
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(servers.running([OURS]))
        results = Results()
        Bench(stack, running, payloads_of(None), Settings(0.05, 1), results).measure(case)
    assert [record.backend for record in results.records] == [OURS]
    [found] = results.disagreements
    assert (found.backend, found.operation, found.why) == (
        "mongodb-motor",
        "runs.get",
        "answers[0]: 1 here, 2 there",
    )


def _processes_of(group: int) -> list[str]:
    """The command lines of the processes in a group, servers included."""
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) == group:
                    found.append((folder / "cmdline").read_text())
            except (OSError, ProcessLookupError):
                continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_keeps_finished_cases_and_leaves_no_process(
    tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "results.json"
    command = _command("run", "--backends", RAW_PYMONGO, "--concurrency", "1", "--operations", *OPERATIONS,
                       *SHORT_RUN, "--out", out)  # fmt: skip
    environment: Mapping[str, str] = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    deadline = time.monotonic() + CHILD_TIMEOUT_S
    while not (out.exists() and Results.load(out).records) and time.monotonic() < deadline:
        assert process.poll() is None, communicate(process)
        time.sleep(0.1)
    process.send_signal(how)
    _, stderr = communicate(process)
    assert process.returncode == 130, stderr
    assert "interrupted; finished cases are in the results file" in stderr
    results = Results.load(out)
    assert not results.finished
    assert results.records
    assert _processes_of(process.pid) == []
    left = [path.name for path in tmp_path.iterdir() if path.name != out.name]
    assert left == []
