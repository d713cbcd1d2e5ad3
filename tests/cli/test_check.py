"""`deerflow-mongo check`: what it reports of a configuration, a server and a database; it changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
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

from deerflow_mongo import MongoStorage
from deerflow_mongo.cli.findings import (
    Finding,
    login_finding,
    topology_finding,
    version_finding,
    version_of_schema,
)
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.embedded import find_mongod
from deerflow_mongo.mongodb.inspection import SchemaReport
from deerflow_mongo.mongodb.schema import COLLECTIONS

from .command import output_of, run, summary_of

Client = pymongo.MongoClient[dict[str, Any]]


def test_check_changes_nothing_and_setup_creates_what_is_missing(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output = output_of(*place)
    assert "missing: runs, feedback, threads, run_events, users, checkpoint_data, schema_versions" in output
    assert "A host would work, with 2 notes." in output
    assert database_name not in raw_client.list_database_names()
    count = sum(len(schema.indexes) for schema in COLLECTIONS)
    output = output_of(*place, "--setup")
    everything = "run events, ended runs, feedback, threads that are not pinned"
    indexes = f"version 2, 7 collections, {count} indexes"
    assert f"{indexes} ok retention never deleted by age: {everything}" in output
    assert output.endswith("A host would work.")


def test_json_has_the_findings_of_the_text_and_the_same_exit_codes(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name, "--setup")
    result = run(*place, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["works"] is True
    assert {finding["level"] for finding in found["findings"]} <= {"ok", "note"}
    text = output_of(*place).replace(" ", "")  # its lines may be broken anywhere
    for finding in found["findings"]:
        if finding["subject"] != "server":  # which has times
            assert finding["subject"] + finding["text"].replace(" ", "") in text

    raw_client[database_name]["runs"].drop_index("by_thread")
    raw_client[database_name]["runs"].create_index([("thread_id", 1)], name="by_thread")
    result = run("check", "--url", mongodb_url, "--database", database_name, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["works"] is False
    [problem] = [finding for finding in found["findings"] if finding["level"] == "problem"]
    assert problem["subject"] == "indexes"


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


def test_check_reports_retention(mongodb_url: str, database_name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    options = f"storage:\n  backend: mongodb\n  url: {mongodb_url}\n  database: {database_name}\n"
    place = ("check", "--config", str(file))
    file.write_text(options + "  run_events_ttl_days: 30\n")
    assert "run events are never deleted; when a host starts: deleted after 30 days" in output_of(*place)
    others = "never deleted by age: ended runs, feedback, threads that are not pinned"
    output = output_of(*place, "--setup")
    assert f"run events are deleted after 30 days ok retention {others} A host would work." in output
    file.write_text(options)
    unchanged = "run events are deleted after 30 days; run_events_ttl_days is not set and changes nothing"
    assert unchanged in output_of(*place, "--setup")
    file.write_text(options + "  run_events_ttl_days: null\n")
    assert "run events are deleted after 30 days; when a host starts: never deleted" in output_of(*place)
    file.write_text(options + "  runs_ttl_days: 7\n  threads_ttl_days: 400\n")
    output = output_of(*place)
    assert "ended runs are never deleted; when a host starts: deleted after 7 days" in output
    assert (
        "threads that are not pinned are never deleted; when a host starts: deleted after 400 days" in output
    )
    assert "never deleted by age: feedback A host" in output


def test_check_names_conflicting_indexes(mongodb_url: str, database_name: str, raw_client: Client) -> None:
    database = raw_client[database_name]
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output_of(*place, "--setup")
    for name in ("by_thread", "by_time"):
        database["runs"].drop_index(name)
    database["threads"].drop_index("by_time")
    database["runs"].create_index([("thread_id", 1)], name="by_thread")
    database["runs"].create_index([("created_at", -1)], name="theirs", expireAfterSeconds=10**8)
    database["threads"].create_index([("order", -1)], name="by_time")
    database["runs"].create_index([("status", 1)], name="own")
    database["feedback"].create_index([("own", 1)], name="own", unique=True, sparse=True)
    output = output_of(*place, exit_code=1)
    assert "runs.by_thread has the name of our index, but other keys" in output
    assert "not ours, and left as they are: runs.theirs, runs.own, feedback.own" in output
    assert "the server may refuse or remove rows: runs.theirs (TTL), feedback.own (unique)" in output
    assert 'drop it with db.getCollection("threads").dropIndex("by_time")' in output
    assert "runs.theirs has the keys of our index, but other keys or options" in output
    assert 'drop it with db.getCollection("runs").dropIndex("theirs")' in output
    assert "A host would fail: 3 problems." in output
    # Each of them alone stops a host.
    database["runs"].drop_index("by_thread")
    database["threads"].drop_index("by_time")
    assert "cannot be created" in output_of("demo", *place[1:], exit_code=2)


def test_check_finds_duplicates_that_would_stop_a_host(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output_of(*place, "--setup")
    database = raw_client[database_name]
    database["users"].drop_index("one_account_per_email")
    assert "missing: users.one_account_per_email" in output_of(*place)
    documents = [{"_id": number, "email": "same"} for number in range(2)]
    database.command({"insert": "users", "documents": documents, "bypassDocumentValidation": True})
    output = output_of(*place, "--setup", exit_code=1)
    assert "users.one_account_per_email is missing, and the collection contains duplicates" in output


@pytest.mark.parametrize("name", ["runs", "schema_versions", "checkpoint_data"])
def test_check_names_collections_of_another_program(
    mongodb_url: str, database_name: str, raw_client: Client, name: str
) -> None:
    raw_client[database_name][name].insert_one({"title": "of another application", "schema_version": 2})
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output = output_of(*place, "--setup", exit_code=1)
    assert f"PROBLEM collections collection '{name}' is in use" in output
    assert "Set `collection_prefix`, or use another database" in output
    assert raw_client[database_name].list_collection_names() == [name]


def test_check_names_collections_of_langgraphs_library_in_one_line(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    for name in ("checkpoints", "checkpoint_writes"):
        document = {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "c"}
        raw_client[database_name][name].insert_one(document)
    output = output_of("check", "--url", mongodb_url, "--database", database_name)
    assert "note checkpoints checkpoints, checkpoint_writes: of langgraph-checkpoint-mongodb" in output
    assert "`deerflow-mongo checkpoints copy` reads them" in output


def test_check_reads_the_hosts_file_of_this_folder_and_says_so(
    mongodb_url: str, database_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEER_FLOW_STORAGE_URL", "mongodb://elsewhere")
    monkeypatch.setenv("DEER_FLOW_STORAGE_SERVICE_HOST", "10.0.0.1")
    url = ("--url", mongodb_url, "--database", database_name)
    assert "the default, because this folder has no config.yaml" in output_of("check")
    assert "config.yaml" not in output_of("check", "--driver", "mongomock")
    Path("config.yaml").write_text(f"storage:\n  backend: mongodb\n  url: {mongodb_url}\n  database: x\n")
    output = output_of("check")
    assert "read from config.yaml, section storage" in output
    assert "database x" in output
    assert "note environment DEER_FLOW_STORAGE_URL: DeerFlow's gateway uses these" in output
    assert "SERVICE_HOST" not in output
    assert "of the options given; config.yaml was not read" in output_of("check", *url)
    assert "of the options given" in output_of("check", "--url", "embedded", "--driver", "mongomock")
    Path("config.yaml").write_text("sandbox:\n  use: x\n")
    assert "config.yaml has no section `storage:`" in output_of("check", exit_code=2)


def test_check_of_another_backend_says_that_it_was_not_examined(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("storage:\n  backend: memory\n")
    output = output_of("check", "--config", str(tmp_path / "c.yaml"))
    assert "MemoryStorage answered" in output
    assert "No problem was found, but the backend was not examined." in output
    assert "A host would work" not in output


def test_check_reports_a_newer_schema_as_a_problem(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output_of(*place, "--setup")
    raw_client[database_name]["schema_versions"].update_one({}, {"$set": {"version": 99}})
    raw_client[database_name]["runs"].drop_index("by_time")
    raw_client[database_name]["runs"].create_index([("created_at", 1)], name="by_time")
    output = output_of(*place)
    assert "version 99, of a newer release; this one can use it" in output
    assert "by_time" not in output
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


WRONG_OPTIONS = {
    "replicaSet=wrong": ("replica set name", "Correct `replicaSet` in `url`"),
    "tls=true": ("SSL handshake failed", "Correct `tls` in `url`"),
    "w=3": ("the server refused a write", "Lower `w` in `url`"),
    "w=none-such": ("the server refused a write", "Correct `w` in `url`"),
}


@pytest.fixture(scope="module")
def replica_set() -> Iterator[str]:
    """A replica set of one on a TCP port, without `directConnection` in its URL."""
    folder = tempfile.mkdtemp(prefix="set-")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    host = f"127.0.0.1:{port}"
    options = ["--dbpath", folder, "--port", str(port), "--replSet", "right", "--nounixsocket"]
    server = subprocess.Popen([str(find_mongod()), *options], stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        with Client(f"mongodb://{host}/?directConnection=true") as client:
            members = [{"_id": 0, "host": host}]
            client["admin"].command("replSetInitiate", {"_id": "right", "members": members})
        with Client(f"mongodb://{host}/?replicaSet=right") as client:
            client["admin"].command("ping")
        yield host
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_advice_fits_the_cause(replica_set: str, option: str) -> None:
    url = f"mongodb://{replica_set}/d?{option}"
    output = output_of("check", "--url", url, "--timeout-ms", "1500", exit_code=1)
    assert all(text in output for text in WRONG_OPTIONS[option]), output
    assert "Start it" not in output


def test_check_of_the_right_replica_set_finds_no_problem(replica_set: str) -> None:
    url = f"mongodb://{replica_set}/d?replicaSet=right&w=1"
    assert "A host would work" in output_of("check", "--url", url)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("mongodb://no-such-host.invalid/", "Correct the host's name in `url`, or the DNS of this machine"),
        ("mongodb://127.0.0.1:9/", "Start it (a majority of a replica set), or correct the hosts in `url`"),
        ("mongodb://127.0.0.1:9/?replicaSet=s", "correct the hosts or `replicaSet` in `url`"),
    ],
)
def test_advice_for_a_server_that_is_not_there(url: str, advice: str) -> None:
    assert advice in output_of("check", "--url", url, "--timeout-ms", "500", exit_code=1)


def test_advice_for_a_wrong_mongod_path(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for path, advice in (
        ("/none/mongod", "mongod_path is '/none/mongod', which is not an executable file"),
        ("/bin/true", "If `mongod_path` is set, it must name a MongoDB server"),
    ):
        file.write_text(f"storage:\n  backend: mongodb\n  url: embedded\n  mongod_path: {path}\n")
        output = output_of("check", "--config", str(file), exit_code=1)
        assert advice in output
        assert "url" not in output.partition("PROBLEM")[2]


def test_file_that_an_option_of_the_url_names_is_missing() -> None:
    output = output_of("check", "--url", "mongodb://host/?tls=true&tlsCAFile=/none.pem", exit_code=2)
    assert output.startswith("error: url names a file that cannot be read")


def test_option_that_breaks_a_promise_is_refused() -> None:
    output = output_of("check", "--url", "mongodb://host/?readPreference=secondary", exit_code=2)
    assert output.startswith("error: url: readPreference=secondary is refused")


def test_data_folder_that_cannot_be_created_is_a_problem() -> None:
    assert "choose another data_dir" in output_of("check", "--data-dir", "/proc/no-such-folder", exit_code=1)


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
        (version_of_schema(SchemaReport(version=0, readable_from=0), "d"), "PROBLEM"),
        (version_of_schema(SchemaReport(version=2, readable_from=2, migrating_from=0), "d"), "PROBLEM"),
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


async def test_complete_database_starts_for_a_user_without_rights_to_change_its_schema(
    locked_address: str,
) -> None:
    """No collMod, createIndex or createCollection: setup only reads, and check asks for no more."""
    actions = ["find", "listCollections", "listIndexes", "insert", "update", "remove"]
    with Client(f"mongodb://root:{PASSWORD}@{locked_address}") as client:
        privileges = [{"resource": {"db": "complete", "collection": ""}, "actions": actions}]
        client["complete"].command("createRole", "runs_only", privileges=privileges, roles=[])
        client["complete"].command("createUser", "runner", pwd=PASSWORD, roles=["runs_only"])
        client["complete"].command("createUser", "setter", pwd=PASSWORD, roles=["readWrite"])
    urls = {name: f"mongodb://{name}:{PASSWORD}@{locked_address}/complete" for name in ("setter", "runner")}
    before = await asyncio.to_thread(output_of, "check", "--url", urls["runner"], exit_code=1)
    assert "without the privileges createIndex, createCollection" in before
    for url in urls.values():
        async with MongoStorage.open(url) as storage:
            await storage.runs.create(url, "t", user_id=None)
    after = await asyncio.to_thread(output_of, "check", "--url", urls["runner"])
    assert "as runner@complete, with all privileges that a host needs" in after


@pytest.mark.usefixtures("short_check")
def test_demo_works_for_a_user_with_read_write_on_a_standalone(locked_address: str) -> None:
    url = f"mongodb://writer:{PASSWORD}@{locked_address}/?authSource=d"
    assert summary_of("--url", url, "--database", "d")["runs_now"] == 9
    assert "authentication or authorization failed" in output_of("demo", "--url", url, exit_code=1)
