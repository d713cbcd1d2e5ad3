"""`kill -9` of a process that puts checkpoints, and of its server, in the middle of a put.

    python -m tests.faults.checkpoint_kills --rounds 20

In turn the process and the server are killed. Afterwards every checkpoint that was acknowledged must be
there as it was put, with its writes, and everything that is stored must be whole. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from deerflow_mongo import MongoStorage, StorageError
from deerflow_mongo.mongodb.schema import CHECKPOINTS

from .servers import ReplicaSet

_DATABASE = "checkpoint_kills"
_SIZES = (20, 200, 2_000, 30_000)
"""Elements of a value, of 200 bytes each: from a part of one command to several commands."""

_ELEMENT_BYTES = 100
_START_TIMEOUT_S = 60.0


def value_of(seed: str, size: int) -> list[str]:
    """The value that a checkpoint with this seed and size in its metadata has."""
    numbers = random.Random(seed)  # noqa: S311 - no secret
    return [numbers.randbytes(_ELEMENT_BYTES).hex() for _ in range(size)]


# -- the process that is killed --------------------------------------------------------------------


async def _write(url: str, thread: str) -> None:
    """Put checkpoints until killed; each line of the output is an acknowledged one."""
    async with MongoStorage.open({"url": url, "database": _DATABASE}) as storage:
        saver: Any = await storage.checkpointer()
        parent: str | None = None
        for number in range(100_000):
            size = _SIZES[number % len(_SIZES)]
            checkpoint = empty_checkpoint()
            checkpoint["id"] = seed = str(uuid6())
            checkpoint["channel_values"] = {"value": value_of(seed, size)}
            checkpoint["channel_versions"] = {"value": seed}
            configurable = {"thread_id": thread, "checkpoint_ns": ""}
            config = {"configurable": configurable | ({"checkpoint_id": parent} if parent else {})}
            try:
                put = await saver.aput(config, checkpoint, {"size": size}, {"value": seed})
                _acknowledge(f"put {seed}")
                await saver.aput_writes(put, [("value", "x" * size * _ELEMENT_BYTES)], "task")
                _acknowledge(f"written {seed}")
            except StorageError:  # the server is down: the next one, once it is back
                await asyncio.sleep(0.05)
            parent = seed


def _acknowledge(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# -- the rounds ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What the rounds have shown; `failures` must be empty."""

    rounds: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    failures: list[str] = field(default_factory=list[str])


def run_rounds(cluster: ReplicaSet, rounds: int, folder: Path, *, seed: int = 5) -> Outcome:
    """Kill the process, then the server, and so on; check after each round."""
    outcome = Outcome()
    moments = random.Random(seed)  # noqa: S311 - no secret
    for number in range(rounds):
        thread = f"thread-{number}"
        acknowledged = _round(
            cluster, thread, folder / f"{thread}.txt", moments, kills_server=number % 2 == 1
        )
        outcome.rounds += 1
        asyncio.run(_check(cluster, thread, acknowledged, outcome))
    return outcome


def _round(
    cluster: ReplicaSet, thread: str, output: Path, moments: random.Random, *, kills_server: bool
) -> list[str]:
    """The lines that the writer has printed."""
    command = [
        sys.executable,
        "-m",
        "tests.faults.checkpoint_kills",
        "--url",
        cluster.url,
        "--thread",
        thread,
    ]
    with output.open("w") as lines, subprocess.Popen(command, stdout=lines) as writer:  # noqa: S603
        try:
            _wait_for_output(output, writer)
            time.sleep(moments.uniform(0.05, 1.0))
            if kills_server:
                cluster.kill().restart()
                cluster.wait_until_healthy()
                time.sleep(0.5)
        finally:
            writer.kill()
    # The last line may be cut off.
    return output.read_text().rpartition("\n")[0].splitlines()


def _wait_for_output(output: Path, writer: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + _START_TIMEOUT_S
    while not output.stat().st_size:
        assert writer.poll() is None, "the writer has ended"
        assert time.monotonic() < ends_at, "the writer put nothing"
        time.sleep(0.02)


async def _check(cluster: ReplicaSet, thread: str, lines: list[str], outcome: Outcome) -> None:
    put = {line.split()[1] for line in lines if line.startswith("put ")}
    written = {line.split()[1] for line in lines if line.startswith("written ")}
    async with MongoStorage.open({"url": cluster.url, "database": _DATABASE}) as storage:
        saver: Any = await storage.checkpointer()
        found: set[str] = set()
        async for row in saver.alist({"configurable": {"thread_id": thread}}):
            name = row.checkpoint["id"]
            found.add(name)
            size = cast("dict[str, Any]", row.metadata)["size"]
            if row.checkpoint["channel_values"]["value"] != value_of(name, size):
                outcome.failures.append(f"{thread} {name} is not what was put")
            sizes = [len(value) for _, _, value in row.pending_writes or ()]
            if name in written and sizes != [size * _ELEMENT_BYTES]:
                outcome.failures.append(f"{thread} {name} lacks its writes")
    outcome.acknowledged += len(put)
    outcome.unacknowledged += len(found - put)
    outcome.failures += [f"{thread} {name} was acknowledged and lost" for name in put - found]
    documents: Any = cluster.primary().client[_DATABASE][CHECKPOINTS]
    stored = documents.find({"_id.thread": thread, "metadata": {"$exists": True}}, {"_id": 1})
    for name in {document["_id"]["checkpoint"] for document in stored} - found:
        outcome.failures.append(f"{thread} {name} is stored without its pieces")


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.checkpoint_kills")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None, help="of the writers' output")
    parser.add_argument("--url", help=argparse.SUPPRESS)  # of the process that is killed
    parser.add_argument("--thread", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.url:
        asyncio.run(_write(arguments.url, arguments.thread))
        return 0
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        outcome = run_rounds(stack.enter_context(ReplicaSet(1)), arguments.rounds, folder)
    counts = {
        "rounds": outcome.rounds,
        "acknowledged": outcome.acknowledged,
        "stored unacknowledged": outcome.unacknowledged,
        "failures": len(outcome.failures),
    }
    for name, count in counts.items():
        sys.stdout.write(f"{name:24} {count:>7,}\n")
    for text in outcome.failures[:10]:
        sys.stdout.write(text + "\n")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
