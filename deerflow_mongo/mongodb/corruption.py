"""Why a stored document cannot be read: the first of its fields that its collection's validator refuses.

The validators in `schema.py` are interpreted here, which is slow: it is done only once a document could not
be read. What such a document means for a store's method is decided in `row_collection.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from bson import DBRef, Decimal128, Int64, ObjectId, Regex, Timestamp

from ..contract.errors import CorruptDocumentError
from .documents.encoding import WHOLE, Document, UnreadableError, decode_content
from .documents.stored_times import ORDER
from .documents.version_1 import as_current, is_of_version_1
from .documents.versions import SCHEMA_VERSION, is_newer
from .schema import CollectionSchema

READ_ERRORS: Final = (
    UnreadableError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What reading a document raises whose fields are missing or of other types."""

_TIMES: Final = ("updated_at", "started_at", "ended_at")

_TYPES: Final[Mapping[type, tuple[str, ...]]] = {
    str: ("string",),
    dict: ("object",),
    DBRef: ("object",),
    list: ("array",),
    bool: ("bool",),
    int: ("int", "long"),
    Int64: ("long",),
    float: ("double",),
    Decimal128: ("decimal",),
    datetime: ("date",),
    ObjectId: ("objectId",),
    bytes: ("binData",),
    Regex: ("regex",),
    Timestamp: ("timestamp",),
    type(None): ("null",),
}
"""A type of the driver -> its names in a validator."""


class _Fault(NamedTuple):
    """The first thing that a validator refuses."""

    field: str
    reason: str


def corruption_of(collection: str, schema: CollectionSchema, document: Document) -> CorruptDocumentError:
    """The error of a document that could not be read."""
    fault = _fault_of(schema.validator, document)
    return CorruptDocumentError(collection, str(document.get("_id")), fault.field, fault.reason)


def is_refused(schema: CollectionSchema, document: Document) -> bool:
    """Whether the validator refuses a document as it is stored."""
    return _refused(schema.validator, document) is not None


def _fault_of(validator: Document, document: Document) -> _Fault:
    return _version_fault(document) or _refused(validator, document) or _undecodable(document)


def _version_fault(document: Document) -> _Fault | None:
    if is_newer(document):
        return _Fault(
            "schema_version",
            f"is {document['schema_version']}, and this release of deerflow-mongo reads up to "
            f"{SCHEMA_VERSION}: upgrade deerflow-mongo",
        )
    return None


def _refused(validator: Document, document: Document) -> _Fault | None:
    """What the validator refuses of a document; of version 1, what it refuses once it is converted."""
    if is_of_version_1(document):
        for name in ("created_at", *_TIMES):
            try:
                document = as_current(document, name)
            except READ_ERRORS:
                return _Fault(name, "is missing" if name not in document else "is no time")
    return next(_faults(validator, document, ""), None)


def _undecodable(document: Document) -> _Fault:
    """The field that has the right type and a value that no release writes."""
    for name, value in document.items():
        if isinstance(value, dict):
            try:
                decode_content(value)
            except READ_ERRORS:
                return _Fault(name, "has a marked value that is not JSON")
    return _Fault(ORDER, "is no time")


# -- the subset of JSON Schema that `schema.py` uses ------------------------------------------------


def _faults(schema: Document, value: Any, path: str) -> Iterator[_Fault]:
    for keyword, rule in schema.items():
        if keyword == "additionalProperties" and rule is False:
            yield from _unknown_fields(schema["properties"], value, path)
        else:
            yield from _KEYWORDS[keyword](rule, value, path)


def _type_names(value: object) -> tuple[str, ...]:
    return _TYPES.get(type(value)) or (type(value).__name__,)


def _listed(names: object) -> list[str]:
    return cast("list[str]", names) if isinstance(names, list) else [cast("str", names)]


def _bson_type(names: object, value: object, path: str) -> Iterator[_Fault]:
    expected, found = _listed(names), _type_names(value)
    if not set(expected) & set(found):
        yield _Fault(path, f"is of type {found[0]}, expected {' or '.join(expected)}")


def _enum(allowed: list[object], value: object, path: str) -> Iterator[_Fault]:
    is_number = type(value) in WHOLE or type(value) is float
    if not any(value == item and (is_number or type(value) is type(item)) for item in allowed):
        yield _Fault(path, f"is none of {', '.join(map(str, allowed))}")


def _minimum(least: int, value: Any, path: str) -> Iterator[_Fault]:
    if type(value) in WHOLE and value < least:
        yield _Fault(path, f"is less than {least}")


def _maximum(most: int, value: Any, path: str) -> Iterator[_Fault]:
    if type(value) in WHOLE and value > most:
        yield _Fault(path, f"is greater than {most}")


def _min_length(least: int, value: object, path: str) -> Iterator[_Fault]:
    if isinstance(value, str) and len(value) < least:
        yield _Fault(path, "is empty")


def _required(names: list[str], value: object, path: str) -> Iterator[_Fault]:
    if isinstance(value, dict):
        yield from (_Fault(_step(path, name), "is missing") for name in names if name not in value)


def _properties(schemas: Document, value: object, path: str) -> Iterator[_Fault]:
    if isinstance(value, dict):
        document = cast("Document", value)
        for name, schema in schemas.items():
            if name in document:
                yield from _faults(schema, document[name], _step(path, name))


def _additional_properties(schema: Document, value: object, path: str) -> Iterator[_Fault]:
    """Only where a schema names no properties."""
    if isinstance(value, dict):
        for name, item in cast("Document", value).items():
            yield from _faults(schema, item, _step(path, name))


def _unknown_fields(known: Document, value: object, path: str) -> Iterator[_Fault]:
    if isinstance(value, dict) and any(name not in known for name in cast("Document", value)):
        # A marked text is the only value that has one field.
        yield _Fault(path, "has fields beside its marked text" if len(known) == 1 else "has unknown fields")


def _items(schema: Document, value: object, path: str) -> Iterator[_Fault]:
    if isinstance(value, list):
        for position, item in enumerate(cast("list[object]", value)):
            yield from _faults(schema, item, f"{path}[{position}]")


def _any_of(schemas: list[Document], value: object, path: str) -> Iterator[_Fault]:
    """What the first alternative refuses: a text that is not marked, or a run event.

    Where the alternatives have different ids, it is the first whose id the document has.
    """
    faults: list[_Fault] = []
    schemas = [schema for schema in schemas if _has_id_of(schema, value)] or schemas
    for schema in schemas:
        fault = next(_faults(schema, value, path), None)
        if fault is None:
            return
        faults.append(fault)
    if path and isinstance(value, dict):
        yield _Fault(path, "is an object, and not one with a marked text")
    else:
        yield faults[0]


def _has_id_of(schema: Document, value: object) -> bool:
    ids = schema.get("properties", {}).get("_id")
    if ids is None or not isinstance(value, dict):
        return False
    return next(_faults(ids, cast("Document", value).get("_id"), "_id"), None) is None


def _step(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_KEYWORDS: Final[Mapping[str, Callable[[Any, Any, str], Iterator[_Fault]]]] = {
    "bsonType": _bson_type,
    "enum": _enum,
    "minimum": _minimum,
    "maximum": _maximum,
    "minLength": _min_length,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional_properties,
    "items": _items,
    "anyOf": _any_of,
}
