"""Recorded threads: what is read from a file, and how tokens are counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import StorageError
from deerflow_mongo.demo import recording as recording_module
from deerflow_mongo.demo.recording import SAMPLE, ModelCall, RecordingError, load_thread, parse_thread
from deerflow_mongo.demo.replay import completion_of

from .recordings import answer, counted_by_hand, message, recording


def test_sample_has_three_turns_two_models_and_every_caller() -> None:
    thread = load_thread(SAMPLE)
    assert [turn.outcome for turn in thread.turns] == ["success", "success", "interrupted"]
    calls = [call for turn in thread.turns for call in turn.calls]
    assert {call.caller for call in calls} == {"lead_agent", "subagent", "middleware"}
    assert {call.model_name for call in calls} == {"deepseek-v3.2", "kimi-k2.5"}


def test_sample_tokens_follow_the_documented_rule() -> None:
    by_caller, by_model = Counter[str](), Counter[str | None]()
    for turn in load_thread(SAMPLE).turns:
        for call in turn.calls:
            by_caller[call.caller] += call.total_tokens
            by_model[call.model_name] += call.total_tokens
    assert (by_caller, by_model) == counted_by_hand(SAMPLE)


def test_completion_counts_are_the_sums_of_the_model_calls() -> None:
    for turn in load_thread(SAMPLE).turns:
        fields = completion_of(turn)
        by_caller = [fields.get(f"{caller}_tokens") for caller in ("lead_agent", "subagent", "middleware")]
        assert sum(map(int, map(str, by_caller))) == fields.get("total_tokens")
        assert fields.get("llm_call_count") == len(turn.calls)


def test_visible_human_message_starts_a_turn_and_hidden_one_does_not() -> None:
    hidden = message("human", "remember your todos", additional_kwargs={"hide_from_ui": True})
    thread = recording(
        message("human", "one"), answer("1"), hidden, answer("1b"), message("human", "two"), answer("2")
    )
    assert [(turn.question, turn.answer, turn.message_count) for turn in thread.turns] == [
        ("one", "1b", 4),
        ("two", "2", 2),
    ]


def test_ai_message_without_a_model_is_not_a_model_call() -> None:
    thread = recording(message("human", "hello"), message("ai", "copied by a middleware"), answer("hi"))
    assert thread.turns[0].calls == (ModelCall("lead_agent", "m-1", 2 + 6, 1),)


def test_token_counts_of_the_provider_take_precedence() -> None:
    usage = {"input_tokens": 7_000, "output_tokens": 30}
    thread = recording(message("human", "hello"), answer("hi", usage_metadata=usage))
    assert thread.turns[0].calls == (ModelCall("lead_agent", "m-1", 7_000, 30),)


def test_messages_named_after_subagent_or_middleware_count_as_theirs() -> None:
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
def test_outcome_of_a_turn_is_that_of_the_recording(
    last: dict[str, Any], state: dict[str, Any], outcome: str
) -> None:
    thread = recording(message("human", "1"), answer("first"), message("human", "2"), last, **state)
    assert [turn.outcome for turn in thread.turns] == ["success", outcome]
    assert thread.turns[1].error == ("boom" if outcome == "error" else None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON: line 1"),
        ("{\n]", "is not JSON: line 2"),
        ("[" * 100_000, "cannot be parsed as JSON"),
        ("[]", "is not a recorded thread: values.messages has no human message"),
        ('{"values": {"messages": [1]}}', "is not a recorded thread: values.messages[0] is not a message"),
        ('{"values": {"messages": [{"type": "ai"}]}}', "has no human message"),
    ],
)
def test_file_that_is_not_a_recording_is_named_in_the_error(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(RecordingError) as raised:
        load_thread(file)
    assert str(raised.value).startswith(f"{file} ")
    assert reason in str(raised.value)


def test_recording_that_is_nested_too_deeply_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(recording_module, "parse_thread", fail)
    with pytest.raises(RecordingError, match=r"weather\.json is nested too deeply"):
        load_thread(SAMPLE)


def test_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none\.json cannot be read: No such file"):
        load_thread(tmp_path / "none.json")


def test_invalid_optional_fields_are_ignored() -> None:
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


def test_copies_have_ids_derived_from_the_user() -> None:
    sample = load_thread(SAMPLE)
    copies = [sample.copy_for("alice"), sample.copy_for("bob"), sample.copy_for("alice")]
    assert copies[0] == copies[2]
    assert len({sample.thread_id, *(copy.thread_id for copy in copies)}) == 3


def test_recording_error_is_a_storage_error_and_a_value_error() -> None:
    assert issubclass(RecordingError, StorageError)
    assert issubclass(RecordingError, ValueError)
