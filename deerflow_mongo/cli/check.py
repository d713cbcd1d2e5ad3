"""`deerflow-mongo check`: tells whether a host would work with a configuration, and what to do if not.

Changes nothing unless it is told to.
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
from ..mongodb.config import MongoConfig, redacted
from ..mongodb.documents.versions import SCHEMA_VERSION
from ..mongodb.migrations import SchemaReport
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
from .terminal import PROBLEM_EXIT, console_for, counted, explained, plain, stoppable

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
        str | None, typer.Option("--database", help="The database; default: the URI's, else deerflow.")
    ] = None,
    driver: DriverOption = None,
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", min=1, help="How long to wait for the server at most.")
    ] = CHECK_TIMEOUT_MS,
    setup: Annotated[
        bool, typer.Option("--setup", help="Make what is missing; without it nothing is changed.")
    ] = False,
) -> None:
    """Tell whether a host would work with a configuration.

    The exit code is 0 if it would, 1 if it would not, and 2 if the configuration itself is wrong.
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
    """One line of a check. A problem would stop a host, a note would not."""

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
        text = f"{type(storage).__name__} of another package; it was built, but not looked into"
        return [Finding("note", "backend", text)]
    examined, finding = _to_examine(storage.config, timeout_ms)
    await storage.aclose()
    if examined.driver == "mongomock":
        note = "mongomock has no server: data is kept in the host's memory until it ends; for tests only"
        return [finding, Finding("note", "server", note)]
    async with contextlib.aclosing(MongoStorage(examined)) as opened:
        return [finding, *await _look_at(opened, setup=setup)]


def _to_examine(config: MongoConfig, timeout_ms: int) -> tuple[MongoConfig, Finding]:
    """The configuration with a check's shorter patience, and without a folder that is yet to be made."""
    told = [f"url {plain(redacted(config.url))}", f"database {config.database}", f"driver {config.driver}"]
    if config.collection_prefix:
        told.append(f"collection_prefix {config.collection_prefix}")
    told.append("timeout_ms as in url" if config.timeout_ms is None else f"timeout_ms {config.timeout_ms:,}")
    own_timeout_ms = config.timeout_ms or int(_uri_options(config.url).get("timeoutms", timeout_ms))
    changes: Document = {"timeout_ms": min(timeout_ms, own_timeout_ms or timeout_ms)}
    if config.data_dir is not None:
        told.append(f"data_dir {config.data_dir}")
        if _can_be_made(config.data_dir.expanduser().absolute()):
            told[-1] += " (a host's start makes it; checked in a temporary folder)"
            changes["data_dir"] = None
    finding = Finding("ok", "configuration", "; ".join(told))
    return config.model_copy(update=changes), finding


def _can_be_made(folder: Path) -> bool:
    """Whether a folder does not exist yet and this user may make it."""
    if folder.exists():
        return False
    return os.access(next(parent for parent in folder.parents if parent.exists()), os.W_OK | os.X_OK)


async def _look_at(storage: MongoStorage, *, setup: bool) -> list[Finding]:
    """Stops at the first thing that cannot be asked, which is then the last finding."""
    findings: list[Finding] = []
    try:
        for look in (_look_at_server, _look_at_writes):
            findings += await look(storage)
        if any(finding.level == "PROBLEM" for finding in findings):
            return findings
        seen = await _look_at_schema(storage)
        if setup and not any(finding.level == "PROBLEM" for finding in seen):
            await storage.setup()
            seen = [Finding("ok", "setup", "done"), *await _look_at_schema(storage)]
        findings += seen
    except StorageError as error:
        findings.append(_problem_of(error))
    return findings


_LOGIN_CODES = (18, 33, 8000)


def _problem_of(error: StorageError) -> Finding:
    if isinstance(error, StorageUnavailableError):
        return Finding(
            "PROBLEM",
            "server",
            f"{error}. Start it (of a replica set, a majority), or correct the hosts in `url`",
        )
    if isinstance(error, StorageAccessError):
        if getattr(error.__cause__, "code", None) in _LOGIN_CODES:
            advice = "Check the user, the password and authSource in `url`"
        else:
            advice = "Log in (user:password@ in `url`), or grant the user the role readWrite on the database"
        return Finding("PROBLEM", "login", f"{error}. {advice}")
    return Finding("PROBLEM", "server", str(error))


# -- check: the server -----------------------------------------------------------------------------


async def _look_at_server(storage: MongoStorage) -> list[Finding]:
    async def ask(command: str) -> tuple[Document, float]:
        started = time.perf_counter()
        answer = await storage.driver.command({command: 1}, database="admin")
        return answer, (time.perf_counter() - started) * 1000

    _, first_ms = await ask("ping")
    _, ping_ms = await ask("ping")
    reached = f"reached and answering in {first_ms:,.0f} ms; the next ping took {ping_ms:,.1f} ms"
    build, _ = await ask("buildInfo")
    hello, _ = await ask("hello")
    return [Finding("ok", "server", reached), version_finding(build), topology_finding(hello)]


def version_finding(build: Mapping[str, Any]) -> Finding:
    """What an answer to `buildInfo` means for a host."""
    version = str(build["version"])
    needed = f"{OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or later is needed, {TESTED_SERVER} is tested"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_SERVER:
        return Finding("PROBLEM", "version", f"MongoDB {version} is too old: {needed}. Upgrade the server")
    return Finding("ok", "version", f"MongoDB {version} ({needed})")


def topology_finding(hello: Mapping[str, Any]) -> Finding:
    """What an answer to `hello` means for a host."""
    writable = bool(hello.get("isWritablePrimary"))
    if hello.get("msg") == "isdbgrid":
        return Finding("ok", "topology", "sharded cluster, through a mongos")
    if hello.get("isreplicaset"):
        text = "the server waits to become part of a replica set: run rs.initiate() on it"
        return Finding("PROBLEM", "topology", text)
    name, members = hello.get("setName"), list(hello.get("hosts", ()))
    if name is not None:
        there = f"replica set {name}, {counted(len(members), 'member')} ({', '.join(members)})"
        if writable:
            return Finding("ok", "topology", f"{there}, connected to the primary {hello.get('primary')}")
        text = f"connected to {hello.get('me')}, which is not the primary and takes no writes"
        advice = f"name the set in `url` (replicaSet={name}) and leave directConnection out"
        return Finding("PROBLEM", "topology", f"{there}: {text}; {advice}")
    if not writable:
        return Finding("PROBLEM", "topology", "the server takes no writes; make it writable")
    text = (
        "standalone: no retryable writes, so a lost connection is an error where a replica set only pauses, "
    )
    return Finding("note", "topology", text + "and no failover. Run it as a replica set, be it of one")


def _uri_options(url: str) -> dict[str, str]:
    return {name.lower(): value for name, value in parse_qsl(url.partition("?")[2])}


async def _look_at_writes(storage: MongoStorage) -> list[Finding]:
    """The write concern in force, and the storage engine where the user may know it."""
    concern: Document = (await storage.driver.opened()).write_concern.document
    findings = [_write_concern_finding(concern)]
    if _uri_options(storage.config.url).get("retrywrites", "").lower() == "false":
        text = "`url` says retryWrites=false: a lost connection may count tokens twice. Take it out"
        findings.append(Finding("note", "writes", text))
    with contextlib.suppress(StorageAccessError):
        status = await storage.driver.command({"serverStatus": 1}, database="admin")
        engine = status.get("storageEngine", {})
        if engine.get("persistent", True):
            findings.append(Finding("ok", "storage", f"engine {engine.get('name', 'unknown')}"))
        else:
            text = f"engine {engine.get('name')} keeps nothing when the server stops"
            findings.append(Finding("note", "storage", text))
    return findings


def _write_concern_finding(concern: Mapping[str, Any]) -> Finding:
    told = ", ".join(f"{name}={value}" for name, value in concern.items())
    if concern.get("w") == 1:
        text = f"write concern {told}: an acknowledged write may be lost in a failover. Take w out of `url`"
        return Finding("note", "writes", text)
    return Finding("ok", "writes", f"write concern {told}")


# -- check: the database ---------------------------------------------------------------------------


async def _look_at_schema(storage: MongoStorage) -> list[Finding]:
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
    if version is not None and version > known:
        text = f"database {database} has schema version {version}, this release knows up to {known}"
        return Finding("PROBLEM", "schema", f"{text}: upgrade deerflow-mongo")
    if version is None:
        return Finding("note", "schema", "no schema version yet; a host's start writes it")
    have = counted(len(report.collections), "collection")
    return Finding("ok", "schema", f"version {version}, {have}, {counted(len(report.indexes), 'index')}")


def _missing(report: SchemaReport) -> Iterator[Finding]:
    made = "a host's start makes them"
    if report.missing_collections:
        yield Finding("note", "collections", f"missing: {', '.join(report.missing_collections)}; {made}")
    existing = [
        name for name in report.missing_indexes if name.rpartition(".")[0] not in report.missing_collections
    ]
    if existing:
        yield Finding("note", "indexes", f"missing: {', '.join(existing)}; {made}")
    if report.outdated_validators:
        names = ", ".join(report.outdated_validators)
        yield Finding("note", "validators", f"not this release's: {names}; {made}")


def _retention(report: SchemaReport, config: MongoConfig) -> Iterator[Finding]:
    """How long run events are kept, and what a host's start would make of it."""
    kept, wanted = report.retention_days, config.run_events_ttl_days
    if kept != wanted:
        text = f"run events are kept {_duration(kept)}; a host's start changes that to {_duration(wanted)}"
        yield Finding("note", "retention", text)
    elif kept is not None:
        yield Finding("ok", "retention", f"run events are kept {_duration(kept)}")


def _duration(days: float | None) -> str:
    return "for ever" if days is None else counted(round(days), "day")


def _index_problems(report: SchemaReport) -> Iterator[Finding]:
    for label, what in (
        *((label, "has our name and other keys or options") for label in report.other_indexes),
        *((label, "has our keys and another name") for label in report.renamed_indexes),
    ):
        collection, _, index = label.rpartition(".")
        drop = f'db.getCollection("{collection}").dropIndex("{index}")'
        yield Finding("PROBLEM", "indexes", f"{label} {what}: drop it with {drop}; a host's start makes ours")


def login_finding(login: Mapping[str, Any], config: MongoConfig, report: SchemaReport) -> Finding:
    """Whether the user may do what a host does, as `connectionStatus` tells it."""
    users = [f"{user['user']}@{user['db']}" for user in login.get("authenticatedUsers", ())]
    if not users:
        return Finding("ok", "login", "none is needed: the server has no access control")
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
        text = f"{who}, who may not {', '.join(denied)} in database {config.database}"
        return Finding("PROBLEM", "login", f"{text}: grant the role {role} there")
    return Finding("ok", "login", f"{who}, who may do all that a host does")


def _allows(privileges: Sequence[Document], action: str, database: str, collection: str) -> bool:
    return any(
        action in privilege["actions"] and _covers(privilege["resource"], database, collection)
        for privilege in privileges
    )


def _covers(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
