"""Measures what one row of each kind takes up, for the table of `deerflow_mongo/mongodb/OPERATIONS.md`.

`python -m tests.mongodb.sizes` writes the table, from more rows than the test measures. Documents are counted
as BSON, before compression; disk and indexes as the server reports them after a checkpoint of its own.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pymongo
from pymongo.database import Database

from benchmarks.checkpoints.conversation import (
    KIB,
    MESSAGES_PER_TURN,
    TURN_BYTES,
    compiled,
    config_of,
    message,
    text,
)
from deerflow_mongo import MongoStorage, RunEventFields, start_embedded

from .documents.pinned import text_with

GUIDE: Final = Path(__file__).parents[2] / "deerflow_mongo" / "mongodb" / "OPERATIONS.md"
BEGIN, END = "<!-- sizes: begin -->", "<!-- sizes: end -->"
PUBLISHED_ROWS: Final = 2_000
ROWS_PER_TURN: Final = 40
"""So many rows of each other kind are stored for one turn of a conversation."""

EVENTS_PER_BATCH: Final = 20
CONCURRENT: Final = 32


@dataclass(frozen=True)
class Size:
    """Average bytes of a row."""

    document: float
    indexes: float
    disk: float
    """Documents and indexes as stored, compressed."""
    number_of_indexes: int
    rows: int


KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "run": ("runs", "one that has ended, with metadata, token counts of one model and two short texts"),
    "run event": ("run_events", "a message with 1 KiB of text"),
    "vote": ("feedback", "without a comment"),
    "thread": ("threads", "with a title and two keys of metadata"),
    "account": ("users", "with a password"),
    "turn of a conversation": (
        "checkpoint_data",
        f"its seven checkpoints, with six messages of {TURN_BYTES // KIB} KiB of text together",
    ),
}
"""Each kind of row, its collection, and what was measured."""


async def store(config: Mapping[str, Any], rows: int) -> None:
    """Store as many rows of each kind, with other texts and ids each."""
    chance = random.Random(rows)  # noqa: S311 - the same texts each time
    async with MongoStorage.open(config) as storage:
        for start in range(0, rows, CONCURRENT):
            numbers = range(start, min(rows, start + CONCURRENT))
            await asyncio.gather(*(_store_one(storage, number, chance) for number in numbers))
        for start in range(0, rows, EVENTS_PER_BATCH):
            numbers = range(start, min(rows, start + EVENTS_PER_BATCH))
            await storage.run_events.put_batch([_event(number) for number in numbers])
        graph = compiled(await storage.checkpointer())
        for turn in range(turns_of(rows)):
            question = {"messages": [message("conversation", turn * MESSAGES_PER_TURN)]}
            await graph.ainvoke(question, config_of("conversation"))


def turns_of(rows: int) -> int:
    return rows // ROWS_PER_TURN


async def _store_one(storage: MongoStorage, number: int, chance: random.Random) -> None:
    run, thread, user = _uuid(chance), f"{number // 5:08d}-{_uuid(chance)[9:]}", f"user-{number % 100:05d}"
    await storage.threads.ensure_thread(
        thread_id=thread,
        user_id=user,
        metadata={"source": "web", "language": "en"},
        assistant_id="lead_agent",
    )
    await storage.threads.sync_thread_title(thread_id=thread, title=text(1, number)[:40])
    await storage.runs.create(
        run, thread, user_id=user, assistant_id="lead_agent", model_name="gpt-4.1", metadata={"source": "web"}
    )
    await storage.runs.record_token_usage(
        run, caller="lead_agent", model_name="gpt-4.1-2025-04-14", input_tokens=4_000, output_tokens=700
    )
    await storage.runs.update_run_completion(
        run,
        status="success",
        total_input_tokens=4_000,
        total_output_tokens=700,
        total_tokens=4_700,
        lead_agent_tokens=4_700,
        llm_call_count=3,
        message_count=4,
        first_human_message=text(1, number)[:100],
        last_ai_message=text(1, number)[-200:],
    )
    await storage.feedback.upsert(run_id=run, thread_id=thread, rating=1, user_id=user)
    email = f"{_uuid(chance)[:8]}.{number}@example.org"
    await storage.users.create(_uuid(chance), email=email, password_hash="$2b$12$" + _uuid(chance)[:31])


def _event(number: int) -> RunEventFields:
    group = number // EVENTS_PER_BATCH
    return {
        "thread_id": f"{group // 5:08d}-1c7a-4b1e-9c52-2f4a6f1d9e10",
        "run_id": f"{group:08d}-77aa-4c9e-8f10-9a3b5c7d1e20",
        "event_type": "ai_message",
        "category": "message",
        "content": {"type": "ai", "content": text(1, number)},
        "metadata": {"caller": "lead_agent"},
    }


def _uuid(chance: random.Random) -> str:
    digits = f"{chance.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def measured(database: Database[dict[str, Any]], rows: int) -> dict[str, Size]:
    """The sizes of what `store` has stored, by kind."""
    database.client.admin.command("fsync")
    sizes: dict[str, Size] = {}
    for kind, (collection, _) in KINDS.items():
        stats = database.command("collStats", collection)
        count = turns_of(rows) if collection == "checkpoint_data" else rows
        indexes = stats["totalIndexSize"]
        disk = (stats["storageSize"] + indexes) / count
        sizes[kind] = Size(stats["size"] / count, indexes / count, disk, stats["nindexes"], count)
    return sizes


def table_of(sizes: Mapping[str, Size]) -> str:
    lines = ["| row | document | indexes | on disk, both | measured |", "| --- | --: | --: | --: | --- |"]
    for kind, size in sizes.items():
        figures = " | ".join(f"{round(value, -1):,.0f}" for value in (size.document, size.indexes, size.disk))
        lines.append(f"| {kind} | {figures} | {KINDS[kind][1]} |")
    return "\n".join(lines)


def main() -> None:
    server = start_embedded()
    try:
        asyncio.run(store({"url": server.url, "database": "sizes"}, PUBLISHED_ROWS))
        with pymongo.MongoClient[dict[str, Any]](server.url) as client:
            table = table_of(measured(client["sizes"], PUBLISHED_ROWS))
    finally:
        server.release()
    sys.stdout.write(table + "\n")
    GUIDE.write_text(text_with(GUIDE.read_text(encoding="utf-8"), table, BEGIN, END), encoding="utf-8")


if __name__ == "__main__":
    main()
