"""`deerflow-mongo purge`: what it erases and reports, and which options belong together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import Storage, ThreadMetaCreate, create_storage

from .command import UNREACHABLE, output_of, run

DAY = timedelta(days=1)


@pytest.fixture
def database(mongodb_url: str, database_name: str) -> list[str]:
    """Two threads of alice, one of bob; each with a run and a vote."""

    async def fill() -> None:
        async with create_storage(
            {"backend": "mongodb", "url": mongodb_url, "database": database_name}
        ) as storage:
            for thread_id, user_id in {"a-1": "alice", "a-2": "alice", "b-1": "bob"}.items():
                await _fill(storage, thread_id, user_id)

    asyncio.run(fill())
    return ["--url", mongodb_url, "--database", database_name]


async def _fill(storage: Storage, thread_id: str, user_id: str) -> None:
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=thread_id, user_id=user_id))
    await storage.runs.create(f"run-{thread_id}", thread_id, user_id=user_id, status="success")
    await storage.feedback.upsert(run_id=f"run-{thread_id}", thread_id=thread_id, rating=1, user_id=user_id)


def _age(
    client: MongoClient[dict[str, Any]], database: str, days: Mapping[str, int], status: str = "idle"
) -> None:
    for thread_id, age in days.items():
        change = {"updated_at": datetime.now(UTC) - age * DAY, "status": status}
        client[database]["threads"].update_one({"_id": thread_id}, {"$set": change})


def erased_by(*arguments: str) -> dict[str, int]:
    """The counts that are not 0."""
    result = run("purge", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return {name: count for name, count in json.loads(result.stdout)["erased"].items() if count}


def test_purge_of_a_thread_reports_what_went(database: list[str]) -> None:
    assert (
        "1 thread, 1 run, 0 run events, 1 feedback row, 0 checkpoints and 0 accounts erased in"
        in output_of("purge", "--thread", "a-1", *database)
    )
    assert erased_by("--thread", "a-1", "--thread", "a-2", *database) == {
        "threads": 1,
        "runs": 1,
        "feedback": 1,
    }
    assert erased_by("--thread", "absent", *database) == {}


def test_dry_run_counts_and_changes_nothing(database: list[str]) -> None:
    assert "would be erased; nothing was changed" in output_of(
        "purge", "--user", "alice", "--dry-run", *database
    )
    two = {"threads": 2, "runs": 2, "feedback": 2}
    assert erased_by("--user", "alice", "--dry-run", *database) == two
    assert erased_by("--user", "alice", *database) == two
    assert erased_by("--user", "alice", *database) == {}


def test_purge_by_age_and_status_spares_threads_with_an_active_run(
    database: list[str], raw_client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    _age(raw_client, database_name, {"a-1": 91, "a-2": 89, "b-1": 91})
    raw_client[database_name]["runs"].update_one({"_id": "run-b-1"}, {"$set": {"status": "running"}})
    old = ("--older-than", "90d", *database)
    assert erased_by(*old, "--status", "error") == {}
    assert erased_by(*old, "--status", "error", "--status", "idle", "--dry-run")["threads"] == 1
    assert erased_by(*old)["threads"] == 1
    assert {thread["_id"] for thread in raw_client[database_name]["threads"].find()} == {"a-2", "b-1"}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--thread", "t", "--user", "u"),
        ("--user", "u", "--older-than", "1d"),
        ("--thread", "t", "--status", "idle"),
        ("--older-than", "soon"),
        ("--user", ""),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options: tuple[str, ...]) -> None:
    result = run("purge", *options, "--url", UNREACHABLE)
    assert result.exit_code == 2, result.output
    assert "hunter2" not in result.output


def test_purge_leaves_collections_of_other_programs_alone(
    raw_client: MongoClient[dict[str, Any]], mongodb_url: str, database_name: str
) -> None:
    theirs = {"_id": "run-1", "thread_id": "a-1", "user_id": "alice"}
    raw_client[database_name]["runs"].insert_one(dict(theirs))
    options = ["--url", mongodb_url, "--database", database_name]
    for what in (("--thread", "a-1"), ("--user", "alice")):
        assert "has no data of deerflow-mongo" in output_of("purge", *what, *options, exit_code=2)
    assert list(raw_client[database_name]["runs"].find()) == [theirs]


def test_purge_needs_a_server_with_data() -> None:
    assert "name the database" in output_of("purge", "--user", "u", exit_code=2)
    assert "needs the backend mongodb" in output_of(
        "purge", "--user", "u", "--driver", "mongomock", exit_code=2
    )
    assert "cannot be reached" in output_of("purge", "--user", "u", "--url", UNREACHABLE, exit_code=1)
