"""A driver's exception -> the package's error, with the operation, the namespace and what to do in its text.

No text contains a password, or a value that a unique index refused. The driver's exception becomes the
`__cause__` where the result is raised: `raise translate(error, ...) from error`.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import bson
from bson.errors import BSONError, InvalidDocument
from pymongo import errors

from ...contract.errors import (
    InvalidPayloadError,
    PayloadTooLargeError,
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""What a MongoDB server stores in one document (its limit, "BSON Document Size")."""

WATCH = "watch"
"""The operation that opens and reads a change stream."""

NO_CHANGE_STREAMS = "change streams require a replica set (one member is enough)"

# Codes as in the server's own list (error_codes.yml).
NO_TRANSACTIONS_CODE = 20  # IllegalOperation: a standalone server
INDEX_NOT_FOUND_CODE = 27
TOO_LARGE_FOR_TRANSACTION_CODES = frozenset({257, 388})  # TransactionTooLarge, TransactionTooLargeForCache

_NO_CHANGE_STREAMS_CODES = frozenset({20, 40573})  # IllegalOperation; "only supported on replica sets"
_ACCESS_CODES = frozenset({13, 18, 33, 8000})  # Unauthorized, AuthenticationFailed, ...; 8000 is Atlas' own
_BAD_VALUE_CODE = 2
_TOO_LARGE_CODES = frozenset({_BAD_VALUE_CODE, 10334, 16493, 17419, 17420, 17280})
_INVALID_CODES = frozenset({15, 22, 52, 55, 56, 57})  # Overflow of depth, invalid field names
_VALIDATION_CODE = 121
_DUPLICATE_KEY_CODE = 11000
_UNAVAILABLE_CODES = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        50,  # MaxTimeMSExpired
        64,  # WriteConcernFailed
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        100,  # UnsatisfiableWriteConcern
        112,  # WriteConflict
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        262,  # ExceededTimeLimit
        9001,  # SocketException
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11602,  # InterruptedDueToReplStateChange
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
        14031,  # OutOfDiskSpace
    }
)
_UNAVAILABLE: tuple[type[Exception], ...] = (
    errors.ConnectionFailure,
    errors.WaitQueueTimeoutError,
    errors.ExecutionTimeout,
    errors.WTimeoutError,
)
_NOT_ENCODABLE: tuple[type[Exception], ...] = (InvalidDocument, OverflowError, UnicodeEncodeError)
DRIVER_ERRORS: tuple[type[Exception], ...] = (
    errors.PyMongoError,
    BSONError,
    OverflowError,
    UnicodeEncodeError,
)
_MAX_REASON = 500

_Error = TypeVar("_Error", bound=StorageError)


class DuplicateKeyError(StorageError):
    """A unique index refused a write. For the stores, which give it its meaning.

    Of several documents, the first `stored` ones are stored and no others. `keys` are those of the index,
    None where the server does not report them.
    """

    def __init__(self, text: str, stored: int = 0, keys: Sequence[str] | None = None) -> None:
        super().__init__(text)
        self.stored = stored
        self.keys = None if keys is None else tuple(keys)


def translate(
    error: Exception, operation: str = "", namespace: str = "", written: object = None
) -> StorageError:
    """The package's error for a driver's.

    `operation` is the server's command, `namespace` is `database.collection` or the database; `written` is
    what was to be stored, to name its largest part.
    """
    index = 0
    if isinstance(error, errors.BulkWriteError):
        error = _first_failure(error)
        index = cast("dict[str, Any]", error.details).get("index", 0)
    code = error.code if isinstance(error, errors.OperationFailure) else None
    place = _place(operation, namespace, code)
    if code == _DUPLICATE_KEY_CODE or isinstance(error, errors.DuplicateKeyError):
        return _duplicate_key(error, place, index)
    if _is_too_large(error, code):
        return too_large(written)
    if isinstance(error, _UNAVAILABLE) or code in _UNAVAILABLE_CODES:
        return StorageUnavailableError(
            f"MongoDB cannot be reached or did not answer in time{place}: {_reason(error)}"
        )
    if code in _ACCESS_CODES:
        return StorageAccessError(f"authentication or authorization failed{place}")
    if isinstance(error, errors.InvalidOperation) and "close" in str(error).lower():
        return StorageClosedError()
    if isinstance(error, _NOT_ENCODABLE):
        return InvalidPayloadError(
            largest_field(written)[0], f"{type(error).__name__} from the driver{place}"
        )
    if code in _INVALID_CODES:
        return InvalidPayloadError(largest_field(written)[0], f"MongoDB refused it{place}")
    if code == _VALIDATION_CODE:
        return StorageError(
            f"the collection's validator refused the document{place}; if another release set up the "
            "database, run setup() with this one"
        )
    if operation == WATCH and code in _NO_CHANGE_STREAMS_CODES:
        return StorageError(f"{NO_CHANGE_STREAMS}{place}")
    if isinstance(error, errors.ConfigurationError):
        return StorageConfigError(f"the MongoDB client refused its settings{place}: {_reason(error)}")
    return StorageError(f"MongoDB reported an error{place}: {_reason(error)}")


@contextmanager
def translating(operation: str = "", namespace: str = "") -> Generator[None]:
    """For what is not on the hot path: errors inside become the package's own."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translate(error, operation, namespace) from error


def code_of(error: BaseException | None) -> int | None:
    """The server's code in a driver's exception, or in the one that caused an error of the package."""
    if isinstance(error, StorageError):
        error = error.__cause__
    if isinstance(error, errors.BulkWriteError):
        error = _first_failure(error)
    return error.code if isinstance(error, errors.OperationFailure) else None


def copied(error: _Error) -> _Error:
    """The same error for one more caller: tasks that raise one object would mix their tracebacks."""
    return with_cause(copy.copy(error), error.__cause__)


def with_cause(error: _Error, cause: BaseException | None) -> _Error:
    """The error with its cause, where it is not raised here but handed to a caller that waits."""
    error.__cause__ = cause
    return error


# -- the parts of a text ---------------------------------------------------------------------------


def _place(operation: str, namespace: str, code: int | None) -> str:
    """Such as ": `find` on `deerflow.runs` (code 13)"; "" where nothing of it is known."""
    where = " on ".join(f"`{name}`" for name in (operation, namespace) if name)
    coded = "" if code is None else f" (code {code})"
    return f": {where}{coded}" if where else coded


def _reason(error: Exception) -> str:
    """The first sentence of a driver's message; the rest lists every server's state."""
    text = str(error).split(", full error", 1)[0].split(", Timeout:", 1)[0]
    return f"{type(error).__name__}: {text}"[:_MAX_REASON]


def _duplicate_key(error: Exception, place: str, index: int) -> DuplicateKeyError:
    """The text names the index's keys; the server's own would show the values, which are a user's."""
    details = error.details if isinstance(error, errors.OperationFailure) else None
    keys: Sequence[str] | None = (cast("dict[str, Any]", details or {})).get("keyPattern")
    which = "" if keys is None else f" on ({', '.join(keys)})"
    return DuplicateKeyError(f"a unique index{which} refused the document{place}", index, keys)


def _first_failure(error: errors.BulkWriteError) -> errors.OperationFailure:
    """What went wrong with the first document that was refused, or else with the whole write."""
    details = cast("dict[str, Any]", error.details)
    failures: list[dict[str, Any]] = details.get("writeErrors") or details.get("writeConcernErrors") or [{}]
    first = failures[0]
    return errors.OperationFailure(str(first.get("errmsg")), first.get("code"), first)


# -- sizes -----------------------------------------------------------------------------------------


def _is_too_large(error: Exception, code: int | None) -> bool:
    if isinstance(error, errors.DocumentTooLarge):
        return True
    # BadValue is only sometimes about a size.
    return code in _TOO_LARGE_CODES and (
        code != _BAD_VALUE_CODE or "large" in str(error) or "size" in str(error)
    )


def too_large(written: object) -> PayloadTooLargeError:
    name, size_bytes = largest_field(written)
    return PayloadTooLargeError(name, size_bytes, MAX_DOCUMENT_BYTES)


def largest_field(written: object) -> tuple[str, int | None]:
    """The name and size of the largest field in a document or an update; the size is None if unknown."""
    sizes = [(size_bytes, name) for name, size_bytes in _sizes(written)]
    size_bytes, name = max(sizes, default=(0, "the document"))
    return name, size_bytes or None


def _sizes(written: object) -> Iterator[tuple[str, int]]:
    if isinstance(written, list):
        for stage in cast("list[object]", written):
            yield from _sizes(stage)
    elif isinstance(written, dict):
        for name, value in cast("dict[str, Any]", written).items():
            if name.startswith("$") and isinstance(value, dict):
                yield from _sizes(cast("dict[str, Any]", value))
            else:
                yield name, _size_bytes(value)


def _size_bytes(value: object) -> int:
    try:
        return len(bson.encode({"": value}))
    except (BSONError, OverflowError, UnicodeEncodeError, ValueError):
        return len(str(value))
