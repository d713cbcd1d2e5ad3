"""Runs of several workers: admission, leases, cancellation, take-over; one command per method.

The state that a method requires is in its command's filter, so the server decides every race. A second
command is sent only where the first one matched nothing or was refused, to find out why. There are no
transactions: one of a client that died would block its documents for a minute. What is stored is in
`documents/run_ownership.py` and `run_operations.py`, the other methods of runs are in `runs.py`.
"""

from __future__ import annotations

from typing import Unpack

from ...contract import arguments
from ...contract.actor import AUTO
from ...contract.capabilities import RunOwnership
from ...contract.errors import ActiveRunError, IdempotencyKeyError, RunExistsError, StorageError
from ...contract.payloads import to_json_mapping
from ...contract.rows import (
    CANCEL_ACTIONS,
    COMPLETION_COUNTS,
    ENDED_STATUSES,
    MULTITASK_STRATEGIES,
    OPERATION_KINDS,
    PENDING,
    AdmissionFields,
    CancelAction,
    LeaseRenewal,
    OperationFields,
    RunProgressFields,
    RunRow,
    StatusFinalization,
    ThreadOperation,
    TimeInput,
)
from ...contract.times import clock, parse_time, system_clock_us
from .. import queries
from ..documents.encoding import Document, encode_mapping
from ..documents.run_operations import (
    Operation,
    ending,
    insertion,
    interruption,
    new_operation,
    progress_update,
    replacement,
)
from ..documents.run_ownership import (
    CANCEL_ACTION,
    IDEMPOTENCY_KEY,
    KIND,
    OWNER,
    cancel_action,
    cancel_update,
    renewal_update,
    start_update,
)
from ..documents.runs import run_row
from ..documents.stored_times import stamp_from_optional, stamp_of
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..row_collection import RowCollection
from ..schema import ACTIVE_OPERATION_INDEX, OLDEST_FIRST, RUNS

RUN_KIND, REJECT, GRACE_SECONDS = "run", "reject", 10

_ATTEMPTS = 5
"""How often an insert is tried whose reason for being refused was gone when it was looked for."""

_PROGRESS_TEXTS = ("first_human_message", "last_ai_message")
_ACTIVE_KEYS = tuple(key for key, _ in ACTIVE_OPERATION_INDEX.keys)


class MongoRunOwnership(RunOwnership):
    """`RunOwnership` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._rows = RowCollection(collection, RUNS, run_row)

    # Storing and admission.

    async def put(self, run_id: str, *, thread_id: str, **fields: Unpack[OperationFields]) -> None:
        arguments.check_keywords(fields, OperationFields)
        owner = _optional_identifier("owner_worker_id", fields.get("owner_worker_id"))
        kind = fields.get("operation_kind", RUN_KIND)
        operation = _operation(
            "put",
            run_id,
            thread_id,
            fields,
            status=arguments.owned_status("status", fields.get("status", PENDING)),
            operation_kind=None if kind is None else _kind(kind),
            owner_worker_id=owner,
            lease_expires_at=fields.get("lease_expires_at"),
            error=fields.get("error"),
            stop_reason=fields.get("stop_reason"),
        )
        for _ in range(_ATTEMPTS):
            try:
                query = queries.run_by_id(operation.run_id)
                return await self._rows.upsert_one(query, replacement(operation))
            except DuplicateKeyError as duplicate:
                refusal = await self._why_refused(operation, duplicate)
                if refusal is not None:
                    raise refusal from duplicate.__cause__
        raise ActiveRunError(operation.thread_id)

    async def create_thread_operation_atomic(
        self,
        run_id: str,
        *,
        thread_id: str,
        owner_worker_id: str,
        lease_expires_at: TimeInput | None,
        **fields: Unpack[AdmissionFields],
    ) -> ThreadOperation:
        arguments.check_keywords(fields, AdmissionFields)
        owner = arguments.identifier("owner_worker_id", owner_worker_id)
        grace = arguments.seconds("grace_seconds", fields.get("grace_seconds", GRACE_SECONDS))
        operation = _operation(
            "create_thread_operation_atomic",
            run_id,
            thread_id,
            fields,
            status=PENDING,
            operation_kind=_kind(fields.get("operation_kind", RUN_KIND)),
            owner_worker_id=owner,
            lease_expires_at=lease_expires_at,
        )
        if operation.multitask_strategy == REJECT:
            return ThreadOperation(await self._admit(operation), [])
        return await self._admit_interrupting(operation, owner, grace)

    async def _admit(self, operation: Operation) -> RunRow:
        """Insert the operation; its row. Raises the reason where it is refused."""
        document = new_operation(operation)
        row = self._rows.row(document)
        for _ in range(_ATTEMPTS):
            try:
                query = queries.new_run_by_id(operation.run_id)
                await self._collection.upsert_one(query, insertion(document))
            except DuplicateKeyError as duplicate:
                refusal = await self._why_refused(operation, duplicate, is_new=True)
                if refusal is not None:
                    raise refusal from duplicate.__cause__
            else:
                return row
        raise ActiveRunError(operation.thread_id)

    async def _admit_interrupting(
        self, operation: Operation, owner: str, grace_seconds: float
    ) -> ThreadOperation:
        """As `_admit`; an active run of the thread is ended before, if it may be.

        The insert is tried first: an operation whose idempotency key is known must end nothing. A crash after
        the active run was ended leaves a free thread. Another operation may be admitted in between, and is
        then the next one to be ended.
        """
        interrupted: list[RunRow] = []
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                return ThreadOperation(await self._admit(operation), interrupted)
            except ActiveRunError:
                if not attempts_left:
                    raise  # without ending a run that nothing would replace
                row = await self._interrupt(operation, owner, grace_seconds)
                if row is not None:
                    interrupted.append(row)
                else:
                    await self._check_not_protected(operation)
        raise ActiveRunError(operation.thread_id)

    async def _interrupt(self, operation: Operation, owner: str, grace_seconds: float) -> RunRow | None:
        """End what occupies the thread, if the new operation may replace it; its row."""
        query = queries.interruptible_operation(
            operation.thread_id, owner, grace_seconds, operation.idempotency_key
        )
        document = await self._rows.find_one_and_update(query, interruption(owner))
        return None if document is None else self._rows.row(document)

    async def _check_not_protected(self, operation: Operation) -> None:
        """Raise where the thread is still occupied by what may not be interrupted."""
        document = await self._collection.find_one(queries.active_operation(operation.thread_id))
        if document is None:
            return
        key, kind = operation.idempotency_key, document.get(KIND)
        if key is not None and document.get(IDEMPOTENCY_KEY) == key:
            raise IdempotencyKeyError(self._rows.row(document))
        if kind == RUN_KIND and document.get(OWNER) == operation.owner_worker_id:
            return  # admitted since by the same worker: the next attempt ends it
        reason = (
            "already has an active run owned by another worker"
            if kind == RUN_KIND
            else f"is reserved ({kind})"
        )
        raise ActiveRunError(
            operation.thread_id, is_protected=True, reason=f"thread {operation.thread_id!r} {reason}"
        )

    async def _why_refused(
        self, operation: Operation, duplicate: DuplicateKeyError, *, is_new: bool = False
    ) -> StorageError | None:
        """The error that a unique index's refusal means; None if its reason is gone.

        The server reports only the first index that refuses a document. A known idempotency key, and a known
        run id, are errors whatever else is.
        """
        run_id, key = operation.run_id, operation.idempotency_key
        if key is not None:
            existing = await self._rows.find_one(queries.run_by_idempotency_key(key))
            if existing is not None and (is_new or existing["run_id"] != run_id):
                return IdempotencyKeyError(existing)
        if duplicate.keys == _ACTIVE_KEYS:
            return ActiveRunError(operation.thread_id)
        if is_new:
            if await self._collection.find_one(queries.run_by_id(run_id)) is not None:
                return RunExistsError(run_id)
        else:
            await self._rows.check_not_newer(queries.run_by_id(run_id))
        active = await self._collection.find_one(queries.active_operation(operation.thread_id))
        if active is not None and active["_id"] != run_id:
            return ActiveRunError(operation.thread_id)
        return None

    # The owner.

    async def start_run(self, run_id: str) -> bool:
        return await self._rows.update_one(queries.pending_run(run_id), start_update())

    async def update_lease(self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput) -> bool:
        query = queries.active_run_of_worker(run_id, owner_worker_id)
        return await self._rows.update_one(query, _renewal(lease_expires_at))

    async def renew_lease(
        self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput
    ) -> LeaseRenewal:
        query = queries.active_run_of_worker(run_id, owner_worker_id)
        document = await self._rows.find_one_and_update(
            query, _renewal(lease_expires_at), projection=[CANCEL_ACTION]
        )
        if document is None:
            await self._rows.check_not_newer(query)
        return LeaseRenewal(document is not None, cancel_action(document))

    async def renew_leases_of_worker(self, owner_worker_id: str, *, lease_expires_at: TimeInput) -> int:
        query = queries.active_runs_of_worker(owner_worker_id)
        return await self._rows.update_all(query, _renewal(lease_expires_at))

    async def update_run_progress(self, run_id: str, **fields: Unpack[RunProgressFields]) -> bool:
        arguments.check_keywords(fields, RunProgressFields)
        texts = {name: arguments.long_text(name, fields.get(name)) for name in _PROGRESS_TEXTS}
        update = progress_update(
            counts={
                name: arguments.count(name, fields.get(name))
                for name in COMPLETION_COUNTS
                if fields.get(name) is not None
            },
            by_model=arguments.model_counts("token_usage_by_model", fields.get("token_usage_by_model")),
            texts={name: text for name, text in texts.items() if text is not None},
        )
        return await self._rows.update_one(queries.running_run(run_id), update)

    # Cancellation, endings and take-over.

    async def request_cancel(self, run_id: str, *, action: CancelAction) -> CancelAction | None:
        update = cancel_update(arguments.one_of("action", action, CANCEL_ACTIONS))
        query = queries.active_run(run_id)
        document = await self._rows.find_one_and_update(query, update, projection=[CANCEL_ACTION])
        if document is None:
            await self._rows.check_not_newer(query)
        return cancel_action(document)

    async def finalize_if_not_cancelled(
        self, run_id: str, *, status: str, error: str | None = None, stop_reason: str | None = None
    ) -> StatusFinalization:
        update = ending(arguments.owned_status("status", status), error=error, stop_reason=stop_reason)
        if await self._rows.update_matching(queries.uncancelled_run(run_id), update):
            return StatusFinalization(finalized=True)
        document = await self._collection.find_one(queries.run_by_id(run_id))
        if document is not None:
            self._rows.row(document)
        return StatusFinalization(finalized=False, cancel_action=cancel_action(document))

    async def claim_for_takeover(
        self, run_id: str, *, grace_seconds: float, error: str, stop_reason: str | None = None
    ) -> bool:
        query = queries.expired_run(run_id, arguments.seconds("grace_seconds", grace_seconds))
        return await self._rows.update_one(query, ending("error", error=error, stop_reason=stop_reason))

    async def end_runs_of_worker(
        self, owner_worker_id: str, *, status: str, error: str, stop_reason: str | None = None
    ) -> int:
        update = ending(
            arguments.one_of("status", status, ENDED_STATUSES), error=error, stop_reason=stop_reason
        )
        return await self._rows.update_all(queries.active_runs_of_worker(owner_worker_id), update)

    # Lists.

    async def list_inflight(self, *, before: TimeInput | None = None) -> list[RunRow]:
        return await self._inflight(queries.active_until(_until(before)))

    async def list_inflight_with_expired_lease(
        self, *, before: TimeInput | None = None, grace_seconds: float = 10
    ) -> list[RunRow]:
        grace = arguments.seconds("grace_seconds", grace_seconds)
        return await self._inflight(queries.expired_until(_until(before), grace))

    async def _inflight(self, query: queries.Query) -> list[RunRow]:
        return await self._rows.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)


def _until(before: TimeInput | None) -> int:
    until = stamp_from_optional("before", before)
    return clock.stamp_us() if until is None else until


def _renewal(lease_expires_at: TimeInput) -> Document:
    expires_us = stamp_of(parse_time("lease_expires_at", lease_expires_at))
    return renewal_update(expires_us, system_clock_us())


def _optional_identifier(name: str, value: object) -> str | None:
    return None if value is None else arguments.identifier(name, value)


def _kind(operation_kind: object) -> str:
    return arguments.one_of("operation_kind", operation_kind, OPERATION_KINDS)


def _operation(
    method: str,
    run_id: object,
    thread_id: object,
    fields: OperationFields | AdmissionFields,
    *,
    status: str,
    operation_kind: str | None,
    owner_worker_id: str | None,
    lease_expires_at: TimeInput | None,
    error: str | None = None,
    stop_reason: str | None = None,
) -> Operation:
    """The operation, checked; `fields` has what `put` and an admission have in common."""
    text, strategy = arguments.optional_text, fields.get("multitask_strategy", REJECT)
    return Operation(
        run_id=arguments.identifier("run_id", run_id),
        thread_id=arguments.identifier("thread_id", thread_id),
        status=status,
        operation_kind=operation_kind,
        multitask_strategy=arguments.one_of("multitask_strategy", strategy, MULTITASK_STRATEGIES),
        assistant_id=text("assistant_id", fields.get("assistant_id")),
        user_id=arguments.acting_user(fields.get("user_id", AUTO), f"RunOwnership.{method}"),
        model_name=text("model_name", fields.get("model_name")),
        metadata=encode_mapping(to_json_mapping(fields.get("metadata"), "metadata")),
        kwargs=encode_mapping(to_json_mapping(fields.get("kwargs"), "kwargs")),
        error=arguments.long_text("error", error),
        stop_reason=arguments.long_text("stop_reason", stop_reason),
        created_stamp_us=stamp_from_optional("created_at", fields.get("created_at")),
        follow_up_to_run_id=text("follow_up_to_run_id", fields.get("follow_up_to_run_id")),
        owner_worker_id=owner_worker_id,
        lease_expires_us=stamp_from_optional("lease_expires_at", lease_expires_at),
        idempotency_key=_optional_identifier("idempotency_key", fields.get("idempotency_key")),
        clock_us=system_clock_us(),
    )
