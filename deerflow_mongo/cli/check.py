"""`deerflow-mongo check`: reports whether a host would work with a configuration, and what to do if not.

Changes nothing without `--setup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import parse_qsl

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..contract.errors import StorageAccessError, StorageError, StorageUnavailableError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..demo.text import counted, plain
from ..mongodb.config import MongoConfig, redacted
from ..mongodb.documents.versions import SCHEMA_VERSION
from ..mongodb.drivers.errors import code_of
from ..mongodb.inspection import SchemaReport
from ..mongodb.schema import COLLECTIONS
from ..mongodb.storage import MongoStorage
from .options import (
    DEFAULT_SECTION,
    ConfigOption,
    DataDirOption,
    DriverOption,
    SectionOption,
    UrlOption,
    options_given,
    options_of_file,
)
from .terminal import PROBLEM_EXIT, console_for, explained, stoppable

Document: TypeAlias = dict[str, Any]

OLDEST_SERVER = (5, 0)
TESTED_SERVER = "6.0"
CHECK_TIMEOUT_MS = 5_000


def check(
    config: ConfigOption = None,
    section: SectionOption = DEFAULT_SECTION,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    database: Annotated[
        str | None, typer.Option("--database", help="The database; the default is the URI's, else deerflow.")
    ] = None,
    driver: DriverOption = None,
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", min=1, help="How long to wait for the server.")
    ] = CHECK_TIMEOUT_MS,
    setup: Annotated[
        bool, typer.Option("--setup", help="Create what is missing; without this option nothing is changed.")
    ] = False,
) -> None:
    """Check whether a host would work with a configuration: server, login, write concern, schema, indexes.

    Each line is ok, a note, or a PROBLEM that would stop a host, with what to do about it. The exit code is 0
    if a host would work, 1 if it would fail, and 2 if the configuration itself is wrong.
    """
    with explained():
        given = options_given(url, data_dir, database, driver)
        storage = create_storage(given if config is None else options_of_file(config, section, given))
        findings = asyncio.run(stoppable(_examine(storage, timeout_ms, setup=setup)))
    _show_findings(console_for(), findings)
    if any(finding.level == "PROBLEM" for finding in findings):
        raise typer.Exit(PROBLEM_EXIT)


Level: TypeAlias = Literal["ok", "note", "PROBLEM"]
_STYLES: Mapping[Level, str] = {"ok": "green", "note": "yellow", "PROBLEM": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A problem would stop a host, a note would not."""

    level: Level
    subject: str
    text: str


def _show_findings(console: Console, findings: Sequence[Finding]) -> None:
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.subject, finding.text)
    console.print(table)
    problems, notes = (sum(x.level == level for x in findings) for level in ("PROBLEM", "note"))
    if problems:
        console.print(Text(f"A host would fail: {counted(problems, 'problem')}.", style="bold red"))
    else:
        console.print(f"A host would work, with {counted(notes, 'note')}." if notes else "A host would work.")


async def _examine(storage: Storage, timeout_ms: int, *, setup: bool) -> list[Finding]:
    if not isinstance(storage, MongoStorage):
        await storage.aclose()
        text = f"{type(storage).__name__} of another package; it was created, but not examined"
        return [Finding("note", "backend", text)]
    examined, finding = _config_to_examine(storage.config, timeout_ms)
    await storage.aclose()
    if not examined.has_server:
        note = "mongomock has no server: data is in the host's memory until it ends; for tests only"
        return [finding, Finding("note", "server", note)]
    async with contextlib.aclosing(MongoStorage(examined)) as opened:
        return [finding, *await _findings(opened, setup=setup)]


def _config_to_examine(config: MongoConfig, timeout_ms: int) -> tuple[MongoConfig, Finding]:
    """The configuration with the check's shorter timeout, and without a data folder that does not exist."""
    settings = [
        f"url {plain(redacted(config.url))}",
        f"database {config.database}",
        f"driver {config.driver}",
    ]
    if config.collection_prefix:
        settings.append(f"collection_prefix {config.collection_prefix}")
    settings.append(f"timeout_ms {config.timeout_ms:,}")
    changes: Document = {"timeout_ms": min(timeout_ms, config.timeout_ms)}
    if config.data_dir is not None:
        settings.append(f"data_dir {config.data_dir}")
        if _can_be_created(config.data_dir.expanduser().absolute()):
            settings[-1] += " (created when a host starts; checked in a temporary folder)"
            changes["data_dir"] = None
    finding = Finding("ok", "configuration", "; ".join(settings))
    return config.model_copy(update=changes), finding


def _can_be_created(folder: Path) -> bool:
    """Whether a folder does not exist yet and this user may create it."""
    if folder.exists():
        return False
    return os.access(next(parent for parent in folder.parents if parent.exists()), os.W_OK | os.X_OK)


async def _findings(storage: MongoStorage, *, setup: bool) -> list[Finding]:
    """The findings up to the first command that fails, whose error is then the last finding."""
    findings: list[Finding] = []
    try:
        for examine in (_server_findings, _write_findings):
            findings += await examine(storage)
        if any(finding.level == "PROBLEM" for finding in findings):
            return findings
        of_schema = await _schema_findings(storage)
        if setup and not any(finding.level == "PROBLEM" for finding in of_schema):
            await storage.setup()
            of_schema = [Finding("ok", "setup", "done"), *await _schema_findings(storage)]
        findings += of_schema
    except StorageError as error:
        findings.append(_problem_of(error))
    return findings


_LOGIN_CODES = (18, 33, 8000)


def _problem_of(error: StorageError) -> Finding:
    if isinstance(error, StorageUnavailableError):
        return Finding(
            "PROBLEM",
            "server",
            f"{error}. Start it (a majority of a replica set), or correct the hosts in `url`",
        )
    if isinstance(error, StorageAccessError):
        if code_of(error) in _LOGIN_CODES:
            advice = "Check the user, the password and authSource in `url`"
        else:
            advice = "Log in (user:password@ in `url`), or grant the user the role readWrite on the database"
        return Finding("PROBLEM", "login", f"{error}. {advice}")
    return Finding("PROBLEM", "server", str(error))


# -- check: the server -----------------------------------------------------------------------------


async def _server_findings(storage: MongoStorage) -> list[Finding]:
    async def run(command: str) -> tuple[Document, float]:
        started = time.perf_counter()
        reply = await storage.driver.command({command: 1}, database="admin")
        return reply, (time.perf_counter() - started) * 1000

    _, first_ms = await run("ping")
    _, ping_ms = await run("ping")
    reached = f"connected and answered in {first_ms:,.0f} ms; the next ping took {ping_ms:,.1f} ms"
    build, _ = await run("buildInfo")
    hello, _ = await run("hello")
    return [Finding("ok", "server", reached), version_finding(build), topology_finding(hello)]


def version_finding(build: Mapping[str, Any]) -> Finding:
    """What the reply to `buildInfo` means for a host."""
    version = str(build["version"])
    needed = f"{OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or later is needed, {TESTED_SERVER} is tested"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_SERVER:
        return Finding("PROBLEM", "version", f"MongoDB {version} is too old: {needed}. Upgrade the server")
    return Finding("ok", "version", f"MongoDB {version} ({needed})")


def topology_finding(hello: Mapping[str, Any]) -> Finding:
    """What the reply to `hello` means for a host."""
    writable = bool(hello.get("isWritablePrimary"))
    if hello.get("msg") == "isdbgrid":
        return Finding("ok", "topology", "sharded cluster, through a mongos")
    if hello.get("isreplicaset"):
        text = "the replica set is not initiated: run rs.initiate() on the server"
        return Finding("PROBLEM", "topology", text)
    name, members = hello.get("setName"), list(hello.get("hosts", ()))
    if name is not None:
        found = f"replica set {name}, {counted(len(members), 'member')} ({', '.join(members)})"
        if writable:
            return Finding("ok", "topology", f"{found}, connected to the primary {hello.get('primary')}")
        text = f"connected to {hello.get('me')}, which is not the primary and accepts no writes"
        advice = f"name the set in `url` (replicaSet={name}) and remove directConnection"
        return Finding("PROBLEM", "topology", f"{found}: {text}; {advice}")
    if not writable:
        return Finding("PROBLEM", "topology", "the server accepts no writes; make it writable")
    text = (
        "standalone: no failover and no retryable writes, so a lost connection is an error where a replica "
        "set only pauses. Run it as a replica set; one member is enough"
    )
    return Finding("note", "topology", text)


def _uri_options(url: str) -> dict[str, str]:
    return {name.lower(): value for name, value in parse_qsl(url.partition("?")[2])}


async def _write_findings(storage: MongoStorage) -> list[Finding]:
    """The effective write concern, and the storage engine if the user may read it."""
    concern: Document = (await storage.driver.opened()).write_concern.document
    findings = [_write_concern_finding(concern)]
    if _uri_options(storage.config.url).get("retrywrites", "").lower() == "false":
        text = "`url` has retryWrites=false: a lost connection may count tokens twice. Remove it"
        findings.append(Finding("note", "writes", text))
    with contextlib.suppress(StorageAccessError):
        status = await storage.driver.command({"serverStatus": 1}, database="admin")
        engine = status.get("storageEngine", {})
        if engine.get("persistent", True):
            findings.append(Finding("ok", "storage", f"engine {engine.get('name', 'unknown')}"))
        else:
            text = f"engine {engine.get('name')} loses all data when the server stops"
            findings.append(Finding("note", "storage", text))
    return findings


def _write_concern_finding(concern: Mapping[str, Any]) -> Finding:
    settings = ", ".join(f"{name}={value}" for name, value in concern.items())
    if concern.get("w") == 1:
        text = (
            f"write concern {settings}: an acknowledged write may be lost in a failover. Remove w from `url`"
        )
        return Finding("note", "writes", text)
    return Finding("ok", "writes", f"write concern {settings}")


# -- check: the database ---------------------------------------------------------------------------


async def _schema_findings(storage: MongoStorage) -> list[Finding]:
    config, driver = storage.config, storage.driver
    report = await storage.inspect()
    status = await driver.command({"connectionStatus": 1, "showPrivileges": True}, database="admin")
    return [
        login_finding(status["authInfo"], config, report),
        version_of_schema(report, config.database),
        *_missing(report),
        *_retention(report, config),
        *_index_problems(report),
    ]


def version_of_schema(report: SchemaReport, database: str) -> Finding:
    known, version = SCHEMA_VERSION, report.version
    if version is None:
        return Finding("note", "schema", "no schema version yet; created when a host starts")
    if (report.readable_from or version) > known:
        text = f"database {database} has schema version {version}, this release supports up to {known}"
        return Finding("PROBLEM", "schema", f"{text}: upgrade deerflow-mongo")
    if version > known:
        text = f"version {version}, of a newer release; this one can use it and changes nothing of it"
        return Finding("ok", "schema", text)
    if report.migrating_from is not None:
        text = f"an upgrade from version {report.migrating_from} is not complete; a host continues it"
        return Finding("note", "schema", f"{text} when it starts")
    if version < known:
        text = (
            f"version {version}; upgraded to {known} when a host starts, after which older releases refuse it"
        )
        return Finding("note", "schema", text)
    collections = counted(len(report.collections), "collection")
    return Finding(
        "ok", "schema", f"version {version}, {collections}, {counted(len(report.indexes), 'index')}"
    )


def _missing(report: SchemaReport) -> Iterator[Finding]:
    created = "created when a host starts"
    if report.missing_collections:
        yield Finding("note", "collections", f"missing: {', '.join(report.missing_collections)}; {created}")
    existing = [
        name for name in report.missing_indexes if name.rpartition(".")[0] not in report.missing_collections
    ]
    if existing:
        yield Finding("note", "indexes", f"missing: {', '.join(existing)}; {created}")
    if report.outdated_validators:
        names = ", ".join(report.outdated_validators)
        yield Finding("note", "validators", f"of another release: {names}; replaced when a host starts")


def _retention(report: SchemaReport, config: MongoConfig) -> Iterator[Finding]:
    """After how long the server deletes run events, and whether starting a host would change that."""
    stored, configured = report.retention_days, config.run_events_ttl_days
    if stored != configured:
        text = f"run events are {_deleted_after(stored)}; when a host starts: {_deleted_after(configured)}"
        yield Finding("note", "retention", text)
    elif stored is not None:
        yield Finding("ok", "retention", f"run events are {_deleted_after(stored)}")


def _deleted_after(days: float | None) -> str:
    return "never deleted" if days is None else f"deleted after {counted(round(days), 'day')}"


def _index_problems(report: SchemaReport) -> Iterator[Finding]:
    if report.operator_indexes:
        yield Finding(
            "ok", "indexes", f"not ours, and left as they are: {', '.join(report.operator_indexes)}"
        )
    what = "has the name of our index, but other keys or options"
    for label in report.conflicting_indexes:
        collection, _, index = label.rpartition(".")
        drop = f'db.getCollection("{collection}").dropIndex("{index}")'
        yield Finding(
            "PROBLEM", "indexes", f"{label} {what}: drop it with {drop}; ours is created when a host starts"
        )


def login_finding(login: Mapping[str, Any], config: MongoConfig, report: SchemaReport) -> Finding:
    """Whether the user has the privileges that a host needs, by the reply to `connectionStatus`."""
    users = [f"{user['user']}@{user['db']}" for user in login.get("authenticatedUsers", ())]
    if not users:
        return Finding("ok", "login", "not needed: the server has no access control")
    needed = ["find", "insert", "update", "remove", "createIndex"]
    needed += ["createCollection"] if report.missing_collections else []
    ttl_changes = None not in (report.retention_days, config.run_events_ttl_days) and (
        report.retention_days != config.run_events_ttl_days
    )
    needed += ["collMod"] if report.outdated_validators or ttl_changes else []
    collections = [config.collection_prefix + schema.name for schema in COLLECTIONS]
    privileges: Sequence[Document] = login.get("authenticatedUserPrivileges", ())
    denied = [
        action
        for action in needed
        if not all(_allows(privileges, action, config.database, name) for name in collections)
    ]
    who = f"as {', '.join(users)}"
    if denied:
        role = "readWrite and dbAdmin" if "collMod" in denied else "readWrite"
        text = f"{who}, without the privileges {', '.join(denied)} in database {config.database}"
        return Finding("PROBLEM", "login", f"{text}: grant the role {role} on it")
    return Finding("ok", "login", f"{who}, with all privileges that a host needs")


def _allows(privileges: Sequence[Document], action: str, database: str, collection: str) -> bool:
    return any(
        action in privilege["actions"] and _covers(privilege["resource"], database, collection)
        for privilege in privileges
    )


def _covers(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
