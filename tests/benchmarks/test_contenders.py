"""The benchmark contenders give the same answers to the same calls, so that their times are comparable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import agreement, servers
from benchmarks.child import opened
from benchmarks.contenders import deerflow_sql
from benchmarks.contenders.known import CONTENDERS, OURS, RAW_PYMONGO
from benchmarks.dataset import Dataset
from benchmarks.operations import OPERATIONS
from benchmarks.plan import MAIN_OPERATIONS, NUMBERING
from benchmarks.recordings import payloads_of
from deerflow_mongo.mongodb.documents.feedback import feedback_row, feedback_totals
from deerflow_mongo.mongodb.documents.run_events import event_row
from deerflow_mongo.mongodb.documents.runs import run_row
from deerflow_mongo.mongodb.documents.threads import thread_row

CALLS = range(6)
DATA = Dataset(200, payloads_of(None))
IN_ORDER = sorted(OPERATIONS, key=lambda name: (OPERATIONS[name].kind == "write", name == "runs.set_error"))
"""Reads first: DeerFlow sorts threads by their last update, and its completions clear no error."""
ROW_OF: Mapping[str, Callable[[Any], Any]] = {
    "runs": run_row,
    "feedback": feedback_row,
    "threads": thread_row,
    "run_events": event_row,
}

Answers = Mapping[str, list[Any]]
"""Operation -> the answers to its first calls, each followed by what is read back."""


@pytest.fixture
def running(mongodb_url: str, tmp_path: Path) -> servers.Servers:
    return servers.Servers(
        {"mongodb": mongodb_url, "sqlite": f"sqlite+aiosqlite:///{tmp_path}/{{database}}.db"}
    )


def answers_of(running: servers.Servers, name: str, operations: Sequence[str] = IN_ORDER) -> Answers:
    """Those of a contender on a loaded database; raw PyMongo's documents are converted to rows."""
    contender = CONTENDERS[name]
    chosen = [OPERATIONS[one] for one in IN_ORDER if one in operations]

    async def ask(target: servers.Target) -> Answers:
        async with AsyncExitStack() as stack:
            run = await stack.enter_async_context(opened(contender, target.url, target.database))
            if contender.kind == "direct":
                store = opened(CONTENDERS[OURS], target.url, target.database)
                run = _as_rows(run, await stack.enter_async_context(store))
            known = [one for one in chosen if run(one.path) is not None]
            return {one.name: await agreement.answers(run, one, DATA, CALLS) for one in known}

    with running.loaded(contender, DATA) as target:
        servers.load(contender, target, [one.consumes(DATA, CALLS) for one in chosen if one.consumes])
        return asyncio.run(ask(target))


def _as_rows(raw: agreement.Run, store: agreement.Run) -> agreement.Run:
    """Raw PyMongo's calls with rows as answers; what it lacks is read by the store."""

    def run(path: str) -> Callable[..., Awaitable[Any]] | None:
        if (call := raw(path)) is None:
            return store(path)

        async def converted(**arguments: Any) -> Any:
            answer = await call(**arguments)
            if path == "feedback.aggregate_by_run":
                return feedback_totals(arguments["run_id"], answer)
            row_of = ROW_OF[path.partition(".")[0]]
            if isinstance(answer, list):
                return list(map(row_of, cast("list[Any]", answer)))
            return row_of(answer) if isinstance(answer, dict) else answer

        return converted

    return run


def differences(ours: Answers, theirs: Answers, *, common_keys_only: bool = False) -> dict[str, str]:
    """The operations of which an answer differs or is an error."""
    found = {
        name: agreement.difference(ours[name], theirs[name], common_keys_only=common_keys_only)
        for name in theirs
    }
    errors = {name: str(answers) for name, answers in theirs.items() if "'raises'" in str(answers)}
    return {name: why for name, why in found.items() if why is not None} | errors


@pytest.mark.parametrize("name", [RAW_PYMONGO, *NUMBERING[:2]])
def test_raw_pymongo_stores_and_returns_what_the_stores_do(running: servers.Servers, name: str) -> None:
    ours, theirs = (answers_of(running, one, MAIN_OPERATIONS) for one in (OURS, name))
    assert theirs.keys() == set(MAIN_OPERATIONS)
    assert differences(ours, theirs) == {}


def test_sql_baseline_gives_the_same_answers(running: servers.Servers) -> None:
    pytest.importorskip("deerflow_sql_baseline")
    ours, theirs = answers_of(running, OURS), answers_of(running, "sqlite")
    assert theirs.keys() == set(OPERATIONS)
    assert differences(ours, theirs) == {}


MISSING = deerflow_sql.missing()


@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
def test_deerflow_sql_gives_the_same_answers_on_common_keys(running: servers.Servers) -> None:
    theirs = answers_of(running, "deerflow-sqlite")
    assert theirs.keys() >= set(MAIN_OPERATIONS)
    assert differences(answers_of(running, OURS, list(theirs)), theirs, common_keys_only=True) == {}


@pytest.mark.skipif(MISSING is None, reason="DeerFlow's SQL code can be used here")
def test_missing_deerflow_sql_has_a_reason() -> None:
    assert MISSING is not None
    assert "DeerFlow" in MISSING or "deerflow-kernel needs Python" in MISSING


def test_raw_pymongo_is_correct_with_concurrent_tasks(running: servers.Servers) -> None:
    contender = CONTENDERS[RAW_PYMONGO]
    vote: dict[str, Any] = {"run_id": "run", "thread_id": "thread", "user_id": "many", "comment": None}
    events = [{**DATA.event(number, "thread", "run")} for number in range(2)]

    async def ask(target: servers.Target) -> tuple[set[str], list[int]]:
        async with opened(contender, target.url, target.database) as run:
            upsert, put_batch = run("feedback.upsert"), run("run_events.put_batch")
            assert upsert is not None
            assert put_batch is not None
            votes = await asyncio.gather(*(upsert(**vote, rating=1) for _ in range(32)))
            batches = await asyncio.gather(*(put_batch(events=events) for _ in range(32)))
        return {row["_id"] for row in votes}, sorted(row["seq"] for batch in batches for row in batch)

    with running.loaded(contender, DATA) as target:
        ids, numbers = asyncio.run(ask(target))
    assert len(ids) == 1
    assert numbers == list(range(1, 65))
