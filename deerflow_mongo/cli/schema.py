"""`deerflow-mongo schema`: how a database differs from this release, and upgrading it while it is used.

What is done, and in which order, is in `mongodb/migrations.py`; here are the options, the progress and the
exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from ..contract.errors import StorageConfigError
from ..demo.text import counted
from ..mongodb.documents.versions import SCHEMA_VERSION
from ..mongodb.inspection import SchemaReport
from ..mongodb.storage import MongoStorage
from ..mongodb.upgrade_plan import PlannedStep, UpgradePlan
from ..mongodb.upgrades import Action, Progress
from .options import JsonOption
from .storage_options import StorageOptions
from .terminal import PROBLEM_EXIT, console_for, explained, json_of, status, stoppable

_TITLES: dict[Action, str] = {
    "create": "create collection",
    "validate": "set validator",
    "index": "build indexes",
    "convert": "convert documents",
    "drop_index": "drop unused indexes",
    "convert_late": "convert late documents",
}


def schema_status(
    where: StorageOptions,
    as_json: JsonOption = False,
) -> None:
    """Print how a database differs from this release's schema, and what an upgrade would do; changes nothing.

    Documents that an upgrade would rewrite are counted in collections of up to 10,000 documents, and else
    estimated from 1,000 documents drawn at random. Times are estimates from these numbers, by rates measured
    on a small machine: a busy server takes longer, a large one is faster.

    The exit code is 0 if a host can use the database, or upgrades it when it starts; 1 if it would refuse it.
    """
    with explained():
        storage = where.existing_storage("schema")
        name = storage.config.database
        report, plan = asyncio.run(stoppable(_status(storage)))
        if as_json:
            typer.echo(json_of(_status_as_json(name, report, plan), indent=2))
        else:
            for line in _lines_of_status(name, report, plan):
                typer.echo(line)
        if plan.refusal is not None:
            raise typer.Exit(PROBLEM_EXIT)


async def _status(storage: MongoStorage) -> tuple[SchemaReport, UpgradePlan]:
    async with contextlib.aclosing(storage):
        with status(console_for(stderr=True), "reading the database"):
            return await storage.inspect(), await storage.plan_upgrade()


def _status_as_json(database: str, report: SchemaReport, plan: UpgradePlan) -> dict[str, Any]:
    return {
        "database": database,
        "version": report.version,
        "readable_from": report.readable_from,
        "migrating_from": report.migrating_from,
        "version_of_this_release": SCHEMA_VERSION,
        "collections": {"present": report.collections, "missing": report.missing_collections},
        "indexes": {
            "present": report.indexes,
            "missing": report.missing_indexes,
            "different": report.blocking_indexes,
            "foreign": report.operator_indexes,
        },
        "outdated_validators": report.outdated_validators,
        "retention_days": report.retention_days,
        "upgrade": _plan_as_json(plan),
    }


def _plan_as_json(plan: UpgradePlan) -> dict[str, Any]:
    steps = [{**asdict(step), "seconds": round(step.seconds, 1)} for step in plan.steps]
    return {"refusal": plan.refusal, "estimated_seconds": round(plan.seconds, 1), "steps": steps}


def _lines_of_status(database: str, report: SchemaReport, plan: UpgradePlan) -> Iterator[str]:
    found = "not set up yet" if report.version is None else f"schema version {report.version}"
    if report.migrating_from is not None:
        found += f", an upgrade from version {report.migrating_from} is not complete"
    yield f"database {database}: {found}; this release has version {SCHEMA_VERSION}"
    yield _line("collections", len(report.collections), report.missing_collections)
    yield _line("indexes", len(report.indexes), report.missing_indexes)
    if report.blocking_indexes:
        yield f"  different: {', '.join(report.blocking_indexes)}"
    if report.operator_indexes:
        yield f"  not ours, left as they are: {', '.join(report.operator_indexes)}"
    if report.outdated_validators:
        yield f"validators of another release: {', '.join(report.outdated_validators)}"
    yield from _lines_of_plan(plan)


def _line(what: str, present: int, missing: list[str]) -> str:
    others = f", {len(missing)} missing: {', '.join(missing)}" if missing else ""
    return f"{what}: {present} present{others}"


def _lines_of_plan(plan: UpgradePlan) -> Iterator[str]:
    if plan.refusal is not None:
        yield f"an upgrade would be refused: {plan.refusal}"
    elif not plan.steps:
        yield "nothing to upgrade"
    else:
        yield f"an upgrade would take {_duration(plan.seconds)}; hosts may use the database meanwhile:"
        yield from (f"  {_step(step)}" for step in plan.steps)


def _step(step: PlannedStep) -> str:
    details: list[str] = []
    if step.indexes:
        details.append(", ".join(step.indexes))
    if step.basis is not None:
        details.append(f"{counted(step.documents, 'document')} ({step.basis})")
    elif step.documents:
        details.append(f"from {counted(step.documents, 'document')}")
    if step.seconds:
        details.append(_duration(step.seconds))
    text = f"{_TITLES[step.action]}: {step.collection}"
    return f"{text} - {'; '.join(details)}" if details else text


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    for unit, length in (("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:,.0f} {unit}"
    return f"about {seconds:,.0f} s"


# -- upgrade ---------------------------------------------------------------------------------------


def schema_upgrade(
    where: StorageOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; print what would be done.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Upgrade a database to this release's schema, while hosts use it: collections, indexes, documents.

    It does what the start of a host does, with progress, and also where `upgrade_at_start` is false. Hosts of
    this release read and write all documents meanwhile. Those of the release before go on storing theirs,
    which are converted, but cannot read what is converted; they must be stopped before the upgrade ends.

    It may be interrupted at any point, and repeated: what is done is not done again.
    """
    with explained():
        storage = where.existing_storage("schema")
        if dry_run:
            report, plan = asyncio.run(stoppable(_status(storage)))
            done: dict[str, Any] = {"dry_run": True, "version": report.version}
            lines = [*_lines_of_plan(plan), "nothing was changed"]
        else:
            plan, seconds = asyncio.run(stoppable(_upgrade(storage, console_for(stderr=True))))
            done = {"dry_run": False, "version": SCHEMA_VERSION, "seconds": round(seconds, 1)}
            lines = [_line_of_upgrade(storage.config.database, plan, seconds)]
        if as_json:
            typer.echo(json_of({**done, "upgrade": _plan_as_json(plan)}, indent=2))
        else:
            for line in lines:
                typer.echo(line)
        if plan.refusal is not None:
            raise typer.Exit(PROBLEM_EXIT)


def _line_of_upgrade(database: str, plan: UpgradePlan, seconds: float) -> str:
    if not plan.steps:
        return f"database {database}: nothing to upgrade"
    return (
        f"database {database}: schema version {SCHEMA_VERSION}, {len(plan.steps)} steps in {seconds:,.1f} s"
    )


async def _upgrade(storage: MongoStorage, console: Console) -> tuple[UpgradePlan, float]:
    """What was planned, and the seconds that it took. Raises `StorageConfigError` where it is refused."""
    async with contextlib.aclosing(storage):
        with status(console, "reading the database"):
            plan = await storage.plan_upgrade()
        if plan.refusal is not None:
            raise StorageConfigError(plan.refusal)
        started = time.perf_counter()
        for line in _lines_of_plan(plan) if plan.steps else ():
            console.print(line, soft_wrap=True)
        with console.status("upgrading") if console.is_terminal else contextlib.nullcontext() as shown:
            progress = _Printed(console, shown)
            await storage.upgrade(progress)
        return plan, time.perf_counter() - started


class _Printed:
    """Prints each step as it begins, and a conversion's counts on a terminal's last line."""

    def __init__(self, console: Console, shown: Any) -> None:
        self._console, self._shown = console, shown
        self._began = time.perf_counter()
        self._step: tuple[str, str] | None = None

    def __call__(self, progress: Progress) -> None:
        title = f"{_TITLES[progress.action]}: {progress.collection}"
        if self._step != (progress.action, progress.collection):
            self._step = (progress.action, progress.collection)
            self._began = time.perf_counter()
            self._console.print(title, soft_wrap=True)
        if self._shown is not None:
            self._shown.update(f"{title} {self._counts(progress)}".rstrip())

    def _counts(self, progress: Progress) -> str:
        if not progress.total or not progress.done:
            return ""
        rate = progress.done / max(0.001, time.perf_counter() - self._began)
        left = _duration((progress.total - progress.done) / rate)
        return f"{progress.done:,} of {progress.total:,}, {rate:,.0f}/s, {left} left"
