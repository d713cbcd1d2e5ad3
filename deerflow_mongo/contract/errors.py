"""Every error a store raises on its own account, in one hierarchy.

Not here: `TypeError` and `ValueError` for a wrong argument, `RuntimeError` for a missing actor and
`PermissionError` for someone else's thread. Those are Python's own, because they tell of a caller's mistake
and not of the storage. The driver's exception, where there is one, is the `__cause__`.
"""

from __future__ import annotations


class StorageError(Exception):
    """Something went wrong in the storage. Base of every error below."""


class StorageUnavailableError(StorageError):
    """No server, a lost connection, a timeout or an exhausted pool.

    Safe to retry: a write may or may not have been stored, and writing it again does no harm where the
    caller made the id (`runs.create` then answers `RunExistsError`). The exception is `record_token_usage`:
    the driver repeats it safely by itself, but a caller who repeats it after this error may count twice.
    """


class StorageAccessError(StorageError):
    """The login failed, or the user may not do this."""


class StorageConfigError(StorageError):
    """The configuration, the server or the stored schema does not fit; the text says what to change."""


class BackendNotFoundError(StorageConfigError):
    """No installed package offers a storage backend of this name; the text lists those that exist."""


class MissingDependencyError(StorageConfigError):
    """An optional package is needed and not installed; the text names the extra that brings it."""

    def __init__(self, needed_for: str, package: str, extra: str) -> None:
        self.needed_for = needed_for
        self.package = package
        self.extra = extra
        super().__init__(
            f"{needed_for} needs {package}, which is not installed. "
            f"Install it with: pip install 'deerflow-mongo[{extra}]'"
        )


class RunExistsError(StorageError):
    """A run of this id exists already; it was left as it is."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} exists already")


class ThreadExistsError(StorageError):
    """A thread of this id exists already; it was left as it is."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(f"thread {thread_id!r} exists already")


class UserExistsError(StorageError):
    """Another account has this id, email or OAuth identity already; nothing was written."""

    def __init__(self, taken: str) -> None:
        self.taken = taken
        super().__init__(f"another account has this {taken} already")


class InvalidPayloadError(StorageError, ValueError):
    """A value cannot be stored; `field` says where it stands, as in `metadata.steps[3]`."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field} cannot be stored: {reason}")


class PayloadTooLargeError(StorageError, ValueError):
    """A document would exceed what the server stores; `field` is its largest part, sizes are in bytes."""

    def __init__(self, field: str, size_bytes: int | None, limit_bytes: int) -> None:
        self.field = field
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        size = "too large" if size_bytes is None else f"{size_bytes:,} bytes large"
        super().__init__(f"{field} is {size}; a document holds at most {limit_bytes:,} bytes")
