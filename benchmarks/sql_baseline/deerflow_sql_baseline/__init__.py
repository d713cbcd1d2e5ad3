"""The backend `sql`: DeerFlow's SQL storage, re-made for comparison. Not for use.

It behaves as the adapters of DeerFlow's app layer do on SQLite and PostgreSQL: fast where they are fast,
wrong where they are wrong. What the protocol `Storage` asks for and they lack is added as sparingly
as it goes, and each module says what that is. The database's own errors come out as they are.
"""

from __future__ import annotations

from .storage import SqlStorage, create_sql_storage

__all__ = ["SqlStorage", "create_sql_storage"]
