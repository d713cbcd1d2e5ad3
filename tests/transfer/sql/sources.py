"""Databases as DeerFlow's releases make them, in tables of our own: the columns and keys, and a few rows.

That the tables are DeerFlow's is checked where DeerFlow is installed: `tests/hosts/test_transfer.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import create_engine, text

START = datetime(2026, 4, 22, 3, 26, 38, 123_456, tzinfo=UTC)

_KEYED = {"id": "{serial}"}
_RUN_COUNTS = dict.fromkeys(
    (
        *("total_input_tokens", "total_output_tokens", "total_tokens", "llm_call_count"),
        *("lead_agent_tokens", "subagent_tokens", "middleware_tokens", "message_count"),
    ),
    "INTEGER NOT NULL",
)
_RUN = {
    "run_id": "VARCHAR(64) NOT NULL UNIQUE",
    "thread_id": "VARCHAR(64) NOT NULL",
    "assistant_id": "VARCHAR(128)",
    "user_id": "VARCHAR(64)",
    "status": "VARCHAR(20) NOT NULL",
    "model_name": "VARCHAR(128)",
    "multitask_strategy": "VARCHAR(20) NOT NULL",
    "error": "TEXT",
    "follow_up_to_run_id": "VARCHAR(64)",
    **_RUN_COUNTS,
    "first_human_message": "TEXT",
    "last_ai_message": "TEXT",
}
_THREAD = {
    "thread_id": "VARCHAR(64) NOT NULL UNIQUE",
    "assistant_id": "VARCHAR(128)",
    "user_id": "VARCHAR(64)",
    "display_name": "VARCHAR(256)",
    "status": "VARCHAR(20) NOT NULL",
}
_FEEDBACK = {
    "feedback_id": "VARCHAR(64) NOT NULL UNIQUE",
    "run_id": "VARCHAR(64) NOT NULL",
    "thread_id": "VARCHAR(64) NOT NULL",
    "user_id": "VARCHAR(64)",
    "message_id": "VARCHAR(64)",
    "rating": "INTEGER NOT NULL",
    "comment": "TEXT",
}
_EVENT = {
    **_KEYED,
    "thread_id": "VARCHAR(64) NOT NULL",
    "run_id": "VARCHAR(64) NOT NULL",
    "user_id": "VARCHAR(64)",
    "event_type": "VARCHAR(128) NOT NULL",
    "category": "VARCHAR(64) NOT NULL",
    "content": "TEXT NOT NULL",
    "seq": "INTEGER NOT NULL",
    "created_at": "{time} NOT NULL",
}
_USER = {
    "id": "VARCHAR(36) PRIMARY KEY",
    "email": "VARCHAR(320) NOT NULL",
    "password_hash": "VARCHAR(128)",
    "system_role": "VARCHAR(16) NOT NULL",
    "created_at": "{time} NOT NULL",
    "oauth_provider": "VARCHAR(32)",
    "oauth_id": "VARCHAR(128)",
    "needs_setup": "BOOLEAN NOT NULL",
    "token_version": "INTEGER NOT NULL",
}
_OLD_TIMES = {"created_time": "{time} NOT NULL", "updated_time": "{time}"}
_TIMES = {"created_at": "{time} NOT NULL", "updated_at": "{time} NOT NULL"}
_OWNERSHIP = {
    "operation_kind": "VARCHAR(32) NOT NULL DEFAULT 'run'",
    "idempotency_key": "VARCHAR(255)",
    "stop_reason": "VARCHAR(50)",
    "owner_worker_id": "VARCHAR(128)",
    "lease_expires_at": "{time}",
    "cancel_action": "VARCHAR(20)",
    "cancel_requested_at": "{time}",
}
Tables = Mapping[str, Mapping[str, str]]

SEED: Tables = {
    "thread_meta": {**_KEYED, **_THREAD, "metadata": "JSON NOT NULL", **_OLD_TIMES},
    "runs": {**_KEYED, **_RUN, "metadata": "JSON NOT NULL", "kwargs": "JSON NOT NULL", **_OLD_TIMES},
    "feedback": {**_KEYED, **_FEEDBACK, "created_time": "{time} NOT NULL"},
    "run_events": {**_EVENT, "metadata": "JSON NOT NULL"},
}
V0_1_7: Tables = {
    "users": _USER,
    "threads_meta": {**_THREAD, "metadata_json": "JSON NOT NULL", **_TIMES},
    "runs": {**_RUN, "metadata_json": "JSON NOT NULL", "kwargs_json": "JSON NOT NULL", **_TIMES},
    "feedback": {**_FEEDBACK, "created_at": "{time} NOT NULL"},
    "run_events": {**_EVENT, "event_metadata": "JSON NOT NULL"},
}
V2_0_0: Tables = {
    **V0_1_7,
    "runs": {**V0_1_7["runs"], "token_usage_by_model": "JSON NOT NULL DEFAULT '{{}}'"},
    "alembic_version": {"version_num": "VARCHAR(32) NOT NULL"},
    "channel_connections": {"id": "VARCHAR(64) PRIMARY KEY"},
}
MAIN: Tables = {
    **V2_0_0,
    "runs": {**V2_0_0["runs"], **_OWNERSHIP},
    "scheduled_tasks": {"id": "VARCHAR(64) PRIMARY KEY"},
    "agents": {"id": "VARCHAR(64) PRIMARY KEY"},
    "mcp_tasks": {"id": "VARCHAR(64) PRIMARY KEY"},
}
RELEASES: Mapping[str, Tables] = {"seed": SEED, "0.1.7": V0_1_7, "2.0.0": V2_0_0, "main": MAIN}

_RENAMED = {
    "metadata": ("metadata", "metadata_json", "event_metadata"),
    "kwargs": ("kwargs", "kwargs_json"),
    "created_at": ("created_at", "created_time"),
    "updated_at": ("updated_at", "updated_time"),
}
_TYPES = {
    "sqlite": {"serial": "INTEGER PRIMARY KEY", "time": "DATETIME"},
    "postgresql": {"serial": "SERIAL PRIMARY KEY", "time": "TIMESTAMP WITH TIME ZONE"},
}


@dataclass(frozen=True)
class Source:
    """A database with the tables of a release, and the URL of the command's `--from`."""

    url: str
    release: str

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def tables(self) -> Tables:
        return RELEASES[self.release]

    def execute(self, *statements: str, rows: Sequence[Mapping[str, Any]] = ()) -> list[Any]:
        """The rows of the last statement; the first one may have `rows` of parameters."""
        url = self.url if self.is_sqlite else self.url.replace("postgresql://", "postgresql+psycopg://", 1)
        engine = create_engine(url)
        try:
            with engine.begin() as connection:
                found: list[Any] = []
                for statement in statements:
                    result = connection.execute(text(statement), rows or None)
                    found = list(result) if result.returns_rows else []
                return found
        finally:
            engine.dispose()

    def create(self) -> None:
        types = _TYPES["sqlite" if self.is_sqlite else "postgresql"]
        statements = ["CREATE INDEX events_by_thread ON run_events (thread_id, seq)"]
        for name, columns in self.tables.items():
            declared = ", ".join(f"{column} {kind.format(**types)}" for column, kind in columns.items())
            statements.insert(0, f"CREATE TABLE {name} ({declared})")
        self.execute(*statements)

    def table(self, kind: str) -> str:
        return "thread_meta" if kind == "threads" and self.release == "seed" else _TABLES.get(kind, kind)

    def insert(self, kind: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert rows that have the names of the latest release, as SQLAlchemy stores their values."""
        stored = [self._stored(kind, row) for row in rows]
        if stored:
            names = list(stored[0])
            values = ", ".join(f":{name}" for name in names)
            statement = f"INSERT INTO {self.table(kind)} ({', '.join(names)}) VALUES ({values})"  # noqa: S608
            self.execute(statement, rows=stored)

    def _stored(self, kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
        columns = self.tables[self.table(kind)]
        stored: dict[str, Any] = {}
        for field, value in row.items():
            names = _RENAMED.get(field, (field,))
            column = next((name for name in names if name in columns), None)
            if column is not None:
                stored[column] = self._value(value)
        return stored

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, datetime) and self.is_sqlite:
            return value.strftime("%Y-%m-%d %H:%M:%S.%f")
        return value


_TABLES = {"threads": "threads_meta"}


# -- rows ------------------------------------------------------------------------------------------


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def user(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"user-{number}",
        "email": f"user{number}@example.com",
        "password_hash": "$2b$12$hash",
        "system_role": "user",
        "created_at": at(number),
        "oauth_provider": None,
        "oauth_id": None,
        "needs_setup": False,
        "token_version": 0,
        **fields,
    }


def thread(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "thread_id": f"thread-{number}",
        "assistant_id": "lead_agent",
        "user_id": f"user-{number % 3}",
        "display_name": f"Über {number}",
        "status": "idle",
        "metadata": {"deerflow_pinned": True, "a.b": {"$c": [1, 1.0, None]}},
        "created_at": at(number),
        "updated_at": at(number + 1),
        **fields,
    }


def run(number: int, thread_number: int, **fields: Any) -> dict[str, Any]:
    return {
        "run_id": f"run-{number}",
        "thread_id": f"thread-{thread_number}",
        "assistant_id": None,
        "user_id": f"user-{thread_number % 3}",
        "status": "success",
        "model_name": "gpt-4.1",
        "multitask_strategy": "reject",
        "error": None,
        "follow_up_to_run_id": None,
        **dict.fromkeys(_RUN_COUNTS, number),
        "first_human_message": "Hello",
        "last_ai_message": "你好",
        "metadata": {"n": number},
        "kwargs": {"input": {"messages": []}},
        "created_at": at(number),
        "updated_at": at(number + 0.5),
        "token_usage_by_model": {"gpt-4.1": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}},
        **fields,
    }


def event(number: int, thread_number: int, **fields: Any) -> dict[str, Any]:
    return {
        "thread_id": f"thread-{thread_number}",
        "run_id": f"run-{thread_number}",
        "user_id": f"user-{thread_number % 3}" if number % 2 else None,
        "event_type": "ai_message",
        "category": "message",
        "content": json.dumps({"text": f"event {number}"}),
        "metadata": {"content_is_json": True, "content_is_dict": True, "caller": "lead_agent"},
        "seq": number,
        "created_at": at(number),
        **fields,
    }


def vote(number: int, run_number: int, **fields: Any) -> dict[str, Any]:
    return {
        "feedback_id": f"vote-{number}",
        "run_id": f"run-{run_number}",
        "thread_id": f"thread-{run_number}",
        "user_id": f"user-{run_number % 3}",
        "message_id": None,
        "rating": 1,
        "comment": f"comment {number}",
        "created_at": at(number),
        **fields,
    }


def fill(source: Source, threads: int = 6, events: int = 5) -> None:
    """Accounts, threads with a run and events each, and votes, one of them replaced."""
    if "users" in source.tables:
        source.insert("users", [user(number) for number in range(3)])
    numbers = range(threads)
    source.insert("threads", [thread(number) for number in numbers])
    source.insert("runs", [run(number, number) for number in numbers])
    source.insert("run_events", [event(seq, number) for number in numbers for seq in range(1, events + 1)])
    source.insert("feedback", [vote(number, number) for number in numbers])
    source.insert("feedback", [vote(threads, 0, rating=-1), vote(threads + 1, 0, message_id="m")])


def rows_of(threads: int = 6, events: int = 5) -> dict[str, int]:
    """How many rows `fill` makes of each kind."""
    return {
        "users": 3,
        "threads": threads,
        "runs": threads,
        "feedback": threads + 2,
        "run_events": threads * events,
    }
