"""A store with something done around each of its calls: an object with the same public methods.

What is done is a subclass's: see `encodable.py` and `availability.py`. Nothing of a store is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import cache, partial
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

    def _attribute(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if inspect.iscoroutinefunction(attribute):
            return partial(self._call, attribute)
        if inspect.isasyncgenfunction(attribute):
            return partial(self._iterate, attribute)
        return attribute

    async def _iterate(
        self, method: Callable[..., AsyncGenerator[Any]], /, *arguments: Any, **options: Any
    ) -> AsyncGenerator[Any]:
        async with aclosing(method(*arguments, **options)) as items:
            async for item in items:
                yield self._item(item)


@cache
def _proxy_class(base: type[StoreProxy], store_class: type) -> type[StoreProxy]:
    public = {name: _delegated(name) for name in dir(store_class) if not name.startswith("_")}
    return type(f"{base.__name__}Of{store_class.__name__}", (base,), public)


def _delegated(name: str) -> property:
    return property(lambda proxy: proxy._attribute(name))  # noqa: SLF001
