"""Gives an object observed methods: each call of a public asynchronous method becomes an operation.

The object gets a subclass of its class, so that `isinstance`, capabilities, copies and signatures stay as
they are, and an object that is not observed has no trace of this.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

from .operation import Operation, ReadIds, id_reader

if TYPE_CHECKING:
    from .telemetry import Telemetry

NOT_OBSERVED: Final = frozenset({"aclose", "flush", "checkpointer"})
"""Methods that wait for other operations, or open an object that is observed itself."""

CHECKPOINTER: Final = "checkpointer"

_Method = Callable[..., Any]
_END: Final = object()


def observe(target: Any, prefix: str, telemetry: Telemetry) -> None:
    """Observe the public asynchronous methods of an object, as operations `prefix.method`."""
    base = cast("type[object]", type(target))
    methods = {
        name: _observed(function, operation_name(prefix, name), telemetry)
        for name, function in asynchronous_methods(base).items()
    }

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(methods, __module__=base.__module__, __qualname__=base.__qualname__)
        namespace["__doc__"] = base.__doc__

    target.__class__ = types.new_class(base.__name__, (base,), exec_body=fill)


def operation_name(prefix: str, method: str) -> str:
    """LangGraph's names begin with an "a" where they are asynchronous."""
    return f"{prefix}.{method.removeprefix('a') if prefix == CHECKPOINTER else method}"


def asynchronous_methods(base: type[object]) -> dict[str, _Method]:
    """The coroutine functions and asynchronous generators by which a class is used."""
    found: dict[str, _Method] = {}
    for name in dir(base):
        function = inspect.getattr_static(base, name)
        is_public = not name.startswith("_") and name not in NOT_OBSERVED
        if is_public and (inspect.iscoroutinefunction(function) or _is_generator(function)):
            found[name] = function
    return found


def _is_generator(function: Any) -> bool:
    """Also a plain method that returns another one's asynchronous generator."""
    returned = getattr(function, "__annotations__", {}).get("return")
    return inspect.isasyncgenfunction(function) or str(returned).startswith("AsyncGenerator[")


def _observed(method: _Method, name: str, telemetry: Telemetry) -> _Method:
    read_ids = id_reader(method)
    if _is_generator(method):
        return _observed_generator(method, name, read_ids, telemetry)

    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if telemetry.is_inside():
            return await method(self, *args, **kwargs)
        operation = telemetry.begin(name, read_ids, args, kwargs)
        error: BaseException | None = None
        try:
            with operation:
                return await method(self, *args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            telemetry.end(operation, error)

    return call


def _observed_generator(method: _Method, name: str, read_ids: ReadIds, telemetry: Telemetry) -> _Method:
    @functools.wraps(method)
    async def rows(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        async with aclosing(method(self, *args, **kwargs)) as source:
            if telemetry.is_inside():
                async for row in source:
                    yield row
                return
            operation = telemetry.begin(name, read_ids, args, kwargs)
            error: BaseException | None = None
            try:
                while (row := await _next(source, operation)) is not _END:
                    yield row
            except BaseException as raised:
                error = raised
                raise
            finally:
                telemetry.end(operation, error)

    return rows


async def _next(source: AsyncGenerator[Any], operation: Operation) -> Any:
    """The next row; the operation is current while it is read, and not while its caller works with it."""
    with operation:
        return await anext(source, _END)
