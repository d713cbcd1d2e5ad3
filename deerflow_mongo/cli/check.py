"""`deerflow-mongo check`: reports whether a host would work with a configuration, and what to do if not.

Changes nothing without `--setup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..contract.errors import StorageAccessError, StorageError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..demo.text import counted, plain
from ..hosts.options import GATEWAY_OPTIONS
from ..mongodb import queries
from ..mongodb.config import MongoConfig, redacted
from ..mongodb.schema import RUNS
from ..mongodb.storage import MongoStorage
from .advice import advice_for, advice_for_write
from .findings import (
    Document,
    Finding,
    Level,
    login_finding,
    schema_findings,
    topology_finding,
    version_finding,
    write_concern_finding,
)
from .host import check_host
from .options import JsonOption
from .storage_options import StorageOptions
from .terminal import PROBLEM_EXIT, console_for, explained, json_of, stoppable

CHECK_TIMEOUT_MS = 5_000


def check(
    where: StorageOptions,
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", min=1, help="How long to wait for the server.")
    ] = CHECK_TIMEOUT_MS,
    setup: Annotated[
        bool, typer.Option("--setup", help="Create what is missing; without this option nothing is changed.")
    ] = False,
    host: Annotated[
        bool,
        typer.Option("--host", help="Check the installed DeerFlow instead: the names that the gateway uses."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether a host would work with a configuration: server, login, write concern, schema, indexes.

    Without --config and without an option that names a database, the configuration is that of config.yaml in
    this folder, if there is one.

    Each line is ok, a note, or a PROBLEM that would stop a host, with what to do about it. The exit code is 0
    if a host would work, 1 if it would fail, and 2 if the configuration itself is wrong; with --host, 0 or 3.
    """
    if host:
        raise typer.Exit(check_host(as_json=as_json))
    with explained():
        source, options = _configuration(where)
        storage = create_storage(options)
        findings = asyncio.run(stoppable(_examine(storage, source, timeout_ms, setup=setup)))
    if as_json:
        typer.echo(json_of(_as_json(findings), indent=2))
    else:
        _show_findings(console_for(), findings)
    if any(finding.level == "PROBLEM" for finding in findings):
        raise typer.Exit(PROBLEM_EXIT)


_STYLES: Mapping[Level, str] = {"ok": "green", "note": "yellow", "PROBLEM": "bold red"}

HOSTS_FILE = Path("config.yaml")
"""Where hosts have their configuration, in the folder in which they start."""

ENVIRONMENT_PREFIX = "DEER_FLOW_STORAGE_"
"""Of the variables that DeerFlow's gateway reads in place of the file's options."""


def _configuration(where: StorageOptions) -> tuple[str, Mapping[str, Any]]:
    """The configuration to check, and where it is from."""
    if not where.names_a_storage and HOSTS_FILE.exists():
        where = replace(where, config=HOSTS_FILE)
    configuration = where.configuration()
    if where.config is not None:
        return f"read from {plain(where.config)}, section {plain(where.section)}", configuration
    if where.names_a_storage:
        unread = f"; {HOSTS_FILE} was not read" if HOSTS_FILE.exists() else ""
        return f"of the options given{unread}", configuration
    return f"the default, because this folder has no {HOSTS_FILE}", configuration


def _environment_finding() -> list[Finding]:
    """A note about variables that the gateway reads and this check does not."""
    options = ("backend", *GATEWAY_OPTIONS, *MongoConfig.model_fields)
    known = {ENVIRONMENT_PREFIX + option.upper() for option in options}
    found = sorted(known & set(os.environ))
    if not found:
        return []
    text = (
        f"{', '.join(found)}: DeerFlow's gateway uses these in place of the file's options; not checked here"
    )
    return [Finding("note", "environment", text)]


def _as_json(findings: Sequence[Finding]) -> dict[str, object]:
    lines = [{**asdict(finding), "level": finding.level.lower()} for finding in findings]
    return {"works": all(line["level"] != "problem" for line in lines), "findings": lines}


def _show_findings(console: Console, findings: Sequence[Finding]) -> None:
    table = Table.grid("", "", Column(overflow="fold"), padding=(0, 2))  # a long URL is not cut off
    for finding in findings:
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.subject, finding.text)
    console.print(table)
    problems, notes = (sum(x.level == level for x in findings) for level in ("PROBLEM", "note"))
    not_examined = any(finding.subject == "backend" for finding in findings)
    if problems:
        console.print(Text(f"A host would fail: {counted(problems, 'problem')}.", style="bold red"))
    elif not_examined:
        console.print("No problem was found, but the backend was not examined.")
    else:
        console.print(f"A host would work, with {counted(notes, 'note')}." if notes else "A host would work.")


async def _examine(storage: Storage, source: str, timeout_ms: int, *, setup: bool) -> list[Finding]:
    first = [Finding("ok", "configuration", source), *_environment_finding()]
    if not isinstance(storage, MongoStorage):
        return [*first, await _other_backend(storage)]
    examined, finding = _config_to_examine(storage.config, timeout_ms)
    await storage.aclose()
    first.append(finding)
    if not examined.has_server:
        note = "mongomock has no server: data is in the host's memory until it ends; for tests only"
        return [*first, Finding("note", "server", note)]
    async with contextlib.aclosing(MongoStorage(examined)) as opened:
        return [*first, *await _findings(opened, setup=setup)]


async def _other_backend(storage: Storage) -> Finding:
    """Whether it answers; what else a backend needs is known to the backend only."""
    name = type(storage).__name__
    try:
        await storage.ping()
    except StorageError as error:
        return Finding("PROBLEM", "server", f"{name}: {error}")
    finally:
        await storage.aclose()
    return Finding("note", "backend", f"{name} answered; only the backend mongodb is examined further")


def _config_to_examine(config: MongoConfig, timeout_ms: int) -> tuple[MongoConfig, Finding]:
    """The configuration with the check's shorter timeout, and without a data folder that does not exist."""
    settings = [  # what a host uses
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
    finding = Finding("ok", "settings", "; ".join(settings))
    return config.model_copy(update=changes), finding


def _can_be_created(folder: Path) -> bool:
    """Whether a folder does not exist yet and this user may create it: tried with its uppermost part."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if not missing:
        return False
    try:
        missing[-1].mkdir()
        missing[-1].rmdir()
    except OSError:
        return False
    return True


async def _findings(storage: MongoStorage, *, setup: bool) -> list[Finding]:
    """The findings up to the first command that fails, whose error is then the last finding."""
    findings: list[Finding] = []
    try:
        for examine in (_server_findings, _settings_findings):
            findings += await examine(storage)
        if any(finding.level == "PROBLEM" for finding in findings):
            return findings
        of_schema = await _schema_findings(storage)
        if not any(finding.level == "PROBLEM" for finding in of_schema):
            of_schema = [*await _access_findings(storage), *of_schema]
        if setup and not any(finding.level == "PROBLEM" for finding in of_schema):
            await storage.setup()
            of_schema = [Finding("ok", "setup", "done"), *await _schema_findings(storage)]
        findings += of_schema
    except StorageError as error:
        findings.append(_problem_of(error, storage.config))
    return findings


def _problem_of(error: StorageError, config: MongoConfig) -> Finding:
    subject = "login" if isinstance(error, StorageAccessError) else "server"
    return Finding("PROBLEM", subject, _sentences(str(error), advice_for(error, config)))


def _sentences(*texts: str) -> str:
    return ". ".join(text.rstrip(".") for text in texts if text)


async def _access_findings(storage: MongoStorage) -> list[Finding]:
    """The answers to a read and a write of no document, with a host's read preference and write concern."""
    runs = storage.driver.collection(storage.config.collection_prefix + RUNS)
    try:
        await runs.find_one(queries.no_document())
    except StorageError as error:
        text = _sentences(f"the server refused a read: {error}", advice_for(error, storage.config))
        return [Finding("PROBLEM", "reads", text)]
    try:
        await runs.delete_one(queries.no_document())
    except StorageError as error:
        text = _sentences(f"the server refused a write: {error}", advice_for_write(error))
        return [Finding("PROBLEM", "writes", text)]
    return []


# -- the server -----------------------------------------------------------------------------


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


def _uri_options(url: str) -> dict[str, str]:
    return {name.lower(): value for name, value in parse_qsl(url.partition("?")[2])}


async def _settings_findings(storage: MongoStorage) -> list[Finding]:
    """The effective write concern, and the storage engine if the user may read it."""
    concern: Document = (await storage.driver.opened()).write_concern.document
    findings = [write_concern_finding(concern)]
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


async def _schema_findings(storage: MongoStorage) -> list[Finding]:
    config, driver = storage.config, storage.driver
    report = await storage.inspect()
    status = await driver.command({"connectionStatus": 1, "showPrivileges": True}, database="admin")
    return [login_finding(status["authInfo"], config, report), *schema_findings(report, config)]
