"""Run documents: counts as plain integers, the paths of counts, and model names in paths."""

from __future__ import annotations

from typing import Any, cast

import bson
import pytest

from deerflow_mongo.contract.rows import CALLERS, COMPLETION_COUNTS
from deerflow_mongo.mongodb.documents.runs import COUNT_PATHS, model_key, new_run, run_row
from deerflow_mongo.mongodb.drivers.driver import CODEC_OPTIONS


def _run() -> dict[str, Any]:
    return new_run(
        run_id="r",
        thread_id="t",
        user_id=None,
        assistant_id=None,
        status="s",
        model_name=None,
        multitask_strategy="m",
        follow_up_to_run_id=None,
        metadata={},
        kwargs={},
        created_stamp_us=None,
        started_stamp_us=None,
        ended_stamp_us=None,
        error=None,
        stamp_us=2**50,
    )


def test_counts_in_a_row_are_plain_integers_of_any_size() -> None:
    document = _run()
    document["message_count"] = 2**40
    document["tokens"] |= {"input": 2**40, "output": 2**40, "total": 2**41, "llm_calls": 2**40}
    document["tokens"]["by_caller"] = dict.fromkeys(CALLERS, 2**40)
    stored: dict[str, Any] = bson.decode(bson.encode(document), CODEC_OPTIONS)  # pyright: ignore[reportUnknownMemberType]
    row = cast("dict[str, Any]", run_row(stored))
    assert {type(row[name]) for name in COMPLETION_COUNTS} == {int}


def test_every_count_of_a_completion_has_a_path() -> None:
    assert list(COUNT_PATHS) == list(COMPLETION_COUNTS)


@pytest.mark.parametrize("name", ["gpt-4.1", "a$b", "", "%", "%2E", "n\0l", "0", "a..b", "模型", "%25"])
def test_model_keys_are_one_path_step_and_unique(name: str) -> None:
    key = model_key(name)
    assert key
    assert not set(key) & set(".$\0")
    others = ["gpt-4.1", "gpt-4%2E1", "a$b", "", "%", "%2E", "n\0l", "0", "a..b", "%25"]
    assert [other for other in others if model_key(other) == key] in ([name], [])
