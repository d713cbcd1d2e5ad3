"""DeerFlow's `RunStore` over ours."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ...contract.actor import bound_user_id
from ...contract.arguments import is_valid_id, status_text
from ...contract.errors import InvalidPayloadError, PayloadTooLargeError, StorageError
from ...contract.protocols import RunStore
from ...contract.rows import CALLERS, ENDED_STATUSES, UNSET, RunCreateFields, RunRow, TimeInput, Unset
from ..deerflow import import_deerflow
from ..encodable import encodable
from .actors import AUTO, acting_user
from .counts_by_model import MAX_MODEL_NAME_CHARACTERS, CountsByModel, Tokens, counts_by_model
from .truncation import storable_entries

_base: Any = import_deerflow("deerflow.runtime.runs.store.base")

MAX_MESSAGE_CHARACTERS: Final = 2_000
"""What DeerFlow stores of the two messages that stand for a run in lists."""

MAX_PAYLOAD_BYTES: Final = (4 * 1024 * 1024, 256 * 1024, 0)
"""The limits of metadata and of arguments that were refused: one for each further attempt."""

MAX_TEXT_CHARACTERS: Final = (None, MAX_MESSAGE_CHARACTERS, 0)
"""The limits of a run's texts: one for each attempt to store them."""

COUNTED_STATUSES: Final = ("success", "error")
"""The runs whose tokens count for their thread."""

_RUNNING = "running"

logger = logging.getLogger(__name__)


def _row(row: RunRow) -> dict[str, Any]:
    return encodable({**row, "updated_at": row["updated_at"] or row["created_at"]})


def _model_name(model_name: object) -> str | None:
    return None if model_name is None else encodable(str(model_name)).strip()[:MAX_MODEL_NAME_CHARACTERS]


def _message(text: str | None) -> str | None:
    return None if text is None else text[:MAX_MESSAGE_CHARACTERS]


def _text_or_unset(text: str | None) -> str | Unset:
    """DeerFlow passes None for a text that it does not have; the stored one stays."""
    return UNSET if text is None else text


async def _write_texts(run_id: str, write: Callable[..., Awaitable[None]], **texts: str | None) -> None:
    """`write` these texts, shortened if the run's document has no room for them: a run must end.

    `write` gets their limit first; 0 means that nothing optional fits.
    """
    for max_characters in MAX_TEXT_CHARACTERS:
        try:
            await write(
                max_characters, **{name: text and text[:max_characters] for name, text in texts.items()}
            )
        except PayloadTooLargeError as error:
            if max_characters == 0:
                raise
            logger.warning("the texts of run %r are truncated: %s", run_id, error, extra={"run_id": run_id})
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
    """Runs with DeerFlow's names and rows; a row has `started_at` and `ended_at` as well.

    An ended run never becomes active again, whichever process sends an older status late. A run that was
    stored without a model's name gets the name of the lead agent's model when it ends.
    """

    def __init__(self, runs: RunStore, counts: CountsByModel | None = None) -> None:
        """`counts` is what the adapter of run events adds to; without it, runs have no counts by model."""
        self._runs = runs
        self._counts = CountsByModel() if counts is None else counts

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
        """Store a new run. Raises `RunExistsError` for a known id.

        Metadata and arguments that cannot be stored are left out, and logged.
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
        except (InvalidPayloadError, PayloadTooLargeError) as refusal:
            ids = {"run_id": run_id, "thread_id": thread_id}
            logger.warning("run %r is stored truncated: %s", run_id, refusal, extra=ids)
            fields["error"] = _message(error)
            await self._create_truncated(run_id, thread_id, fields)
        self._counts.start(run_id, model_name)

    async def _create_truncated(self, run_id: str, thread_id: str, fields: RunCreateFields) -> None:
        """Store the run with those of its metadata and arguments that can be stored."""
        metadata, kwargs = fields.get("metadata"), fields.get("kwargs")
        for max_bytes in MAX_PAYLOAD_BYTES:
            fields["metadata"] = storable_entries(metadata, max_bytes)
            fields["kwargs"] = storable_entries(kwargs, max_bytes)
            try:
                await self._runs.create(run_id, thread_id, **fields)
            except PayloadTooLargeError:
                if max_bytes == 0:
                    raise
            else:
                return

    async def get(self, run_id: str, *, user_id: Any = AUTO) -> dict[str, Any] | None:
        user = acting_user(user_id, "RunStore.get")
        if not is_valid_id(run_id):
            return None
        row = await self._runs.get(run_id, user_id=user)
        return None if row is None else _row(row)

    async def list_by_thread(
        self, thread_id: str, *, user_id: Any = AUTO, limit: int = 100
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "RunStore.list_by_thread")
        if not is_valid_id(thread_id):
            return []
        return [_row(row) for row in await self._runs.list_by_thread(thread_id, limit=limit, user_id=user)]

    async def update_status(self, run_id: str, status: str, *, error: str | None = None) -> None:
        now, plain = datetime.now(UTC), status_text("status", status)

        async def write(_: int | None, error: str | None) -> None:
            await self._runs.update_status(
                run_id,
                plain,
                started_at=now if plain == _RUNNING else None,
                ended_at=now if plain in ENDED_STATUSES else None,
                error=error,
            )

        if is_valid_id(run_id):
            await _write_texts(run_id, write, error=error)

    async def delete(self, run_id: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "RunStore.delete")
        if is_valid_id(run_id) and await self._runs.delete(run_id, user_id=user):
            self._counts.discard(run_id)

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        if is_valid_id(run_id):
            await self._runs.update_model_name(run_id, _model_name(model_name))
            self._counts.rename(run_id, model_name)

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
        token_usage_by_model: Mapping[str, object] | None = None,
    ) -> None:
        """Set the status and all counts. An absent text stays: a failed run has its error already.

        Without `token_usage_by_model`, which DeerFlow passes after release 0.1.7, the counts by model are
        those of the run's events.
        """
        if token_usage_by_model is None:
            totals = Tokens(total_input_tokens, total_output_tokens, total_tokens, llm_call_count)
            by_model = self._counts.of_run(run_id, totals)
        else:
            by_model = counts_by_model(token_usage_by_model)

        async def write(max_characters: int | None, **texts: str | None) -> None:
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
                token_usage_by_model=None if max_characters == 0 else by_model,
            )

        if is_valid_id(run_id):
            await _write_texts(
                run_id,
                write,
                last_ai_message=_message(last_ai_message),
                first_human_message=_message(first_human_message),
                error=error,
            )
            await self._store_missing_model_name(run_id)
            self._counts.discard(run_id)

    async def _store_missing_model_name(self, run_id: str) -> None:
        """A command of its own, for a run of whose model DeerFlow knew the name only after it was stored."""
        name = self._counts.missing_model_name(run_id)
        if name is None:
            return
        try:
            await self._runs.update_model_name(run_id, name)
        except StorageError as error:  # the run has ended and is stored
            logger.warning(
                "run %r is stored without its model's name: %s", run_id, error, extra={"run_id": run_id}
            )

    async def list_pending(self, *, before: TimeInput | None = None) -> list[dict[str, Any]]:
        return [_row(row) for row in await self._runs.list_pending(before=before)]

    async def aggregate_tokens_by_thread(self, thread_id: str) -> dict[str, Any]:
        """The sums over the runs that lists show: with a user bound, those of that user."""
        if not is_valid_id(thread_id):
            return _no_usage()
        usage = await self._runs.token_usage_by_thread(
            thread_id,
            user_id=bound_user_id("RunStore.aggregate_tokens_by_thread"),
            statuses=COUNTED_STATUSES,
        )
        return {
            "total_tokens": usage["total_tokens"],
            "total_input_tokens": usage["total_input_tokens"],
            "total_output_tokens": usage["total_output_tokens"],
            "total_runs": usage["total_runs"],
            "by_model": encodable(
                {
                    model: {"tokens": counts["tokens"], "runs": counts["runs"]}
                    for model, counts in usage["by_model"].items()
                }
            ),
            "by_caller": usage["by_caller"],
        }
