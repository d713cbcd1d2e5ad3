"""What became of the rows of a transfer, and where source and target differ in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from ...contract.bulk_rows import Imported, RefusedRow, RowKind

Reason = Literal["missing", "different", "changed_here", "refused"]

EXPLAINED: Final[frozenset[Reason]] = frozenset({"changed_here"})
"""Differences that a rule explains: what was changed in the target stays as it is there."""


@dataclass(frozen=True, slots=True)
class RowDifference:
    """A row that the target does not have as the source has it."""

    kind: RowKind
    key: tuple[str | int, ...]
    thread_id: str | None
    reason: Reason
    details: str = ""

    @property
    def is_explained(self) -> bool:
        return self.reason in EXPLAINED


def _no_differences() -> list[RowDifference]:
    return []


@dataclass(slots=True)
class TableOutcome:
    """One table. Every row that was read is stored, replaced, unchanged, equal by its summary, or listed."""

    table: str
    kind: RowKind
    rows: int = 0
    """Rows of the source."""
    stored: int = 0
    replaced: int = 0
    unchanged: int = 0
    equal_by_summary: int = 0
    """Rows that were not read whole, so that no digest has them.

    Of events: count, last number and last event of their thread are the same here; of the others: the
    fields of `mongodb/documents/row_summaries.py`.
    """
    renumbered: int = 0
    demoted_votes: int = 0
    """Votes that are feedback here, because the target has another vote, which the source has deleted."""
    rows_here: int = 0
    """Rows of the target after the transfer, others than those of the source included."""
    source_digest: str = ""
    target_digest: str = ""
    """Of the rows that were read whole, and of the same rows as they are stored."""
    differences: list[RowDifference] = field(default_factory=_no_differences)
    different_threads: int = 0
    seconds: float = 0.0

    def add(self, imported: Imported) -> None:
        self.stored += imported.stored
        self.replaced += imported.replaced
        self.unchanged += imported.unchanged

    @property
    def matched(self) -> int:
        return self.stored + self.replaced + self.unchanged + self.equal_by_summary

    @property
    def only_here(self) -> int:
        """Rows of the target that the source does not have."""
        return max(
            0, self.rows_here - self.matched - sum(d.reason == "changed_here" for d in self.differences)
        )

    @property
    def is_complete(self) -> bool:
        """Whether every row is in the target, or a rule explains why not."""
        listed = len(self.differences)
        return all(d.is_explained for d in self.differences) and self.matched + listed >= self.rows


def refusal(kind: RowKind, refused: RefusedRow, thread_id: str | None) -> RowDifference:
    return RowDifference(kind, refused.key, thread_id, "refused", refused.reason)
