"""What the data files of a replica set contain of an erased user: after the erasure, `compact` and a resync.

Storage is not compressed here, so that a text of a document stands in a file as it is.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from pymongo.errors import OperationFailure

from deerflow_mongo import Accounts, Erasure, ThreadMetaCreate, create_storage

from .servers import Mongod, ReplicaSet

USER, EMAIL, WORDS = "user-7c1e", "alice@secret.example", "a sentence of the user"
UNCOMPRESSED = (
    *("--wiredTigerCollectionBlockCompressor", "none", "--wiredTigerJournalCompressor", "none"),
    *("--wiredTigerIndexPrefixCompression", "false"),
)


async def _converse(storage: Any, threads: int) -> None:
    await storage.users.create(USER, email=EMAIL)
    for number in range(threads):
        thread_id = f"thread-{number}"
        await storage.threads.create_thread_meta(
            ThreadMetaCreate(thread_id=thread_id, user_id=USER, display_name=WORDS)
        )
        await storage.runs.create(f"run-{number}", thread_id, user_id=USER, kwargs={"input": WORDS})
        message = {"thread_id": thread_id, "run_id": f"run-{number}", "event_type": "human"}
        await storage.run_events.put_batch([{**message, "category": "message", "content": WORDS}] * 20)


def _files_with(member: Mongod, *texts: str) -> set[Path]:
    """The files of a running member that contain one of these texts."""
    member.command({"fsync": 1})
    found: set[Path] = set()
    for file in (member.folder / "db").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a journal file may be removed meanwhile
            if file.is_file() and any(text.encode() in file.read_bytes() for text in texts):
                found.add(file)
    return found


def _compact(member: Mongod) -> None:
    database = member.client["deerflow"]
    for name in database.list_collection_names():
        with contextlib.suppress(OperationFailure):  # it has too little to give back
            database.command("compact", name, force=True)


def _resync(replica_set: ReplicaSet, member: Mongod) -> None:
    """Replace the member's files by an initial sync from the others."""
    member.kill()
    shutil.rmtree(member.folder / "db")
    member.reconnect()
    member.start()
    replica_set.wait_until_healthy()


async def test_resynced_member_has_no_text_of_an_erased_user_in_its_files() -> None:
    with ReplicaSet(3, options=UNCOMPRESSED) as replica_set:
        async with create_storage({"backend": "mongodb", "url": replica_set.url}) as storage:
            assert isinstance(storage, Accounts)
            assert isinstance(storage, Erasure)
            await _converse(storage, threads=20)
            await storage.erase_user(USER)
            # A resync copies the oplog from the last write on: the deletion of the account would have its id.
            await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="of-another-user"))
        primary, [resynced, *_] = replica_set.primary(), replica_set.secondaries()
        _compact(primary)
        # The oplog has what was inserted, and so have blocks that are free and not used again yet.
        assert _files_with(primary, WORDS)
        assert _files_with(resynced, WORDS)
        _resync(replica_set, resynced)
        assert _files_with(resynced, USER, EMAIL, WORDS) == set()
