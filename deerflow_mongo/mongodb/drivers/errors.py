"""A driver's exception -> the package's error, with the operation, the namespace and what to do in its text.

No text contains a password, or a value that a unique index refused. The driver's exception becomes the
`__cause__` where the result is raised: `raise translate(error, ...) from error`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

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
from ..uri_options import redacted

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""What a MongoDB server stores in one document (its limit, "BSON Document Size")."""

WATCH = "watch"
"""The operation that opens and reads a change stream."""

NO_CHANGE_STREAMS = "change streams require a replica set (one member is enough)"

# Codes as in the server's own list (error_codes.yml).
INDEX_NOT_FOUND_CODE = 27

_NO_CHANGE_STREAMS_CODES = frozenset({20, 40573})  # IllegalOperation; "only supported on replica sets"
_WRITE_CONCERN_CODES = frozenset({79, 100})
_BAD_VALUE_CODE = 2
_VALIDATION_CODE = 121
_DUPLICATE_KEY_CODE = 11000

SERVER_ERRORS: Mapping[int, tuple[str, type[StorageError]]] = {
    6: ("HostUnreachable", StorageUnavailableError),
    7: ("HostNotFound", StorageUnavailableError),
    11: ("UserNotFound", StorageAccessError),
    13: ("Unauthorized", StorageAccessError),
    15: ("Overflow", InvalidPayloadError),
    18: ("AuthenticationFailed", StorageAccessError),
    22: ("InvalidBSON", InvalidPayloadError),
    24: ("LockTimeout", StorageUnavailableError),
    31: ("RoleNotFound", StorageAccessError),
    33: ("PrivilegeNotFound", StorageAccessError),
    43: ("CursorNotFound", StorageUnavailableError),
    46: ("LockBusy", StorageUnavailableError),
    50: ("MaxTimeMSExpired", StorageUnavailableError),
    52: ("DollarPrefixedFieldName", InvalidPayloadError),
    55: ("InvalidDBRef", InvalidPayloadError),
    56: ("EmptyFieldName", InvalidPayloadError),
    57: ("DottedFieldName", InvalidPayloadError),
    64: ("WriteConcernTimeout", StorageUnavailableError),
    79: ("UnknownReplWriteConcern", StorageConfigError),
    89: ("NetworkTimeout", StorageUnavailableError),
    91: ("ShutdownInProgress", StorageUnavailableError),
    94: ("NotYetInitialized", StorageUnavailableError),
    100: ("UnsatisfiableWriteConcern", StorageConfigError),
    107: ("LockFailed", StorageUnavailableError),
    112: ("WriteConflict", StorageUnavailableError),
    117: ("ConflictingOperationInProgress", StorageUnavailableError),
    133: ("FailedToSatisfyReadPreference", StorageUnavailableError),
    134: ("ReadConcernMajorityNotAvailableYet", StorageUnavailableError),
    148: ("ReadConcernMajorityNotEnabled", StorageConfigError),
    150: ("StaleEpoch", StorageUnavailableError),
    175: ("QueryPlanKilled", StorageUnavailableError),
    189: ("PrimarySteppedDown", StorageUnavailableError),
    202: ("NetworkInterfaceExceededTimeLimit", StorageUnavailableError),
    214: ("AuthenticationRestrictionUnmet", StorageAccessError),
    216: ("ElectionInProgress", StorageUnavailableError),
    225: ("TransactionTooOld", StorageUnavailableError),
    234: ("RetryChangeStream", StorageUnavailableError),
    237: ("CursorKilled", StorageUnavailableError),
    239: ("SnapshotTooOld", StorageUnavailableError),
    246: ("SnapshotUnavailable", StorageUnavailableError),
    249: ("StaleDbVersion", StorageUnavailableError),
    250: ("StaleChunkHistory", StorageUnavailableError),
    251: ("NoSuchTransaction", StorageUnavailableError),
    262: ("ExceededTimeLimit", StorageUnavailableError),
    264: ("TooManyFilesOpen", StorageUnavailableError),
    267: ("PreparedTransactionInProgress", StorageUnavailableError),
    272: ("MigrationConflict", StorageUnavailableError),
    279: ("ClientDisconnect", StorageUnavailableError),
    281: ("TransactionCoordinatorSteppingDown", StorageUnavailableError),
    282: ("TransactionCoordinatorReachedAbortDecision", StorageUnavailableError),
    290: ("TransactionExceededLifetimeLimitSeconds", StorageUnavailableError),
    317: ("ConnectionPoolExpired", StorageUnavailableError),
    322: ("APIVersionError", StorageConfigError),
    323: ("APIStrictError", StorageConfigError),
    324: ("APIDeprecationError", StorageConfigError),
    334: ("MechanismUnavailable", StorageAccessError),
    355: ("InterruptedDueToStorageChange", StorageUnavailableError),
    365: ("TemporarilyUnavailable", StorageUnavailableError),
    384: ("ConnectionError", StorageUnavailableError),
    391: ("ReauthenticationRequired", StorageAccessError),
    402: ("ResourceExhausted", StorageUnavailableError),
    407: ("PooledConnectionAcquisitionExceededTimeLimit", StorageUnavailableError),
    433: ("AdmissionQueueOverflow", StorageUnavailableError),
    8000: ("AtlasError", StorageAccessError),
    9001: ("SocketException", StorageUnavailableError),
    10058: ("LegacyNotPrimary", StorageUnavailableError),
    10107: ("NotWritablePrimary", StorageUnavailableError),
    10334: ("BSONObjectTooLarge", PayloadTooLargeError),
    11600: ("InterruptedAtShutdown", StorageUnavailableError),
    11601: ("Interrupted", StorageUnavailableError),
    11602: ("InterruptedDueToReplStateChange", StorageUnavailableError),
    13388: ("StaleConfig", StorageUnavailableError),
    13435: ("NotPrimaryNoSecondaryOk", StorageUnavailableError),
    13436: ("NotPrimaryOrSecondary", StorageUnavailableError),
    14031: ("OutOfDiskSpace", StorageUnavailableError),
    16493: ("", PayloadTooLargeError),
    17280: ("KeyTooLong", PayloadTooLargeError),
    17419: ("", PayloadTooLargeError),
    17420: ("", PayloadTooLargeError),
}
"""The server's code -> its name in error_codes.yml ("" where it has none) and the package's error.

Any other code is a plain `StorageError`, but for those that have a meaning of their own: 2 where it is about
a size, 20 and 40573 of a change stream, 121 of a validator, and duplicate keys.
"""

UNAVAILABLE_LABELS = ("TransientTransactionError", "RetryableWriteError", "UnknownTransactionCommitResult")
"""Labels of errors that a repeat may overcome, whatever their code."""

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
_NOISE = re.compile(
    r" ?\(configured timeouts:[^)]*\)|, full error.*|, Timeout:.*|\.? maxPoolSize:.*|, remaining timeout:.*"
    r"|,? ?Topology Description:.*|,? ?<TopologyDescription .*",
    re.DOTALL,
)
_DNS_ANSWERS = frozenset({"NXDOMAIN", "NoAnswer", "YXDOMAIN"})

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
    has_label = any(_has_label(error, label) for label in UNAVAILABLE_LABELS)
    if isinstance(error, errors.BulkWriteError):
        error = _first_failure(error)
        index = cast("dict[str, Any]", error.details).get("index", 0)
    code = error.code if isinstance(error, errors.OperationFailure) else None
    place = _place(operation, namespace, code)
    if code == _DUPLICATE_KEY_CODE or isinstance(error, errors.DuplicateKeyError):
        return _duplicate_key(error, place, index)
    if _is_too_large(error, code):
        return too_large(written)
    _, kind = SERVER_ERRORS.get(code or 0, ("", StorageError))
    if kind is StorageAccessError:
        return StorageAccessError(f"authentication or authorization failed{place}")
    if kind is StorageUnavailableError or has_label or isinstance(error, _UNAVAILABLE):
        return _unavailable(place, _reason(error))
    if kind is StorageConfigError:
        setting = "`w` of the URL or client" if code in _WRITE_CONCERN_CODES else "a setting of the client"
        return StorageConfigError(f"the server cannot satisfy {setting}{place}: {_reason(error)}")
    if isinstance(error, errors.InvalidOperation) and "close" in str(error).lower():
        return StorageClosedError()
    if isinstance(error, _NOT_ENCODABLE):
        return InvalidPayloadError(
            largest_field(written)[0], f"{type(error).__name__} from the driver{place}"
        )
    if kind is InvalidPayloadError:
        return InvalidPayloadError(largest_field(written)[0], f"MongoDB refused it{place}")
    if code == _VALIDATION_CODE:
        return StorageError(
            f"the collection's validator refused the document{place}; if another release set up the "
            "database, run setup() with this one"
        )
    if operation == WATCH and code in _NO_CHANGE_STREAMS_CODES:
        return StorageError(f"{NO_CHANGE_STREAMS}{place}")
    if isinstance(error, errors.ConfigurationError):
        dns_failure = _dns_failure(error)
        if dns_failure is not None:
            return _unavailable(place, dns_failure)
        return StorageConfigError(f"the MongoDB client refused its settings{place}: {_reason(error)}")
    return StorageError(f"MongoDB reported an error{place}: {_reason(error)}")


class Outcome(NamedTuple):
    """What became of an unordered write of several documents."""

    refused: Mapping[int, errors.OperationFailure]
    """Why documents were refused, by their positions; all others are stored."""
    unconfirmed: errors.BulkWriteError | None
    """Why these are not acknowledged all the same, as where no majority has them."""


def outcome_of(error: errors.BulkWriteError) -> Outcome:
    """What the server's answer says of each document."""
    details = cast("dict[str, Any]", error.details)
    failures: list[dict[str, Any]] = details.get("writeErrors") or []
    refused = {failure["index"]: _write_error(failure) for failure in failures}
    if failures and not details.get("writeConcernErrors"):
        return Outcome(refused, None)
    return Outcome(refused, errors.BulkWriteError({**details, "writeErrors": []}))


def _write_error(failure: Mapping[str, Any]) -> errors.WriteError:
    """What the driver raises for a write of this document alone, which does not quote the document."""
    details = {name: value for name, value in failure.items() if name != "op"}
    kind = errors.DuplicateKeyError if details.get("code") == _DUPLICATE_KEY_CODE else errors.WriteError
    return kind(str(details.get("errmsg")), details.get("code"), details)


def refusals(error: errors.BulkWriteError) -> Mapping[int, errors.OperationFailure]:
    """The documents of an unordered write that were refused, by their positions; all others are stored.

    Raises the error itself where it is about the write as a whole.
    """
    outcome = outcome_of(error)
    if outcome.unconfirmed is not None:
        raise error
    return outcome.refused


def no_answer(operation: str, namespace: str, timeout_ms: int) -> StorageUnavailableError:
    """The error of a call that was ended here because the driver did not end it."""
    place = _place(operation, namespace, None)
    return _unavailable(place, f"no answer within {timeout_ms:,} ms (timeout_ms)")


def _unavailable(place: str, reason: str) -> StorageUnavailableError:
    return StorageUnavailableError(f"MongoDB cannot be reached or did not answer in time{place}: {reason}")


def _has_label(error: Exception, label: str) -> bool:
    if not isinstance(error, errors.PyMongoError):
        return False
    details: object = error.details if isinstance(error, errors.OperationFailure) else None
    failures = cast("dict[str, Any]", details or {}).get("writeConcernErrors", [])
    return error.has_error_label(label) or any(label in item.get("errorLabels", ()) for item in failures)


def _dns_failure(error: errors.ConfigurationError) -> str | None:
    """Why the name behind `mongodb+srv` could not be looked up now; None where a repeat will not help.

    A name that does not exist, or has no such record, stays an error of the configuration.
    """
    cause = error.__cause__ or error.__context__  # the latter in older releases of PyMongo
    if isinstance(cause, OSError):
        return f"the DNS lookup failed ({type(cause).__name__})"
    is_from_resolver = type(cause).__module__ in ("dns.resolver", "dns.exception", "dns.query")
    if is_from_resolver and type(cause).__name__ not in _DNS_ANSWERS:
        return f"DNS did not answer ({type(cause).__name__})"
    return None


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
    """The driver's message without settings that nobody configured and without every server's state."""
    text = _NOISE.sub("", str(error))
    return f"{type(error).__name__}: {redacted(text) if '://' in text else text}"[:_MAX_REASON]


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
    if code == _BAD_VALUE_CODE:  # only sometimes about a size
        return "large" in str(error) or "size" in str(error)
    return SERVER_ERRORS.get(code or 0, ("", StorageError))[1] is PayloadTooLargeError


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
