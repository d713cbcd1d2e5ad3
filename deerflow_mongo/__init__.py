"""MongoDB storage for DeerFlow: runs, feedback, threads and run events, every write one atomic operation.

The public names, nothing else. Importing this package imports no database driver; what needs one is loaded
when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from .actor import (
    AUTO,
    ActorContext,
    bind_actor_context,
    get_actor_context,
    reset_actor_context,
    resolve_user_id,
)
from .errors import (
    BackendNotFoundError,
    InvalidPayloadError,
    MissingDependencyError,
    PayloadTooLargeError,
    RunExistsError,
    StorageAccessError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
    ThreadExistsError,
    UserExistsError,
)
from .observer import LifecycleEvent, LifecycleEventType, StorageRunObserver
from .protocols import (
    FeedbackStore,
    RunDeleteRepository,
    RunEventStore,
    RunLifecycleEvent,
    RunObserver,
    RunReadRepository,
    RunStore,
    RunWriteRepository,
    Storage,
    ThreadMetaRepository,
    ThreadMetaStorage,
    ThreadStore,
    TokenUsageRepository,
)
from .rows import (
    FeedbackRow,
    FeedbackTotals,
    ModelTokenUsage,
    RunCompletionFields,
    RunCreateFields,
    RunEventFields,
    RunEventRow,
    RunRow,
    RunStatusUpdateFields,
    ThreadMeta,
    ThreadMetaCreate,
    TokenUsage,
    UserRow,
)

if TYPE_CHECKING:
    from .config import MongoConfig, load_config
    from .factory import create_storage
    from .storage import MongoStorage

_LAZY = {
    "MongoConfig": ".config",
    "load_config": ".config",
    "create_storage": ".factory",
    "MongoStorage": ".storage",
}

__all__ = [
    "AUTO",
    "ActorContext",
    "BackendNotFoundError",
    "FeedbackRow",
    "FeedbackStore",
    "FeedbackTotals",
    "InvalidPayloadError",
    "LifecycleEvent",
    "LifecycleEventType",
    "MissingDependencyError",
    "ModelTokenUsage",
    "MongoConfig",
    "MongoStorage",
    "PayloadTooLargeError",
    "RunCompletionFields",
    "RunCreateFields",
    "RunDeleteRepository",
    "RunEventFields",
    "RunEventRow",
    "RunEventStore",
    "RunExistsError",
    "RunLifecycleEvent",
    "RunObserver",
    "RunReadRepository",
    "RunRow",
    "RunStatusUpdateFields",
    "RunStore",
    "RunWriteRepository",
    "Storage",
    "StorageAccessError",
    "StorageConfigError",
    "StorageError",
    "StorageRunObserver",
    "StorageUnavailableError",
    "ThreadExistsError",
    "ThreadMeta",
    "ThreadMetaCreate",
    "ThreadMetaRepository",
    "ThreadMetaStorage",
    "ThreadStore",
    "TokenUsage",
    "TokenUsageRepository",
    "UserExistsError",
    "UserRow",
    "bind_actor_context",
    "create_storage",
    "get_actor_context",
    "load_config",
    "reset_actor_context",
    "resolve_user_id",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)
