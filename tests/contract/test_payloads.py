"""Any object to JSON: the form of each kind, and what is refused with its place named."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import pathlib
import threading
import time
import types
import uuid
from collections import ChainMap, Counter, OrderedDict, UserString, deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, cast
from unittest.mock import MagicMock

import pydantic
import pytest

from deerflow_mongo import InvalidPayloadError
from deerflow_mongo.contract import payloads
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


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(slots=True)
class Slotted:
    left: int


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
    (ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
    (Counter("aab"), {"a": 2, "b": 1}),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    ({"a": 1}.items(), [["a", 1]]),
    (UserString("text"), "text"),
    (Permission.READ | Permission.WRITE, 3),
    (Slotted(1), {"left": 1}),
    (Numbers([1, 2]), [1, 2]),
    (fractions.Fraction(1, 3), "1/3"),
    (1 + 2j, "(1+2j)"),
    (ValueError("wrong"), "wrong"),
    (ValueError("<X object at 0x7f00>"), "<X object at 0x7f00>"),
    (datetime.timedelta(days=1), "1 day, 0:00:00"),
    (types.SimpleNamespace(a=1), "namespace(a=1)"),
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


def test_form_of_numpy_values() -> None:
    """Scalars are numbers, arrays lists; times have their text in any unit."""
    np = pytest.importorskip("numpy")
    forms: list[tuple[Any, Any]] = [
        (np.int64(5), 5),
        (np.uint8(255), 255),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(1.5), 1.5),
        (np.float64(0.1), 0.1),
        (np.longdouble(1.5), 1.5),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"x"), "eA=="),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(7), 7),
        (np.array([]), []),
        (np.array([True]), [True]),
        (np.array(["a"]), ["a"]),
        (np.array([1, "x", None], dtype=object), [1, "x", None]),
        (np.datetime64("2026-04-22"), "2026-04-22"),
        (np.datetime64("2026-04-22T03:26:38.123456789"), "2026-04-22T03:26:38.123456789"),
        (np.array(["2026-04-22"], dtype="datetime64[ns]"), ["2026-04-22T00:00:00.000000000"]),
    ]
    for value, expected in forms:
        converted = to_json({"k": value, "l": [value]}, "f")
        assert converted == {"k": expected, "l": [expected]}, repr(value)
        assert type(cast("Any", converted)["k"]) is type(expected), repr(value)
    assert to_json({np.int64(5): 1}, "f") == {"5": 1}
    with pytest.raises(InvalidPayloadError, match="nan is not a JSON number"):
        to_json({"k": np.array([1.0, np.nan])}, "f")


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


# -- what has no JSON form -------------------------------------------------------------------------


class Nothing:
    pass


class Holding:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Holding({self.lock})"


def _generated() -> Iterator[int]:
    yield 1


async def _answer() -> None:
    pass


class Awaited:
    def __await__(self) -> Any:
        yield


REFUSED: dict[str, Any] = {
    "object": object(),
    "Nothing": Nothing(),
    "Holding": Holding(),
    "generator": _generated(),
    "list_iterator": iter([1]),
    "map": map(str, [1]),
    "zip": zip([1], [2], strict=True),
    "StringIO": io.StringIO("text"),
    "BytesIO": io.BytesIO(b"x"),
    "function": _answer,
    "builtin_function_or_method": len,
    "method": Holding().__repr__,
    "partial": functools.partial(_answer),
    "Awaited": Awaited(),
    "lock": threading.Lock(),
    "module": enum,
    "MagicMock": MagicMock(),
    "Mock": MagicMock(spec=["model_dump"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_object_without_a_json_form_is_refused_by_name(name: str) -> None:
    """Its address, or what is left of a generator, would be stored as noise."""
    for value in ({"a": [REFUSED[name]]}, {"a": [{REFUSED[name]: 1}]}):
        with pytest.raises(InvalidPayloadError) as error:
            to_json(value, "metadata")
        assert error.value.field == "metadata.a[0]"
        assert name in error.value.reason
        assert "0x" not in str(error.value)


def test_refused_generator_is_not_used_up() -> None:
    generated = _generated()
    with pytest.raises(InvalidPayloadError):
        to_json({"a": generated}, "metadata")
    assert list(generated) == [1]


class RaisingAttributes:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class RaisingItems(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class RaisingProperty:
    @property
    def value(self) -> int:
        raise RuntimeError

    def model_dump(self) -> Any:
        return {"value": self.value}


@dataclasses.dataclass(slots=True)
class Unfilled:
    left: int = dataclasses.field(init=False)


class RaisingKey:
    def __str__(self) -> str:
        raise RuntimeError


class Changing:
    """A value that changes its container while it is read."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def model_dump(self) -> int:
        self.change()
        return 1


def _changing_dict() -> dict[str, Any]:
    changing: dict[str, Any] = {}
    changing |= {"x": Changing(lambda: changing.update(y=1)), "z": 1}
    return changing


def _changing_list() -> list[Any]:
    changing: list[Any] = []
    changing.append(Changing(lambda: changing.append(2)))
    return changing


def _growing_list() -> list[Any]:
    growing: list[Any] = []
    growing.append(Changing(lambda: growing.append(Changing(growing[0].change))))
    return growing


MISBEHAVING: dict[str, Any] = {
    "attributes": RaisingAttributes(),
    "items": RaisingItems(),
    "text": Speechless(),
    "property": RaisingProperty(),
    "slot": Unfilled(),
    "key": {RaisingKey(): 1},
    "changing dict": _changing_dict(),
    "changing list": _changing_list(),
    "closed memoryview": (lambda view: (view.release(), view)[1])(memoryview(b"x")),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_error_of_an_object_while_it_is_read_is_reported_with_its_place(name: str) -> None:
    with pytest.raises(InvalidPayloadError) as error:
        to_json({"ok": 1, "a": [0, MISBEHAVING[name]]}, "metadata")
    assert error.value.field.startswith("metadata.a[1]")


class Endless(Sequence[int]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        return index


class EndlessMapping(Mapping[int, int]):
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def __getitem__(self, key: int) -> int:
        return key


class Unfolding:
    def model_dump(self) -> Any:
        return {"left": Unfolding(), "right": Unfolding()}


class Same:
    def model_dump(self) -> Any:
        return Same()


def _same_list_many_times() -> Any:
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    return value


def _same_dict_many_times() -> Any:
    value: Any = {"k": 1}
    for _ in range(60):
        value = {"a": value, "b": value}
    return value


EXPANDING: dict[str, Any] = {
    "sequence": Endless(),
    "mapping": EndlessMapping(),
    "objects": Unfolding(),
    "one object": Same(),
    "list": _same_list_many_times(),
    "dict": _same_dict_many_times(),
    "range": range(10**15),
    "wide": [[None] * 1_000] * 1_000_000,
    "growing list": _growing_list(),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_structure_that_expands_without_end_is_refused_in_bounded_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "MAX_VALUES", 100_000)
    began = time.monotonic()
    with pytest.raises(InvalidPayloadError, match=r"expands without end|levels deep") as error:
        to_json({"a": EXPANDING[name]}, "metadata")
    assert error.value.field.startswith("metadata.a")
    assert time.monotonic() - began < 10


def test_payload_of_many_values_is_accepted() -> None:
    assert len(cast("Any", to_json(list(range(2_000_000)), "f"))) == 2_000_000


def test_place_in_an_error_is_short_and_can_be_encoded() -> None:
    value = {"a\ud800\n": {"k" * 100_000: float("nan")}}
    with pytest.raises(InvalidPayloadError) as error:
        to_json(value, "metadata")
    assert error.value.field == "metadata.a\\ud800\\n." + "k" * 100 + "..."
    str(error.value).encode()


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
