"""Savers that put, fork and put again on the same threads, while others prune, copy and delete them.

    python -m tests.faults.checkpoint_race --seconds 60 [--processes 2]

What a checkpoint's value has to be stands in its metadata, so everybody can check every checkpoint, of
whatever process. Values share their blocks, so each deletion is about pieces that others put again at that
moment. Prints a table of figures; exits with 1 where a checkpoint was broken or a call raised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from pymongo.errors import PyMongoError

from deerflow_mongo import MongoStorage, StorageUnavailableError
from deerflow_mongo.mongodb.checkpoints import deletion, pruning
from deerflow_mongo.mongodb.checkpoints.deletion import Collections
from deerflow_mongo.mongodb.checkpoints.pruning import Rule
from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver
from deerflow_mongo.mongodb.drivers.driver import READ_COMMITTED
from deerflow_mongo.mongodb.schema import CHECKPOINTS

from .servers import ReplicaSet

THREADS = ("race-0", "race-1")
_COPY = "race-copy"
_RUNS = 12
_BLOCKS = 10
_BLOCK_ELEMENTS = 40
_MAX_BLOCKS = 6
_DATABASE = "checkpoint_race"


def _block(number: int) -> list[str]:
    numbers = random.Random(number)  # noqa: S311 - no secret
    return [f"{number}-{position}-{numbers.randbytes(60).hex()}" for position in range(_BLOCK_ELEMENTS)]


BLOCKS = [_block(number) for number in range(_BLOCKS)]


def value_of(recipe: list[int]) -> list[str]:
    """The value that a checkpoint with this recipe in its metadata has."""
    return [element for number in recipe for element in BLOCKS[number]]


class _ErrorLog(logging.Handler):
    """The reader logs a checkpoint that it cannot read, and leaves it out of a list."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._broken = broken

    def emit(self, record: logging.LogRecord) -> None:
        self._broken.append(record.getMessage())


class Race:
    """One process of the race; `figures` counts what happened, `broken` and `raised` must stay empty."""

    def __init__(self, storage: MongoStorage, seed: int) -> None:
        driver = storage.driver
        self.collections = Collections(
            driver.collection(CHECKPOINTS), driver.collection(CHECKPOINTS, READ_COMMITTED)
        )
        self.figures: Counter[str] = Counter()
        self.broken: list[str] = []
        self.raised: list[str] = []
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._ends_at = 0.0

    def saver(self) -> MongoCheckpointSaver:
        return MongoCheckpointSaver(*self.collections)

    async def run(self, seconds: float, *, writers: int = 3) -> None:
        """Race for so long, then check everything that is stored."""
        handler = _ErrorLog(self.broken)
        logger = logging.getLogger("deerflow_mongo.mongodb.checkpoints.reader")
        logger.addHandler(handler)
        self._ends_at = time.monotonic() + seconds
        try:
            loops = [self._write_loop(self.saver()) for _ in range(writers)]
            loops += [self._loop(self._delete), self._loop(self._delete), self._loop(self.check)]
            await asyncio.gather(*loops)
            await self.check()
        finally:
            logger.removeHandler(handler)

    async def _loop(self, action: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < self._ends_at:
            try:
                await action()
            except StorageUnavailableError:
                self.figures["repeated deletions"] += 1
            except Exception:  # noqa: BLE001 - reported at the end
                self.raised.append(traceback.format_exc())

    # Writers.

    async def _write_loop(self, saver: Any) -> None:
        known: list[tuple[str, str]] = []

        async def write() -> None:
            thread = self._random.choice(THREADS)
            own = [checkpoint for place, checkpoint in known if place == thread]
            kind = self._random.choices(("put", "fork", "put again", "read"), (6, 2, 2, 1))[0]
            if kind == "read":
                await saver.aget_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}})
                return
            parent = None if not own else own[-1] if kind == "put" else self._random.choice(own)
            checkpoint_id = parent if kind == "put again" and parent else str(uuid6())
            await self._put(saver, thread, parent, checkpoint_id)
            known.append((thread, checkpoint_id))
            del known[:-30]
            self.figures[kind] += 1
            if self._random.random() < 0.2:
                config = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
                config["configurable"]["checkpoint_id"] = checkpoint_id
                await saver.aput_writes(config, [("value", checkpoint_id)], "task")

        await self._loop(write)

    async def _put(self, saver: Any, thread: str, parent: str | None, checkpoint_id: str) -> None:
        recipe = [self._random.randrange(_BLOCKS) for _ in range(self._random.randrange(1, _MAX_BLOCKS))]
        checkpoint = empty_checkpoint()
        checkpoint["id"] = checkpoint_id
        checkpoint["channel_values"] = {"value": value_of(recipe)}
        checkpoint["channel_versions"] = {"value": str(uuid6())}
        configurable = {"thread_id": thread, "checkpoint_ns": ""}
        if parent is not None and parent != checkpoint_id:
            configurable["checkpoint_id"] = parent
        metadata = {"recipe": recipe, "run_id": f"run-{self._random.randrange(_RUNS)}"}
        await saver.aput({"configurable": configurable}, checkpoint, metadata, checkpoint["channel_versions"])

    # Deletions.

    async def _delete(self) -> None:
        thread = self._random.choice(THREADS)
        kind = self._random.choices(("prune", "delete runs", "delete thread", "copy"), (6, 3, 1, 1))[0]
        if kind == "prune":
            keep_last = self._random.randrange(1, 5)
            await pruning.prune(
                self.collections, [thread], Rule(keep_last=keep_last, takes_pending=True), measured=False
            )
        elif kind == "delete runs":
            runs = [f"run-{self._random.randrange(_RUNS)}" for _ in range(2)]
            await pruning.delete_for_runs(self.collections, runs)
        elif kind == "delete thread":
            await pruning.delete_thread(self.collections, self._random.choice((*THREADS, _COPY)))
        else:
            await self.saver().acopy_thread(thread, _COPY)
        self.figures[kind] += 1
        await asyncio.sleep(self._random.random() * 0.05)

    # Checks.

    async def check(self) -> None:
        """Read everything with a saver that knows nothing."""
        saver = self.saver()
        for thread in (*THREADS, _COPY):
            async for found in saver.alist({"configurable": {"thread_id": thread}}):
                recipe: list[int] = cast("dict[str, Any]", found.metadata)["recipe"]
                if found.checkpoint["channel_values"]["value"] != value_of(recipe):
                    self.broken.append(f"{thread} {found.checkpoint['id']} is not what was put")
                for _, _, value in found.pending_writes or ():
                    if value != found.checkpoint["id"]:
                        self.broken.append(f"{thread} {found.checkpoint['id']} has another's writes")
                self.figures["checkpoints read"] += 1
        await asyncio.sleep(0.01)


async def race(url: str, database: str, seconds: float, *, seed: int = 7, writers: int = 3) -> Race:
    """One process's part, with its storage."""
    config = {"url": url, "database": database}
    async with MongoStorage.open(config) as storage:
        await storage.checkpointer()
        running = Race(storage, seed)
        orphan_age, deletion.ORPHAN_AGE = deletion.ORPHAN_AGE, timedelta(0)  # the harder case
        try:
            await running.run(seconds, writers=writers)
        finally:
            deletion.ORPHAN_AGE = orphan_age
        return running


def _child(arguments: argparse.Namespace) -> int:
    done = asyncio.run(race(arguments.url, _DATABASE, arguments.seconds, seed=arguments.seed))
    outcome = {"figures": done.figures, "broken": done.broken, "raised": done.raised}
    sys.stdout.write(json.dumps(outcome) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.checkpoint_race")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--url", help=argparse.SUPPRESS)  # of a child
    return parser.parse_args()


def main() -> int:
    """Run it; the exit code."""
    arguments = _arguments()
    if arguments.url:
        return _child(arguments)
    figures: Counter[str] = Counter()
    broken: list[str] = []
    raised: list[str] = []
    with ReplicaSet(1) as cluster:
        command = [sys.executable, "-m", __spec__.name, "--url", cluster.url]
        children = [
            subprocess.Popen(  # noqa: S603 - this module
                [*command, "--seconds", str(arguments.seconds), "--seed", str(arguments.seed + number)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(arguments.processes)
        ]
        for child in children:
            outcome = json.loads(
                child.communicate()[0] or '{"figures": {}, "broken": [], "raised": ["ended"]}'
            )
            figures.update(outcome["figures"])
            broken += outcome["broken"]
            raised += outcome["raised"]
        with suppress(PyMongoError):
            figures["documents left"] = cluster.primary().client[_DATABASE][CHECKPOINTS].count_documents({})
    for name, count in sorted(figures.items()):
        sys.stdout.write(f"{name:20} {count:>9,}\n")
    sys.stdout.write(
        f"{'broken checkpoints':20} {len(broken):>9,}\n{'calls that raised':20} {len(raised):>9,}\n"
    )
    for text in [*broken[:10], *raised[:3]]:
        sys.stdout.write(text + "\n")
    return 1 if broken or raised else 0


if __name__ == "__main__":
    sys.exit(main())
