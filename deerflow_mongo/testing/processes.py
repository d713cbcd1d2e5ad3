"""Child processes that share one database with the test: each opens its own storage, all start together.

Run as `python -m deerflow_mongo.testing.processes`, which reads its job from standard input and writes the
result to standard output, one line of JSON each.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import IO, Any

from ..contract.errors import RunExistsError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import CALLERS

TASKS = 25
CHILD_TIMEOUT_S = 240.0
"""How long a child may take on a busy machine; on an idle one it needs seconds."""

_READY, _GO = "ready", "go"

Job = Callable[[Storage, Mapping[str, Any]], Awaitable[Any]]


# -- in the child processes ------------------------------------------------------------------------


async def _in_tasks(work: Callable[[int], Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*(work(number) for number in range(TASKS)))


async def _set_up(storage: Storage, _: Mapping[str, Any]) -> None:
    await storage.setup()
    await storage.setup()


async def _upsert_votes(storage: Storage, arguments: Mapping[str, Any]) -> list[str]:
    async def vote(number: int) -> set[str]:
        made: set[str] = set()
        for round_ in range(arguments["rounds"]):
            row = await storage.feedback.upsert(
                run_id=arguments["run_id"],
                thread_id=arguments["thread_id"],
                rating=1 if (number + round_) % 2 else -1,
                user_id=arguments["user_id"],
                comment=f"{number}",
            )
            made.add(row["feedback_id"])
        return made

    return sorted(set[str]().union(*await _in_tasks(vote)))


async def _record_tokens(storage: Storage, arguments: Mapping[str, Any]) -> None:
    async def spend(number: int) -> None:
        for _ in range(arguments["rounds"]):
            await storage.runs.record_token_usage(
                arguments["run_id"],
                caller=CALLERS[number % len(CALLERS)],
                model_name=f"model-{number % 2}.0",
                input_tokens=number,
                output_tokens=1,
            )

    await _in_tasks(spend)


async def _ensure_threads(storage: Storage, arguments: Mapping[str, Any]) -> list[str]:
    async def ensure(number: int) -> set[str]:
        made: set[str] = set()
        for _ in range(arguments["rounds"]):
            thread = await storage.threads.ensure_thread(
                thread_id=arguments["thread_id"], metadata={"number": number}, user_id=arguments["user_id"]
            )
            made.add(f"{thread.created_time.isoformat()} {thread.metadata}")
        return made

    return sorted(set[str]().union(*await _in_tasks(ensure)))


async def _create_runs(storage: Storage, arguments: Mapping[str, Any]) -> list[str]:
    """The ids of the runs that this process created."""

    async def create(number: int) -> list[str]:
        created: list[str] = []
        for round_ in range(arguments["rounds"]):
            run_id = f"run-{number}-{round_}"
            try:
                await storage.runs.create(
                    run_id, arguments["thread_id"], user_id=None, metadata={"process": os.getpid()}
                )
            except RunExistsError:
                continue
            created.append(run_id)
        return created

    return [run_id for created in await _in_tasks(create) for run_id in created]


async def _merge_and_end(storage: Storage, arguments: Mapping[str, Any]) -> None:
    async def update(number: int) -> None:
        key = f"{os.getpid()}-{number}"
        await storage.runs.update_status(arguments["run_id"], "running", metadata={key: number})
        if number == TASKS // 2:
            await storage.runs.update_run_completion(arguments["run_id"], status="success", total_tokens=7)

    await _in_tasks(update)


async def _put_events(storage: Storage, arguments: Mapping[str, Any]) -> list[list[int]]:
    """The seqs of each batch that this process stored."""

    async def put(number: int) -> list[list[int]]:
        stored: list[list[int]] = []
        for round_ in range(arguments["rounds"]):
            rows = await storage.run_events.put_batch(
                [
                    {
                        "thread_id": arguments["thread_id"],
                        "run_id": f"run-{os.getpid()}-{number}",
                        "event_type": "ai_message",
                        "category": "message",
                        "content": {"round": round_},
                    }
                ]
                * arguments["size"]
            )
            stored.append([row["seq"] for row in rows])
        return stored

    return [given for batches in await _in_tasks(put) for given in batches]


async def _put_with_event_ids(storage: Storage, arguments: Mapping[str, Any]) -> dict[str, int]:
    """The seq of each `event_id`, which must be the same for all tasks."""
    seqs: dict[str, int] = {}

    async def put(number: int) -> None:
        event = {
            "thread_id": arguments["thread_id"],
            "run_id": f"run-{os.getpid()}-{number}",
            "event_type": "ai_message",
            "category": "message",
        }
        for round_ in range(arguments["rounds"]):
            ids = [f"{round_}/{position}" for position in range(arguments["size"])]
            batch: list[Any] = [*({**event, "event_id": event_id} for event_id in ids), event]
            rows = await storage.run_events.put_batch(batch)
            for event_id, row in zip(ids, rows, strict=False):
                assert seqs.setdefault(event_id, row["seq"]) == row["seq"]

    await _in_tasks(put)
    return seqs


async def _put_once(storage: Storage, arguments: Mapping[str, Any]) -> int:
    """The number of events that this process stored."""

    async def put(_: int) -> int:
        stored = 0
        for round_ in range(arguments["rounds"]):
            answer = await storage.run_events.put_if_absent(
                thread_id=arguments["thread_id"],
                run_id=f"run-{round_}",
                event_type="ended",
                category="lifecycle",
            )
            stored += answer[1]
        return stored

    return sum(await _in_tasks(put))


JOBS: Mapping[str, Job] = {
    "set_up": _set_up,
    "upsert_votes": _upsert_votes,
    "record_tokens": _record_tokens,
    "ensure_threads": _ensure_threads,
    "create_runs": _create_runs,
    "merge_and_end": _merge_and_end,
    "put_events": _put_events,
    "put_with_event_ids": _put_with_event_ids,
    "put_once": _put_once,
}


def _write_line(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def _wait_for_go() -> None:
    _write_line(_READY)
    if (await asyncio.to_thread(sys.stdin.readline)).strip() != _GO:
        raise SystemExit("the test has ended")


async def _child(arguments: Mapping[str, Any]) -> None:
    storage = create_storage(arguments["config"])
    try:
        if arguments["job"] != "set_up":
            await storage.setup()
        await _wait_for_go()
        _write_line(await JOBS[arguments["job"]](storage, arguments))
    finally:
        await storage.aclose()


# -- in the test's process -------------------------------------------------------------------------


def _spawn(errors: IO[bytes]) -> subprocess.Popen[str]:
    # The child must find the same modules as the test, including the backend's own package.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(  # noqa: S603 - this interpreter with this module
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment,
    )


def _send(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _read_answer(child: subprocess.Popen[str], errors: IO[bytes]) -> Any:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        child.kill()
        errors.seek(0)
        output = errors.read().decode(errors="replace")[-2_000:]
        raise AssertionError(f"a child process gave no answer within {CHILD_TIMEOUT_S:.0f} s:\n{output}")
    return json.loads(line)


def _end(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    for child in children:
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _run(arguments: Mapping[str, Any], processes: int) -> list[Any]:
    children: list[subprocess.Popen[str]] = []
    watchdog = threading.Timer(CHILD_TIMEOUT_S, lambda: [child.kill() for child in children])
    watchdog.daemon = True
    with tempfile.TemporaryFile() as errors:
        watchdog.start()
        try:
            children.extend(_spawn(errors) for _ in range(processes))
            for child in children:
                _send(child, json.dumps(arguments, default=str))
            for child in children:
                assert _read_answer(child, errors) == _READY
            for child in children:
                _send(child, _GO)
            return [_read_answer(child, errors) for child in children]
        finally:
            watchdog.cancel()
            _end(children)


async def run_in_processes(
    config: Mapping[str, Any], job: str, *, processes: int = 4, **arguments: Any
) -> list[Any]:
    """Run the job in every process, `TASKS` tasks in each, all started together; returns the answers."""
    return await asyncio.to_thread(_run, {"config": dict(config), "job": job, **arguments}, processes)


if __name__ == "__main__":
    asyncio.run(_child(json.loads(sys.stdin.readline())))
