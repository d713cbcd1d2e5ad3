"""What not every backend can do: small Protocols that a host checks at run time with `isinstance`.

A storage has a capability by having its methods; nothing is registered. A host that needs some asks
`require_capabilities`, whose error names what is missing in one sentence. The core is in `protocols.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol, Unpack, runtime_checkable

from .bulk_rows import BulkRows
from .erasure import Erasure
from .errors import StorageConfigError
from .protocols import Storage
from .rows import (
    AdmissionFields,
    CancelAction,
    LeaseRenewal,
    OperationFields,
    RunEventRow,
    RunProgressFields,
    RunRow,
    StatusFinalization,
    ThreadOperation,
    TimeInput,
    UserRow,
)


class UserStore(Protocol):
    """Accounts, for a host that stores its users in the same database.

    No two accounts have the same id, email or OAuth identity, whatever races: the second one raises
    `UserExistsError` and changes nothing. Emails that differ in case only are the same: a new one is stored
    in lower case, as is one that an update changes by more than its case. An account that an older release
    stored with capitals keeps them; of several that differ in case only, lookups find the oldest. What a
    password hash, a role or a token version means is up to the host; a hash appears in no error, `repr` or
    log record.
    """

    async def create(
        self,
        user_id: str,
        *,
        email: str,
        password_hash: str | None = None,
        system_role: str = "user",
        created_at: TimeInput | None = None,
        oauth_provider: str | None = None,
        oauth_id: str | None = None,
        needs_setup: bool = False,
        token_version: int = 0,
    ) -> UserRow:
        """Store a new account; `created_at` is now by default."""
        ...

    async def get(self, user_id: str) -> UserRow | None:
        """The account, or None."""
        ...

    async def get_by_email(self, email: str) -> UserRow | None:
        """The account with this email, whatever the case of its letters, or None."""
        ...

    async def get_by_oauth(self, oauth_provider: str, oauth_id: str) -> UserRow | None:
        """The account with this identity at an OAuth provider, or None."""
        ...

    async def update(
        self,
        user_id: str,
        *,
        email: str,
        password_hash: str | None,
        system_role: str,
        oauth_provider: str | None,
        oauth_id: str | None,
        needs_setup: bool,
        token_version: int,
    ) -> bool:
        """Set all of these at once; False if there is no such account."""
        ...

    async def count(self, *, system_role: str | None = None) -> int:
        """The number of accounts, or of those with this role."""
        ...

    async def list_by_role(self, system_role: str, *, limit: int = 100) -> list[UserRow]:
        """The accounts with this role, oldest first."""
        ...


@runtime_checkable
class Accounts(Protocol):
    """A storage that has accounts."""

    @property
    def users(self) -> UserStore: ...


@runtime_checkable
class Checkpointing(Protocol):
    """A storage that has LangGraph's checkpoints in the same database."""

    async def checkpointer(self) -> Any:
        """LangGraph's checkpoint saver, the same object at every call, closed with the storage."""
        ...


@runtime_checkable
class Following(Protocol):
    """A `RunEventStore` that can be followed; looked for in `storage.run_events`."""

    @property
    def max_followers(self) -> int:
        """How many calls of `follow` may be open at once in one storage."""
        ...

    async def list_thread_events(
        self, thread_id: str, *, run_id: str | None = None, after_seq: int = 0, limit: int = 500
    ) -> list[RunEventRow]:
        """The first `limit` events after `after_seq`, of every category, or those of one run."""
        ...

    def follow(
        self,
        thread_id: str,
        *,
        run_id: str | None = None,
        after_seq: int = 0,
        until_run_ends: bool = False,
    ) -> AsyncGenerator[RunEventRow]:
        """The thread's events after `after_seq`, then every new one as it is stored, in rising `seq`.

        With `until_run_ends`, which needs a `run_id` (else `ArgumentValueError`), it ends after the events
        that were stored before the run got an ending as its status, or was deleted; a run that is not stored
        has not begun. All followers of a storage share one connection, and one that waits needs none.

        Raises `StorageUnavailableError` when the server is lost; to continue, follow again from the last
        `seq` seen. Raises `StorageError` on a server that cannot report changes, and where the storage has as
        many followers as it can have (`max_followers`).
        """
        ...


@runtime_checkable
class RunOwnership(Protocol):
    """Runs of several workers, each owned by one of them under a lease; looked for in `storage.runs`.

    A run that is written here occupies its thread while it is active (one of `ACTIVE_STATUSES`): the database
    allows one active run or reservation of a thread, whatever races. A reservation is a short-lived row of
    another `operation_kind` than "run"; it is in no list of runs but those of this Protocol. A run that is
    written with `operation_kind` None has an owner and a lease, and does not occupy its thread. An
    idempotency key belongs to one run of the whole database.

    A lease is active from its last renewal for as long as the caller asked for: `lease_expires_at` minus the
    time on the caller's clock at the call. Whether it has expired is judged on the database's clock alone, so
    a worker whose clock is wrong neither loses its runs nor takes those of others. A lease has expired when
    it ended earlier than `grace_seconds` ago; one that ended exactly then is valid. A run without a lease
    counts as expired. `RunRow["lease_expires_at"]` is the time that the caller gave.

    Methods of this Protocol need no actor, except for `user_id=AUTO`. A status, an operation kind, an action
    or a strategy that is not in the tables of `rows.py` raises `ArgumentValueError` before any query. A run
    that does not exist is a result and not logged.
    """

    async def put(self, run_id: str, *, thread_id: str, **fields: Unpack[OperationFields]) -> None:
        """Store the run, or replace every one of these fields of the run of this id; it can be repeated.

        `created_at` stays that of the first call, and counts, texts and a requested cancellation stay as
        well. Defaults: `status` "pending", `operation_kind` "run", `multitask_strategy` "reject", `user_id`
        AUTO, `created_at` now, metadata and kwargs {}, all others None. Raises `ActiveRunError` where the
        thread has another active run, `IdempotencyKeyError` for another run's key.
        """
        ...

    async def create_thread_operation_atomic(
        self,
        run_id: str,
        *,
        thread_id: str,
        owner_worker_id: str,
        lease_expires_at: TimeInput | None,
        **fields: Unpack[AdmissionFields],
    ) -> ThreadOperation:
        """Admit a run, or a reservation, as pending, if its thread is free or may be freed.

        `multitask_strategy` "reject" (the default) raises `ActiveRunError` where the thread has an active run
        or reservation. "interrupt" and "rollback" first end the active run as "interrupted" with the error
        `SUPERSEDED_ERROR` and this owner, and return its row too. They raise `ActiveRunError` with
        `is_protected`, and change nothing, where another worker owns it with a lease that has not expired, or
        where it is a reservation without an expired lease, also one of the same worker. A crash between the
        two steps leaves an interrupted run and no new one.

        Raises `IdempotencyKeyError`, and changes nothing, for a known `idempotency_key`, and `RunExistsError`
        for a known `run_id`. `grace_seconds` is 10 by default.
        """
        ...

    async def start_run(self, run_id: str) -> bool:
        """Make a pending run running and set `started_at`; False if there is no such pending run."""
        ...

    async def update_lease(self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput) -> bool:
        """Renew the lease of an active run of this owner; False if there is none."""
        ...

    async def renew_lease(
        self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput
    ) -> LeaseRenewal:
        """As `update_lease`, and read the requested cancellation in the same atomic update.

        A run whose lease has expired, and that nobody has taken over, is renewed.
        """
        ...

    async def renew_leases_of_worker(self, owner_worker_id: str, *, lease_expires_at: TimeInput) -> int:
        """Renew the leases of all active runs of this owner by one command; their number."""
        ...

    async def request_cancel(self, run_id: str, *, action: CancelAction) -> CancelAction | None:
        """Request that the owner cancels an active run; the action of the first request, which stands.

        None if there is no such active run.
        """
        ...

    async def finalize_if_not_cancelled(
        self, run_id: str, *, status: str, error: str | None = None, stop_reason: str | None = None
    ) -> StatusFinalization:
        """Set the status of an active run for which no cancellation was requested, in one atomic update.

        Of a completion and a cancellation, exactly one wins. Error and stop reason are set only where given.
        """
        ...

    async def claim_for_takeover(
        self, run_id: str, *, grace_seconds: float, error: str, stop_reason: str | None = None
    ) -> bool:
        """End an active run whose lease has expired as "error", in one atomic update.

        Owner and lease stay. False if it has ended, does not exist, or was renewed in between.
        """
        ...

    async def end_runs_of_worker(
        self, owner_worker_id: str, *, status: str, error: str, stop_reason: str | None = None
    ) -> int:
        """End all active runs of this owner with this status by one command; their number.

        Reservations too. Raises `ArgumentValueError` for a status that is no ending.
        """
        ...

    async def list_inflight(self, *, before: TimeInput | None = None) -> list[RunRow]:
        """All active runs and reservations created at or before `before` (now), oldest first."""
        ...

    async def list_inflight_with_expired_lease(
        self, *, before: TimeInput | None = None, grace_seconds: float = 10
    ) -> list[RunRow]:
        """Those of `list_inflight` whose lease has expired, or that have none."""
        ...

    async def update_run_progress(self, run_id: str, **fields: Unpack[RunProgressFields]) -> bool:
        """Set the counts and texts given, if the status is exactly "running"; False where it is not."""
        ...


@runtime_checkable
class LimitedPayloads(Protocol):
    """A storage that states how large a row may be; one without this property has no limit."""

    @property
    def max_payload_bytes(self) -> int | None:
        """The size of a stored row, in the backend's encoding, above which a write raises an error.

        The error is `PayloadTooLargeError`, and nothing is written; of a batch of events, none. A row counts
        as a whole, with what a merge leaves in it. A limit is at least 1 MiB and does not change; a row whose
        texts have half of it in UTF-8 is always stored. None: there is no limit.
        """
        ...


def max_payload_bytes(storage: Storage) -> int | None:
    """The limit that the storage states; None where it has none."""
    return storage.max_payload_bytes if isinstance(storage, LimitedPayloads) else None


@runtime_checkable
class IdentifiedDatabase(Protocol):
    """A storage that states which database it uses, for caches that several databases share."""

    @property
    def database_identity(self) -> str | None:
        """Equal in all processes on one database, different for any other, without credentials.

        None for a database that no other process uses.
        """
        ...


def database_identity(storage: Storage) -> str | None:
    """The identity that the storage states; None where it has none."""
    return storage.database_identity if isinstance(storage, IdentifiedDatabase) else None


CAPABILITIES: dict[type, str] = {
    Accounts: "accounts (`storage.users`)",
    BulkRows: "export and import of rows (`storage.export_rows`)",
    Checkpointing: "checkpoints (`storage.checkpointer()`)",
    Erasure: "the erasure of threads and users (`storage.purge_thread`)",
    Following: "following run events (`storage.run_events.follow`)",
    RunOwnership: "run ownership (`storage.runs.create_thread_operation_atomic`)",
}
"""Each capability and how error texts name it. Live streams will be a further one."""

_STORES: dict[type, str] = {Following: "run_events", RunOwnership: "runs"}
"""The capabilities of one store, and its name; the others are the storage's."""


def missing_capabilities(storage: Storage, *wanted: type) -> list[str]:
    """How error texts name those of the wanted capabilities that the storage does not have."""
    return [
        CAPABILITIES[capability]
        for capability in wanted
        if not isinstance(_provider(storage, capability), capability)
    ]


def _provider(storage: Storage, capability: type) -> object:
    name = _STORES.get(capability)
    return storage if name is None else getattr(storage, name)


def require_capabilities(storage: Storage, needed_by: str, *wanted: type) -> None:
    """Raise `StorageConfigError`, naming what is missing, unless the storage has all of these."""
    missing = missing_capabilities(storage, *wanted)
    if missing:
        raise StorageConfigError(
            f"{needed_by} needs {' and '.join(missing)}, which {type(storage).__name__} does not have; "
            "use a backend that has, such as `backend: mongodb`"
        )
