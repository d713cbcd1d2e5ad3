"""MongoDB storage for DeerFlow: runs, feedback, threads and run events, every write one atomic operation.

The public names, nothing else. Importing this package imports no database driver; what needs one is loaded
when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from .contract.actor import (
    AUTO,
    ActorContext,
    bind_actor_context,
    get_actor_context,
    reset_actor_context,
    resolve_user_id,
)
from .contract.errors import (
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
from .contract.observer import LifecycleEvent, LifecycleEventType, StorageRunObserver
from .contract.protocols import (
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
from .contract.rows import (
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
    from .contract.factory import create_storage
    from .mongodb.config import MongoConfig, load_config
    from .mongodb.storage import MongoStorage

_LAZY = {
    "MongoConfig": ".mongodb.config",
    "load_config": ".mongodb.config",
    "create_storage": ".contract.factory",
    "MongoStorage": ".mongodb.storage",
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
