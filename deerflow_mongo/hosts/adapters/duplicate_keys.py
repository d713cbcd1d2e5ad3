"""A duplicate key as DeerFlow recognises one: SQLAlchemy's `IntegrityError` with the SQL state of PostgreSQL.

DeerFlow's routes catch the class, its run manager looks for the state. No SQL is involved: the error has no
statement, and its text is ours.
"""

from __future__ import annotations

from typing import Any, Final

from ..deerflow import import_deerflow

_exc: Any = import_deerflow("sqlalchemy.exc")

UNIQUE_VIOLATION: Final = "23505"
"""PostgreSQL's SQL state of a duplicate key."""


class DuplicateRowError(_exc.IntegrityError):
    """A row with this key exists already, and nothing was written; raised `from` the store's own error."""

    sqlstate = UNIQUE_VIOLATION

    def __init__(self, text: str) -> None:
        _exc.IntegrityError.__init__(self, None, None, None)
        self.args = (text,)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> Any:
        return type(self), self.args
