"""A store with something done around each of its calls: an object with the same public methods.

What is done is a subclass's: see `encodable.py` and `availability.py`. Nothing of a store is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import cache
from typing import Any, cast


class StoreProxy:
    """A store's public methods and attributes. Made by `of`; a subclass overrides `_call` and `_item`."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def of(cls, store: Any) -> Any:
        """The proxy of this store. It passes for what the store passes for, as a `Protocol` is checked."""
        return _proxy_class(cls, cast("type[Any]", type(store)))(store)

    async def _call(self, method: Callable[..., Awaitable[Any]], /, *arguments: Any, **options: Any) -> Any:
        """One call of a coroutine method."""
        return await method(*arguments, **options)

    def _item(self, item: Any) -> Any:
        """One item of an asynchronous generator."""
        return item

    async def _iterate(self, items: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
        async with aclosing(items):
            async for item in items:
                yield self._item(item)


@cache
def _proxy_class(base: type[StoreProxy], store_class: type[Any]) -> type[StoreProxy]:
    public = {
        name: _delegated(name, inspect.getattr_static(store_class, name))
        for name in dir(store_class)
        if not name.startswith("_")
    }
    return type(f"{base.__name__}Of{store_class.__name__}", (base,), public)


def _delegated(name: str, attribute: Any) -> Any:
    # The store's own method is looked up at each call.
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return await self._call(getattr(self._store, name), *arguments, **options)

    def iterate(self: Any, *arguments: Any, **options: Any) -> Any:
        return self._iterate(getattr(self._store, name)(*arguments, **options))

    if inspect.iscoroutinefunction(attribute):
        return call
    if inspect.isasyncgenfunction(attribute):
        return iterate
    return property(lambda self: getattr(self._store, name))
