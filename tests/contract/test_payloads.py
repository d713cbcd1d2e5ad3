"""Any object to JSON: the form of each kind, and what is refused with its place named."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import pathlib
import types
import uuid
from collections import OrderedDict, deque
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, cast

import pydantic
import pytest

from deerflow_mongo import InvalidPayloadError
from deerflow_mongo.contract.payloads import MAX_DEPTH, equal_json, to_json, to_json_mapping


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


class Model(pydantic.BaseModel):
    when: datetime.date
    secret: pydantic.SecretStr = pydantic.SecretStr("hidden")


class Old:
    """As pydantic 1 models and old LangChain objects are."""

    def dict(self) -> Any:
        return {"old": (1, 2)}


class Broken:
    def model_dump(self) -> Any:
        raise RuntimeError

    def __str__(self) -> str:
        return "broken"


class Speechless:
    def __str__(self) -> str:
        raise RuntimeError


DAY = datetime.date(2026, 4, 22)
ID = uuid.UUID(int=7)

FORMS: list[tuple[Any, Any]] = [
    ((1, 2), [1, 2]),
    (Point(1, 2), [1, 2]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset({"b", "a"}), ["a", "b"]),
    (deque([1, 2]), [1, 2]),
    (range(3), [0, 1, 2]),
    (b"\x00\xff", "AP8="),
    (bytearray(b"x"), base64.b64encode(b"x").decode()),
    (DAY, "2026-04-22"),
    (datetime.datetime(2026, 4, 22, 3, 26, 38, 123456, datetime.UTC), "2026-04-22T03:26:38.123456+00:00"),
    (datetime.time(3, 4), "03:04:00"),
    (ID, str(ID)),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Text("t"), "t"),
    (Number(5), 5),
    (decimal.Decimal("1.10"), "1.10"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (Pair(1, {DAY}), {"left": 1, "right": ["2026-04-22"]}),
    (Model(when=DAY), {"when": "2026-04-22", "secret": "**********"}),
    (Old(), {"old": [1, 2]}),
    (Broken(), "broken"),
    (Model, str(Model)),
    (OrderedDict(a=1), {"a": 1}),
    (types.MappingProxyType({"a": {1}}), {"a": [1]}),
]


def _id(value: object) -> str:
    """The same in every process: the order of a set is not."""
    is_set = isinstance(value, AbstractSet)
    return repr(sorted(map(str, cast("AbstractSet[object]", value))) if is_set else value)[:30]


@pytest.mark.parametrize(("value", "expected"), FORMS, ids=_id)
def test_form_of_each_kind(value: Any, expected: Any) -> None:
    converted = to_json(value, "f")
    assert converted == expected
    assert type(converted) is type(expected)


def test_keys_of_other_types_are_written_as_json_dumps_does() -> None:
    value = {1: "a", None: "b", 2.5: "d", ID: "e", Colour.RED: "f", False: "g"}
    assert to_json(value, "f") == {"1": "a", "null": "b", "2.5": "d", str(ID): "e", "red": "f", "false": "g"}


def test_the_callers_value_is_neither_changed_nor_referenced() -> None:
    inner: list[int] = [1]
    converted = to_json_mapping({"a": inner}, "metadata")
    inner.append(2)
    assert converted == {"a": [1]}


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def test_nesting_is_accepted_up_to_the_limit() -> None:
    assert to_json(_nested(MAX_DEPTH), "f") == _nested(MAX_DEPTH)
    with pytest.raises(InvalidPayloadError, match=f"more than {MAX_DEPTH} levels deep"):
        to_json(_nested(MAX_DEPTH + 1), "f")


def _holding_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({"a": [1, {"b": float("nan")}]}, "metadata.a[1].b", "nan is not a JSON number"),
        ({"a": float("inf")}, "metadata.a", "inf is not a JSON number"),
        ({"a": 10**4300}, "metadata.a", "an integer of more than 4,300 digits"),
        ({"a": Speechless()}, "metadata.a", "a Speechless that cannot be converted to text"),
        ({"a": {1: 1, "1": 2}}, "metadata.a", "two of its keys are '1' when converted to text"),
        ([1], "metadata", "it must be a mapping, not list"),
        ("text", "metadata", "it must be a mapping, not str"),
    ],
)
def test_refused_value_is_named_with_its_place(value: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidPayloadError) as error:
        to_json_mapping(value, "metadata")
    assert (error.value.field, error.value.reason) == (field, reason)
    assert str(error.value) == f"{field} cannot be stored: {reason}"


def test_value_that_contains_itself_is_refused() -> None:
    with pytest.raises(InvalidPayloadError, match="or contains itself"):
        to_json_mapping({"a": _holding_itself()}, "metadata")


def test_largest_integer_with_a_decimal_text_is_accepted() -> None:
    assert to_json(10**4300 - 1, "f") == 10**4300 - 1


def test_json_values_are_equal_only_in_type_and_content() -> None:
    values: list[Any] = [0, False, 0.0, "", "0", None, [], {}, 1, True, 1.0, "1", [1], [True], [1, 2], [2, 1]]
    values += [{"a": 1}, {"a": True}, {"a": 1, "b": None}, {"b": 1}, [{"a": [1]}], [{"a": [1.0]}], [[1]]]
    for i, left in enumerate(values):
        for j, right in enumerate(values):
            assert equal_json(left, right) == (i == j), (left, right)


def test_order_of_keys_and_sign_of_zero_do_not_make_json_values_differ() -> None:
    equal: list[tuple[Any, Any]] = [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        (-0.0, 0.0),
        ([{"x": [-0.0]}], [{"x": [0.0]}]),
    ]
    for left, right in equal:
        assert equal_json(left, right)
