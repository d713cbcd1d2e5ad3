"""A target of dicts that imports and exports rows as the capability promises, and counts its calls."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from deerflow_mongo.contract.bulk_rows import KEYS, BulkRow, Imported, Key, RefusedRow, RowKind


class DictTarget:
    def __init__(self) -> None:
        self.rows: dict[RowKind, dict[Key, Any]] = {kind: {} for kind in KEYS}
        self.changed: set[Key] = set()
        self.max_rows_of_a_call = 0
        self.fail_after: int | None = None
        self.too_large: set[Key] = set()
        self.calls = 0

    async def export_rows(
        self, kind: RowKind, *, after: Key | None = None, batch_size: int = 1_000
    ) -> AsyncGenerator[Sequence[BulkRow]]:
        keys = sorted(key for key in self.rows[kind] if after is None or key > after)
        for first in range(0, len(keys), batch_size):
            yield [copy.deepcopy(self.rows[kind][key]) for key in keys[first : first + batch_size]]

    async def import_rows(
        self, kind: RowKind, rows: Sequence[BulkRow], *, overwrite: bool = False
    ) -> Imported:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise RuntimeError("killed")
        self.max_rows_of_a_call = max(self.max_rows_of_a_call, len(rows))
        imported = Imported(0, 0, 0, [], [])
        for row in rows:
            self._import(kind, dict(row), imported)
        return imported

    def _import(self, kind: RowKind, row: dict[str, Any], imported: Imported) -> None:
        key = tuple(row[name] for name in KEYS[kind])
        here = self.rows[kind].get(key)
        if key in self.too_large:
            imported.refused.append(RefusedRow(key, "it is too large"))
        elif kind == "feedback" and row["is_vote"] and self._other_vote(row):
            imported.refused.append(RefusedRow(key, "another vote", is_conflict=True))
        elif here == row:
            imported.unchanged += 1
        elif here is not None and (key in self.changed or kind == "run_events"):
            imported.changed_here.append(key)
        else:
            imported.stored += here is None
            imported.replaced += here is not None
            self.rows[kind][key] = copy.deepcopy(row)

    def _other_vote(self, row: dict[str, Any]) -> bool:
        names = ("thread_id", "run_id", "user_id")
        return any(
            other["is_vote"]
            and other["feedback_id"] != row["feedback_id"]
            and all(other[name] == row[name] for name in names)
            for other in self.rows["feedback"].values()
        )
