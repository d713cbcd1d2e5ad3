"""Recorded threads: what is read from them, what is counted, and what a replay leaves in the stores."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import deerflow_mongo
from deerflow_mongo import MongoStorage, StorageUnavailableError
from deerflow_mongo.demo import replay
from deerflow_mongo.demo.replay import (
    ModelCall,
    RecordedThread,
    RecordingError,
    Replayer,
    completion_of,
    load_thread,
    parse_thread,
)
from deerflow_mongo.mongodb.config import mongo_config

SAMPLE = Path(deerflow_mongo.__file__).parent / "demo" / "samples" / "weather.json"
USERS = ["alice", "bob", "carol"]


def message(kind: str, text: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "content": text, **fields}


def answer(text: str, model: str = "m-1", **fields: Any) -> dict[str, Any]:
    return message("ai", text, response_metadata={"model_name": model}, **fields)


def recording(*messages: dict[str, Any], **state: Any) -> RecordedThread:
    values = {"messages": list(messages), "title": state.pop("title", None)}
    return parse_thread({"values": values, **state}, source="thread.json")


def counted_by_hand(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Tokens by caller and by model under the stated rule, counted without the code under test."""
    state = json.loads(path.read_text(encoding="utf-8"))
    by_caller, by_model = Counter[str](), Counter[str]()
    told: list[str] = []
    answers: list[str] = []
    tasks: dict[str, tuple[str, str]] = {}

    def size(text: str) -> int:
        return (len(text.encode()) + 3) // 4

    def spend(caller: str, model: str, figure: int) -> None:
        by_caller[caller] += figure
        by_model[model] += figure

    messages = state["values"]["messages"]
    second_turn = [x["type"] for x in messages].index("human", 1)
    for position, said in enumerate(messages):
        content = said["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        arguments = [json.dumps(call["args"], ensure_ascii=False, separators=(",", ":"))
                     for call in said.get("tool_calls", [])]  # fmt: skip
        whole = text + "".join(arguments)
        if said["type"] == "ai":
            model = said["response_metadata"]["model_name"]
            reasoning = said["additional_kwargs"].get("reasoning_content", "")
            spend("lead_agent", model, sum(map(size, told)) + size(whole + reasoning))
            answers += [text] if text and position < second_turn else []
            tasks |= {call["id"]: (model, argument)
                      for call, argument in zip(said["tool_calls"], arguments, strict=True)
                      if call["name"] == "task"}  # fmt: skip
        elif said.get("tool_call_id") in tasks:
            model, argument = tasks[said["tool_call_id"]]
            spend("subagent", model, size(argument) + size(text))
        told.append(whole)
    title = size(told[0]) + size(answers[-1]) + size(state["values"]["title"])
    spend("middleware", messages[2]["response_metadata"]["model_name"], title)
    return by_caller, by_model


# -- reading ---------------------------------------------------------------------------------------


def test_the_sample_has_three_turns_two_models_and_every_caller() -> None:
    thread = load_thread(SAMPLE)
    assert [turn.outcome for turn in thread.turns] == ["success", "success", "interrupted"]
    calls = [call for turn in thread.turns for call in turn.calls]
    assert {call.caller for call in calls} == {"lead_agent", "subagent", "middleware"}
    assert {call.model_name for call in calls} == {"deepseek-v3.2", "kimi-k2.5"}


def test_the_sample_counts_as_the_stated_rule_says() -> None:
    by_caller, by_model = Counter[str](), Counter[str | None]()
    for turn in load_thread(SAMPLE).turns:
        for call in turn.calls:
            by_caller[call.caller] += call.total_tokens
            by_model[call.model_name] += call.total_tokens
    assert (by_caller, by_model) == counted_by_hand(SAMPLE)


def test_completion_figures_are_the_sums_of_the_calls() -> None:
    for turn in load_thread(SAMPLE).turns:
        figures = completion_of(turn)
        by_caller = [figures.get(f"{caller}_tokens") for caller in ("lead_agent", "subagent", "middleware")]
        assert sum(map(int, map(str, by_caller))) == figures.get("total_tokens")
        assert figures.get("llm_call_count") == len(turn.calls)


def test_each_human_message_opens_a_turn_and_a_hidden_one_does_not() -> None:
    hidden = message("human", "remember your todos", additional_kwargs={"hide_from_ui": True})
    thread = recording(
        message("human", "one"), answer("1"), hidden, answer("1b"), message("human", "two"), answer("2")
    )
    assert [(turn.question, turn.answer, turn.message_count) for turn in thread.turns] == [
        ("one", "1b", 4),
        ("two", "2", 2),
    ]


def test_a_message_that_no_model_wrote_is_no_call() -> None:
    thread = recording(message("human", "hello"), message("ai", "copied by a middleware"), answer("hi"))
    assert thread.turns[0].calls == (ModelCall("lead_agent", "m-1", 2 + 6, 1),)


def test_the_providers_own_figures_win() -> None:
    usage = {"input_tokens": 7_000, "output_tokens": 30}
    thread = recording(message("human", "hello"), answer("hi", usage_metadata=usage))
    assert thread.turns[0].calls == (ModelCall("lead_agent", "m-1", 7_000, 30),)


def test_messages_named_after_a_subagent_or_a_middleware_are_theirs() -> None:
    thread = recording(
        message("human", "hello"),
        answer("a", name="subagent:general-purpose"),
        answer("b", name="middleware:summarize"),
        answer("c", name="somebody"),
    )
    callers = [call.caller for call in thread.turns[0].calls]
    assert callers == ["subagent", "middleware", "lead_agent"]


@pytest.mark.parametrize(
    ("last", "state", "outcome"),
    [
        (answer("done"), {}, "success"),
        (answer(""), {}, "interrupted"),
        (answer("calling", tool_calls=[{"name": "ls", "args": {}, "id": "1"}]), {}, "interrupted"),
        (message("tool", "OK", tool_call_id="1"), {}, "interrupted"),
        (answer("done"), {"next": ["model"]}, "interrupted"),
        (answer("done"), {"next": ["model"], "tasks": [{"error": "boom"}]}, "error"),
    ],
)
def test_a_turn_ends_as_the_recording_says(last: dict[str, Any], state: dict[str, Any], outcome: str) -> None:
    thread = recording(message("human", "1"), answer("first"), message("human", "2"), last, **state)
    assert [turn.outcome for turn in thread.turns] == ["success", outcome]
    assert thread.turns[1].error == ("boom" if outcome == "error" else None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON: line 1"),
        ("{\n]", "is not JSON: line 2"),
        ("[" * 100_000, "is not JSON that can be read"),
        ("[]", "is not a recorded thread: values.messages has no human message"),
        ('{"values": {"messages": [1]}}', "is not a recorded thread: values.messages[0] is no message"),
        ('{"values": {"messages": [{"type": "ai"}]}}', "has no human message"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(RecordingError) as refusal:
        load_thread(file)
    assert str(refusal.value).startswith(f"{file} ")
    assert complaint in str(refusal.value)


def test_a_recording_that_is_nested_too_deep_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(replay, "parse_thread", fail)
    with pytest.raises(RecordingError, match=r"weather\.json is nested too deep"):
        load_thread(SAMPLE)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none\.json cannot be read: No such file"):
        load_thread(tmp_path / "none.json")


def test_odd_optional_fields_are_left_out() -> None:
    thread = parse_thread(
        {
            "values": {"messages": [message("human", "x")], "title": 7},
            "metadata": {"thread_id": "t" * 2_000, "model_name": "\ud800", "assistant_id": ["a"]},
            "tasks": None,
        },
        source="fallback.json",
    )
    assert thread.thread_id == "fallback"
    assert (thread.title, thread.model_name, thread.assistant_id) == (None, None, None)


def test_a_copy_has_an_id_of_its_own_that_stays_the_same() -> None:
    sample = load_thread(SAMPLE)
    copies = [sample.copy_for("alice"), sample.copy_for("bob"), sample.copy_for("alice")]
    assert copies[0] == copies[2]
    assert len({sample.thread_id, *(copy.thread_id for copy in copies)}) == 3


# -- replaying -------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    async with MongoStorage(mongo_config({"url": mongodb_url, "database": database_name})) as opened:
        yield opened


async def test_a_replay_writes_each_turn_as_a_run_of_its_user(storage: MongoStorage) -> None:
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


async def test_the_stored_figures_are_those_counted_by_hand(storage: MongoStorage) -> None:
    [thread] = await Replayer(storage, ["alice"]).replay([load_thread(SAMPLE)])
    usage = await storage.runs.token_usage_by_thread(thread.thread_id, user_id="alice")
    by_caller, by_model = counted_by_hand(SAMPLE)
    assert usage["by_caller"] == by_caller
    assert {model: figures["tokens"] for model, figures in usage["by_model"].items()} == by_model
    assert usage["total_tokens"] == by_caller.total()


async def test_the_thread_gets_its_title_and_the_status_of_its_last_turn(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    await Replayer(storage, ["alice"]).replay([sample])
    thread = await storage.threads.get_thread(sample.thread_id, user_id="alice")
    assert thread is not None
    assert (thread.display_name, thread.status) == (sample.title, "interrupted")
    assert thread.assistant_id == sample.assistant_id


async def test_a_failed_only_turn_leaves_error_text_and_title(storage: MongoStorage) -> None:
    thread = recording(message("human", "go"), title="Oh no", tasks=[{"error": "no credit"}])
    [replayed] = await Replayer(storage, ["alice"]).replay([thread])
    row = await storage.runs.get(replayed.run_ids[0], user_id="alice")
    assert row is not None
    assert (row["status"], row["error"], row["first_human_message"]) == ("error", "no credit", "go")
    stored = await storage.threads.get_thread_meta(replayed.thread_id)
    assert stored is not None
    assert (stored.display_name, stored.status) == ("Oh no", "error")


async def test_votes_follow_the_stated_rule_and_a_changed_vote_stays_one(storage: MongoStorage) -> None:
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


async def test_events_have_the_type_and_the_category_of_the_stated_rule(storage: MongoStorage) -> None:
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


async def test_an_event_that_cannot_be_stored_is_told_and_the_run_ends(
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


async def test_a_replay_again_adds_runs_to_the_same_threads(storage: MongoStorage) -> None:
    sample = load_thread(SAMPLE)
    [first] = await Replayer(storage, ["alice"]).replay([sample])
    [second] = await Replayer(storage, ["alice"]).replay([sample])
    assert first.thread_id == second.thread_id
    assert len(await storage.runs.list_by_thread(first.thread_id, user_id="alice")) == 6
    assert len(await storage.threads.search_threads(user_id=None)) == 1


@pytest.mark.parametrize("owner", ["carol", "", None])
async def test_a_thread_of_another_owner_stays_theirs(storage: MongoStorage, owner: str | None) -> None:
    sample = load_thread(SAMPLE)
    await storage.threads.ensure_thread(thread_id=sample.thread_id, user_id=owner)
    [thread] = await Replayer(storage, ["alice"]).replay([sample])
    assert (thread.asked_for, thread.owner) == ("alice", owner)
    rows = await storage.runs.list_by_thread(sample.thread_id, user_id=None)
    assert {row["user_id"] for row in rows} == {owner}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # PyMongo's, of a connection cancelled half-made
async def test_a_replay_that_is_stopped_leaves_no_run_going(storage: MongoStorage) -> None:
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


async def test_a_storage_that_fails_ends_the_replay_with_its_own_error() -> None:
    options = {"url": "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200", "timeout_ms": 300}
    storage = MongoStorage(mongo_config(options))
    sample = load_thread(SAMPLE)
    with pytest.raises(StorageUnavailableError):
        await Replayer(storage, USERS).replay([sample.copy_for(user) for user in USERS])
    await storage.aclose()
