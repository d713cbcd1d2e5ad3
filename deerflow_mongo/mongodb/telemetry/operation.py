"""One observed call of a store, or one piece of background work: its commands, its time and its ids."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from ...contract.arguments import is_valid_id
from ..observation import current_operation

if TYPE_CHECKING:
    from opentelemetry.trace import Span

OK: Final = "ok"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

THREAD_ID: Final = "thread_id"
RUN_ID: Final = "run_id"
_IDS: Final = (THREAD_ID, RUN_ID)

Ids: TypeAlias = dict[str, str]
ReadIds: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], Ids]


class Attachment(Protocol):
    """What makes an operation's span the current one, and ends that."""

    def attach(self, operation: Operation) -> object: ...
    def detach(self, token: object) -> None: ...


class Operation:
    """A context for each of its steps: commands that are sent in it belong to the operation.

    A method that returns rows one by one has a step for each; what its caller does in between is not counted.
    """

    __slots__ = (
        "_attached",
        "_attachment",
        "_began",
        "_token",
        "arguments",
        "collections",
        "command_s",
        "commands",
        "groups",
        "is_open",
        "name",
        "owner",
        "read_ids",
        "seconds",
        "span",
    )

    def __init__(self, name: str, owner: object, attachment: Attachment | None) -> None:
        """`owner` is the same object for all operations of a storage, and no other's."""
        self.name = name
        self.owner = owner
        self.is_open = True
        self.commands = 0
        self.command_s = 0.0
        self.collections: dict[str, None] = {}
        self.groups: list[Operation] = []
        """Background work that this operation waited for."""
        self.span: Span | None = None
        self.seconds = 0.0
        self.read_ids: ReadIds = no_ids
        self.arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
        self._attachment = attachment
        self._attached: object = None
        self._token: Token[object | None] | None = None
        self._began = 0.0

    def __enter__(self) -> None:
        self._token = current_operation.set(self)
        if self._attachment is not None:
            self._attached = self._attachment.attach(self)
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._began
        if self._attachment is not None:
            self._attachment.detach(self._attached)
        if self._token is not None:
            reset(current_operation, self._token)

    @property
    def ids(self) -> Ids:
        """The thread and the run that the call is about, where its arguments name them."""
        return self.read_ids(*self.arguments)

    def note_command(self, collection: str, seconds: float) -> None:
        self.commands += 1
        self.command_s += seconds
        if collection:
            self.collections[collection] = None


def open_operation(owner: object) -> Operation | None:
    """What the current task runs for the owner's storage; a task may have outlived its operation."""
    operation = current_operation.get()
    if isinstance(operation, Operation) and operation.is_open and operation.owner is owner:
        return operation
    return None


def reset(variable: ContextVar[Any], token: Token[Any]) -> None:
    """Reset a variable, unless a coroutine that nobody awaited is closed in another context."""
    try:
        variable.reset(token)
    except ValueError:
        return


def outcome_of(error: BaseException | None) -> str:
    """A label without any text of the error, which may quote ids or an address."""
    if error is None or isinstance(error, GeneratorExit):
        return OK
    return CANCELLED if isinstance(error, asyncio.CancelledError) else type(error).__name__


# -- ids -------------------------------------------------------------------------------------------


def no_ids(_: tuple[Any, ...], __: Mapping[str, Any]) -> Ids:
    return {}


def id_reader(method: Callable[..., Any]) -> ReadIds:
    """Reads the ids from the arguments of a method; anything that is no id is left out.

    They are arguments of these names, or stand in an event, a list of events, the metadata of a thread, or a
    configuration of LangGraph.
    """
    parameters = list(inspect.signature(method).parameters)[1:]
    places = {name: parameters.index(name) for name in _IDS if name in parameters}
    first = parameters[0] if parameters else ""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Ids:
        found = {name: args[place] for name, place in places.items() if place < len(args)}
        given = args[0] if args else kwargs.get(first)
        for source in (_nested(first, given), kwargs):
            found |= {name: source[name] for name in _IDS if name in source}
        return {name: value for name, value in found.items() if isinstance(value, str) and is_valid_id(value)}

    return read


def _nested(parameter: str, value: Any) -> Mapping[str, Any]:
    """Ids within the first argument."""
    if parameter == "events" and isinstance(value, Sequence) and value:
        event = cast("Sequence[Any]", value)[0]
        return cast("Mapping[str, Any]", event) if isinstance(event, Mapping) else {}
    if parameter == "config" and isinstance(value, Mapping):
        found = cast("Mapping[str, Any]", value).get("configurable")
        return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}
    thread_id: object = getattr(cast("object", value), THREAD_ID, None)
    return {} if thread_id is None else {THREAD_ID: thread_id}


def common_ids(operations: Iterable[Operation]) -> Ids:
    """The ids that all of them have."""
    common: set[tuple[str, str]] | None = None
    for operation in operations:
        ids = set(operation.ids.items())
        common = ids if common is None else common & ids
    return dict(common or ())
