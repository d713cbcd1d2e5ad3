"""No acknowledged write is lost: `kill -9` of the server, of the writing process, and of everything."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deerflow_mongo import create_storage
from deerflow_mongo.mongodb.embedded import start_embedded

ROUNDS = 6

WRITER = """
import asyncio, os, sys
from deerflow_mongo import StorageUnavailableError, create_storage

async def write(storage, prefix, task):
    for number in range(10**9):
        run_id = f"{prefix}-{task}-{number}"
        try:
            await storage.runs.create(run_id, "t", user_id="u")
            await storage.runs.update_status(run_id, "running", metadata={"n": number})
            await storage.runs.record_token_usage(run_id, caller="subagent", input_tokens=2, output_tokens=1)
        except StorageUnavailableError:
            continue  # not acknowledged, so not recorded
        os.write(1, f"{run_id}\\n".encode())

async def main(folder, prefix):
    async with create_storage({"backend": "mongodb", "url": "embedded", "data_dir": folder}) as storage:
        await asyncio.gather(*(write(storage, prefix, task) for task in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _acknowledged(record: Path) -> list[str]:
    """The ids in complete lines: a killed writer may leave half of one."""
    return [line for line in record.read_text().split("\n")[:-1] if line]


async def _missing(folder: Path, run_ids: list[str]) -> list[str]:
    """Those of the acknowledged runs that are missing or incomplete."""
    config = {"backend": "mongodb", "url": "embedded", "data_dir": str(folder), "database": "deerflow"}
    async with create_storage(config) as storage:
        rows = {
            row["run_id"]: row for row in await storage.runs.list_by_thread("t", limit=10**7, user_id="u")
        }
    return [
        run_id
        for run_id in run_ids
        if run_id not in rows
        or (rows[run_id]["status"], rows[run_id]["total_tokens"]) != ("running", 3)
        or rows[run_id]["metadata"] != {"n": int(run_id.rsplit("-", 1)[1])}
    ]


def _server_and_supervisor(folder: Path) -> tuple[int, int]:
    mongod: int = json.loads((folder / "server.json").read_text(encoding="utf-8"))["pid"]
    supervisor = Path(f"/proc/{mongod}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
    return mongod, int(supervisor)


def _write_until_killed(folder: Path, record: Path, round_number: int, pause_s: float) -> None:
    """One writer. Each round kills, in turn: mongod; mongod, supervisor and writer at once; the writer."""
    with record.open("ab") as out:
        writer = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", WRITER, str(folder), f"r{round_number}"], stdout=out
        )
    try:
        size = record.stat().st_size
        while record.stat().st_size == size:  # until the first acknowledgement of this round
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(pause_s)
        mongod, supervisor = _server_and_supervisor(folder)
        if round_number % 3 == 0:
            _kill(mongod)
            time.sleep(pause_s)  # the supervisor restarts it while the writer goes on
        elif round_number % 3 == 1:
            # The writer last: when it ends, the other two exit, and killing their process ids would fail.
            _kill(mongod, supervisor, writer.pid)
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.timeout(900)  # six starts: half a minute on an idle machine, minutes on a busy one
def test_acknowledged_writes_survive_six_kills(tmp_path: Path) -> None:
    folder, record = tmp_path / "data", tmp_path / "acknowledged"
    record.touch()
    rng = random.Random(7)  # noqa: S311 - repeatable, not secret
    for round_number in range(ROUNDS):
        _write_until_killed(folder, record, round_number, rng.uniform(0.05, 0.6))
    acknowledged = _acknowledged(record)
    assert len(acknowledged) > ROUNDS
    assert asyncio.run(_missing(folder, [*acknowledged, "never-0-0"])) == ["never-0-0"]
    start_embedded(folder).release()
