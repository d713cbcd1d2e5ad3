"""`deerflow-mongo check`: what it reports of a configuration, a server and a database; it changes nothing."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pytest
from pymongo.errors import PyMongoError

from deerflow_mongo.cli.check import (
    Finding,
    login_finding,
    topology_finding,
    version_finding,
    version_of_schema,
)
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.embedded import find_mongod
from deerflow_mongo.mongodb.inspection import SchemaReport

from .command import output_of, summary_of

Client = pymongo.MongoClient[dict[str, Any]]


def test_check_changes_nothing_and_setup_creates_what_is_missing(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output = output_of(*place)
    assert "missing: runs, feedback, threads, run_events, users, schema_versions" in output
    assert "A host would work, with 2 notes." in output
    assert database_name not in raw_client.list_database_names()
    assert "version 2, 6 collections, 24 indexes A host would work." in output_of(*place, "--setup")


def test_check_reads_the_configuration_file_of_a_host(
    mongodb_url: str, database_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEERFLOW_TEST_URL", mongodb_url)
    file = tmp_path / "config.yaml"
    file.write_text(
        f"runs:\n  backend: mongodb\n  url: $DEERFLOW_TEST_URL\n  database: {database_name}\n"
        "  collection_prefix: x_\n"
    )
    output = output_of("check", "--config", str(file), "--section", "runs")
    assert "collection_prefix x_" in output
    assert "missing: x_runs" in output
    assert "no section `storage:`" in output_of("check", "--config", str(file), exit_code=2)


def test_check_reports_the_retention_of_run_events(
    mongodb_url: str, database_name: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    options = f"storage:\n  backend: mongodb\n  url: {mongodb_url}\n  database: {database_name}\n"
    place = ("check", "--config", str(file))
    file.write_text(options + "  run_events_ttl_days: 30\n")
    assert "run events are never deleted; when a host starts: deleted after 30 days" in output_of(*place)
    assert "run events are deleted after 30 days A host would work." in output_of(*place, "--setup")
    file.write_text(options)
    assert "run events are deleted after 30 days; when a host starts: never deleted" in output_of(*place)


def test_check_names_conflicting_indexes(mongodb_url: str, database_name: str, raw_client: Client) -> None:
    database = raw_client[database_name]
    database["runs"].create_index([("thread_id", 1)], name="by_thread")
    database["threads"].create_index([("order", -1)], name="by_time")
    database["runs"].create_index([("status", 1)], name="own")
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output = output_of(*place, exit_code=1)
    assert "runs.by_thread has the name of our index, but other keys" in output
    assert "not ours, and left as they are: runs.own" in output
    assert 'drop it with db.getCollection("threads").dropIndex("by_time")' in output
    assert "A host would fail: 2 problems." in output
    # Each of the two alone stops a host.
    database["runs"].drop_index("by_thread")
    assert "cannot be created" in output_of("demo", *place[1:], exit_code=2)


def test_check_reports_a_newer_schema_as_a_problem(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output_of(*place, "--setup")
    raw_client[database_name]["schema_versions"].update_one({}, {"$set": {"version": 99}})
    assert "version 99, of a newer release; this one can use it" in output_of(*place)
    raw_client[database_name]["schema_versions"].update_one({}, {"$set": {"readable_from": 99}})
    assert "upgrade deerflow-mongo" in output_of(*place, exit_code=1)


def test_check_notes_options_that_weaken_writes(mongodb_url: str) -> None:
    output = output_of("check", "--url", f"{mongodb_url}&w=1&retryWrites=false")
    assert "lost in a failover" in output
    assert "may count tokens twice" in output


def test_check_hides_secrets_of_a_url() -> None:
    secret = "tls=true&tlsCertificateKeyFilePassword=hunter2&timeoutMS=300"  # noqa: S105
    output = output_of("check", "--url", f"mongodb://me:hunter2@127.0.0.1:9/?{secret}", exit_code=1)
    assert "hunter2" not in output
    assert "***@127.0.0.1:9" in output


def test_check_of_mongomock_reports_that_there_is_no_server() -> None:
    assert "mongomock has no server" in output_of("check", "--driver", "mongomock")


def test_check_creates_no_data_folder(tmp_path: Path) -> None:
    assert "created when a host starts" in output_of("check", "--data-dir", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_check_reports_a_data_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "PROBLEM" in output_of("check", "--data-dir", str(tmp_path / "file"), exit_code=1)


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (version_finding({"version": "4.4.29"}), "PROBLEM"),
        (version_finding({"version": "5.0.0"}), "ok"),
        (version_finding({"version": "8.2.1-rc0"}), "ok"),
        (topology_finding({"isWritablePrimary": True, "msg": "isdbgrid"}), "ok"),
        (topology_finding({"isWritablePrimary": True}), "note"),
        (topology_finding({"isWritablePrimary": False}), "PROBLEM"),
        (topology_finding({"isWritablePrimary": True, "setName": "s", "hosts": ["a:1"]}), "ok"),
        (topology_finding({"isWritablePrimary": False, "setName": "s", "hosts": ["a:1"]}), "PROBLEM"),
        (topology_finding({"isWritablePrimary": False, "isreplicaset": True}), "PROBLEM"),
        (version_of_schema(SchemaReport(version=None), "d"), "note"),
        (version_of_schema(SchemaReport(version=1, readable_from=1), "d"), "note"),
        (version_of_schema(SchemaReport(version=2, readable_from=2), "d"), "ok"),
        (version_of_schema(SchemaReport(version=2, readable_from=2, migrating_from=1), "d"), "note"),
        (version_of_schema(SchemaReport(version=3, readable_from=2), "d"), "ok"),
        (version_of_schema(SchemaReport(version=3, readable_from=3), "d"), "PROBLEM"),
    ],
)
def test_each_reply_of_a_server_has_its_level(finding: Finding, level: str) -> None:
    assert finding.level == level


@pytest.mark.parametrize(
    ("resource", "actions", "level"),
    [
        ({"db": "d", "collection": ""}, "find insert update remove createIndex createCollection", "ok"),
        ({"db": "", "collection": ""}, "find insert update remove createIndex createCollection", "ok"),
        ({"anyResource": True}, "find insert update remove createIndex createCollection", "ok"),
        ({"db": "d", "collection": ""}, "find insert update remove createIndex", "PROBLEM"),
        ({"db": "other", "collection": ""}, "find insert update remove createIndex", "PROBLEM"),
        ({"db": "d", "collection": "runs"}, "find insert update remove createIndex", "PROBLEM"),
        ({"cluster": True}, "find insert update remove createIndex createCollection", "PROBLEM"),
    ],
)
def test_missing_privileges_are_a_problem(resource: dict[str, Any], actions: str, level: str) -> None:
    login = {
        "authenticatedUsers": [{"user": "u", "db": "admin"}],
        "authenticatedUserPrivileges": [{"resource": resource, "actions": actions.split()}],
    }
    config = mongo_config({"url": "mongodb://host/d"})
    assert login_finding(login, config, SchemaReport(missing_collections=["runs"])).level == level


# -- a server with access control ------------------------------------------------------------------

USERS = {"root": "root", "writer": "readWrite", "reader": "read"}
PASSWORD = "hunter2"  # noqa: S105


@pytest.fixture(scope="module")
def locked_address() -> Iterator[str]:
    """The address of a standalone server that asks for a login, and has the users above."""
    folder = Path(tempfile.mkdtemp(prefix="locked-"))
    socket = folder / "s.sock"
    options = [
        "--dbpath",
        str(folder),
        "--bind_ip",
        str(socket),
        "--port",
        "27017",
        "--nounixsocket",
        "--auth",
    ]
    log = (folder / "log").open("wb")
    server = subprocess.Popen([str(find_mongod()), *options], stdout=log, stderr=log)  # noqa: S603
    address = quote(str(socket), safe="")
    try:
        with Client(f"mongodb://{address}", serverSelectionTimeoutMS=30_000) as client:
            _make_users(client)
        with Client(f"mongodb://root:{PASSWORD}@{address}") as client:
            for name in ("writer", "reader"):
                client["d"].command("createUser", name, pwd=PASSWORD, roles=[USERS[name]])
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()
        shutil.rmtree(folder)


def _make_users(client: Client) -> None:
    for _ in range(100):
        with contextlib.suppress(PyMongoError):
            client["admin"].command("createUser", "root", pwd=PASSWORD, roles=["root"])
            return
        time.sleep(0.1)
    pytest.fail("the server with access control did not start")


def test_check_of_a_server_with_access_control(locked_address: str) -> None:
    def check(login: str, exit_code: int) -> str:
        output = output_of("check", "--url", f"mongodb://{login}{locked_address}/d", exit_code=exit_code)
        assert PASSWORD not in output
        return output

    writer = check(f"writer:{PASSWORD}@", 0)
    assert "as writer@d, with all privileges that a host needs" in writer
    assert "standalone: no failover and no retryable writes" in writer
    assert "without the privileges insert, update, remove, createIndex, createCollection" in check(
        f"reader:{PASSWORD}@", 1
    )
    assert "Check the user, the password and authSource" in check("writer:wrong@", 1)
    assert "Log in" in check("", 1)


@pytest.mark.usefixtures("short_check")
def test_demo_works_for_a_user_with_read_write_on_a_standalone(locked_address: str) -> None:
    url = f"mongodb://writer:{PASSWORD}@{locked_address}/?authSource=d"
    assert summary_of("--url", url, "--database", "d")["runs_now"] == 9
    assert "authentication or authorization failed" in output_of("demo", "--url", url, exit_code=1)
