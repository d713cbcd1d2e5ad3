"""Values for payloads: those that must round-trip, are converted to JSON, may raise, or must raise."""

from __future__ import annotations

import base64
import dataclasses
import enum
import io
import random
import threading
import uuid
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from pydantic import BaseModel


def nested(depth: int, *, of: type = dict) -> Any:
    """A value nested this deep, with a text inside."""
    value: Any = "innermost"
    for _ in range(depth):
        value = {"k": value} if of is dict else [value]
    return value


ROUND_TRIPS: dict[str, Any] = {
    "dots": {"a.b": 1, ".": 2, "..": 3, "a.": {".b": {"c.d": 4}}},
    "dollars": {"$set": {"$inc": 1}, "$": 2, "$$ROOT": 3, "a$": 4, "$a.b": 5},
    "empty keys": {"": {"": {"": ""}}, " ": " "},
    "odd keys": {
        "_id": 1,
        "0": 2,
        "é": 3,
        "ключ": 4,
        "💬": 5,
        "\n\t": 6,
        "\x7f": 7,
        "__proto__": 8,
        "k" * 2_000: 9,
        "schema_version": 10,
        "user_id": {"$ne": None},
        "$ref": 11,
        "$id": 12,
        "\uffff": 13,
    },
    "a key of 100,000 characters": {"k" * 100_000: {"k" * 100_000: 1}},
    "expressions": {"a": "$a", "b": "$$NOW", "c": {"$literal": 1}, "d": {"$cond": [True, 1, 2]}},
    "integers": [
        0,
        -1,
        2**31 - 1,
        2**31,
        -(2**31) - 1,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63),
        -(2**63) - 1,
        2**64,
    ],
    "4,300 digits": [10**4_299, -(10**4_300 - 1), {"n": 10**4_299 + 7}],
    "floats": [0.1, 1.0, -0.0, 0.0, 1e308, 5e-324, -1.5, 1e16, 123456789.123456789],
    "booleans and null": [True, False, None, 1, 0, 1.0, "true", "null", ""],
    "empty values": {"a": None, "b": [None, [None]], "c": {}, "d": []},
    "nul": "a\0b\0",
    "texts": [
        "",
        " ",
        "\n",
        "é",
        "e\u0301",
        "💬",
        "\uffff",
        "\u2028",
        "\ufeff",
        "\\u0000",
        '"',
        "x" * 100_000,
    ],
    "references": {"$ref": "runs", "$id": 1},
    "nested references": [{"$ref": "runs", "$id": 1, "$db": "x"}, {"a": {"$ref": None}}],
    "marked": {"_json": "1"},
    "nested marked": [{"_json": "[1]"}, {"_json": 5}, {"a": {"_json": "x", "b": 1}}],
    "marked key": {'_json"a"': 1, "_json": {"_json": 2}, "_jsonx": 3},
    "extended json": [
        {"$oid": "5f"},
        {"$date": "2026"},
        {"$numberLong": "5"},
        {"$binary": ""},
        {"$undefined": True},
    ],
    "50 dicts deep": nested(50),
    "50 lists deep": nested(50, of=list),
    "50 deep with a big number": {"a": [nested(47), 2**70]},
    "a long list": list(range(20_000)),
    "many keys": {f"key {number}": number for number in range(2_000)},
    "mixed": [1, "1", 1.0, True, None, [], {}, [[]], [{}], {"a": []}],
}


class _Colour(enum.Enum):
    RED = "red"
    DEEP = ("a", {"b": 1})


class _Level(enum.IntEnum):
    HIGH = 3


class _Mode(enum.StrEnum):
    FAST = "fast"


@dataclasses.dataclass
class _Step:
    name: str
    when: datetime
    inner: list[Any]


class _Model(BaseModel):
    content: str
    additional_kwargs: dict[str, Any] = {}
    id: uuid.UUID | None = None


class _Message:
    """Like LangChain's messages: `model_dump` returns the fields."""

    def __init__(self, content: str) -> None:
        self.content = content

    def model_dump(self) -> dict[str, Any]:
        return {"type": "human", "content": self.content, "response_metadata": {"at": _WHEN}}


class _Array:
    """Like NumPy's scalars and arrays, and others' tensors."""

    def __init__(self, items: object) -> None:
        self._items = items

    def tolist(self) -> object:
        return self._items


class _Unknown:
    def __str__(self) -> str:
        return "an unknown object"


class _WithoutText:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _Pair(NamedTuple):
    left: int
    right: str


_WHEN = datetime(2026, 4, 22, 3, 26, 38, 123456, tzinfo=UTC)
_UUID = uuid.UUID("0b6ad8a6-3c0a-4b0e-9a37-0a8b0f6f2f11")
_BYTES = bytes(range(256))
_TEXT_OF_BYTES = base64.b64encode(_BYTES).decode()

CONVERSIONS: tuple[tuple[str, Any, Any], ...] = (
    ("datetime", _WHEN, _WHEN.isoformat()),
    ("uuid", _UUID, str(_UUID)),
    ("bytes", _BYTES, _TEXT_OF_BYTES),
    ("bytearray", bytearray(_BYTES), _TEXT_OF_BYTES),
    ("empty bytes", b"", ""),
    ("tuple", (1, (2, "x")), [1, [2, "x"]]),
    ("named tuple", _Pair(1, "x"), [1, "x"]),
    ("ordered dict", OrderedDict[str, Any](b=1, a=OrderedDict[str, Any]()), {"b": 1, "a": {}}),
    ("enum", _Colour.RED, "red"),
    ("enum of a tuple", _Colour.DEEP, ["a", {"b": 1}]),
    ("int enum", _Level.HIGH, 3),
    ("text enum", _Mode.FAST, "fast"),
    (
        "dataclass",
        _Step("s", _WHEN, [_UUID]),
        {"name": "s", "when": _WHEN.isoformat(), "inner": [str(_UUID)]},
    ),
    ("model", _Model(content="c", id=_UUID), {"content": "c", "additional_kwargs": {}, "id": str(_UUID)}),
    (
        "model with objects",
        _Model(content="c", additional_kwargs={"at": _WHEN, "of": [b"x"]}),
        {"content": "c", "additional_kwargs": {"at": _WHEN.isoformat(), "of": ["eA=="]}, "id": None},
    ),
    (
        "message",
        _Message("hi"),
        {"type": "human", "content": "hi", "response_metadata": {"at": _WHEN.isoformat()}},
    ),
    ("unknown object", _Unknown(), "an unknown object"),
    ("number of an array", _Array(1.5), 1.5),
    ("array", _Array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ("views of a dict", [{"a": 1}.keys(), {"a": 1}.values()], [["a"], [1]]),
    ("keys of other types", {1: {None: "a"}, _UUID: 2}, {"1": {"null": "a"}, str(_UUID): 2}),
    (
        "mixed",
        {"a": [_Message("x"), _Unknown()]},
        {
            "a": [
                {**_Message("x").model_dump(), "response_metadata": {"at": _WHEN.isoformat()}},
                "an unknown object",
            ]
        },
    ),
)

# The conversions to a mapping: these values can be a whole payload.
MAPPINGS = ("ordered dict", "dataclass", "model", "model with objects", "message")


def self_referencing(kind: type) -> Any:
    value: Any = kind()
    if kind is dict:
        value["k"] = value
    else:
        value.append(value)
    return value


# Each of these is stored and equal, or raises.
BORDERLINE: dict[str, Any] = {
    "lone surrogate": "a\ud800b",
    "low surrogate": {"k": ["\udfff"]},
    "lone surrogate in a key": {"a\ud800": 1},
    "nul in a key": {"a\0b": 1},
    "nul in an inner key": [{"x": {"\0": {"y": 1}}}],
    "100 deep": nested(100),
    "101 deep": nested(101),
    "200 deep": nested(200),
    "200 lists deep": nested(200, of=list),
    "4,301 digits": 10**4_300,
    "100,000 digits": 10**100_000,
    "object without text": _WithoutText(),
}


# These cannot be stored: each must raise.
INVALID: dict[str, Any] = {
    "object whose text is its address": object(),
    "inner object whose text is its address": [{"a": [object()]}],
    "key whose text is its address": {"a": {object(): 1}},
    "function": nested,
    "generator": (number for number in (1, 2)),
    "iterator": iter([1]),
    "open file": io.StringIO("text"),
    "lock": threading.Lock(),
    "list that contains itself": self_referencing(list),
    "dict that contains itself": self_referencing(dict),
    "nested list that contains itself": {"a": [self_referencing(list)]},
}


def random_json(source: random.Random, depth: int = 0) -> Any:
    kind = source.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return source.choice((None, True, False))
    if kind == 1:
        return source.getrandbits(source.choice((1, 31, 32, 63, 64, 200))) * source.choice((1, -1))
    if kind == 2:
        return source.choice((source.random(), source.uniform(-1e300, 1e300), float(source.randrange(100))))
    if kind < 6:
        return random_text(source)
    if kind == 6:
        return [random_json(source, depth + 1) for _ in range(source.randrange(5))]
    return {random_text(source): random_json(source, depth + 1) for _ in range(source.randrange(5))}


def random_text(source: random.Random) -> str:
    pool = (
        "a",
        "b",
        "$",
        ".",
        "_json",
        "_id",
        "$ref",
        "é",
        "💬",
        '"',
        "\\",
        " ",
        "%",
        "\n",
        "0",
        "\U0010ffff",
    )
    return "".join(source.choices(pool, k=source.randrange(4)))


def with_own_keys(value: object) -> dict[str, Any]:
    """A payload that contains `value`, and also its keys at the top level if it is a dict."""
    return {"k": value, **(cast("dict[str, Any]", value) if isinstance(value, dict) else {})}
