"""The views: their rows against Python's, broken documents, indexes, and what is not ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.mongodb import views
from deerflow_mongo.mongodb.views import PERIOD_DAYS, VIEWS

from .plans import plan_of_read, winning_stages

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]
Opener = Callable[..., MongoStorage]

NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
TODAY, YESTERDAY = NOW, NOW - timedelta(days=1)
TOO_OLD = NOW - timedelta(days=PERIOD_DAYS + 2)


@pytest.fixture
def database(raw_client: Raw, database_name: str) -> Database[Document]:
    return raw_client[database_name]


@pytest.fixture
async def storage(new_storage: Opener, database: Database[Document]) -> AsyncIterator[MongoStorage]:
    async with new_storage() as opened:
        await opened.setup(views=True)
        await _fill(opened)
        _break(database)
        yield opened


async def _fill(storage: MongoStorage) -> None:
    """Runs of two users, three models and two days, and old ones, with votes."""
    for number in range(24):
        created = (TODAY, YESTERDAY, TOO_OLD)[number % 3]
        run_id, thread_id, user = f"run-{number}", f"t-{number % 5}", ("alice", "bob")[number % 2]
        status = ("success", "error", "running", "timeout")[number % 4]
        await storage.threads.ensure_thread(thread_id=thread_id, user_id="alice")
        await storage.runs.create(
            run_id,
            thread_id,
            user_id=user,
            status="running",
            created_at=created,
            model_name=f"m.{number % 2}",
        )
        if number % 6 == 0:
            await storage.runs.record_token_usage(
                run_id, caller="lead_agent", model_name="m.2", input_tokens=number, output_tokens=1
            )
        if status != "running":
            await storage.runs.update_run_completion(
                run_id,
                status=status,
                total_tokens=number,
                ended_at=created + timedelta(seconds=number),
                error="Boom: x" if status == "error" else None,
            )
        await storage.feedback.upsert(
            run_id=run_id, thread_id=thread_id, rating=1 if number % 4 else -1, user_id=user
        )


def _break(database: Database[Document]) -> None:
    """Documents of every collection with a field missing or of another type."""
    for name in ("runs", "feedback", "threads"):
        [document] = database[name].find().limit(1)
        for number, field in enumerate(key for key in document if key != "_id"):
            for kind, value in (("text", "x"), ("array", [1]), ("none", None)):
                broken = {**document, "_id": f"broken {kind} {number}", field: value}
                if kind == "none":
                    del broken[field]
                for unique in ("thread_id", "run_id"):
                    if unique in broken and unique != field:
                        broken[unique] = f"broken {kind} {number}"
                database.command({"insert": name, "documents": [broken], "bypassDocumentValidation": True})


def _without_broken(database: Database[Document], name: str) -> list[Document]:
    return list(database[name].find({"_id": {"$not": {"$regex": "^broken"}}}))


def _rows(database: Database[Document], view: str, **query: Any) -> list[Document]:
    return list(database[view].find(query))


def _day(document: Document) -> datetime:
    return document["created_at"].replace(hour=0, minute=0, second=0, microsecond=0)


def _recent(documents: list[Document]) -> list[Document]:
    since = (datetime.now(UTC) - timedelta(days=PERIOD_DAYS)).replace(tzinfo=None)
    return [document for document in documents if document["created_at"] > since]


async def test_views_have_the_columns_that_they_document(
    storage: MongoStorage, database: Database[Document]
) -> None:
    for view in VIEWS:
        rows = _rows(database, view.name)
        assert rows, view.name
        assert {column for row in rows for column in row} == set(view.columns), view.name


@pytest.fixture
async def unbroken(storage: MongoStorage, database: Database[Document]) -> Database[Document]:
    for name in ("runs", "feedback", "threads"):
        database[name].delete_many({"_id": {"$regex": "^broken"}})
    return database


async def test_figures_equal_those_computed_in_python(unbroken: Database[Document]) -> None:
    runs = _recent(list(unbroken["runs"].find()))
    by_status = Counter((_day(run), run["status"]) for run in runs)
    assert {(r["day"], r["status"]): r["runs"] for r in _rows(unbroken, "runs_per_day")} == by_status
    by_user: Counter[Any] = Counter()
    by_model: Counter[Any] = Counter()
    for run in runs:
        by_user[_day(run), run["user_id"]] += run["tokens"]["total"]
        models = run["tokens"]["by_model"].values() or [{**run["tokens"], "model": run["model_name"]}]
        for model in models:
            by_model[_day(run), model["model"]] += model["total"]
    rows = _rows(unbroken, "tokens_per_user_and_day")
    assert {(row["day"], row["user_id"]): row["total_tokens"] for row in rows} == dict(by_user)
    rows = _rows(unbroken, "tokens_per_model_and_day")
    assert {(row["day"], row["model"]): row["total_tokens"] for row in rows} == dict(by_model)


async def test_lists_and_votes_equal_those_computed_in_python(unbroken: Database[Document]) -> None:
    runs = list(unbroken["runs"].find())
    failing = {run["_id"] for run in _recent(runs) if run["status"] in ("error", "timeout")}
    assert {row["run_id"] for row in _rows(unbroken, "failing_runs")} == failing
    active = {run["_id"] for run in runs if run["status"] == "running"}
    assert {row["run_id"] for row in _rows(unbroken, "active_runs")} == active
    assert all(
        row["lease_has_expired"] and row["active_s"] > 0
        for row in _rows(unbroken, "active_runs", created_at={"$lt": YESTERDAY})
    )
    models = {run["_id"]: run["model_name"] for run in runs}
    votes = Counter((models[vote["run_id"]], vote["rating"]) for vote in unbroken["feedback"].find())
    for row in _rows(unbroken, "votes_per_model"):
        assert (row["up"], row["down"]) == (votes[row["model"], 1], votes[row["model"], -1])
        assert row["up_percent"] == 100 * row["up"] / (row["up"] + row["down"])
    overview = {row["thread_id"]: row for row in _rows(unbroken, "thread_overview")}
    for thread_id in {run["thread_id"] for run in runs}:
        own = sorted((run for run in runs if run["thread_id"] == thread_id), key=lambda run: run["order"])
        row = overview[thread_id]
        assert (row["runs"], row["newest_run_status"]) == (len(own), own[-1]["status"])
        assert row["newest_run_at"] == own[-1]["created_at"]
        assert row["up"] + row["down"] == len(own)


async def test_broken_documents_do_not_break_a_view(
    storage: MongoStorage, database: Database[Document]
) -> None:
    """Nor do they change what others count for."""
    with_broken = {view.name: _rows(database, view.name) for view in VIEWS}
    active = {row["run_id"] for row in with_broken["active_runs"]}
    running = {run["_id"] for run in _without_broken(database, "runs") if run["status"] == "running"}
    assert running <= active
    assert {run["_id"] for run in _without_broken(database, "threads")} <= {
        row["thread_id"] for row in with_broken["thread_overview"]
    }


_PERIOD: Document = {"created_at": {"$gte": YESTERDAY}}
_FILTERS: dict[str, Document] = {"failing_runs": _PERIOD, "thread_overview": {"user_id": "alice"}}
"""What a chart filters by; views of days have a period of their own."""


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
async def test_view_reads_its_period_by_an_index(
    storage: MongoStorage, database: Database[Document], view: views.View
) -> None:
    pipeline = [{"$match": _FILTERS.get(view.name, {})}]
    command: Document = {"aggregate": view.name, "pipeline": pipeline, "cursor": {}}
    explained = database.command({"explain": command, "verbosity": "executionStats"})
    stages = winning_stages(plan_of_read(explained))
    assert {stage["indexName"] for stage in stages if "indexName" in stage} == {view.index}


# -- what is ours ------------------------------------------------------------------------------------


async def test_views_are_created_once_under_the_prefix_and_changed_with_their_definition(
    new_storage: Opener, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_storage(collection_prefix="p_") as storage:
        names = [f"p_{view.name}" for view in VIEWS]
        assert await storage.set_up_views() == names
        assert await storage.set_up_views() == []
        assert set(names) <= set(database.list_collection_names())
        database.command({"collMod": "p_active_runs", "viewOn": "p_runs", "pipeline": _older_view()})
        assert await storage.set_up_views() == ["p_active_runs"]
        monkeypatch.setattr(views, "VIEWS_VERSION", 0)  # those of the database are a newer release's
        assert await storage.set_up_views() == []


def _older_view() -> list[Document]:
    return [{"$match": {"$comment": "deerflow-mongo, view version 1"}}, {"$match": {"status": "running"}}]


@pytest.mark.parametrize("kind", ["collection", "view", "view with a comment"])
async def test_collection_or_view_of_another_program_is_refused_and_not_changed(
    storage: MongoStorage, database: Database[Document], kind: str
) -> None:
    for view in VIEWS:
        database[view.name].drop()
    options: Document = {} if kind == "collection" else {"viewOn": "runs", "pipeline": [{"$limit": 1}]}
    if kind == "view with a comment":
        options["pipeline"] = [{"$match": {"$comment": "mine"}}]
    database.create_collection("active_runs", **options)
    before = sorted(database.list_collection_names())
    with pytest.raises(StorageConfigError, match=r"names of views are in use .*: active_runs; nothing was"):
        await storage.set_up_views()
    assert sorted(database.list_collection_names()) == before
    assert database["active_runs"].options() == options
