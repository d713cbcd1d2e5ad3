"""Counts lost, doubled and missed events of many writing and reading processes, some of which are killed.

    python -m tests.mongodb.event_storm [--seconds 60] [--kills]

Four processes of eight tasks write batches of five events to one thread; one of the tasks writes batches of
150, which may be stored in parts. Four readers page by `after_seq` from the beginning. A batch is repeated
after an error, by its `event_id`s. With `--kills` a writing process is killed every 5 s and replaced, and the
server every 15 s; its supervisor starts it again. Then every event that was acknowledged to a writer is
looked up. Prints one JSON object; `tests/mongodb/test_event_storm.py` runs it for a shorter time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from deerflow_mongo import MongoStorage, StorageUnavailableError, create_storage
from deerflow_mongo.mongodb.embedded import start_embedded

PROCESSES, TASKS, READERS, BATCH = 4, 8, 4, 5
LARGE_BATCH, LARGE_TASK, LARGE_PAUSE_S = 150, 0, 0.1
KILL_EVERY_S = (5.0, 15.0)
END_TIMEOUT_S = 100.0
THREAD = "storm"


def _storage(folder: str) -> MongoStorage:
    storage = create_storage({"backend": "mongodb", "url": "embedded", "data_dir": folder})
    assert isinstance(storage, MongoStorage)
    return storage


async def _opened(folder: str) -> MongoStorage:
    """A storage that is set up, however often the server is killed meanwhile."""
    storage = _storage(folder)
    while True:
        try:
            await storage.setup()
        except StorageUnavailableError:
            continue
        return storage


def _size(batch: str) -> int:
    """The number of events of a batch with the name `<process>-<task>-<number>`."""
    return LARGE_BATCH if batch.split("-")[1] == f"{LARGE_TASK}" else BATCH


# -- children --------------------------------------------------------------------------------------


async def _write(folder: str, name: str) -> None:
    """Write until standard input ends; a line `<batch> <seq>,...` for each batch that was acknowledged."""
    async with aclosing(await _opened(folder)) as storage:
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))

        async def write(task: int) -> None:
            number = 0
            while not ending.done():
                batch = f"{name}-{task}-{number}"
                number += 1
                event = {"thread_id": THREAD, "run_id": f"{name}-{task}", "event_type": "said"}
                names = [f"{batch}/{i}" for i in range(_size(batch))]
                events: list[Any] = [
                    {**event, "category": "message", "content": name, "event_id": name} for name in names
                ]
                while True:
                    try:
                        rows = await storage.run_events.put_batch(events)
                    except StorageUnavailableError:
                        continue  # the same batch again, which must not be stored twice
                    break
                given = [row["seq"] for row in rows]
                whole = list(range(given[0], given[0] + BATCH))
                assert given == (sorted(given) if task == LARGE_TASK else whole), given
                os.write(1, f"{batch} {','.join(map(str, given))}\n".encode())
                await asyncio.sleep(LARGE_PAUSE_S if task == LARGE_TASK else 0)

        await asyncio.gather(*(write(task) for task in range(TASKS)))


async def _read(folder: str) -> None:
    """Page up to the number in a line on standard input; print the ranges of numbers seen."""
    async with aclosing(await _opened(folder)) as storage:
        last_line = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        after, seen, ranges = 0, 0, list[list[int]]()
        while not last_line.done() or after < int(last_line.result()):
            try:
                rows = await storage.run_events.list_messages(THREAD, limit=500, after_seq=after)
            except StorageUnavailableError:
                continue
            for row in rows:
                if not ranges or row["seq"] != ranges[-1][1] + 1:
                    ranges.append([row["seq"], row["seq"]])
                ranges[-1][1] = row["seq"]
                after, seen = row["seq"], seen + 1
            if not rows:
                await asyncio.sleep(0.002)
    sys.stdout.write(json.dumps({"seen": seen, "ranges": ranges}))


# -- the storm -------------------------------------------------------------------------------------


def _child(*arguments: str, output: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this module
        [sys.executable, "-m", __spec__.name, *arguments], stdin=subprocess.PIPE, stdout=output
    )


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


class Storm:
    def __init__(self, folder: Path, kill_every_s: tuple[float, float] | None) -> None:
        """`kill_every_s`: a writer, the server."""
        self._folder = folder / "data"
        self._claims = folder / "claims"
        self._claims.mkdir()
        self._kill_every_s = kill_every_s or (float("inf"), float("inf"))
        self._started = 0
        self._random = random.Random(11)  # noqa: S311 - repeatable, not secret
        self.killed: Counter[str] = Counter()

    def _writer(self) -> subprocess.Popen[bytes]:
        name = f"w{self._started}"
        self._started += 1
        with (self._claims / name).open("wb") as claims:
            return _child("--write", str(self._folder), name, output=claims)

    def _write_and_kill(self, writers: list[subprocess.Popen[bytes]], seconds: float) -> None:
        """Wait so many seconds, longer where a slow restart of the server delays the kills."""
        started = time.monotonic()
        writer_every_s, server_every_s = self._kill_every_s
        planned = {"writers": seconds // writer_every_s, "servers": seconds // server_every_s}
        while time.monotonic() < started + seconds or any(self.killed[k] < n for k, n in planned.items()):
            time.sleep(0.05)
            assert all(writer.poll() is None for writer in writers), "a writer ended without being killed"
            assert time.monotonic() < started + seconds + END_TIMEOUT_S, "the server was not restarted"
            elapsed_s = time.monotonic() - started
            due = {
                "writers": min(planned["writers"], elapsed_s // writer_every_s),
                "servers": min(planned["servers"], elapsed_s // server_every_s),
            }
            if self.killed["writers"] < due["writers"]:
                victim = self._random.randrange(len(writers))
                _kill(writers[victim])
                writers[victim] = self._writer()
                self.killed["writers"] += 1
            if self.killed["servers"] < due["servers"] and self._kill_server():
                self.killed["servers"] += 1

    def _kill_server(self) -> bool:
        """Whether there was one: it may not have been started again since the last kill."""
        try:
            server = json.loads((self._folder / "server.json").read_text(encoding="utf-8"))
            os.kill(server["pid"], signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def run(self, seconds: float) -> dict[str, Any]:
        server = start_embedded(self._folder)
        readers: list[subprocess.Popen[bytes]] = []
        writers: list[subprocess.Popen[bytes]] = []
        try:
            readers = [_child("--read", str(self._folder), output=subprocess.PIPE) for _ in range(READERS)]
            writers = [self._writer() for _ in range(PROCESSES)]
            self._write_and_kill(writers, seconds)
            for writer in writers:
                writer.communicate(timeout=END_TIMEOUT_S)
                assert writer.returncode == 0
            stored = asyncio.run(_all_events(str(self._folder)))
            last = max(stored)
            reports = [
                json.loads(reader.communicate(f"{last}\n".encode(), END_TIMEOUT_S)[0]) for reader in readers
            ]
            return self._findings(stored, reports)
        finally:
            for child in [*readers, *writers]:
                _kill(child)
            server.release()

    def _acknowledged(self) -> Iterator[tuple[str, int]]:
        for claims in self._claims.iterdir():
            for line in claims.read_text(encoding="utf-8").split("\n")[
                :-1
            ]:  # the last line of a killed writer may be incomplete
                batch, given = line.split()
                for position, seq in enumerate(given.split(",")):
                    yield f"{batch}/{position}", int(seq)

    def _findings(self, stored: dict[int, str], reports: list[dict[str, Any]]) -> dict[str, Any]:
        acknowledged = dict(self._acknowledged())
        twice = Counter(stored.values())
        last = max(stored)
        batches: defaultdict[str, list[int]] = defaultdict(list)
        positions: defaultdict[str, list[int]] = defaultdict(list)
        for seq, content in sorted(stored.items()):
            batch, position = content.split("/")
            batches[batch].append(seq)
            positions[batch].append(int(position))
        return {
            "killed": dict(self.killed),
            "events_acknowledged": len(acknowledged),
            "events_stored": len(stored),
            "acknowledged_and_missing": sum(
                stored.get(seq) != content for content, seq in acknowledged.items()
            ),
            "stored_twice": sum(count - 1 for count in twice.values()),
            "gaps": last - len(stored),
            "readers_saw": [report["seen"] for report in reports],
            "readers_missed": [len(stored) - report["seen"] for report in reports],
            "batches_stored_in_part": sum(
                seqs != list(range(seqs[0], seqs[0] + BATCH))
                for batch, seqs in batches.items()
                if _size(batch) == BATCH
            ),
            "large_batches_without_their_beginning": sum(
                positions[batch] != list(range(len(seqs)))
                for batch, seqs in batches.items()
                if _size(batch) != BATCH
            ),
            "large_batches": sum(_size(batch) != BATCH for batch in batches),
        }


async def _all_events(folder: str) -> dict[int, str]:
    """The content of every number."""
    found: dict[int, str] = {}
    async with aclosing(await _opened(folder)) as storage:
        while rows := await storage.run_events.list_thread_events(
            THREAD, after_seq=max(found, default=0), limit=10_000
        ):
            found |= {row["seq"]: str(row["content"]) for row in rows}
    return found


def storm(seconds: float, kill_every_s: tuple[float, float] | None = None) -> dict[str, Any]:
    """Run it; the counts of events stored, lost, doubled and missed."""
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        return Storm(Path(folder), kill_every_s).run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", action="store_true", help="kill writers and the server in between")
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        asyncio.run(_write(*asked.write))
    elif asked.read:
        asyncio.run(_read(asked.read))
    else:
        sys.stdout.write(
            json.dumps(storm(asked.seconds, KILL_EVERY_S if asked.kills else None), indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
