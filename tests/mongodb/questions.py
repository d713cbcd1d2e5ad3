"""Questions that operators ask of the collection `runs`, as pipelines: tested here, printed in the README.

`python -m tests.mongodb.questions` writes them into `deerflow_mongo/mongodb/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from tests.mongodb.documents.pinned import README, readme_with, shell_text

Document = dict[str, Any]

BEGIN, END = "<!-- questions: begin -->", "<!-- questions: end -->"
SINCE, UNTIL = datetime(2026, 4, 20, tzinfo=UTC), datetime(2026, 4, 27, tzinfo=UTC)
WEEK: Final[Document] = {"created_at": {"$gte": SINCE, "$lt": UNTIL}}

# A run without counts by model counts under its own model.
_MODELS: Final[Document] = {
    "$cond": [
        {"$eq": ["$tokens.by_model", {}]},
        [{"v": {"model": {"$ifNull": ["$model_name", "unknown"]}, "total": "$tokens.total"}}],
        {"$objectToArray": "$tokens.by_model"},
    ]
}


@dataclass(frozen=True)
class Question:
    """A question and the index that its pipeline uses."""

    text: str
    pipeline: list[Document]
    index: str


QUESTIONS: Final = (
    Question(
        "Runs per day in a time zone",
        [
            {"$match": WEEK},
            {
                "$group": {
                    "_id": {
                        "$dateTrunc": {"date": "$created_at", "unit": "day", "timezone": "Europe/Berlin"}
                    },
                    "runs": {"$sum": 1},
                }
            },
            {"$sort": {"_id": 1}},
        ],
        "by_time",
    ),
    Question(
        "Tokens per model and user in a week",
        [
            {"$match": WEEK},
            {"$project": {"user_id": 1, "models": _MODELS}},
            {"$unwind": "$models"},
            {
                "$group": {
                    "_id": {"user_id": "$user_id", "model": "$models.v.model"},
                    "tokens": {"$sum": "$models.v.total"},
                }
            },
            {"$sort": {"tokens": -1}},
        ],
        "by_time",
    ),
    Question(
        "The slowest runs of a week",
        [
            {"$match": WEEK},
            {"$sort": {"duration_ms": -1}},
            {"$limit": 10},
            {"$project": {"thread_id": 1, "user_id": 1, "duration_ms": 1}},
        ],
        "by_time",
    ),
    Question(
        "Failing runs of a week by type",
        [
            {"$match": {**WEEK, "status": "error"}},
            {"$group": {"_id": "$error_type", "runs": {"$sum": 1}}},
            {"$sort": {"runs": -1}},
        ],
        "by_time",
    ),
    Question(
        "A user's newest runs over all threads",
        [{"$match": {"user_id": "alice"}}, {"$sort": {"created_at": -1}}, {"$limit": 20}],
        "by_user",
    ),
    Question(
        "Runs left running",
        [
            {
                "$match": {
                    "status": {"$in": ["pending", "starting", "running"]},
                    "created_at": {"$lt": UNTIL},
                }
            },
            {"$sort": {"order": 1}},
        ],
        "active",
    ),
)


def printed() -> str:
    """All questions as mongosh takes them."""
    blocks: list[str] = []
    for question in QUESTIONS:
        stages = ",\n  ".join(shell_text(stage, 2) for stage in question.pipeline)
        blocks.append(f"// {question.text}: index `{question.index}`\ndb.runs.aggregate([\n  {stages}\n])")
    return "```javascript\n" + "\n\n".join(blocks) + "\n```"


def readme_with_questions() -> str:
    return readme_with(printed(), BEGIN, END)


if __name__ == "__main__":
    README.write_text(readme_with_questions(), encoding="utf-8")
