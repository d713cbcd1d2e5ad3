"""Every error that a storage raises, in one hierarchy.

Errors of arguments are also `TypeError` or `ValueError`, so that a caller may catch either. The driver's
exception, where there is one, is the `__cause__`. All errors pickle and copy: a process pool or a task queue
hands them on with their type, text and attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StorageError(Exception):
    """Something went wrong in the storage. Base of every error below."""

    def __reduce__(self) -> Any:
        """Rebuild without `__init__`, whose arguments are not those that `Exception` stores."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    error_type: type[StorageError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> StorageError:
    error = error_type.__new__(error_type, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


# -- the server and the configuration --------------------------------------------------------------


class StorageUnavailableError(StorageError):
    """No server, a lost connection, a timeout or an exhausted pool.

    Safe to retry: a write may or may not have been stored, and repeating it changes nothing where the caller
    made the id (`runs.create` then raises `RunExistsError`). The exception is `record_token_usage`: the
    driver retries it safely, but a caller who repeats it after this error may count twice.
    """


class StorageAccessError(StorageError):
    """Authentication failed, or the database user is not authorized for the operation."""


class CorruptDocumentError(StorageError):
    """A stored document cannot be read: another program has changed it, or a newer release has written it.

    `collection`, `document_id` (the `_id` as text) and `field` name the place, and the text names all three.
    `field` is the path of the first field that is missing or has another type, or "schema_version". Lists
    leave such a document out and log it at ERROR; a method that is given its id raises this and changes
    nothing.
    """

    def __init__(self, collection: str, document_id: str, field: str, reason: str) -> None:
        self.collection = collection
        self.document_id = document_id
        self.field = field
        self.reason = reason
        super().__init__(
            f"document {document_id!r} of collection {collection!r} cannot be read: {field} {reason}"
        )


class StorageClosedError(StorageError):
    """The storage was closed and cannot be used any more."""

    def __init__(self, message: str = "this storage is closed") -> None:
        super().__init__(message)


class StorageConfigError(StorageError):
    """The configuration, the server or the stored schema does not fit; the text says what to change.

    It names an unknown option and shows no password.
    """


class BackendNotFoundError(StorageConfigError):
    """No built-in backend and no installed package has this name; the text lists the known names."""


class MissingDependencyError(StorageConfigError):
    """An optional package is needed and not installed; the text names the extra that installs it."""

    def __init__(self, needed_for: str, package: str, extra: str) -> None:
        self.needed_for = needed_for
        self.package = package
        self.extra = extra
        super().__init__(
            f"{needed_for} needs {package}, which is not installed. "
            f"Install it with: pip install 'deerflow-mongo[{extra}]'"
        )


# -- arguments and payloads ------------------------------------------------------------------------


class InvalidArgumentError(StorageError):
    """An argument is wrong; nothing was read or written. Raised as one of the two below.

    The text names the argument; one of a batch of run events with its place: `events[1].run_id`.
    """


class ArgumentTypeError(InvalidArgumentError, TypeError):
    """An argument has the wrong type."""


class ArgumentValueError(InvalidArgumentError, ValueError):
    """An argument has the right type and a value that is not allowed."""


class InvalidPayloadError(StorageError, ValueError):
    """A value cannot be stored; nothing was written.

    `field` is its place: the argument, and the path from there, as in `metadata.steps[3]`. One of a batch of
    run events begins with the event's place: `events[1].metadata.steps[3]`. The text names it.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field} cannot be stored: {reason}")


class PayloadTooLargeError(StorageError, ValueError):
    """A row would exceed the `max_payload_bytes` that the storage states; nothing was written.

    `field` is the row's largest part, with its place in a batch: `events[1].content`. `size_bytes` is that of
    this part, or of the row; None only where parts that fit one by one are too large together, or where
    `reason` names another measure than bytes. `limit_bytes` is the stated limit.
    """

    def __init__(
        self, field: str, size_bytes: int | None, limit_bytes: int, *, reason: str | None = None
    ) -> None:
        self.field = field
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        self.reason = reason
        size = "too large" if size_bytes is None else f"{size_bytes:,} bytes large"
        limit = reason or f"a stored row has at most {limit_bytes:,} bytes"
        super().__init__(f"{field} is {size}; {limit}")


# -- the domain ------------------------------------------------------------------------------------


class ActorMissingError(StorageError, RuntimeError):
    """`user_id=AUTO`, and no actor with an id is bound; nothing was read or written.

    `method_name` ends in the method's name, as in "RunStore.get". The text begins with it and goes on "called
    with user_id=AUTO but no actor context is set".
    """

    def __init__(self, method_name: str) -> None:
        self.method_name = method_name
        super().__init__(
            f"{method_name} called with user_id=AUTO but no actor context is set; bind one with "
            "bind_actor_context(), or pass user_id: a string, or None for no filter"
        )


class ThreadAccessError(StorageError, PermissionError):
    """The thread belongs to another user; nothing was written, and the text reveals nothing about it."""

    def __init__(self, thread_id: str, action: str) -> None:
        """`action` completes "not allowed to ..."; for run events it is "append events to"."""
        self.thread_id = thread_id
        self.action = action
        super().__init__(f"not allowed to {action} thread {thread_id!r}")


class RunExistsError(StorageError):
    """A run of this id exists already and was not changed. The text names the id."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} exists already")


class ActiveRunError(StorageError):
    """The thread has an active run or reservation, and nothing was stored.

    `is_protected` says that it may not be interrupted now: another worker owns it and its lease is valid, or
    it is a reservation. The text names the thread.
    """

    def __init__(self, thread_id: str, *, is_protected: bool = False, reason: str | None = None) -> None:
        self.thread_id = thread_id
        self.is_protected = is_protected
        super().__init__(reason or f"thread {thread_id!r} already has an active run")


class IdempotencyKeyError(StorageError):
    """A run with this idempotency key exists already; nothing was stored or interrupted.

    `existing` is the row of that run. The text names its id.
    """

    def __init__(self, existing: Mapping[str, Any]) -> None:
        self.existing = existing
        super().__init__(f"the idempotency key already belongs to run {existing.get('run_id')!r}")


class ThreadExistsError(StorageError):
    """A thread of this id exists already and was not changed. The text names the id."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(f"thread {thread_id!r} exists already")


class UserExistsError(StorageError):
    """Another account has this id, email or OAuth identity already; nothing was written.

    `taken` is "id", "email" or "OAuth identity", or names all that it may be where the database does not
    report which. The text names it, and no value or password hash of either account.
    """

    def __init__(self, taken: str) -> None:
        self.taken = taken
        super().__init__(f"another account has this {taken} already")
