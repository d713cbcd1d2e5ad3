"""Runs. Reimplements `RunStoreAdapter` and the run repository below it.

Added, to make operations comparable: `record_token_usage`, one UPDATE (token counts by model have no column),
and `token_usage_by_thread`, the repository's GROUP BY over all runs of the thread. As in DeerFlow 2.x:
`update_model_name`, `list_pending`, the reads of regenerated runs, the errors of `create` and
`update_status`. A row's `started_at` and `ended_at` are None, because the table has no such columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

from sqlalchemy import ColumnElement, Row, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from deerflow_mongo import (
    AUTO,
    RunCompletionFields,
    RunCreateFields,
    RunRow,
    RunStatusUpdateFields,
    TokenUsage,
    resolve_user_id,
)
from deerflow_mongo.contract import arguments
from deerflow_mongo.contract.actor import UserId
from deerflow_mongo.contract.regeneration import is_edit_regeneration, regenerated_run
from deerflow_mongo.contract.rows import CALLERS, COMPLETION_COUNTS, PENDING, UNSET, Caller, TimeInput

from .engine import Sessions
from .tables import Run, moment, now

_MESSAGE_LENGTH, _MODEL_NAME_LENGTH = 2_000, 128
_MESSAGES = ("first_human_message", "last_ai_message")
_COLUMNS = [
    name
    for name in RunRow.__annotations__
    if name in Run.__table__.columns and name not in ("metadata", "kwargs") and "_at" not in name
]


def _row(run: Run) -> RunRow:
    row: dict[str, Any] = {name: getattr(run, name) for name in _COLUMNS}
    row["metadata"], row["kwargs"] = run.meta, run.kwargs
    row["created_at"] = run.created_time.isoformat()
    row["updated_at"] = run.updated_time.isoformat() if run.updated_time else ""
    row["started_at"] = row["ended_at"] = None
    return cast("RunRow", row)


def _plain(value: Any) -> Any:
    """DeerFlow's `serialize_lc_object`: a model by its dump method, anything else but JSON as text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    for method in ("model_dump", "dict"):
        if hasattr(value, method):
            try:
                return getattr(value, method)()
            except Exception:  # noqa: BLE001, S112 - as in DeerFlow
                continue
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - as in DeerFlow
        return repr(value)


def _dict_of(payload: object) -> dict[str, Any]:
    return dict(cast("Mapping[str, Any]", _plain(payload or {})))


async def _find(session: AsyncSession, run_id: str) -> Run | None:
    return (await session.execute(select(Run).where(Run.run_id == run_id))).scalar_one_or_none()


class SqlRunStore:
    """`RunStore`, like the adapter."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def get(self, run_id: str, *, user_id: UserId = AUTO) -> RunRow | None:
        owner = resolve_user_id(user_id, method_name="runs.get")
        async with self._sessions.reading() as session:
            run = await _find(session, run_id)
        if run is None or (owner is not None and run.user_id != owner):
            return None
        return _row(run)

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: UserId = AUTO
    ) -> list[RunRow]:
        owner = resolve_user_id(user_id, method_name="runs.list_by_thread")
        query = select(Run).where(Run.thread_id == thread_id).order_by(Run.created_time.desc())
        query = query.limit(limit).offset(0)
        async with self._sessions.reading() as session:
            runs = (await session.execute(query)).scalars().all()
        return [_row(run) for run in runs if owner is None or run.user_id == owner]

    async def get_many_by_thread(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = AUTO
    ) -> dict[str, RunRow]:
        wanted = set(run_ids)
        if not wanted:
            return {}
        rows = await self._of_thread(thread_id, user_id, "get_many_by_thread", Run.run_id.in_(wanted))
        return {row["run_id"]: row for row in rows}

    async def list_successful_regenerate_sources(self, thread_id: str, *, user_id: UserId = AUTO) -> set[str]:
        method = "list_successful_regenerate_sources"
        rows = await self._of_thread(thread_id, user_id, method, Run.status == "success")
        sources = (regenerated_run(row["metadata"]) for row in rows)
        return {source for source in sources if source is not None}

    async def list_edit_regenerate_runs(self, thread_id: str, *, user_id: UserId = AUTO) -> list[RunRow]:
        rows = await self._of_thread(thread_id, user_id, "list_edit_regenerate_runs")
        return [row for row in rows if is_edit_regeneration(row["metadata"])]

    async def _of_thread(
        self, thread_id: str, user_id: UserId, method: str, *conditions: ColumnElement[bool]
    ) -> list[RunRow]:
        """The thread's runs, oldest first, without a limit."""
        owner = resolve_user_id(user_id, method_name=f"runs.{method}")
        query = select(Run).where(Run.thread_id == thread_id, *conditions).order_by(Run.created_time.asc())
        if owner is not None:
            query = query.where(Run.user_id == owner)
        async with self._sessions.reading() as session:
            return [_row(run) for run in (await session.execute(query)).scalars()]

    async def list_pending(self, *, before: TimeInput | None = None) -> list[RunRow]:
        until = now() if before is None else moment(before)
        query = select(Run).where(Run.status == PENDING, Run.created_time <= until)
        query = query.order_by(Run.created_time.asc())
        async with self._sessions.reading() as session:
            return [_row(run) for run in (await session.execute(query)).scalars()]

    async def create(self, run_id: str, thread_id: str, **fields: Unpack[RunCreateFields]) -> None:
        run = Run(
            run_id=run_id,
            thread_id=thread_id,
            assistant_id=fields.get("assistant_id"),
            status=fields.get("status", "pending"),
            meta=_dict_of(fields.get("metadata")),
            kwargs=_dict_of(fields.get("kwargs")),
            user_id=resolve_user_id(fields.get("user_id", AUTO), method_name="runs.create"),
            follow_up_to_run_id=fields.get("follow_up_to_run_id"),
            error=fields.get("error"),
        )
        async with self._sessions.writing() as session:
            session.add(run)
            await session.flush()
            await session.refresh(run)

    async def delete(self, run_id: str, *, user_id: UserId = AUTO) -> bool:
        async with self._sessions.writing() as session:
            run = await _find(session, run_id)
            if run is None:
                return False
            owner = resolve_user_id(user_id, method_name="runs.delete")
            if owner is not None and run.user_id != owner:
                return False
            await session.execute(delete(Run).where(Run.run_id == run_id))
            return True

    async def update_status(self, run_id: str, status: str, **fields: Unpack[RunStatusUpdateFields]) -> bool:
        """Times, metadata and the stop reason are accepted and dropped."""
        error, statuses = fields.get("error"), fields.get("from_statuses")
        values = {"status": status} if error is None else {"status": status, "error": error}
        return await self._update(run_id, statuses, **values)

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        name = None if model_name is None else str(model_name).strip()[:_MODEL_NAME_LENGTH]
        await self._update(run_id, model_name=name)

    async def set_error(self, run_id: str, error: str) -> None:
        await self._update(run_id, status="error", error=error)

    async def update_run_completion(
        self, run_id: str, *, status: str, **fields: Unpack[RunCompletionFields]
    ) -> bool:
        """Absent texts stay as they are, and so do texts that are None. Counts by model are dropped."""
        given = cast("Mapping[str, Any]", fields)
        values: dict[str, Any] = {name: given.get(name, 0) for name in COMPLETION_COUNTS}
        for name in _MESSAGES:
            if given.get(name) not in (None, UNSET):
                values[name] = given[name][:_MESSAGE_LENGTH]
        if given.get("error") not in (None, UNSET):
            values["error"] = given["error"]
        return await self._update(run_id, fields.get("from_statuses"), status=status, **values)

    async def record_token_usage(
        self,
        run_id: str,
        *,
        caller: Caller,
        model_name: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        llm_calls: int = 1,
    ) -> None:
        tokens = input_tokens + output_tokens
        own = f"{arguments.caller(caller)}_tokens"
        await self._update(
            run_id,
            total_input_tokens=Run.total_input_tokens + input_tokens,
            total_output_tokens=Run.total_output_tokens + output_tokens,
            total_tokens=Run.total_tokens + tokens,
            llm_call_count=Run.llm_call_count + llm_calls,
            **{own: getattr(Run, own) + tokens},
        )

    async def token_usage_by_thread(
        self, thread_id: str, *, user_id: UserId = AUTO, statuses: Sequence[str] | None = None
    ) -> TokenUsage:
        owner = resolve_user_id(user_id, method_name="runs.token_usage_by_thread")
        model = func.coalesce(Run.model_name, "unknown")
        counts = [
            func.coalesce(func.sum(getattr(Run, name)), 0).label(name)
            for name in COMPLETION_COUNTS
            if name != "message_count"
        ]
        query = select(model.label("model"), func.count().label("runs"), *counts)
        query = query.where(Run.thread_id == thread_id).group_by(model)
        if owner is not None:
            query = query.where(Run.user_id == owner)
        if statuses is not None:
            query = query.where(Run.status.in_(statuses))
        async with self._sessions.reading() as session:
            return _usage((await session.execute(query)).all())

    async def _update(self, run_id: str, from_statuses: Sequence[str] | None = None, **values: Any) -> bool:
        """Whether a run matched."""
        query = update(Run).where(Run.run_id == run_id)
        if from_statuses is not None:
            query = query.where(Run.status.in_(from_statuses))
        async with self._sessions.writing() as session:
            result: Any = await session.execute(query.values(**values))
        return result.rowcount > 0


def _usage(groups: Sequence[Row[Any]]) -> TokenUsage:
    def total(name: str) -> int:
        return sum(int(getattr(group, name)) for group in groups)

    return {
        "total_runs": total("runs"),
        "total_input_tokens": total("total_input_tokens"),
        "total_output_tokens": total("total_output_tokens"),
        "total_tokens": total("total_tokens"),
        "llm_call_count": total("llm_call_count"),
        "by_caller": {caller: total(f"{caller}_tokens") for caller in CALLERS},
        "by_model": {
            group.model: {
                "runs": int(group.runs),
                "tokens": int(group.total_tokens),
                "input_tokens": int(group.total_input_tokens),
                "output_tokens": int(group.total_output_tokens),
                "llm_calls": int(group.llm_call_count),
            }
            for group in groups
        },
    }
