"""The base of every part of the suite: the class to inherit from, the fixtures, and the declarations of
what a backend lacks. The promises themselves are in the modules beside this one.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ClassVar, TypeVar, cast

import pytest
import pytest_asyncio

from ..contract.actor import ActorContext, bind_actor_context, reset_actor_context
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import RunRow, ThreadMeta
from .cases import collecting_cases

KINDS: Mapping[str, str] = {
    "processes": "several processes share one database",
    "durability": "acknowledged writes are visible to the next storage that is opened",
    "server": "the option `url` names a server",
    "following": "new run events are reported to followers as they are stored",
    "many_rows": "hundreds of rows are stored and read in seconds",
    "validators": "the database itself rejects a malformed document",
}
"""What a test may need and a backend may lack; `needs` and `lacks` use these names."""

RUN, THREAD = "run-1", "thread-1"
ALICE, BOB = "alice", "bob"

_NEEDS = "_conformance_needs"
_NEW_DATABASE = "_conformance_new_database"
_ORIGINAL = "_conformance_original"

Test = TypeVar("Test", bound=Callable[..., Any])


def _checked_kinds(kinds: Iterator[str] | tuple[str, ...], where: str) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{where}: unknown kind {kind!r}; expected one of {', '.join(sorted(KINDS))}")


def needs(*kinds: str) -> Callable[[Test], Test]:
    """Skip the test where the backend `lacks` one of these kinds; the skip's reason names the test."""
    _checked_kinds(kinds, "needs")

    def declare(test: Test) -> Test:
        setattr(test, _NEEDS, kinds)
        return test

    return declare


def on_new_database(test: Test) -> Test:
    """Marks a test of `setup()`: its database must be new, not only emptied."""
    setattr(test, _NEW_DATABASE, True)
    return test


def needs_new_database(request: pytest.FixtureRequest) -> bool:
    """Whether the requesting test needs a new database; for fixtures that otherwise empty an existing one."""
    return getattr(request.function, _NEW_DATABASE, False)


class Contract:
    """A part of the contract; a subclass with the fixture `storage_config` binds it to a backend."""

    lacks: ClassVar[Mapping[str, str]] = {}
    """What the backend cannot do (see `KINDS`), with the reason; tests that need it are skipped."""

    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Tests that must fail (strictly), with the reason: known violations of the contract."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        tests = _tests_of(cls)
        _check_nothing_hidden(cls, tests)
        _checked_kinds(tuple(cls.lacks), f"{cls.__name__}.lacks")
        for name in cls.expected_failures:
            if name not in tests:
                raise ValueError(f"{cls.__name__}.expected_failures: unknown test {name!r}")
        for name, test in tests.items():
            _bind(cls, name, test)

    @pytest.fixture
    def storage_config(self) -> Mapping[str, Any]:
        """The configuration of an empty database; the backend's author writes this fixture."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `storage_config`")

    @pytest_asyncio.fixture
    async def storage(self, storage_config: Mapping[str, Any]) -> AsyncGenerator[Storage]:
        """The storage, opened and closed as hosts do."""
        async with create_storage(storage_config) as storage:
            yield storage


def _tests_of(cls: type) -> dict[str, FunctionType]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update((name, value) for name, value in vars(base).items() if name.startswith("test_"))
    return {name: test for name, test in sorted(found.items()) if isinstance(test, FunctionType)}


def _original(test: FunctionType) -> FunctionType:
    return getattr(test, _ORIGINAL, test)


def _check_nothing_hidden(cls: type, tests: Mapping[str, FunctionType]) -> None:
    """Raise `TypeError` if two parts have a test of the same name: one of them would never run."""
    inherited = [_tests_of(base) for base in cls.__bases__]
    for name in tests:
        promises = {_original(found[name]) for found in inherited if name in found}
        if len(promises) > 1 and name not in vars(cls):
            raise TypeError(f"{cls.__name__} inherits more than one {name}")


def _bind(cls: type[Contract], name: str, test: FunctionType) -> None:
    """Give `cls` its own copy of an inherited test if this backend's marks differ, and only then."""
    original = _original(test)
    if original is test and name in vars(cls) and not hasattr(test, "__wrapped__"):
        original = test = cast("FunctionType", collecting_cases(test))
        if inspect.iscoroutinefunction(original):
            pytest.mark.asyncio(original)
        setattr(cls, name, original)
    marks = [
        pytest.mark.skip(reason=f"{name} needs {kind}: {reason}") for kind, reason in _lacking(cls, original)
    ]
    if name in cls.expected_failures:
        marks.append(pytest.mark.xfail(reason=cls.expected_failures[name], strict=True))
    if not marks and original is test:
        return
    copied = _copy(original)
    for mark in marks:
        mark(copied)
    setattr(cls, name, copied)


def _lacking(cls: type[Contract], test: FunctionType) -> list[tuple[str, str]]:
    return [(kind, cls.lacks[kind]) for kind in getattr(test, _NEEDS, ()) if kind in cls.lacks]


def _copy(test: FunctionType) -> FunctionType:
    copied = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    copied.__kwdefaults__ = cast("dict[str, Any]", test.__kwdefaults__)
    copied.__annotations__ = test.__annotations__
    copied.__qualname__, copied.__module__, copied.__doc__ = test.__qualname__, test.__module__, test.__doc__
    copied.__dict__.update(test.__dict__)
    copied.__dict__["pytestmark"] = list(getattr(test, "pytestmark", ()))
    setattr(copied, _ORIGINAL, test)
    return copied


# -- what tests share ------------------------------------------------------------------------------


@contextmanager
def acting_as(user_id: str | None) -> Generator[None]:
    """Bind this user as the current task's actor."""
    token = bind_actor_context(ActorContext(user_id=user_id))
    try:
        yield
    finally:
        reset_actor_context(token)


async def given_run(
    storage: Storage,
    run_id: str = RUN,
    thread_id: str = THREAD,
    *,
    user_id: str | None = ALICE,
    **fields: Any,
) -> RunRow:
    """Create a run and return its row."""
    await storage.runs.create(run_id, thread_id, user_id=user_id, **fields)
    return await stored_run(storage, run_id)


async def stored_run(storage: Storage, run_id: str = RUN) -> RunRow:
    """The run's row, whoever owns it; there must be one."""
    row = await storage.runs.get(run_id, user_id=None)
    assert row is not None, f"run {run_id!r} does not exist"
    return row


async def stored_thread(storage: Storage, thread_id: str = THREAD) -> ThreadMeta:
    """The thread, whoever owns it; there must be one."""
    thread = await storage.threads.get_thread_meta(thread_id)
    assert thread is not None, f"thread {thread_id!r} does not exist"
    return thread


async def snapshot(storage: Storage, *thread_ids: str) -> list[object]:
    """Everything that is stored about these threads, to compare before and after."""
    found: list[object] = [await storage.threads.search_threads(user_id=None, limit=1_000)]
    for thread_id in thread_ids or (THREAD,):
        found.append(await storage.runs.list_by_thread(thread_id, user_id=None, limit=1_000))
        found.append(await storage.feedback.list_by_thread(thread_id, limit=1_000))
        found.append(await storage.run_events.list_messages(thread_id, limit=1_000))
    return found
