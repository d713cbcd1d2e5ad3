"""`deerflow-mongo export` and `import`: files, streams, lists, exit codes, and no leftovers."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import MongoStorage
from deerflow_mongo.contract.bulk_rows import ROW_KINDS
from deerflow_mongo.testing.exported_rows import ROWS, event_row

from .command import COMMAND, UNREACHABLE, output_of, run


@pytest.fixture
def options(mongodb_url: str, database_name: str) -> list[str]:
    return ["--url", mongodb_url, "--database", database_name]


@pytest.fixture
def filled(mongodb_url: str, database_name: str) -> None:
    async def fill() -> None:
        async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as storage:
            for kind in ROW_KINDS:
                await storage.import_rows(kind, _rows(list(ROWS[kind])))

    asyncio.run(fill())


def _rows(rows: Any) -> Any:
    return rows


@pytest.mark.usefixtures("filled")
def test_file_is_exported_and_imported(options: list[str], tmp_path: Path) -> None:
    file = str(tmp_path / "file.jsonl.gz")
    assert "5 runs" in output_of("export", file, *options)
    assert "exists" in output_of("export", file, *options, exit_code=2)
    exported = json.loads(run("export", file, "--force", "--json", *options).stdout)["contents"]
    assert {kind: exported[kind]["count"] for kind in ROW_KINDS} == {k: len(ROWS[k]) for k in ROW_KINDS}
    other = [*options[:3], f"{options[3]}_other"]
    assert "5 runs 5 stored" in output_of("import", file, *other)
    assert "5 runs 5 there already" in output_of("import", file, *other)
    again = json.loads(run("export", file, "--force", "--json", *other).stdout)["contents"]
    assert again == exported


@pytest.mark.usefixtures("filled")
def test_standard_output_is_imported_from_standard_input(options: list[str]) -> None:
    first = subprocess.run([*COMMAND, "export", "-", *options], capture_output=True, check=True)  # noqa: S603
    assert gzip.decompress(first.stdout).startswith(b'{"header":')
    assert b"rows exported" in first.stderr
    second = subprocess.run(  # noqa: S603
        [*COMMAND, "import", "-", *options], input=first.stdout, capture_output=True, check=True
    )
    assert b"5 there already" in second.stdout
    cut = subprocess.run(  # noqa: S603
        [*COMMAND, "import", "-", *options], input=first.stdout[:-30], capture_output=True, check=False
    )
    assert cut.returncode == 2
    assert b"incomplete or damaged" in cut.stderr
    assert b"Traceback" not in cut.stderr


@pytest.mark.usefixtures("filled")
def test_refused_rows_are_listed_with_exit_code_1(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file.jsonl.gz"
    rows = [{"run_events": event_row(seq, content="another")} for seq in range(1, 31)]
    rows += [{"run_events": event_row(1, thread_id=f"t-{number}", run_id="")} for number in range(25)]
    header = {"format": "deerflow-mongo export", "version": 1, "checkpoint_threads": 0}
    end = {"lines": len(rows) + 2, "contents": {"run_events": {"count": len(rows)}}}
    lines = [{"header": header}, *rows, {"end": end}]
    file.write_bytes(gzip.compress("".join(f"{json.dumps(line)}\n" for line in lines).encode()))
    printed = output_of("import", str(file), *options, exit_code=1)
    assert "29 stored, 26 refused" in printed
    assert "run_events t-3/1: run_id must not be empty" in printed
    assert "... and 6 more" in printed
    as_json = run("import", str(file), "--json", *options)
    assert as_json.exit_code == 1
    assert len(json.loads(as_json.stdout)["rows"]["run_events"]["refused"]) == 26


def test_wrong_files_and_servers_are_one_sentence(options: list[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jsonl.gz")
    assert "cannot be read: No such file" in output_of("import", missing, *options, exit_code=2)
    text = tmp_path / "text"
    text.write_text("a text")
    assert "is no export file" in output_of("import", str(text), *options, exit_code=2)
    assert "is a folder" in output_of("export", str(tmp_path), *options, exit_code=2)
    unwritable = str(tmp_path / "no" / "folder.gz")
    assert "cannot be written" in output_of("export", unwritable, *options, exit_code=2)
    lost = output_of("export", missing, "--url", UNREACHABLE, exit_code=1)
    assert "hunter2" not in lost
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
