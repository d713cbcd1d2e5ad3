"""DeerFlow's app layer on our storage: what its registrar puts on `app.state`, under the registrar's names.

This is the layout in which `app.infra.storage` adapts the repositories of a `store` package. Such a host
registers `storage_lifespan(config)` with its lifespan manager, instead of its own persistence on SQL:

    lifespan_manager.register(storage_lifespan(load_config("config.yaml")))

Nothing of DeerFlow or FastAPI is imported here. DeerFlow's released gateway is another host: `gateway.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

from ..contract.capabilities import Checkpointing, require_capabilities
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from .encodable import EncodableStore

AppState: TypeAlias = dict[str, Any]
"""A plain dict: that is what the host's lifespan manager looks for."""

StorageLifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[AppState]]
"""Takes the app, as the host's lifespan manager calls it."""

_NEEDED_BY: Final = "DeerFlow's app layer without a `checkpointer=` of LangGraph's, such as InMemorySaver(),"


@dataclass(slots=True)
class Persistence:
    """The host's persistence bundle; its routes take the checkpointer from here.

    There is no SQL engine. Code of the host that opens SQL sessions itself, its accounts above all, answers
    that the database is not available, unless the host sets a `session_factory`.
    """

    checkpointer: Any
    setup: Callable[[], Awaitable[None]]
    aclose: Callable[[], Awaitable[None]]
    engine: Any = None
    session_factory: Any = None


async def app_state(storage: Storage, *, checkpointer: Any = None) -> AppState:
    """Everything that the host's registrar puts on `app.state`, over a storage that is set up.

    The checkpointer is the storage's own unless one is given; a given one is neither set up nor closed.
    Raises `StorageConfigError` if none is given and the storage has none. The runs are one object under four
    names, the threads under two; `search_threads` defaults to the current actor under both. What the stores
    return can always be sent as JSON: a lone surrogate in a text is replaced.
    """
    if checkpointer is None:
        require_capabilities(storage, _NEEDED_BY, Checkpointing)
        checkpointer = await cast("Checkpointing", storage).checkpointer()
    persistence = Persistence(checkpointer, storage.setup, storage.aclose)
    runs, threads = EncodableStore.of(storage.runs), EncodableStore.of(storage.threads)
    return {
        "persistence": persistence,
        "checkpointer": persistence.checkpointer,
        "store": None,
        "session_factory": persistence.session_factory,
        "run_store": runs,
        "run_read_repo": runs,
        "run_write_repo": runs,
        "run_delete_repo": runs,
        "feedback_repo": EncodableStore.of(storage.feedback),
        "thread_meta_repo": threads,
        "thread_meta_storage": threads,
        "run_event_store": EncodableStore.of(storage.run_events),
    }


def storage_lifespan(config: Mapping[str, Any], *, checkpointer: Any = None) -> StorageLifespan:
    """What the host's lifespan manager registers: the app's state for as long as the app runs.

    `config` is what `create_storage` takes; it is read when the app starts. The storage is opened and set up
    then, and closed when the app ends, or when something that is started after it fails. Every start opens a
    new storage. `checkpointer` is as in `app_state`.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[AppState]:
        async with create_storage(config) as storage:
            yield await app_state(storage, checkpointer=checkpointer)

    return lifespan
