"""The lines of `deerflow-mongo check`: what a server's replies and a database's report mean for a host.

Sends no command; `check.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..contract.errors import StorageConfigError
from ..demo.text import counted
from ..mongodb.config import MongoConfig
from ..mongodb.documents.versions import SCHEMA_VERSION, DatabaseVersion
from ..mongodb.foreign_collections import WAY_OUT
from ..mongodb.inspection import SchemaReport
from ..mongodb.migrations import check_readable
from ..mongodb.roles import DATABASE, RUN_TIME, SETUP
from ..mongodb.schema import COLLECTIONS, RETENTIONS

Document: TypeAlias = dict[str, Any]

OLDEST_SERVER = (5, 0)
TESTED_SERVER = "6.0"

Level: TypeAlias = Literal["ok", "note", "PROBLEM"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A problem would stop a host, a note would not."""

    level: Level
    subject: str
    text: str


# -- the server ------------------------------------------------------------------------------------


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


def write_concern_finding(concern: Mapping[str, Any]) -> Finding:
    settings = ", ".join(f"{name}={value}" for name, value in concern.items())
    if concern.get("w") == 1:
        text = (
            f"write concern {settings}: an acknowledged write may be lost in a failover. Remove w from `url`"
        )
        return Finding("note", "writes", text)
    return Finding("ok", "writes", f"write concern {settings}")


# -- the database ----------------------------------------------------------------------------------


def schema_findings(report: SchemaReport, config: MongoConfig) -> Iterator[Finding]:
    """What a start of a host would find and change."""
    if report.foreign:
        yield from (Finding("PROBLEM", "collections", f"{text}. {WAY_OUT}") for text in report.foreign)
        return
    yield version_of_schema(report, config.database)
    if _is_newer(report):
        return  # its indexes and validators are the newer release's, and a start changes nothing
    if not config.upgrade_at_start and (text := _needed_upgrade(report)):
        yield Finding("PROBLEM", "schema", text)
    yield from _missing(report)
    yield from _retention(report, config)
    yield from _index_findings(report)
    if report.library_collections:
        names = ", ".join(report.library_collections)
        text = f"{names}: of langgraph-checkpoint-mongodb; `deerflow-mongo checkpoints copy` reads them"
        yield Finding("note", "checkpoints", text)


def _is_newer(report: SchemaReport) -> bool:
    return report.version is not None and report.version > SCHEMA_VERSION


def version_of_schema(report: SchemaReport, database: str) -> Finding:
    known, version = SCHEMA_VERSION, report.version
    if version is None:
        return Finding("note", "schema", "no schema version yet; created when a host starts")
    try:
        check_readable(
            DatabaseVersion(version, report.readable_from or version, report.migrating_from), database
        )
    except StorageConfigError as error:
        return Finding("PROBLEM", "schema", str(error))
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


def _needed_upgrade(report: SchemaReport) -> str | None:
    """What a host refuses to start with where `upgrade_at_start` is false."""
    is_old = report.migrating_from is not None or (report.version or SCHEMA_VERSION) < SCHEMA_VERSION
    if report.version is None or not (is_old or _missing_of_existing(report)):
        return None
    return (
        "`upgrade_at_start` is false, and there is something to upgrade: run `deerflow-mongo schema upgrade`"
    )


def _missing_of_existing(report: SchemaReport) -> list[str]:
    """Missing indexes of collections that exist."""
    missing = report.missing_collections
    return [name for name in report.missing_indexes if name.rpartition(".")[0] not in missing]


def _missing(report: SchemaReport) -> Iterator[Finding]:
    created = "created when a host starts"
    if report.missing_collections:
        yield Finding("note", "collections", f"missing: {', '.join(report.missing_collections)}; {created}")
    existing = _missing_of_existing(report)
    if existing:
        yield Finding("note", "indexes", f"missing: {', '.join(existing)}; {created}")
    if report.outdated_validators:
        names = ", ".join(report.outdated_validators)
        yield Finding("note", "validators", f"of another release: {names}; replaced when a host starts")


def _retention(report: SchemaReport, config: MongoConfig) -> Iterator[Finding]:
    """After how long the server deletes documents, and whether starting a host would change that."""
    unlimited: list[str] = []
    for retention in RETENTIONS:
        stored = report.retention_days.get(retention.collection)
        text = f"{retention.subject} are {_deleted_after(stored)}"
        if retention.option not in config.retention:
            if stored is None:
                unlimited.append(retention.subject)
                continue
            text = f"{text}; {retention.option} is not set and changes nothing"
        elif stored != (days := config.retention[retention.option]):
            yield Finding("note", "retention", f"{text}; when a host starts: {_deleted_after(days)}")
            continue
        yield Finding("ok", "retention", text)
    if unlimited:
        yield Finding("ok", "retention", f"never deleted by age: {', '.join(unlimited)}")


def _deleted_after(days: float | None) -> str:
    if days is None:
        return "never deleted"
    return f"deleted after {counted(int(days), 'day') if days == int(days) else f'{days:,.2f} days'}"


def _index_findings(report: SchemaReport) -> Iterator[Finding]:
    if report.operator_indexes:
        yield Finding(
            "ok", "indexes", f"not ours, and left as they are: {', '.join(report.operator_indexes)}"
        )
    if report.restricting_indexes:
        names = ", ".join(report.restricting_indexes)
        yield Finding("note", "indexes", f"by these the server may refuse or remove rows: {names}")
    if report.hidden_indexes:
        yield Finding("note", "indexes", f"hidden, and so not used: {', '.join(report.hidden_indexes)}")
    for label, name in report.blocking_indexes.items():
        collection, _, index = label.rpartition(".")
        what = f"has the {'name' if name == index else 'keys'} of our index"
        drop = f'db.getCollection("{collection}").dropIndex("{name}")'
        text = f"{collection}.{name} {what}, but other keys or options: drop it with {drop}"
        yield Finding("PROBLEM", "indexes", f"{text}; ours is created when a host starts")
    for label in report.duplicates:
        text = f"{label} is missing, and the collection contains duplicates that it would refuse"
        yield Finding("PROBLEM", "indexes", f"{text}: remove them")


def login_finding(login: Mapping[str, Any], config: MongoConfig, report: SchemaReport) -> Finding:
    """Whether the user has the privileges that a host needs, by the reply to `connectionStatus`."""
    users = [f"{user['user']}@{user['db']}" for user in login.get("authenticatedUsers", ())]
    if not users:
        return Finding("ok", "login", "not needed: the server has no access control")
    needed = [*_RUN_TIME_ACTIONS, *_needed_by_setup(report, config)]
    privileges: Sequence[Document] = login.get("authenticatedUserPrivileges", ())
    denied = [
        action
        for action in needed
        if not all(
            _allows(privileges, action, config.database, config.collection_prefix + name)
            for name in _collections_with(action)
        )
    ]
    who = f"as {', '.join(users)}"
    if denied:
        role = "readWrite and dbAdmin" if "collMod" in denied else "readWrite"
        text = f"{who}, without the privileges {', '.join(denied)} in database {config.database}"
        return Finding("PROBLEM", "login", f"{text}: grant the role {role} on it")
    return Finding("ok", "login", f"{who}, with all privileges that a host needs")


_RUN_TIME_ACTIONS = ("find", "insert", "update", "remove")


def _collections_with(action: str) -> Iterator[str]:
    """The collections on which a host uses the privilege, by the roles that suffice for it."""
    role = RUN_TIME if action in _RUN_TIME_ACTIONS else SETUP
    for schema in COLLECTIONS:
        if action in (*role[DATABASE], *role[schema.name]):
            yield schema.name


def _needed_by_setup(report: SchemaReport, config: MongoConfig) -> Iterator[str]:
    """The privileges by which a host's start changes the database; none where everything is there."""
    if _is_newer(report):
        return
    changes = _retention_changes(report, config)
    if report.missing_collections or report.missing_indexes or "start" in changes:
        yield "createIndex"
    if report.missing_collections:
        yield "createCollection"
    if report.outdated_validators or "change" in changes:
        yield "collMod"
    is_upgraded = report.version is not None and report.version < SCHEMA_VERSION
    if is_upgraded or "end" in changes:
        yield "dropIndex"


def _retention_changes(report: SchemaReport, config: MongoConfig) -> set[str]:
    """What a host's start would do to retention: "start", "change" or "end" it, for some collection."""
    stored = {retention.option: report.retention_days.get(retention.collection) for retention in RETENTIONS}
    return {
        "start" if stored[option] is None else "end" if days is None else "change"
        for option, days in config.retention.items()
        if stored[option] != days
    }


def _allows(privileges: Sequence[Document], action: str, database: str, collection: str) -> bool:
    return any(
        {action, "anyAction"} & set(privilege["actions"])
        and _covers(privilege["resource"], database, collection)
        for privilege in privileges
    )


def _covers(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
