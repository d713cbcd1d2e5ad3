"""What a copy of checkpoints reads from, and which URL leads to which source.

A source is never changed: no table, index or setting. Each kind has a module of its own, imported at its use.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..contract.errors import MissingDependencyError, StorageConfigError
from ..contract.factory import with_environment
from ..mongodb.drivers.threads import in_thread
from ..mongodb.uri_options import redacted

if TYPE_CHECKING:
    from .stored_values import Key, ListedCheckpoint, Record


class SourceThread(NamedTuple):
    thread_id: str
    checkpoints: int


class Source(Protocol):
    """A store of checkpoints that is read one checkpoint at a time."""

    async def threads(self) -> Sequence[SourceThread]:
        """All threads with a checkpoint, by their ids."""
        ...

    async def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        """The checkpoints of all namespaces, in any order, without their values."""
        ...

    async def read(self, thread_id: str, key: Key) -> Record | None:
        """A checkpoint with its pending writes; None if it was removed meanwhile."""
        ...

    async def ping(self) -> None:
        """Raises if the source cannot be read at all."""
        ...

    async def aclose(self) -> None: ...


class BlockingSource(Protocol):
    """The same with blocking methods, of a library without asynchronous ones."""

    def threads(self) -> Sequence[SourceThread]: ...

    def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]: ...

    def read(self, thread_id: str, key: Key) -> Record | None: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


class SourceInThread(Source):
    """A blocking source, each call of which runs in a thread."""

    def __init__(self, source: BlockingSource) -> None:
        self._source = source

    async def threads(self) -> Sequence[SourceThread]:
        return await in_thread(self._source.threads)

    async def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        return await in_thread(lambda: self._source.checkpoints(thread_id))

    async def read(self, thread_id: str, key: Key) -> Record | None:
        return await in_thread(lambda: self._source.read(thread_id, key))

    async def ping(self) -> None:
        await in_thread(self._source.ping)

    async def aclose(self) -> None:
        await in_thread(self._source.close)


# -- URLs ------------------------------------------------------------------------------------------

EXPECTED = (
    "sqlite:///file (sqlite:////file for an absolute path), postgresql://..., mongodb-langgraph://... of "
    "langgraph-checkpoint-mongodb, or mongodb://... of deerflow-mongo"
)

_KINDS = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "postgresql+psycopg": "postgresql",
    "mongodb-langgraph": "langgraph_mongodb",
    "mongodb-langgraph+srv": "langgraph_mongodb",
    "mongodb": "deerflow_mongodb",
    "mongodb+srv": "deerflow_mongodb",
}
"""The scheme of a URL -> the module here that opens it."""


def printable(url: str) -> str:
    """The URL without its login and its options, which may hold passwords too."""
    return redacted(url).partition("?")[0]


async def open_source(url: str) -> Source:
    """The source at a URL; `$NAME` is read from the environment. Raises `StorageConfigError`."""
    url = with_environment({"--from": url})["--from"].strip()
    scheme, separator, _ = url.partition("://")
    kind = _KINDS.get(scheme.lower()) if separator else None
    if kind is None:
        given = f"{scheme}://..." if separator and re.fullmatch(r"[\w+.-]+", scheme) else "no URL"
        raise StorageConfigError(f"--from is {given}; expected {EXPECTED}")
    try:
        importlib.import_module("langgraph.checkpoint.base")
    except ImportError as error:
        raise MissingDependencyError("copying checkpoints", "langgraph-checkpoint", "checkpointer") from error
    return await importlib.import_module(f".{kind}", __package__).open_url(url)


def library(module: str, package: str, extra_install: str = "") -> Any:
    """Another saver's library. Raises `StorageConfigError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StorageConfigError(
            f"--from needs {package}, which is not installed or cannot be imported ({error}). "
            f"Install it with: pip install {package}{extra_install}"
        ) from error
