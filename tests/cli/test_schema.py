"""`deerflow-mongo setup` and `schema`: what they print and change, and their exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION
from deerflow_mongo.mongodb.views import VIEWS
from tests.mongodb import version_1

from .command import output_of, run

Client = MongoClient[dict[str, Any]]


@pytest.fixture
def place(mongodb_url: str, database_name: str) -> tuple[str, ...]:
    return "--url", mongodb_url, "--database", database_name


def test_status_names_what_an_upgrade_would_do_and_changes_nothing(
    place: tuple[str, ...], raw_client: Client, database_name: str
) -> None:
    version_1.load(raw_client[database_name], copies=10)
    output = output_of("schema", "status", *place)
    assert f"schema version 1; this release has version {SCHEMA_VERSION}" in output
    assert "build indexes: runs - " in output
    runs = raw_client[database_name]["runs"].count_documents({})
    assert f"convert documents: runs - {runs} documents (counted); less than a second" in output
    dry_run = output_of("schema", "upgrade", "--dry-run", *place)
    assert dry_run.endswith("nothing was changed")
    assert (raw_client[database_name]["schema_versions"].find_one() or {})["version"] == 1


def test_upgrade_prints_its_steps_and_leaves_nothing_to_do(
    place: tuple[str, ...], raw_client: Client, database_name: str
) -> None:
    version_1.load(raw_client[database_name])
    output = output_of("schema", "upgrade", *place)
    steps = [
        "set validator: runs",
        "build indexes: runs",
        "convert documents: runs",
        "drop unused indexes: runs",
    ]
    assert all(step in output for step in steps)
    assert f"database {database_name}: schema version {SCHEMA_VERSION}, " in output
    assert "nothing to upgrade" in output_of("schema", "status", *place)
    assert "nothing to upgrade" in output_of("schema", "upgrade", *place)


def test_json_has_collections_indexes_and_steps(
    place: tuple[str, ...], raw_client: Client, database_name: str
) -> None:
    output_of("schema", "upgrade", *place)
    runs = raw_client[database_name]["runs"]
    runs.drop_index("by_user")
    runs.drop_index("by_time")
    runs.create_index("own")
    runs.create_index("created_at", name="by_time")
    found = json.loads(run("schema", "status", "--json", *place).stdout)
    assert found["version"] == found["version_of_this_release"] == SCHEMA_VERSION
    assert found["indexes"]["missing"] == ["runs.by_user"]
    assert found["indexes"]["different"] == {"runs.by_time": "by_time"}
    assert found["indexes"]["foreign"] == ["runs.own_1"]
    assert "'by_time' of collection 'runs' cannot be created" in found["upgrade"]["refusal"]
    runs.drop_index("by_time")
    found = json.loads(run("schema", "upgrade", "--dry-run", "--json", *place).stdout)
    [step] = found["upgrade"]["steps"]
    assert (step["action"], step["collection"], step["indexes"]) == ("index", "runs", ["by_user", "by_time"])


def test_database_that_an_upgrade_would_refuse_is_an_error(
    place: tuple[str, ...], raw_client: Client, database_name: str
) -> None:
    raw_client[database_name].create_collection("runs", capped=True, size=4096)
    for command in ("status", "upgrade"):
        output = output_of("schema", command, *place, exit_code=1 if command == "status" else 2)
        assert "is a capped collection" in output


def test_database_must_be_named(tmp_path: Any) -> None:
    for command in ("status", "upgrade"):
        assert "name the database with --url" in output_of("schema", command, exit_code=2)
        folder = str(tmp_path / "none")
        assert "has no data" in output_of("schema", command, "--data-dir", folder, exit_code=2)


def test_setup_creates_collections_and_with_views_the_views_once(
    place: tuple[str, ...], raw_client: Client, database_name: str
) -> None:
    assert "collections and indexes are set up" in output_of("setup", *place)
    assert "runs_per_day" not in raw_client[database_name].list_collection_names()
    names = [view.name for view in VIEWS]
    assert json.loads(run("setup", "--views", "--json", *place).stdout)["views"] == names
    assert "0 views created or changed" in output_of("setup", "--views", *place)
    raw_client[database_name]["runs_per_day"].drop()
    raw_client[database_name].create_collection("runs_per_day")
    assert "names of views are in use" in output_of("setup", "--views", *place, exit_code=2)


def test_setup_cannot_shard_without_a_mongos(
    place: tuple[str, ...], raw_client: Client, database_name: str
) -> None:
    assert "sharding needs a sharded cluster" in output_of("setup", "--shard", *place, exit_code=2)
    assert database_name not in raw_client.list_database_names()
