"""What not every backend can do: small Protocols that a host checks at run time with `isinstance`.

A storage has a capability by having its methods; nothing is registered. A host that needs some asks
`require_capabilities`, whose error names what is missing in one sentence. The core is in `protocols.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol, runtime_checkable

from .errors import StorageConfigError
from .protocols import Storage
from .rows import RunEventRow, TimeInput, UserRow


class UserStore(Protocol):
    """Accounts, for a host that stores its users in the same database.

    No two accounts have the same id, email or OAuth identity, whatever races: the second one raises
    `UserExistsError` and changes nothing. What a password hash, a role or a token version means is up to the
    host; a hash appears in no error, `repr` or log record.
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
        """The account with exactly this email (case counts), or None."""
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


CAPABILITIES: dict[type, str] = {
    Accounts: "accounts (`storage.users`)",
    Checkpointing: "checkpoints (`storage.checkpointer()`)",
    Following: "following run events (`storage.run_events.follow`)",
}
"""Each capability and how error texts name it. Run ownership and live streams will be further ones."""


def missing_capabilities(storage: Storage, *wanted: type) -> list[str]:
    """How error texts name those of the wanted capabilities that the storage does not have."""
    return [
        CAPABILITIES[capability]
        for capability in wanted
        if not isinstance(storage.run_events if capability is Following else storage, capability)
    ]


def require_capabilities(storage: Storage, needed_by: str, *wanted: type) -> None:
    """Raise `StorageConfigError`, naming what is missing, unless the storage has all of these."""
    missing = missing_capabilities(storage, *wanted)
    if missing:
        raise StorageConfigError(
            f"{needed_by} needs {' and '.join(missing)}, which {type(storage).__name__} does not have; "
            "use a backend that has, such as `backend: mongodb`"
        )
