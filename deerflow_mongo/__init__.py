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
    UserId,
    bind_actor_context,
    get_actor_context,
    reset_actor_context,
    resolve_user_id,
)
from .contract.bulk_rows import BulkRows, Imported, RefusedRow
from .contract.capabilities import (
    Accounts,
    Checkpointing,
    Following,
    LimitedPayloads,
    RunOwnership,
    UserStore,
)
from .contract.erasure import Erased, Erasure
from .contract.errors import (
    ActiveRunError,
    ActorMissingError,
    ArgumentTypeError,
    ArgumentValueError,
    BackendNotFoundError,
    CorruptDocumentError,
    IdempotencyKeyError,
    InvalidArgumentError,
    InvalidPayloadError,
    MissingDependencyError,
    PayloadTooLargeError,
    RunExistsError,
    StorageAccessError,
    StorageClosedError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
    ThreadAccessError,
    ThreadExistsError,
    UserExistsError,
)
from .contract.factory import create_storage, load_config
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
    UNSET,
    FeedbackRow,
    FeedbackTotals,
    LeaseRenewal,
    ModelTokenCounts,
    ModelTokenUsage,
    RunCompletionFields,
    RunCreateFields,
    RunEventFields,
    RunEventRow,
    RunRow,
    RunStatusUpdateFields,
    StatusFinalization,
    ThreadMeta,
    ThreadMetaCreate,
    ThreadOperation,
    TokenUsage,
    UserRow,
)

if TYPE_CHECKING:
    from .mongodb.config import MongoConfig
    from .mongodb.embedded import EmbeddedServer, start_embedded
    from .mongodb.storage import MongoStorage

_LAZY = {
    "EmbeddedServer": ".mongodb.embedded",
    "MongoConfig": ".mongodb.config",
    "MongoStorage": ".mongodb.storage",
    "start_embedded": ".mongodb.embedded",
}

__all__ = [
    "AUTO",
    "UNSET",
    "Accounts",
    "ActiveRunError",
    "ActorContext",
    "ActorMissingError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "BackendNotFoundError",
    "BulkRows",
    "Checkpointing",
    "CorruptDocumentError",
    "EmbeddedServer",
    "Erased",
    "Erasure",
    "FeedbackRow",
    "FeedbackStore",
    "FeedbackTotals",
    "Following",
    "IdempotencyKeyError",
    "Imported",
    "InvalidArgumentError",
    "InvalidPayloadError",
    "LeaseRenewal",
    "LifecycleEvent",
    "LifecycleEventType",
    "LimitedPayloads",
    "MissingDependencyError",
    "ModelTokenCounts",
    "ModelTokenUsage",
    "MongoConfig",
    "MongoStorage",
    "PayloadTooLargeError",
    "RefusedRow",
    "RunCompletionFields",
    "RunCreateFields",
    "RunDeleteRepository",
    "RunEventFields",
    "RunEventRow",
    "RunEventStore",
    "RunExistsError",
    "RunLifecycleEvent",
    "RunObserver",
    "RunOwnership",
    "RunReadRepository",
    "RunRow",
    "RunStatusUpdateFields",
    "RunStore",
    "RunWriteRepository",
    "StatusFinalization",
    "Storage",
    "StorageAccessError",
    "StorageClosedError",
    "StorageConfigError",
    "StorageError",
    "StorageRunObserver",
    "StorageUnavailableError",
    "ThreadAccessError",
    "ThreadExistsError",
    "ThreadMeta",
    "ThreadMetaCreate",
    "ThreadMetaRepository",
    "ThreadMetaStorage",
    "ThreadOperation",
    "ThreadStore",
    "TokenUsage",
    "TokenUsageRepository",
    "UserExistsError",
    "UserId",
    "UserRow",
    "UserStore",
    "bind_actor_context",
    "create_storage",
    "get_actor_context",
    "load_config",
    "reset_actor_context",
    "resolve_user_id",
    "start_embedded",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
