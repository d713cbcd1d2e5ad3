"""Export files: lossless, complete or refused, and imported again after any interruption."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, create_storage
from deerflow_mongo.contract.bulk_rows import ROW_KINDS
from deerflow_mongo.contract.errors import StorageConfigError
from deerflow_mongo.testing.exported_rows import ROWS, event_row, numbered_row, owned_run_row, user_row
from deerflow_mongo.transfer.export_files import FORMAT_VERSION, check_file, reading, writing
from deerflow_mongo.transfer.exporting import CHECKPOINTS, Export
from deerflow_mongo.transfer.importing import FileImport, ImportedFile
from deerflow_mongo.transfer.storage_checkpoints import checkpoints_of, savers_of

from ..child_processes import kill
from .conversations import converse

Opener = Callable[[str], MongoStorage]


@pytest.fixture
def other_storage(mongodb_url: str, database_name: str) -> Opener:
    """Another database of the server, by a prefix of its collections."""

    def build(prefix: str) -> MongoStorage:
        return MongoStorage.open(
            {"url": mongodb_url, "database": database_name, "collection_prefix": f"{prefix}_"}
        )

    return build


@pytest.fixture
async def target(other_storage: Opener) -> AsyncIterator[MongoStorage]:
    async with other_storage("target") as opened:
        yield opened


async def fill(storage: Any) -> None:
    for kind in ROW_KINDS:
        outcome = await storage.import_rows(kind, list(ROWS[kind]))
        assert outcome.stored == len(ROWS[kind])


def ignore(kind: str, rows: int) -> None:
    pass


async def exported(storage: Any, file: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Counts and digests by kind."""
    with writing(str(file), overwrite=overwrite) as writer:
        found = await checkpoints_of(storage)
        return (await Export(storage, writer, found, ignore).run("source")).as_json()


async def imported(file: Path, storage: Any, *, overwrite: bool = False) -> ImportedFile:
    check_file(str(file))
    with reading(str(file)) as reader:
        savers = await savers_of(storage) if reader.header["checkpoint_threads"] else None
        return await FileImport(reader, storage, savers, overwrite=overwrite, on_progress=ignore).run()


def lines_of(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="ascii") as lines:
        return [json.loads(line) for line in lines]


def written(file: Path, lines: list[dict[str, Any]]) -> Path:
    with gzip.open(file, "wt", encoding="ascii") as stream:
        stream.writelines(f"{json.dumps(line)}\n" for line in lines)
    return file


# -- lossless --------------------------------------------------------------------------------------


async def test_import_into_an_empty_database_has_equal_digests(
    storage: MongoStorage, target: MongoStorage, tmp_path: Path
) -> None:
    await fill(storage)
    await converse(await storage.checkpointer(), "t")
    contents = await exported(storage, tmp_path / "first.jsonl.gz")
    assert contents[CHECKPOINTS]["count"] > 1
    outcome = await imported(tmp_path / "first.jsonl.gz", target)
    assert outcome.is_complete
    assert {kind: outcome.rows[kind].stored for kind in ROW_KINDS} == {k: len(ROWS[k]) for k in ROW_KINDS}
    assert [thread.result for thread in outcome.threads] == ["copied"]
    assert await exported(target, tmp_path / "second.jsonl.gz") == contents
    again = await imported(tmp_path / "first.jsonl.gz", target)
    assert all(one.unchanged == one.rows for one in again.rows.values())
    assert [thread.result for thread in again.threads] == ["unchanged"]


async def test_backends_exchange_files(storage: MongoStorage, tmp_path: Path) -> None:
    await fill(storage)
    await converse(await storage.checkpointer(), "t")
    contents = await exported(storage, tmp_path / "mongodb.jsonl.gz")
    async with create_storage({"backend": "memory"}) as memory:
        assert (await imported(tmp_path / "mongodb.jsonl.gz", memory)).is_complete
        assert await exported(memory, tmp_path / "memory.jsonl.gz") == contents
    async with create_storage({"backend": "mongodb", "driver": "mongomock"}) as mock:
        with pytest.raises(StorageConfigError, match="needs a MongoDB server"):
            await imported(tmp_path / "memory.jsonl.gz", mock)


async def test_file_of_a_long_thread_has_each_message_once(storage: MongoStorage, tmp_path: Path) -> None:
    await converse(await storage.checkpointer(), "t")
    await exported(storage, tmp_path / "file.jsonl.gz")
    pieces = [tuple(line["piece"]) for line in lines_of(tmp_path / "file.jsonl.gz") if "piece" in line]
    assert len(pieces) == len(set(pieces))


async def test_large_values_are_cut_into_lines(
    storage: MongoStorage, target: MongoStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deerflow_mongo.transfer.exported_checkpoints.CHUNK_BYTES", 100)
    await converse(await storage.checkpointer(), "t", turns=1)
    contents = await exported(storage, tmp_path / "file.jsonl.gz")
    assert sum("more" in line for line in lines_of(tmp_path / "file.jsonl.gz")) > 10
    assert (await imported(tmp_path / "file.jsonl.gz", target)).is_complete
    assert await exported(target, tmp_path / "second.jsonl.gz") == contents


async def test_rows_in_the_way_of_each_other_are_stored_at_the_end(
    storage: MongoStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accounts that have exchanged their emails, and a run that has started after another one's end."""
    monkeypatch.setattr("deerflow_mongo.transfer.importing._BATCH_ROWS", 1)
    await storage.import_rows("runs", [_any(owned_run_row("r-2", thread_id="t"))])
    await storage.import_rows("users", [_any(user_row("u-2", email="x@example.org"))])
    rows = [
        {"users": user_row("u-1", email="x@example.org")},
        {"users": user_row("u-2")},
        {"runs": owned_run_row("r-1", thread_id="t")},
        {"runs": owned_run_row("r-2", thread_id="t", status="success")},
    ]
    counts = {"users": {"count": 2}, "runs": {"count": 2}}
    outcome = await imported(_file_of(tmp_path, rows, counts), storage)
    assert outcome.is_complete
    assert (outcome.rows["users"].stored, outcome.rows["users"].replaced) == (1, 1)
    assert (outcome.rows["runs"].stored, outcome.rows["runs"].replaced) == (1, 1)


async def test_refused_rows_are_listed_and_the_others_stored(storage: MongoStorage, tmp_path: Path) -> None:
    rows = [{"run_events": event_row(seq)} for seq in (1, 0, 3)]
    outcome = await imported(_file_of(tmp_path, rows, {"run_events": {"count": 3}}), storage)
    assert not outcome.is_complete
    assert outcome.rows["run_events"].stored == 2
    assert outcome.rows["run_events"].refused[0].key == ("thread-1", 0)


def _any(row: Any) -> Any:
    return row


def _file_of(tmp_path: Path, rows: list[Any], counts: Mapping[str, Any], **header: Any) -> Path:
    first = {"format": "deerflow-mongo export", "version": FORMAT_VERSION, "checkpoint_threads": 0, **header}
    end = {"lines": len(rows) + 2, "contents": counts}
    return written(tmp_path / "made.jsonl.gz", [{"header": first}, *rows, {"end": end}])


# -- files that are refused ------------------------------------------------------------------------


async def test_incomplete_and_foreign_files_are_refused_before_anything_is_written(
    storage: MongoStorage, tmp_path: Path
) -> None:
    complete = _file_of(tmp_path, [{"threads": numbered_row("threads", 1)}], {"threads": {"count": 1}})
    data, lines = complete.read_bytes(), lines_of(complete)
    newer = [{"header": {**lines[0]["header"], "version": FORMAT_VERSION + 1}}, *lines[1:]]
    cases: dict[str, tuple[bytes, str]] = {
        "cut": (data[:-20], "incomplete or damaged"),
        "damaged": (data[:60] + bytes([data[60] ^ 255]) + data[61:], "damaged|no object"),
        "empty": (b"", "no export file"),
        "text": (b"a text", "not compressed by gzip"),
        "another gzip": (gzip.compress(b'{"a": 1}\n'), "no export file"),
        "without trailer": (gzip.compress(_encoded(lines[:-1])), "ends before its trailer"),
        "without a line": (gzip.compress(_encoded([lines[0], lines[-1]])), "lost lines"),
        "newer": (gzip.compress(_encoded(newer)), "upgrade deerflow-mongo"),
    }
    for name, (content, text) in cases.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(StorageConfigError, match=text):
            await imported(file, storage)
    assert [batch async for batch in storage.export_rows("threads")] == []


def _encoded(lines: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


async def test_file_has_its_name_once_it_is_complete(storage: MongoStorage, tmp_path: Path) -> None:
    file = tmp_path / "file.jsonl.gz"
    with pytest.raises(TypeError), writing(str(file), overwrite=False) as writer:
        writer.write("not JSON", object())
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    await exported(storage, file)
    assert os.stat(file).st_mode & 0o077 == 0  # noqa: PTH116
    with pytest.raises(StorageConfigError, match="--force"):
        await exported(storage, file)
    await exported(storage, file, overwrite=True)
    assert os.listdir(tmp_path) == [file.name]  # noqa: PTH208


# -- interruptions ---------------------------------------------------------------------------------


_EVENTS = 8_000


async def test_killed_import_continues_when_it_is_repeated(
    mongodb_url: str, database_name: str, target: MongoStorage, tmp_path: Path
) -> None:
    """Killed somewhere in the middle of the events; then the same command again."""
    rows = [
        {"run_events": event_row(number % 500 + 1, thread_id=f"t-{number // 500:03}", content="x" * 50)}
        for number in range(_EVENTS)
    ]
    file = _file_of(tmp_path, rows, {"run_events": {"count": _EVENTS}})
    config = tmp_path / "config.json"
    options = {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    config.write_text(json.dumps({"storage": {**options, "collection_prefix": "target_"}}))
    command = [sys.executable, "-m", "deerflow_mongo.cli", "import", str(file), "--config", str(config)]
    events = target.driver.collection("target_run_events")
    process = subprocess.Popen(command)  # noqa: ASYNC220, S603 - it outlives the call
    try:
        deadline = time.monotonic() + 60
        while not (stored := await events.find({"thread_id": "t-001"}, sort=[("seq", 1)], limit=1)):
            assert time.monotonic() < deadline
            assert process.poll() is None
    finally:
        kill(process)
    assert stored
    before = await target.run_events.list_thread_events("t-015")
    assert before == []
    outcome = await imported(file, target)
    assert outcome.is_complete
    assert 0 < outcome.rows["run_events"].stored < _EVENTS
    contents = await exported(target, tmp_path / "second.jsonl.gz")
    async with create_storage({"backend": "memory"}) as memory:
        await imported(file, memory)
        assert await exported(memory, tmp_path / "memory.jsonl.gz") == contents
