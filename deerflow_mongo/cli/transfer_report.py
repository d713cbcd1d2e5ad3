"""What `deerflow-mongo transfer` prints: what it has found in the source, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from rich.console import Console
from rich.text import Text

from ..contract.bulk_rows import RowKind
from ..demo.text import counted, plain
from ..transfer.checkpoints import CopiedThread
from ..transfer.sql.outcomes import Reason, RowDifference, TableOutcome
from ..transfer.sql.survey import Finding, Survey
from .checkpoints import copied_as_json, line_of_copied, mib
from .tables import number_lines
from .terminal import duration

MAX_LISTED = 20
"""How many differences are printed; `--json` has all of them."""


def _no_tables() -> list[TableOutcome]:
    return []


@dataclass(frozen=True, slots=True)
class CheckpointsOutcome:
    copied: list[CopiedThread]
    equal_threads: int
    """Threads that were not read: their counts and newest checkpoint are the same on both sides."""
    seconds: float


@dataclass(slots=True)
class Report:
    survey: Survey
    is_dry_run: bool
    tables: list[TableOutcome] = field(default_factory=_no_tables)
    checkpoints: CheckpointsOutcome | None = None
    seconds: float = 0.0

    @property
    def differences(self) -> list[RowDifference]:
        return [difference for table in self.tables for difference in table.differences]

    @property
    def is_complete(self) -> bool:
        """Whether the target has everything, or a rule explains why not."""
        copied = self.checkpoints.copied if self.checkpoints else []
        return all(table.is_complete for table in self.tables) and all(one.is_successful for one in copied)


def _print(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


# -- before ----------------------------------------------------------------------------------------


def show_survey(console: Console, found: Survey) -> None:
    _print(console, _lines_of_survey(found))


def _lines_of_survey(found: Survey) -> Iterator[str]:
    yield f"{found.place}: {found.release}, {mib(found.size_bytes)} with indexes and checkpoints"
    cells = [(f"{table.rows:,}", f"{mib(table.size_bytes)}", table.table) for table in found.tables]
    if found.checkpoints:
        threads = counted(found.checkpoint_threads, "thread")
        cells.append((f"{found.checkpoints:,}", "", f"checkpoints of {threads}"))
    yield from number_lines([("rows", "about", "table"), *cells])
    yield f"a first pass takes about {duration(found.seconds)} on two cores"
    for finding in found.findings:
        yield _line_of_finding(finding)


def _line_of_finding(finding: Finding) -> str:
    named = "; ".join(plain(name) for name in finding.named)
    more = ", …" if finding.named and finding.rows > len(finding.named) else ""
    prefix = "not carried" if finding.prevents else "note"
    line = f"{prefix}: {plain(finding.table)}: {counted(finding.rows, 'row')}: {finding.what}"
    return f"{line} ({named}{more})" if named else line


# -- afterwards ------------------------------------------------------------------------------------


def show_report(console: Console, report: Report) -> None:
    _print(console, _lines_of_report(report))


def _lines_of_report(report: Report) -> Iterator[str]:
    heads = ("rows", "new", "replaced", "equal", "only here", "listed", "s", "table")
    yield from number_lines([heads, *(_cells(table) for table in report.tables)])
    for table in report.tables:
        yield from _notes_of_table(table)
    if report.checkpoints is not None:
        yield from _lines_of_checkpoints(report.checkpoints)
    yield from _lines_of_differences(report.differences)
    result = (
        "everything is in the target" if report.is_complete else "not everything is in the target: see above"
    )
    if report.is_complete and report.differences:
        result = "everything is in the target but for what was changed there"
    yield f"{result}, {report.seconds:,.1f} s"


def _cells(table: TableOutcome) -> tuple[str, ...]:
    equal = table.unchanged + table.equal_by_summary
    numbers = (table.rows, table.stored, table.replaced, equal, table.only_here, len(table.differences))
    return (*(f"{number:,}" for number in numbers), f"{table.seconds:,.1f}", table.table)


def _notes_of_table(table: TableOutcome) -> Iterator[str]:
    compared = table.rows - table.equal_by_summary
    if table.source_digest == table.target_digest and compared:
        rows = counted(compared, "row")
        yield f"{table.table}: {rows} compared whole, digest {table.source_digest} on both sides"
    elif table.source_digest != table.target_digest:
        digests = f"{table.source_digest} in the source, {table.target_digest} in the target"
        yield f"{table.table}: digests {digests}, {counted(table.different_threads, 'thread')} differ"
    if table.equal_by_summary:
        yield f"{table.table}: {counted(table.equal_by_summary, 'row')} {_SUMMARISED[table.kind]}"
    if table.renumbered:
        yield f"{table.table}: {counted(table.renumbered, 'event')} moved up: SQL has numbers twice"
    if table.demoted_votes:
        yield f"{table.table}: {counted(table.demoted_votes, 'vote')} carried as feedback beside another vote"


_OF_ROWS: Final = "with the same summary on both sides were not read whole"
_SUMMARISED: Final[Mapping[RowKind, str]] = {
    "users": _OF_ROWS,
    "threads": _OF_ROWS,
    "runs": _OF_ROWS,
    "feedback": _OF_ROWS,
    "run_events": "of threads with the same count, last number and last event on both sides were not read",
}
"""What the rows that are equal by their summary have in common."""


def _lines_of_checkpoints(checkpoints: CheckpointsOutcome) -> Iterator[str]:
    if checkpoints.copied:
        yield f"checkpoints: {line_of_copied(checkpoints.copied, checkpoints.seconds, dry_run=False)}"
    if checkpoints.equal_threads:
        threads = counted(checkpoints.equal_threads, "thread")
        yield f"checkpoints: {threads} with the same counts and newest checkpoint on both sides were not read"


_REASONS: dict[Reason, str] = {
    "refused": "not carried",
    "missing": "missing in the target",
    "different": "different in the target",
    "changed_here": "changed in the target, left as it is",
}


def _lines_of_differences(differences: Sequence[RowDifference]) -> Iterator[str]:
    for difference in sorted(differences, key=lambda each: each.is_explained)[:MAX_LISTED]:
        key = plain(", ".join(map(str, difference.key)))
        details = f": {plain(difference.details)}" if difference.details else ""
        yield f"{difference.kind} {key} {_REASONS[difference.reason]}{details}"
    if len(differences) > MAX_LISTED:
        reasons = Counter[Reason](difference.reason for difference in differences)
        counts = ", ".join(f"{count:,} {_REASONS[reason]}" for reason, count in reasons.items())
        yield f"… {len(differences):,} rows in all ({counts}); --json lists them"


# -- as JSON ---------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, object]:
    found = report.survey
    estimates = {"rows": found.rows, "seconds": round(found.seconds, 1)}
    return {
        "dry_run": report.is_dry_run,
        "complete": report.is_complete,
        "seconds": round(report.seconds, 3),
        "source": {**asdict(found), "estimate": estimates},
        "tables": [_table_as_json(table) for table in report.tables],
        "checkpoints": None if report.checkpoints is None else _checkpoints_as_json(report.checkpoints),
    }


def _table_as_json(table: TableOutcome) -> dict[str, object]:
    return {**asdict(table), "only_here": table.only_here, "complete": table.is_complete}


def _checkpoints_as_json(checkpoints: CheckpointsOutcome) -> dict[str, object]:
    copied = copied_as_json(checkpoints.copied, checkpoints.seconds, dry_run=False)
    return {**copied, "equal_threads": checkpoints.equal_threads}
