"""The replay of recorded threads: what it leaves in the stores."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter

import pytest

from deerflow_mongo import MongoStorage, StorageUnavailableError
from deerflow_mongo.demo.recording import SAMPLE, load_thread
from deerflow_mongo.demo.replay import Replayer

from .recordings import answer, counted_by_hand, message, recording

pytestmark = pytest.mark.usefixtures("emptied_database")

USERS = ["alice", "bob", "carol"]


async def test_each_turn_becomes_a_run_of_the_threads_user(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    steps: list[None] = []
    replayer = Replayer(storage, USERS, lambda: steps.append(None))
    replayed = await replayer.replay([sample.copy_for(user) for user in USERS])
    assert [thread.owner for thread in replayed] == USERS
    assert len(steps) == 9
    for thread in replayed:
        rows = await storage.runs.list_by_thread(thread.thread_id, user_id=thread.owner)
        assert [row["run_id"] for row in reversed(rows)] == list(thread.run_ids)
        assert [row["status"] for row in reversed(rows)] == ["success", "success", "interrupted"]
        assert [row["metadata"]["turn"] for row in rows] == [3, 2, 1]
        assert rows[0]["follow_up_to_run_id"] == rows[1]["run_id"]
        assert all(row["started_at"] and row["ended_at"] for row in rows)


async def test_stored_token_counts_equal_those_counted_by_hand(storage: MongoStorage) -> None:
    [thread] = await Replayer(storage, ["alice"]).replay([load_thread(SAMPLE)])
    usage = await storage.runs.token_usage_by_thread(thread.thread_id, user_id="alice")
    by_caller, by_model = counted_by_hand(SAMPLE)
    assert usage["by_caller"] == by_caller
    assert {model: counts["tokens"] for model, counts in usage["by_model"].items()} == by_model
    assert usage["total_tokens"] == by_caller.total()


async def test_thread_has_its_title_and_the_status_of_its_last_turn(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    await Replayer(storage, ["alice"]).replay([sample])
    thread = await storage.threads.get_thread(sample.thread_id, user_id="alice")
    assert thread is not None
    assert (thread.display_name, thread.status) == (sample.title, "interrupted")
    assert thread.assistant_id == sample.assistant_id


async def test_failed_only_turn_stores_error_text_and_title(storage: MongoStorage) -> None:
    thread = recording(message("human", "go"), title="Oh no", tasks=[{"error": "no credit"}])
    [replayed] = await Replayer(storage, ["alice"]).replay([thread])
    row = await storage.runs.get(replayed.run_ids[0], user_id="alice")
    assert row is not None
    assert (row["status"], row["error"], row["first_human_message"]) == ("error", "no credit", "go")
    stored = await storage.threads.get_thread_meta(replayed.thread_id)
    assert stored is not None
    assert (stored.display_name, stored.status) == ("Oh no", "error")


async def test_votes_follow_the_documented_rule_and_a_changed_vote_is_one_row(storage: MongoStorage) -> None:
    [thread] = await Replayer(storage, USERS).replay([load_thread(SAMPLE)])
    votes: list[dict[str | None, int]] = []
    for run_id in thread.run_ids:
        rows = await storage.feedback.list_by_run(thread.thread_id, run_id)
        assert len(rows) == 2
        votes.append({row["user_id"]: row["rating"] for row in rows})
    assert votes == [{"alice": 1, "bob": -1}, {"alice": 1, "bob": 1}, {"alice": -1, "bob": -1}]


async def test_each_message_becomes_one_event_of_its_turns_run(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    [thread] = await Replayer(storage, ["alice"]).replay([sample])
    rows = await storage.run_events.list_thread_events(thread.thread_id)
    messages = json.loads(SAMPLE.read_text(encoding="utf-8"))["values"]["messages"]
    assert [row["content"] for row in rows] == messages
    assert thread.event_count == len(messages)
    assert [row["run_id"] for row in rows if row["event_type"] == "human_message"] == list(thread.run_ids)
    for number, run_id in enumerate(thread.run_ids, 1):
        assert all(row["metadata"]["turn"] == number for row in rows if row["run_id"] == run_id)


async def test_events_have_type_and_category_of_the_documented_rule(storage: MongoStorage) -> None:
    hidden = {"additional_kwargs": {"hide_from_ui": True}}
    thread = recording(
        message("system", "before all"),
        message("human", "go"),
        message("human", "todo", **hidden),
        answer("", name="subagent:x", tool_calls=[{"name": "ls", "args": {}, "id": "1"}]),
        message("tool", "OK", tool_call_id="1"),
        answer(""),
        message("", "?"),
        message("\ud800" * 9),
    )
    [replayed] = await Replayer(storage, ["alice"]).replay([thread])
    rows = await storage.run_events.list_events(replayed.thread_id, replayed.run_ids[0])
    assert [(row["event_type"], row["category"]) for row in rows] == [
        ("system_message", "trace"),
        ("human_message", "message"),
        ("human_message", "trace"),
        ("ai_message", "message"),
        ("tool_result", "message"),
        ("ai_message", "trace"),
        ("other_message", "trace"),
        ("other_message", "trace"),
    ]
    assert rows[3]["metadata"] == {"turn": 1, "caller": "subagent", "model_name": "m-1"}


async def test_event_that_cannot_be_stored_is_logged_and_the_run_ends(
    storage: MongoStorage, caplog: pytest.LogCaptureFixture
) -> None:
    thread = recording(
        message("human", "go"), message("system", "x" * 2**24), message("human", "so"), answer("yes")
    )
    [replayed] = await Replayer(storage, ["alice"]).replay([thread])
    assert replayed.event_count == 3
    rows = await storage.runs.list_by_thread(replayed.thread_id, user_id="alice")
    assert [row["status"] for row in rows] == ["success", "interrupted"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"an event of run {replayed.run_ids[0]} could not be stored" in caplog.text
    assert vars(caplog.records[0])["run_id"] == replayed.run_ids[0]


async def test_second_replay_adds_runs_to_the_same_threads(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    [first] = await Replayer(storage, ["alice"]).replay([sample])
    [second] = await Replayer(storage, ["alice"]).replay([sample])
    assert first.thread_id == second.thread_id
    assert len(await storage.runs.list_by_thread(first.thread_id, user_id="alice")) == 6
    assert len(await storage.threads.search_threads(user_id=None)) == 1


@pytest.mark.parametrize("owner", ["carol", "", None])
async def test_thread_of_another_owner_and_its_new_runs_are_the_owners(
    storage: MongoStorage, owner: str | None
) -> None:
    sample = load_thread(SAMPLE)
    await storage.threads.ensure_thread(thread_id=sample.thread_id, user_id=owner)
    [thread] = await Replayer(storage, ["alice"]).replay([sample])
    assert (thread.requested_user, thread.owner) == ("alice", owner)
    rows = await storage.runs.list_by_thread(sample.thread_id, user_id=None)
    assert {row["user_id"] for row in rows} == {owner}


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # PyMongo's, of a connection cancelled while it is made
async def test_cancelled_replay_leaves_no_run_active(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    stop = asyncio.Event()
    threads = [sample.copy_for(f"user{number}") for number in range(20)]
    replay = asyncio.create_task(Replayer(storage, USERS, stop.set).replay(threads))
    await stop.wait()
    replay.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replay
    del replay
    gc.collect()
    statuses = Counter[str]()
    for thread in threads:
        rows = await storage.runs.list_by_thread(thread.thread_id, user_id=None)
        statuses.update(row["status"] for row in rows)
    assert set(statuses) <= {"success", "interrupted"}
    assert 0 < statuses["success"] < 40


async def test_replay_raises_the_error_of_a_storage_that_fails() -> None:
    options = {"url": "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200", "timeout_ms": 300}
    storage = MongoStorage.open(options)
    sample = load_thread(SAMPLE)
    with pytest.raises(StorageUnavailableError):
        await Replayer(storage, USERS).replay([sample.copy_for(user) for user in USERS])
    await storage.aclose()
