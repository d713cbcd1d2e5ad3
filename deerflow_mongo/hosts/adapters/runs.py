"""DeerFlow's `RunStore` over ours."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ...contract.actor import current_user_id
from ...contract.arguments import status_text
from ...contract.errors import InvalidPayloadError, PayloadTooLargeError
from ...contract.rows import CALLERS, ENDED_STATUSES, UNSET, RunCreateFields, RunRow, TimeInput, Unset
from ...mongodb.stores.runs import MongoRunStore
from ..gateway import host
from .actors import AUTO, acting_user, can_be_stored
from .truncation import storable_part

_base: Any = host("deerflow.runtime.runs.store.base")

MAX_MODEL_NAME = 128
MAX_TEXT = 2_000
"""Characters that DeerFlow keeps of a model's name, and of the two messages that stand for a run in lists."""

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
"""What is kept of metadata, and of arguments, that a document cannot hold as they are."""

MAX_CHARACTERS = (None, MAX_TEXT, 0)
"""How much is kept of texts, one try after the other, while a run's document has no room for them."""

COUNTED_STATUSES = ("success", "error")
"""The runs whose tokens count for their thread."""

_RUNNING = "running"

logger = logging.getLogger(__name__)


def _row(row: RunRow) -> dict[str, Any]:
    return {**row, "updated_at": row["updated_at"] or row["created_at"]}


def _model_name(model_name: object) -> str | None:
    return None if model_name is None else str(model_name).strip()[:MAX_MODEL_NAME]


def _beginning(text: str | None) -> str | None:
    return None if text is None else text[:MAX_TEXT]


def _text_or_unset(text: str | None) -> str | Unset:
    """DeerFlow passes None for a text that it does not have; the stored one stays."""
    return UNSET if text is None else text


async def _with_room(run_id: str, write: Callable[..., Awaitable[None]], **texts: str | None) -> None:
    """`write` these texts, or as much of them as the run's document has room for: a run must end."""
    for kept in MAX_CHARACTERS:
        try:
            await write(**{name: text and text[:kept] for name, text in texts.items()})
        except PayloadTooLargeError as refused:
            if kept == 0:
                raise
            logger.warning("the texts of run %r are cut: %s", run_id, refused)
        else:
            return


def _no_usage() -> dict[str, Any]:
    return {
        "total_tokens": 0,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "total_runs": 0,
        "by_model": {},
        "by_caller": dict.fromkeys(CALLERS, 0),
    }


class RunStoreAdapter(_base.RunStore):
    """Runs with DeerFlow's names and rows; a row tells `started_at` and `ended_at`, too.

    An ended run is not put back to an active status, whichever process says so late.
    """

    def __init__(self, runs: MongoRunStore) -> None:
        self._runs = runs

    async def put(
        self,
        run_id: str,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        user_id: Any = AUTO,
        model_name: str | None = None,
        status: str = "pending",
        multitask_strategy: str = "reject",
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        error: str | None = None,
        created_at: str | None = None,
        follow_up_to_run_id: str | None = None,
    ) -> None:
        """Store a new run. `RunExistsError` where there is one of this id.

        What of its metadata and arguments no document can hold is left out, and the log says so.
        """
        fields: RunCreateFields = {
            "assistant_id": assistant_id,
            "user_id": acting_user(user_id, "RunStore.put"),
            "model_name": _model_name(model_name),
            "status": status,
            "multitask_strategy": multitask_strategy,
            "metadata": metadata or {},
            "kwargs": kwargs or {},
            "error": error,
            "created_at": created_at or None,
            "follow_up_to_run_id": follow_up_to_run_id,
        }
        try:
            await self._runs.create(run_id, thread_id, **fields)
        except (InvalidPayloadError, PayloadTooLargeError) as refused:
            logger.warning("run %r is stored as far as it can be: %s", run_id, refused)
            fields |= {
                "metadata": storable_part(metadata, MAX_PAYLOAD_BYTES),
                "kwargs": storable_part(kwargs, MAX_PAYLOAD_BYTES),
                "error": _beginning(error),
            }
            await self._runs.create(run_id, thread_id, **fields)

    async def get(self, run_id: str, *, user_id: Any = AUTO) -> dict[str, Any] | None:
        user = acting_user(user_id, "RunStore.get")
        if not can_be_stored(run_id):
            return None
        row = await self._runs.get(run_id, user_id=user)
        return None if row is None else _row(row)

    async def list_by_thread(
        self, thread_id: str, *, user_id: Any = AUTO, limit: int = 100
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "RunStore.list_by_thread")
        if not can_be_stored(thread_id):
            return []
        return [_row(row) for row in await self._runs.list_by_thread(thread_id, limit=limit, user_id=user)]

    async def update_status(self, run_id: str, status: str, *, error: str | None = None) -> None:
        now, plain = datetime.now(UTC), status_text("status", status)

        async def write(error: str | None) -> None:
            await self._runs.update_status(
                run_id,
                plain,
                started_at=now if plain == _RUNNING else None,
                ended_at=now if plain in ENDED_STATUSES else None,
                error=error,
            )

        if can_be_stored(run_id):
            await _with_room(run_id, write, error=error)

    async def delete(self, run_id: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "RunStore.delete")
        if can_be_stored(run_id):
            await self._runs.delete(run_id, user_id=user)

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        if can_be_stored(run_id):
            await self._runs.update_model_name(run_id, _model_name(model_name))

    async def update_run_completion(
        self,
        run_id: str,
        *,
        status: str,
        total_input_tokens: int = 0,
        total_output_tokens: int = 0,
        total_tokens: int = 0,
        llm_call_count: int = 0,
        lead_agent_tokens: int = 0,
        subagent_tokens: int = 0,
        middleware_tokens: int = 0,
        message_count: int = 0,
        last_ai_message: str | None = None,
        first_human_message: str | None = None,
        error: str | None = None,
    ) -> None:
        """Set the status and all figures. A text that is not given stays: a failure told its error before."""

        async def write(**texts: str | None) -> None:
            await self._runs.update_run_completion(
                run_id,
                status=status,
                total_input_tokens=total_input_tokens,
                total_output_tokens=total_output_tokens,
                total_tokens=total_tokens,
                llm_call_count=llm_call_count,
                lead_agent_tokens=lead_agent_tokens,
                subagent_tokens=subagent_tokens,
                middleware_tokens=middleware_tokens,
                message_count=message_count,
                first_human_message=_text_or_unset(texts["first_human_message"]),
                last_ai_message=_text_or_unset(texts["last_ai_message"]),
                error=_text_or_unset(texts["error"]),
            )

        if can_be_stored(run_id):
            await _with_room(
                run_id,
                write,
                last_ai_message=_beginning(last_ai_message),
                first_human_message=_beginning(first_human_message),
                error=error,
            )

    async def list_pending(self, *, before: TimeInput | None = None) -> list[dict[str, Any]]:
        return [_row(row) for row in await self._runs.list_pending(before=before)]

    async def aggregate_tokens_by_thread(self, thread_id: str) -> dict[str, Any]:
        """With a user bound, over that user's runs: those that lists show as well."""
        if not can_be_stored(thread_id):
            return _no_usage()
        usage = await self._runs.token_usage_by_thread(
            thread_id, user_id=current_user_id(), statuses=COUNTED_STATUSES
        )
        return {
            "total_tokens": usage["total_tokens"],
            "total_input_tokens": usage["total_input_tokens"],
            "total_output_tokens": usage["total_output_tokens"],
            "total_runs": usage["total_runs"],
            "by_model": {
                model: {"tokens": figures["tokens"], "runs": figures["runs"]}
                for model, figures in usage["by_model"].items()
            },
            "by_caller": usage["by_caller"],
        }
