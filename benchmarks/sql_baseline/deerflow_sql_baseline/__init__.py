"""The backend `sql`: DeerFlow's SQL storage, reimplemented for comparison. Not for production use.

It behaves like the adapters of DeerFlow's app layer on SQLite and PostgreSQL, with the same speed and the
same bugs. Methods of `Storage` that the adapters lack are added with as little code as possible and listed in
each module's docstring. Database errors are not translated.
"""

from __future__ import annotations

from .storage import SqlStorage, create_sql_storage

__all__ = ["SqlStorage", "create_sql_storage"]
