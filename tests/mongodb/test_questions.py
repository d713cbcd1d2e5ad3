"""The questions of the README: their answers, and that an index serves each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.config import mongo_config

from . import questions
from .plans import plan_of_read, winning_stages
from .questions import QUESTIONS, Question

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]

MIDNIGHT_IN_BERLIN = datetime(2026, 4, 21, 22, tzinfo=UTC)
OTHER_RUNS = 300


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    async with MongoStorage(mongo_config({"url": mongodb_url, "database": database_name})) as opened:
        await _fill(opened)
        yield opened


async def _fill(storage: MongoStorage) -> None:
    """Runs of the week on both sides of a midnight, and others of another time and user."""
    runs = storage.runs
    for number in range(OTHER_RUNS):
        await runs.create(
            f"other-{number}", f"t-{number % 50}", user_id="bob", status="success", created_at="2026-03-01"
        )
    for number in range(6):
        run_id, user = f"run-{number}", ("alice", "carol")[number % 2]
        created = MIDNIGHT_IN_BERLIN + timedelta(minutes=number - 2)
        await runs.create(run_id, "t", user_id=user, created_at=created, model_name="m-own")
        await runs.update_status(run_id, "running", started_at=created)
        if number < 3:
            await runs.record_token_usage(
                run_id, caller="lead_agent", model_name="gpt-4.1", input_tokens=number + 1
            )
        if number == 5:
            continue
        failed = number in (1, 2, 4)
        await runs.update_run_completion(
            run_id,
            status="error" if failed else "success",
            total_tokens=10,
            error=("RateLimitError: busy" if number < 4 else "out of luck") if failed else None,
            ended_at=created + timedelta(seconds=number),
        )


def _question(text: str) -> Question:
    return next(question for question in QUESTIONS if question.text == text)


ANSWERS: dict[str, list[Any]] = {
    "Runs per day in a time zone": [
        {"_id": datetime(2026, 4, 20, 22), "runs": 2},  # noqa: DTZ001 - as the driver returns dates
        {"_id": datetime(2026, 4, 21, 22), "runs": 4},  # noqa: DTZ001
    ],
    "Tokens per model and user in a week": [
        {"_id": {"user_id": "alice", "model": "m-own"}, "tokens": 10},
        {"_id": {"user_id": "carol", "model": "m-own"}, "tokens": 10},
        {"_id": {"user_id": "alice", "model": "gpt-4.1"}, "tokens": 4},
        {"_id": {"user_id": "carol", "model": "gpt-4.1"}, "tokens": 2},
    ],
    "The slowest runs of a week": [("run-4", 4_000), ("run-3", 3_000), ("run-2", 2_000)],
    "Failing runs of a week by type": [{"_id": "RateLimitError", "runs": 2}, {"_id": None, "runs": 1}],
    "A user's newest runs over all threads": ["run-4", "run-2", "run-0"],
    "Runs left running": ["run-5"],
}


async def test_answers(storage: MongoStorage, raw_client: Raw, database_name: str) -> None:
    runs = raw_client[database_name]["runs"]
    found: dict[str, list[Any]] = {}
    for question in QUESTIONS:
        found[question.text] = list(runs.aggregate(question.pipeline))
    slowest = found["The slowest runs of a week"]
    found["The slowest runs of a week"] = [(run["_id"], run["duration_ms"]) for run in slowest][:3]
    for text in ("A user's newest runs over all threads", "Runs left running"):
        found[text] = [run["_id"] for run in found[text]]
    tokens = found["Tokens per model and user in a week"]
    tokens.sort(key=lambda group: (-group["tokens"], group["_id"]["user_id"]))
    assert found == ANSWERS


@pytest.mark.parametrize("text", [question.text for question in QUESTIONS])
async def test_question_is_served_by_its_index(
    storage: MongoStorage, raw_client: Raw, database_name: str, text: str
) -> None:
    """It examines no run of another time or user."""
    question = _question(text)
    command: Document = {"aggregate": "runs", "pipeline": question.pipeline, "cursor": {}}
    plan = raw_client[database_name].command({"explain": command, "verbosity": "executionStats"})
    plan = plan_of_read(plan)
    used = {stage["indexName"] for stage in winning_stages(plan) if "indexName" in stage}
    assert used == {question.index}
    assert plan["executionStats"]["totalDocsExamined"] <= 6


def test_readme_prints_the_questions() -> None:
    """`python -m tests.mongodb.questions` writes them."""
    assert questions.README.read_text(encoding="utf-8") == questions.readme_with_questions()
